"""What a visit computes with: a device, and the type that matrices are multiplied in."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from fedcybgd.agent.training.errors import DeviceMissing
from fedcybgd.shared.contract.words import Precision


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
            f"torch {torch.__version__} finds no {wanted} here: set device.kind to auto, or install the driver and a torch for it"
        )
    return wanted


def choose_precision(wanted: Precision, device: str) -> torch.dtype:
    """bfloat16 where the device multiplies in it natively (about five times faster on such CPUs), else float32."""
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
