"""How fast a run gets on, and so what is left of it; of a run that stands still nothing is foretold."""

from collections.abc import Sequence
from datetime import datetime
from statistics import median

from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.shared.contract.views import PaceView

LOOKED_AT = 12
"""Rounds of which the pace is taken"""
STILL_AFTER, LEAST_STILL_S = 4.0, 120.0
"""A run stands still that has closed no round for so many times as long as one takes, and for so many seconds at the least."""


def pace(state: str, reason: str | None, opened: Sequence[tuple[datetime, datetime | None]], left: int, now: datetime) -> PaceView:
    """`opened`: when the last rounds were opened and closed, the newest first; `left`: how many are to be closed yet."""
    took = [(closed - began).total_seconds() for began, closed in opened[: LOOKED_AT + 1] if closed is not None][:LOOKED_AT]
    round_s = median(took) if took else None
    if state != RunState.RUNNING:
        still = (reason or "it is paused") if state == RunState.PAUSED else None
        return PaceView(round_s=round_s, quiet_s=None, seconds_left=None, still=still)
    quiet = _quiet(opened, now)
    still = reason or _too_quiet(quiet, round_s)
    known = round_s is not None and still is None
    seconds = max(0.0, left * round_s - min(quiet or 0.0, round_s)) if known and round_s is not None else None
    return PaceView(round_s=round_s, quiet_s=quiet, seconds_left=seconds, still=still)


def _quiet(opened: Sequence[tuple[datetime, datetime | None]], now: datetime) -> float | None:
    since = next((closed or began for began, closed in opened[:1]), None)
    return None if since is None else max(0.0, (now - since).total_seconds())


def _too_quiet(quiet: float | None, round_s: float | None) -> str | None:
    if quiet is None or round_s is None or quiet < max(LEAST_STILL_S, STILL_AFTER * round_s):
        return None
    return f"no round was closed for {_long(quiet)}; the last ones took {_long(round_s)} each"


def _long(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
