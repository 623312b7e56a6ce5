"""A visit that fails names who can mend it, and facts; nothing of a row, and nothing dies of it."""

import errno
import io
import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from fedcybgd.agent import trainer
from fedcybgd.agent.assignment_run import visit_name
from fedcybgd.agent.failing import told_of, told_to_coordinator
from fedcybgd.agent.messages import TrainerEvent, TrainRequest
from fedcybgd.agent.training.compute import choose_device
from fedcybgd.agent.training.errors import DeviceMissing, NonFinite
from fedcybgd.agent.training.failures import reason_of
from fedcybgd.agent.training.order import num_steps
from fedcybgd.agent.training.shards import ShardCorrupt
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.shared.contract.assignments import LeasedAssignment, Progress
from fedcybgd.shared.contract.errors import DataAway, DataError, FedError
from fedcybgd.shared.contract.training import ParameterGroup
from fedcybgd.shared.contract.words import MOST_STEPS
from fedcybgd.shared.models.layers import AssemblyError
from tests.support import training
from tests.unit.test_outbox import assignment
from tests.unit.test_trainer_process import REQUEST

SECRET = "the patient's name"


class Failing(Visitor):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def visit(self, request: Any, report: Any, should_stop: Any) -> Any:
        report(Progress(phase="training", step=3, steps=9))
        raise self.error


def outcome(error: BaseException) -> TrainerEvent:
    return trainer._visit(lambda: Failing(error), REQUEST, io.StringIO(), lambda: False)


def os_error(number: int) -> OSError:
    return OSError(number, f"{SECRET}", "/home/x")


REASONS: list[tuple[BaseException, str]] = [
    (IndexError(SECRET), "bug"), (TypeError(SECRET), "bug"), (KeyError(SECRET), "bug"), (AttributeError(SECRET), "bug"),
    (AssertionError(SECRET), "bug"), (ZeroDivisionError(SECRET), "bug"), (RecursionError(SECRET), "bug"), (ValueError(SECRET), "bug"),
    (RuntimeError(SECRET), "bug"), (NotImplementedError(SECRET), "bug"), (StopIteration(SECRET), "bug"), (Exception(SECRET), "bug"),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, SECRET), "bug"), (SafetensorError(SECRET), "bug"), (ImportError(SECRET), "bug"),
    (os_error(errno.ENOENT), "bug"),
    (MemoryError(), "out_of_memory"), (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out_of_memory"), (RuntimeError("std::bad_alloc"), "out_of_memory"),
    (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), "out_of_memory"), (torch.AcceleratorError("CUDA error: device-side assert triggered"), "other"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"), "other"), (os_error(errno.ENOMEM), "out_of_memory"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "out_of_memory"),
    (os_error(errno.ENOSPC), "disk_full"), (os_error(errno.EDQUOT), "disk_full"), (os_error(errno.EFBIG), "disk_full"),
    (SafetensorError('Error: IoError(Os { code: 28, message: "No space left on device" })'), "disk_full"),
    (RuntimeError("PytorchStreamWriter failed: No space left on device"), "disk_full"),
    (SafetensorError("I/O error: Read-only file system (os error 30)"), "disk_unwritable"), (os_error(errno.EROFS), "disk_unwritable"),
    (os_error(errno.EACCES), "disk_unwritable"), (DataError("a row"), "data_invalid"), (DataAway("a share is away"), "other"),
    (NonFinite("the loss is nan"), "non_finite_loss"), (ShardCorrupt("x"), "shard_corrupt"),
    (AssemblyError("classifier.weight has shape [2, 8] in the shard, [5, 8] in the model"), "model_mismatch"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "reason"), REASONS, ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value
)
def test_every_error_has_a_reason_and_tells_no_secret(error: BaseException, reason: str) -> None:
    event = outcome(error)
    assert (event.event, event.reason) == ("failed", reason)
    assert event.facts is not None
    told = told_to_coordinator(reason, event.message, event.facts.text())
    assert SECRET not in told
    assert type(error).__name__ in told
    assert "step 3" in told
    assert told.endswith("the agent's own log says more")


def test_only_who_has_lost_the_card_is_spoilt() -> None:
    for error, spoilt in [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True), (RuntimeError("CUDA error: unknown error"), True),
        (DeviceMissing("torch finds no cuda here"), True), (torch.OutOfMemoryError("CUDA out of memory"), False), (RuntimeError(SECRET), False),
        (MemoryError(), False),
    ]:  # fmt: skip
        assert outcome(error).spoilt is spoilt, error


def test_a_bug_names_our_own_line() -> None:
    class Buggy(Failing):
        def visit(self, request: Any, report: Any, should_stop: Any) -> Any:
            num_steps(None, 1)  # type: ignore[arg-type]

    event = trainer._visit(lambda: Buggy(Exception()), REQUEST, io.StringIO(), lambda: False)
    assert event.facts is not None
    assert re.fullmatch(r"AttributeError at agent/training/order\.py:\d+", event.facts.text())
    with pytest.raises(AttributeError) as raised:
        visit_name(None)  # type: ignore[arg-type]
    assert re.fullmatch(r"AttributeError at agent/assignment_run\.py:\d+", told_of(raised.value))


