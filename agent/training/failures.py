"""Names what ended a visit: the reason that says who can mend it, and the facts that may be told."""

import errno
import traceback
from pathlib import Path

import torch

from fedcybgd.agent.messages import Facts, TrainerEvent
from fedcybgd.agent.training.errors import DeviceMissing, DiskFilled, NonFinite, OptimizerMissing, PolicyBroken
from fedcybgd.agent.training.shards import ShardCorrupt
from fedcybgd.shared.contract.assignments import Progress, ReturnReason
from fedcybgd.shared.contract.errors import DataAway, DataError, HeaderError, PartitionError
from fedcybgd.shared.files.configuration import ModelUnknown
from fedcybgd.shared.files.disk import WORDS, disk_reason
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.host.exhausted import NO_MEMORY
from fedcybgd.shared.models.layers import AssemblyError
from fedcybgd.shared.models.tokens import TokenizerUnusable
from fedcybgd.shared.tensors.codecs import CodecError

PACKAGES = Path(__file__).parents[2]
KINDS: tuple[tuple[tuple[type[BaseException], ...], ReturnReason], ...] = (
    ((NonFinite,), "non_finite_loss"),
    ((PolicyBroken,), "policy_refused"),
    ((DiskFilled,), "disk_limit"),
    ((DataAway,), "other"),
    ((DataError,), "data_invalid"),
    ((ShardCorrupt, PackedError, CodecError, HeaderError), "shard_corrupt"),
    ((AssemblyError, PartitionError, ModelUnknown, TokenizerUnusable), "model_mismatch"),
    ((OptimizerMissing, DeviceMissing), "other"),
    ((MemoryError,), "out_of_memory"),
)
LOST = ("cuda error", "cuda driver error", "cublas_status", "cudnn_status")
"""What torch says of a card on which every later call of the same process fails, too."""
READ_ONLY = ("read-only file system", "permission denied", "input/output error", "os error 30", "os error 13", "os error 5)")


def failure_of(error: BaseException, at: Progress | None) -> TrainerEvent:
    """The event of a visit that failed while it was at `at`. Anything that is nobody's mistake but ours is a `bug`, with its place."""
    reason = reason_of(error)
    training = at is not None and at.phase == "training"
    facts = Facts(
        error=type(error).__name__, place=place_of(error) if reason in ("bug", "other", "model_mismatch") else None,
        phase=at.phase if at is not None else None, step=at.step if at is not None and training else None,
    )  # fmt: skip
    if isinstance(error, DataError):
        row, field = error.detail.get("row", error.detail.get("line")), error.detail.get("field")
        facts = facts.model_copy(update={"row": row if isinstance(row, int) else None, "field": field if isinstance(field, str) else None})
    said = str(error) if isinstance(error, PolicyBroken | DiskFilled) else f"{type(error).__name__}: {error}"
    return TrainerEvent(event="failed", reason=reason, message=said[:1500], facts=facts, spoilt=is_spoilt(error))


def reason_of(error: BaseException) -> ReturnReason:
    for kinds, reason in KINDS:
        if isinstance(error, kinds):
            return reason
    if isinstance(error, OSError) and error.errno is not None:
        if (disk := disk_reason(error)) is not None:
            return disk
        if error.errno == errno.ENOMEM:
            return "out_of_memory"
    # Libraries say it in words: safetensors has a class of its own, torch a RuntimeError.
    text = str(error).lower()
    for words, reason in ((NO_MEMORY, "out_of_memory"), (LOST, "other"), (WORDS, "disk_full"), (READ_ONLY, "disk_unwritable")):
        if any(word in text for word in words):
            return reason
    return "bug"


def is_spoilt(error: BaseException) -> bool:
    """Whether only a fresh process can do better: one that has lost its card, or has found none, never finds it again."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, DeviceMissing) or any(word in str(error).lower() for word in LOST)


def place_of(error: BaseException) -> str | None:
    """The last line of our own that the error came through, as in agent/training/data.py:31."""
    ours = [
        f"{Path(frame.filename).relative_to(PACKAGES)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename).is_relative_to(PACKAGES / package) for package in ("agent", "shared"))
        and Path(frame.filename).name != "trainer.py"
    ]
    return ours[-1] if ours else None
