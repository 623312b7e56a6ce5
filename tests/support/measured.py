"""Tiny models of every family in a store, with rows to measure them on."""

import random
from pathlib import Path
from typing import Any

from tests.support.families import DECODER, GPT2, TEXT, TINY, config_of, make

ROWS = 9
LARGER = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
WIDE = {
    "bert": ("text-classification", make("BertConfig", "BertForSequenceClassification", **TINY | LARGER, num_labels=3)),
    "gpt2": ("causal-lm", make("GPT2Config", "GPT2LMHeadModel", **GPT2 | {"n_embd": 64, "n_head": 4})),
    "llama": (
        "causal-lm",
        make("LlamaConfig", "LlamaForCausalLM", **DECODER | LARGER | {"num_key_value_heads": 2}, tie_word_embeddings=False),
    ),
}
"""Wide enough that their matrices are worth quantizing."""


class Measured:
    """A random model of `family`, cut into exact shards, and everything that a measurement's payload asks for."""

    def __init__(self, family: str, folder: Path, layers: int = 3, per_block: int = 1, wide: bool = False) -> None:
        import torch

        from fedcybgd.coordinator.domain.jobs.measurements import HeldOutRef
        from fedcybgd.coordinator.engine.shards import write_blob, write_json
        from fedcybgd.coordinator.storage import open_store
        from fedcybgd.shared.contract.manifests import FileRef
        from fedcybgd.shared.models.blocks import own_tensors, partition
        from fedcybgd.shared.models.families import base_prefix, canonical
        from tests.support.models import word_piece

        self.task: Any
        self.task, build = (WIDE if wide else TEXT)[family]
        self.model = build(layers)
        self.model.resize_token_embeddings(100)  # room for the tokenizer's
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.model.parameters():  # zeros and ones would hide a tensor that was not put in
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        self.store = open_store(folder / "blobs")
        prefix = base_prefix(self.model)
        tensors = {canonical(name, prefix): t.detach() for name, t in own_tensors(self.model).items()}
        self.specs = partition(self.model, per_block)
        self.blocks = [self.shard(spec.name, {t.name: tensors[t.name] for t in spec.tensors}) for spec in self.specs]
        (folder / "tokenizer").mkdir()
        word_piece(folder / "tokenizer")
        self.files = [write_json(self.store, "config.json", config_of(self.model))]
        for path in sorted((folder / "tokenizer").iterdir()):
            digest, size = write_blob(self.store, path.read_bytes())
            self.files.append(FileRef(name=path.name, digest=digest, size=size))
        digest, _ = write_blob(self.store, _rows().encode())
        self.held_out = HeldOutRef(digest=digest, name="held_out.csv", columns={})

    def shard(self, block: str, tensors: dict[str, Any], codec: str = "exact") -> Any:
        """A stored shard of these tensors, which are in the form that `codec` stores."""
        from safetensors.torch import save

        from fedcybgd.coordinator.engine.shards import write_blob
        from fedcybgd.shared.contract.manifests import ShardRef

        contiguous = {name: t.detach().clone().contiguous() for name, t in tensors.items()}
        digest, size = write_blob(self.store, save(contiguous, {"codec": codec}))
        return ShardRef(block=block, version=0, codec=codec, digest=digest, size=size)

    def encoded(self, block: str, codec: str) -> Any:
        """The block in a lossy codec, as the coordinator encodes it."""
        from fedcybgd.shared.models.assembly import read_shard
        from fedcybgd.shared.models.pruning import prune_block
        from fedcybgd.shared.tensors.codecs import encode_tensor

        exact = next(ref for ref in self.blocks if ref.block == block)
        tensors = read_shard(self.store.path(exact.digest))
        if codec.startswith("pruned"):
            return self.shard(block, prune_block(self.model, tensors, int(codec.partition(":")[2])), codec)
        stored = {}
        for name, tensor in tensors.items():
            stored |= encode_tensor(name, tensor, codec)
        return self.shard(block, stored, codec)

    def payload(self, rows: int = ROWS) -> dict[str, Any]:
        labels = self.model.config.num_labels if self.task == "text-classification" else None
        return {
            "task": self.task, "num_labels": labels, "label_names": None, "max_length": 12, "files": self.files, "blocks": self.blocks,
            "held_out": self.held_out, "rows": rows,
        }  # fmt: skip


def _rows() -> str:
    # Of unlike lengths, so that there is padding.
    source = random.Random(5)
    lines = ["text,label"]
    for index in range(ROWS):
        lines.append(" ".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=2 + index)) + f",{index % 3}")
    return "\n".join(lines) + "\n"