def test_a_device_that_is_not_there_is_said_and_nothing_dies() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("there is one here")
    event = trainer._visit(lambda: Visitor(choose_device("mps")), REQUEST, io.StringIO(), lambda: False)
    assert (event.event, event.reason) == ("failed", "other")
    assert event.message.startswith("DeviceMissing: torch")
    assert "set device.kind to auto" in event.message


def test_a_row_is_named_by_its_number_and_its_field_never_by_its_column() -> None:
    error = DataError(f"rows.csv row 17: column 'Diagnosis' must be text, not {SECRET}", row=17, field="text", column="Diagnosis")
    event = outcome(error)
    assert event.facts is not None
    told = told_to_coordinator("data_invalid", event.message, event.facts.text())
    assert "row 17" in told
    assert "field text" in told
    assert "Diagnosis" not in told
    assert SECRET in event.message, "the agent's own log has it"


def test_a_full_disk_is_told_in_the_words_of_the_library_that_met_it(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores the signal; the write fails
    try:
        with pytest.raises((SafetensorError, OSError)) as met:
            save_file({"a": torch.zeros(100_000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert reason_of(met.value) == "disk_full", str(met.value)


def test_what_is_not_our_own_words_stays_here() -> None:
    assert told_to_coordinator("other", SECRET, None) == "the agent's own log says more"
    assert told_to_coordinator("data_invalid", SECRET, None) == "the agent's own log says more"
    assert told_to_coordinator("disk_limit", "needs 3 GB", None) == "needs 3 GB"


BOUNDS: list[tuple[str, Any]] = [
    ("steps", 10**12), ("steps", 0), ("steps", MOST_STEPS + 1), ("batch_size", -1), ("batch_size", 0), ("epochs", 0), ("epochs", 1e9),
    ("max_length", 0), ("max_length", 1 << 40), ("warmup_steps", -1), ("weight_decay", 1e9), ("max_grad_norm", 0), 
    ("groups", [{"blocks": ["norm"], "learning_rate": -1}]), ("num_labels", 10**9), ("seed", -1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BOUNDS)
def test_numbers_of_a_visit_have_bounds(field: str, value: Any) -> None:
    body = assignment().model_dump(mode="json")
    LeasedAssignment.model_validate(body)
    body["train"][field] = value
    with pytest.raises(ValidationError, match=field):
        LeasedAssignment.model_validate(body)


@pytest.mark.parametrize(
    ("field", "value"), [("lease_seconds", 0), ("lease_seconds", -5), ("attempt", 0), ("round", -1), ("lease_seconds", 1e300)]
)
def test_numbers_of_a_lease_have_bounds(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        LeasedAssignment.model_validate(assignment().model_dump(mode="json") | {field: value})


def test_not_a_number_is_no_number_of_a_visit() -> None:
    body = json.loads(json.dumps(assignment().model_dump(mode="json")))
    for field in ("epochs", "weight_decay", "max_grad_norm"):
        changed = json.loads(json.dumps(body))
        changed["train"][field] = float("nan")
        with pytest.raises(ValidationError):
            LeasedAssignment.model_validate(changed)


def _without_groups(request: TrainRequest, groups: list[ParameterGroup]) -> TrainRequest:
    return request.model_copy(update={"train": request.train.model_copy(update={"groups": groups})})


def _configured(request: TrainRequest, folder: Path, text: bytes) -> TrainRequest:
    (folder / "other.json").write_bytes(text)
    return request.model_copy(update={"files": {**request.files, "config.json": str(folder / "other.json")}})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        *((lambda request, folder, text=text: _configured(request, folder, text), "is no JSON")
          for text in (b"[]", b"null", b"3", b"", "{}".encode("utf-16"), b"[" * 100_000)),
        # before the tokenizer, with which transformers would read it: so many labels take gigabytes
        (lambda request, folder: _configured(request.model_copy(update={"files": {}}), folder, b'{"num_labels": 262145}'), "num_labels is 262145"),
        (lambda request, _: request.model_copy(update={"files": {}}), "no config.json"),
        (lambda request, _: request.model_copy(update={"dropped": [f"layers.{n}" for n in range(1, 9999)]}), "no layer"),
        (lambda request, _: _without_groups(request, []), "no block is to be trained"),
        (lambda request, _: _without_groups(request, [ParameterGroup(blocks=[], learning_rate=1)]), "no block is to be trained"),
        (lambda request, _: _without_groups(request, [ParameterGroup(blocks=["nope"], learning_rate=1)]), "what is to be trained: nope"),
    ],
)  # fmt: skip
def test_what_a_coordinator_makes_up_is_no_bug_of_ours(spoil: Callable[..., TrainRequest], said: str, bert: Path, tmp_path: Path) -> None:
    request = spoil(training.Home(tmp_path, bert, "bert").request("layers.0"), tmp_path)
    with pytest.raises(FedError, match=said) as refused:
        Visitor("cpu").visit(request, lambda _: None, lambda: False)
    assert reason_of(refused.value) == "model_mismatch"
