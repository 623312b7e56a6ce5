"""How pages write numbers and times; all of it is text, and escaped where it stands in a page."""

import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

from markupsafe import Markup

from fedcybgd.shared.contract.run_views import PhaseView

CODE = re.compile(r"`([^`]+)`")


def count(number: float | None) -> str:
    """A large number in a few letters: 22.7 M."""
    if number is None:
        return "–"
    for unit, least in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(number) >= least:
            return f"{number / min(least, 1e3 if unit == 'k' else least):,.1f} {unit}"
    return f"{number:,.0f}"


def long(seconds: float | None) -> str:
    """A time that passes, for people."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def seconds(phases: Iterable[PhaseView], now: datetime) -> dict[str, float]:
    """How long each kind of them took, where it took any time; what goes on counts until now."""
    took = defaultdict[str, float](float)
    for phase in phases:
        took[phase.kind] += ((phase.ends or now) - phase.begins).total_seconds()
    return {kind: spent for kind, spent in took.items() if spent}


def fixed(number: float | None, digits: int = 4) -> str:
    return "–" if number is None else f"{number:.{digits}f}"


def percent(share: float | None, digits: int = 2) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def moment(at: datetime | None, now: datetime) -> Markup | str:
    """How long ago; the page's script adds the time in the viewer's own zone."""
    if at is None:
        return "never"
    seconds = (now - at).total_seconds()
    said = f"in {long(-seconds)}" if seconds < -1 else f"{long(max(0.0, seconds))} ago"
    utc = at.astimezone(UTC)
    # Nothing of it needs to be escaped, and there are a hundred on a page.
    return Markup(f'<time datetime="{utc.isoformat()}" title="{utc:%Y-%m-%d %H:%M:%S} UTC">{said}</time>')  # noqa: S704


def coded(text: str) -> Markup:
    """A sentence in which what stands between backticks is a command."""
    parts = CODE.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else Markup.escape(part) for number, part in enumerate(parts)
    )
