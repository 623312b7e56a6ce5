"""Where an engine measures: on its processor, or on a card. Weights are made on the processor alone, which makes the same bits everywhere."""

import torch

from fedcybgd.coordinator.errors import Invalid

CPU = "cpu"
ON_A_CARD = 8
"""Times as many tokens go through a model at once there: fewer would leave it waiting for the weights of the next layer."""


class CardMissing(Invalid):
    """Torch cannot use that device on this machine."""

    code = "device_missing"


class _Chosen:
    device = CPU


def measure_on(device: str) -> None:
    """From now on in this process. Raises `CardMissing`, and goes on with what it was."""
    if device != CPU:
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise CardMissing(f"torch {torch.__version__} cannot compute on {device} here: {str(error).splitlines()[0]}") from error
        # What is measured is compared with what was measured before it, perhaps on another machine: products stay those of float32.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    _Chosen.device = device


def chosen() -> str:
    return _Chosen.device


def tokens_at_once(on_a_processor: int) -> int:
    return on_a_processor if _Chosen.device == CPU else ON_A_CARD * on_a_processor
