"""The states of a run."""

from enum import StrEnum

from fedcybgd.coordinator.domain.machine import Machine


class RunState(StrEnum):
    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


BY_OPERATOR, BEING_UNDONE, UNDONE = "paused by the operator", "it is being taken back", "`fedcoord run resume` goes on from there"


def is_wanted(reason: str | None) -> bool:
    """Whether a run is paused because somebody wanted it: nothing is to be mended before it is resumed."""
    return reason in (BY_OPERATOR, BEING_UNDONE) or (reason or "").endswith(UNDONE)


class RunEvent(StrEnum):
    PREPARE = "prepare"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    UNDO = "undo"


RUN = Machine(
    "run", RunState, RunEvent, RunState.DRAFT,
    {
        # A draft stays one: `prepared` says that it may be started. It outlives the draft: what was prepared can be exported for ever.
        (RunState.DRAFT, RunEvent.PREPARE): RunState.DRAFT,
        (RunState.DRAFT, RunEvent.START): RunState.RUNNING,
        (RunState.DRAFT, RunEvent.FAIL): RunState.FAILED,
        (RunState.DRAFT, RunEvent.CANCEL): RunState.CANCELLED,
        (RunState.RUNNING, RunEvent.PAUSE): RunState.PAUSED,
        (RunState.RUNNING, RunEvent.FINISH): RunState.COMPLETED,
        (RunState.RUNNING, RunEvent.FAIL): RunState.FAILED,
        (RunState.RUNNING, RunEvent.CANCEL): RunState.CANCELLED,
        # Its model is an older one again, and somebody says when it goes on.
        (RunState.RUNNING, RunEvent.UNDO): RunState.PAUSED,
        (RunState.PAUSED, RunEvent.UNDO): RunState.PAUSED,
        (RunState.PAUSED, RunEvent.RESUME): RunState.RUNNING,
        # What was submitted before the pause is still applied, and may have been the last of the run.
        (RunState.PAUSED, RunEvent.FINISH): RunState.COMPLETED,
        (RunState.PAUSED, RunEvent.FAIL): RunState.FAILED,
        (RunState.PAUSED, RunEvent.CANCEL): RunState.CANCELLED,
    },
    frozenset({RunEvent.START, RunEvent.PAUSE, RunEvent.RESUME, RunEvent.CANCEL}),
)  # fmt: skip
