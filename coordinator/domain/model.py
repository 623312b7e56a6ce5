"""The states of a base model."""

from enum import StrEnum

from fedcybgd.coordinator.domain.machine import Machine


class ModelState(StrEnum):
    ADDING = "adding"
    READY = "ready"
    FAILED = "failed"


class ModelEvent(StrEnum):
    IMPORTED = "imported"
    FAIL = "fail"
    ADD_AGAIN = "add_again"


MODEL = Machine(
    "model", ModelState, ModelEvent, ModelState.ADDING,
    {
        (ModelState.ADDING, ModelEvent.IMPORTED): ModelState.READY,
        (ModelState.ADDING, ModelEvent.FAIL): ModelState.FAILED,
        # A name whose import failed may be used again.
        (ModelState.FAILED, ModelEvent.ADD_AGAIN): ModelState.ADDING,
    },
)  # fmt: skip
