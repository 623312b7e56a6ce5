"""A Llama-shaped model with random weights, as shards on a disk in any codec, and the request of a visit that trains in it."""

import functools
import json
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from fedcybgd.agent.messages import DataSource, LocalShard, TrainRequest
from fedcybgd.agent.training.data import Partition
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.training import ParameterGroup, TrainSettings


class Shape(BaseModel):
    layers: int
    hidden: int
    inner: int
    vocabulary: int = 32_000
    tokens: int = 256
    batch: int = 4
    rows: int = 8
    head_dim: int = 64

    @property
    def blocks(self) -> list[str]:
        return ["embeddings", *(f"layers.{i}" for i in range(self.layers)), "norm", "head"]


def config_of(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "hidden_size": shape.hidden,
        "intermediate_size": shape.inner, "num_hidden_layers": shape.layers, "num_attention_heads": shape.hidden // shape.head_dim,
        "num_key_value_heads": shape.hidden // shape.head_dim, "vocab_size": shape.vocabulary, "max_position_embeddings": max(2048, shape.tokens),
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip


def write(folder: Path, shape: Shape, codecs: list[str], device: str = "cpu", exact: Collection[str] | None = None) -> None:
    """Write `codec`/`block`.safetensors for every block and codec, the files of the model, and rows; one block in memory at a time.

    Weights are drawn and encoded on `device`. Where `exact` is given, only these blocks are written exact, too.
    """
    from safetensors.torch import save_file

    from fedcybgd.shared.models.assembly import skeleton
    from fedcybgd.shared.models.blocks import partition
    from fedcybgd.shared.tensors.codecs import encode_tensor

    (folder / "files").mkdir(parents=True)
    (folder / "files" / "config.json").write_text(json.dumps(config_of(shape)))
    _write_tokenizer(folder / "files", shape.vocabulary)
    words = random.Random(1)
    text = " ".join(f"w{words.randrange(2, shape.vocabulary)}" for _ in range(shape.rows * shape.tokens))
    (folder / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    generator = torch.Generator(device).manual_seed(1)
    for codec in codecs:
        (folder / codec).mkdir()
    for block in partition(skeleton(config_of(shape), "causal-lm")):
        tensors = {
            t.name: torch.randn(t.shape, generator=generator, device=device) * 0.02 if len(t.shape) > 1 else torch.ones(t.shape)
            for t in block.tensors
        }
        for codec in codecs:
            if codec == "exact" and exact is not None and block.name not in exact:
                continue
            stored = {n: t.cpu() for name, tensor in tensors.items() for n, t in encode_tensor(name, tensor, codec).items()}
            save_file(stored, folder / codec / f"{block.name}.safetensors", {"codec": codec})


def request(folder: Path, shape: Shape, opened: list[str], codec: str, **settings: Any) -> TrainRequest:
    """A visit that trains `opened` (exact), with all other blocks in `codec`."""
    shards = []
    for block in shape.blocks:
        kind = "exact" if block in opened else codec
        path = folder / kind / f"{block}.safetensors"
        shards.append(LocalShard(block=block, digest=_digest(path), codec=kind, path=str(path), size=path.stat().st_size))
    values = {"steps": 3, "batch_size": shape.batch, "max_length": shape.tokens, "seed": 0, "precision": "float32"} | settings
    train = TrainSettings(task="causal-lm", groups=[ParameterGroup(blocks=opened, learning_rate=1e-4)], **values)
    return TrainRequest(
        assignment_id="benchmark", files={p.name: str(p) for p in (folder / "files").iterdir()}, model_key="benchmark", shards=shards,
        train=train, data=DataSource(path=str(folder / "rows.jsonl")), delta_path=str(folder / "delta.safetensors"),
    )  # fmt: skip


@functools.cache
def _digest(path: Path) -> str:
    return digest_of_file(path)


def full_fine_tuning(folder: Path, shape: Shape, steps: int, precision: torch.dtype) -> "FullFineTuning":
    return FullFineTuning(folder, shape, steps, precision)


class FullFineTuning:
    """The usual way: the whole model in float32, AdamW over all of it, nothing saved."""

    def __init__(self, folder: Path, shape: Shape, steps: int, precision: torch.dtype) -> None:
        from fedcybgd.shared.models.assembly import Assembled, read_shard, skeleton

        assembled = Assembled(skeleton(config_of(shape), "causal-lm"))
        for block in shape.blocks:
            assembled.put({name: tensor.clone() for name, tensor in read_shard(folder / "exact" / f"{block}.safetensors").items()})
        self.model = assembled.model
        self.model.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        wanted = request(folder, shape, [], "exact", steps=steps)
        self.partition = Partition(wanted.data, folder / "files", wanted.train)
        self.precision = precision

    def step(self, indices: list[int]) -> float:
        from fedcybgd.shared.models.batches import forward_logits, loss_sum

        batch = self.partition.batch(indices)
        with torch.autocast("cpu", dtype=self.precision, enabled=self.precision != torch.float32):
            logits = forward_logits(self.model, batch)
        total, count = loss_sum(logits, batch, "causal-lm")
        del logits
        loss = total / count
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def _write_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1} | {f"w{i}": i for i in range(2, size)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
