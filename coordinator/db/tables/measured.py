"""What was measured of models and emulators."""

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from fedcybgd.coordinator.db.base import DIGEST, Base, UtcDateTime
from fedcybgd.coordinator.db.typed import Typed
from fedcybgd.shared.contract.measured import FidelityNumbers, Score


class Evaluation(Base):
    """Held-out metrics of the model after a number of rounds."""

    __tablename__ = "evaluation"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    after_rounds: Mapped[int] = mapped_column(primary_key=True)
    metrics: Mapped[Score] = mapped_column(Typed(Score))
    counted: Mapped[list[list[int]] | None] = mapped_column(Typed(list[list[int]]), deferred=True)
    """of a classifier, of each label that a row has or was taken for: the label, rows, guesses, and those that were right"""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Fidelity(Base):
    """How faithful an emulator was, as measured on the calibration rows."""

    __tablename__ = "fidelity"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    block: Mapped[str] = mapped_column(String(100), primary_key=True)
    plan: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    """digest of the codecs"""
    codecs: Mapped[dict[str, str]] = mapped_column(Typed(dict[str, str]))
    metrics: Mapped[FidelityNumbers] = mapped_column(Typed(FidelityNumbers))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
