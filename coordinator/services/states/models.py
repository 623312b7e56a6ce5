"""The transitions of a base model."""

from fedcybgd.coordinator.db.models import Model
from fedcybgd.coordinator.domain.model import MODEL, ModelEvent


def add_again(row: Model) -> None:
    _go(row, ModelEvent.ADD_AGAIN)
    row.reason = None


def imported(row: Model) -> None:
    _go(row, ModelEvent.IMPORTED)
    row.reason = None


def fail(row: Model, reason: str | None) -> None:
    _go(row, ModelEvent.FAIL)
    row.reason = reason


def _go(row: Model, event: ModelEvent) -> None:
    row.state = MODEL.after(row.state, event)
