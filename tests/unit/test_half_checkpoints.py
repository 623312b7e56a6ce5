"""A checkpoint that is stored in half precision trains to the bit as one that holds the same values in float32."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.training import Home, same, train

SAVINGS = {"chunked_logits": "on", "prefix_cache": "memory", "checkpointing": "on"}


def store_in(home: Home, dtype: torch.dtype) -> None:
    """The exact shards hold values that bfloat16 has, stored in `dtype`."""
    for block in home.blocks:
        path = home.path(block, "exact")
        tensors = load_file(path)
        rounded = {name: t.to(torch.bfloat16).to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        save_file(rounded, path, {"codec": "exact"})


WAYS = [("exact", "float32"), ("int8", "bfloat16")]
"""A family that needs both is asked for the other two as well: what is decoded, and what is computed in."""


@pytest.mark.parametrize(
    ("family", "codec", "precision"),
    [
        *((family, *way) for family in ("gpt2", "opt", "llama-untied", "bert", "deberta") for way in WAYS),
        ("gpt2", "exact", "bfloat16"), ("gpt2", "int8", "float32"),
    ],
)  # fmt: skip
def test_whatever_a_visit_saves_with_half_precision_stored_is_float32(
    tmp_path: Path, bert: Path, family: str, codec: str, precision: str
) -> None:
    homes = {}
    for name, dtype in {"half": torch.bfloat16, "full": torch.float32}.items():
        (tmp_path / name).mkdir()
        homes[name] = Home(tmp_path / name, bert, family)
        store_in(homes[name], dtype)
    last = "norm" if family not in ("bert", "deberta") else "head"
    for opened in (["embeddings", last], ["layers.0", last], ["layers.1"], [last]):
        half, full = (
            train(home.request(*opened, codec=codec, precision=precision, batch_size=8, epochs=2, steps=None), **SAVINGS)
            for home in homes.values()
        )
        assert same(half, full), opened
