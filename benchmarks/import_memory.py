"""How much memory the import of a model takes: a random Llama-shaped checkpoint of more than 2 GB, split into blocks.

    python -m benchmarks.import_memory [--json FILE]

The checkpoint is written tensor by tensor, and imported in a fresh process. Its peak counts beyond what that process held
with torch and the engine imported. Importing a tiny model in the same way gives the constant: the model's code, its skeleton
without weights, the tokenizer.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from benchmarks.report import arguments, finish
from fedcybgd.shared.files.safetensors_header import pack_header, tensor_nbytes

LARGE = {
    "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4,
}  # fmt: skip
TINY = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
FILES = 4
CHUNK = 1 << 20
BELOW_TWO = int.from_bytes(b"\xff\xbf" * (CHUNK // 2), "little")
"""Clears the highest bit of the exponents of little-endian bfloat16 numbers: all finite, below 2."""


class Imported(BaseModel):
    peak: int
    blocks: dict[str, int]


def write_checkpoint(folder: Path, sizes: dict[str, int], numbers: Callable[[str, int], Iterator[bytes]] | None = None) -> int:
    """A bfloat16 LlamaForCausalLM in several files with an index, as transformers saves one; returns its bytes.

    `numbers` gives so many bytes for the tensor of a name; without it they are `noise`.
    """
    from fedcybgd.shared.models.assembly import names_by_canonical, skeleton

    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "tie_word_embeddings": False, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    model = skeleton(config, None)
    tensors = [(name, "BF16", tuple(model.get_parameter(name).shape)) for name in names_by_canonical(model).values()]
    share = -(-len(tensors) // FILES)
    places = {}
    for i in range(FILES):
        name = f"model-{i + 1:05}-of-{FILES:05}.safetensors"
        part = tensors[i * share : (i + 1) * share]
        with (folder / name).open("wb") as file:
            file.write(pack_header(part))
            for tensor, dtype, shape in part:
                places[tensor] = name
                for chunk in (numbers or noise)(tensor, tensor_nbytes(dtype, shape)):
                    file.write(chunk)
    total = sum(tensor_nbytes(dtype, shape) for _, dtype, shape in tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return total


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))


def noise(seed: str, size: int) -> Iterator[bytes]:
    source = random.Random(seed)
    while size > 0:
        chunk = (int.from_bytes(source.randbytes(CHUNK), "little") & BELOW_TWO).to_bytes(CHUNK, "little")
        yield chunk[:size]
        size -= CHUNK


def import_in_a_fresh_process(source: Path, store: Path) -> Imported:
    done = subprocess.run([sys.executable, "-m", __spec__.name, "--import", str(source), str(store)], check=True, stdout=subprocess.PIPE)
    return Imported.model_validate_json(done.stdout)


def import_here(source: Path, store: Path) -> Imported:
    """The import as the engine's process does it, and its peak beyond the state before."""
    from fedcybgd.agent.training.memory import PeakMemory, resident
    from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload
    from fedcybgd.coordinator.engine.entries import warm_up
    from fedcybgd.coordinator.engine.import_model import import_model
    from fedcybgd.coordinator.storage import open_store

    warm_up(1)
    memory = PeakMemory("cpu", resident())
    result = import_model(open_store(store), ImportPayload(source=str(source)))
    return Imported(peak=memory.peak(), blocks={block.name: block.size for block in result.blocks})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--import", dest="here", nargs=2, type=Path, metavar=("SOURCE", "STORE"), help="used by the benchmark itself")
    parser.add_argument("--folder", type=Path, help="where there is room for 5 GB; default: the system's directory of temporary files")
    options = parser.parse_args()
    if options.here:
        print(import_here(*options.here).model_dump_json())
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 6e9:
            raise SystemExit(f"{folder} has less than 6 GB free; name another directory with --folder")
        write_checkpoint(folder / "tiny", TINY)
        constant = import_in_a_fresh_process(folder / "tiny", folder / "tiny-store").peak / 1e6
        size = write_checkpoint(folder / "large", LARGE)
        imported = import_in_a_fresh_process(folder / "large", folder / "large-store")
    assert size >= 2e9
    assert sum(imported.blocks.values()) >= size, "the blocks do not hold all of the model"
    largest = max(imported.blocks.values())
    print(f"constant (a tiny model, imported in the same way): {constant:.0f} MB")
    print(
        f"a model of {size / 1e6:.0f} MB in {len(imported.blocks)} blocks, the largest of {largest / 1e6:.0f} MB: {imported.peak / 1e6:.0f} MB"
    )
    print(f"allowed: three times the largest block and the constant, {3 * largest / 1e6 + constant:.0f} MB")
    figures = {"peak_mb": imported.peak / 1e6, "largest_block_mb": largest / 1e6, "model_mb": size / 1e6}
    finish(figures, {"peak_mb": 3 * largest / 1e6 + constant}, options.json)


if __name__ == "__main__":
    main()
