"""What `method: whole` makes of a model is, to the bit, what FedAvg in plain torch makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from benchmarks import reference
from fedcybgd.agent.training.visitor import Visitor
from tests.e2e.conftest import write_rows
from tests.support import fedavg
from tests.support.models import word_piece


def classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=64, num_labels=2)).save_pretrained(folder)
    word_piece(folder)
    return folder


@pytest.mark.parametrize("nesterov", [None, False, True])
def test_equal_to_plain_torch(tmp_path: Path, nesterov: bool | None) -> None:
    model = classifier(tmp_path / "model")
    partitions = [write_rows(tmp_path / f"rows-{i}.jsonl", i, count) for i, count in enumerate((40, 9, 23))]
    values: dict[str, Any] = {
        "name": "r", "model": "m", "method": "whole", "task": {"kind": "text-classification", "labels": 2, "max_length": 16},
        "whole": {} if nesterov is None else {"outer": {"learning_rate": 0.7, "momentum": 0.9, "nesterov": nesterov}},
        "schedule": {"cycles": 2 if nesterov is None else 3}, "delta": {"codec": "float32"}, "seed": 3,
        "train": {"epochs": 1.0, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "max_grad_norm": None, "precision": "float32",
                  "label_skew": "none"},
    }  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = reference.begin(tmp_path / "ours", model, values)
        # Rows of embeddings that do not occur are trained by nobody but plain torch, whose sums over the others run in another order.
        reference.run(ours, partitions, tmp_path / "scratch", visitors=[Visitor("cpu", whole_tables=True) for _ in partitions])
        wanted = fedavg.train(model, partitions, values, rounds=values["schedule"]["cycles"])
    finally:
        torch.set_num_threads(threads)
    base = load_file(model / "model.safetensors")
    found = {name: tensor for block in ours.blocks for name, tensor in load_file(ours.store.path(block.digest)).items()}
    assert len(found) >= len(wanted) == len(base)
    for name, tensor in wanted.items():
        mine = next(t for n, t in found.items() if name.removeprefix("bert.") == n or name == n)
        assert torch.equal(mine, tensor), f"{name}: {(mine - tensor).abs().max()} apart"
        assert not torch.equal(mine, base[name]) or "position_embeddings" in name
