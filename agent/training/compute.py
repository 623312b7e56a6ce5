"""What a visit computes with: a device, and the type that matrices are multiplied in."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from fedcybgd.agent.training.errors import DeviceMissing
from fedcybgd.shared.contract.words import Precision

DRIVERS_OWN = 800_000_000
"""Bytes that a process takes of a card beside what it allocates: the driver's context, and the kernels that were loaded."""
ONLY_FLOAT32 = ("deberta",)
"""Families whose code in transformers masks with the least float32, which bfloat16 does not hold"""
NO_ORDER = "does not have a deterministic implementation"
"""What torch says of an operation that adds up in any order."""


@dataclass(frozen=True)
class Compute:
    device: str
    precision: torch.dtype

    def autocast(self) -> AbstractContextManager[None]:
        """Within it matrices are multiplied in `precision`."""
        return torch.autocast(self.device, dtype=self.precision, enabled=self.precision != torch.float32)


def choose_device(wanted: str) -> str:
    """The torch device for `auto`, `cpu`, `cuda` or `mps`. Raises `DeviceMissing` for one that torch cannot use here."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device, there in usable.items() if there)
    if not usable[wanted]:
        raise DeviceMissing(
            f"torch {torch.__version__} finds no {wanted} here{_why(wanted)}: set device.kind to auto, or install the driver and a torch for it"
        )
    return wanted


def _why(wanted: str) -> str:
    """What the driver says, where there is one that does not work."""
    try:
        if wanted == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f" ({str(error).splitlines()[0]})"
    return ""


def choose_precision(wanted: Precision, device: str, family: object = None) -> torch.dtype:
    """bfloat16 where the device multiplies in it natively (about five times faster on such CPUs), else float32.

    `family`: the model_type of a model; those of `ONLY_FLOAT32` get float32, whatever is wanted.
    """
    if family in ONLY_FLOAT32:
        return torch.float32
    if wanted == "auto":
        if device == "cuda":
            native = torch.cuda.is_bf16_supported()
        elif device == "cpu":
            features = torch.cpu.get_capabilities()
            native = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
        else:
            native = False
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def precision_name(device: str) -> str:
    """What `auto` is here: float32 or bfloat16."""
    return str(choose_precision("auto", device)).removeprefix("torch.")


def limit_card(limit: int) -> None:
    """Let this process take at most `limit` bytes of the card, the driver's own among them; what is beyond is `torch.OutOfMemoryError`."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, limit - DRIVERS_OWN) / total))


def repeat_exactly(device: str, wherever_possible: bool = False) -> None:
    """Have the same visit give the same bits again on the same kind of card, as it does on a CPU: sums are added up in one order.

    What torch has in no such version raises a RuntimeError that says NO_ORDER, or is computed all the same: `wherever_possible`.
    """
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
        torch.use_deterministic_algorithms(True, warn_only=wherever_possible)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # we read nothing that was not written


def warm_up(device: str) -> None:
    """Import what the first step would import (classes of models and tokenizers, the optimizer's machinery): seconds on a slow disk."""
    import transformers

    for name in (
        "AutoTokenizer",
        "AutoModelForSequenceClassification",
        "AutoModelForCausalLM",
        "BertForSequenceClassification",
        "LlamaForCausalLM",
    ):
        getattr(transformers, name)
    weight = torch.nn.Parameter(torch.zeros(8, 8, device=device))
    optimizer = torch.optim.AdamW([weight], fused=device in ("cpu", "cuda"))
    torch.nn.functional.linear(torch.ones(8, 8, device=device), weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    optimizer.step()
