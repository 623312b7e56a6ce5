"""The timeline of a run as SVG: a lane an agent, and on it its visits in their phases; failures are marked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

from markupsafe import Markup

from fedcybgd.coordinator.domain.seat import called
from fedcybgd.shared.contract.run_views import EventEntry, PhaseView, VisitView

WIDTH, LABEL, LANE, BAR, TOP, BOTTOM, RIGHT = 960, 120, 24, 14, 6, 24, 10
MOST_LANES = 40
LEAST = 1.5
"""Width of a phase that is too short to be seen"""
NOBODY = "nobody yet"
ROOM = 8.2
"""Widths of an m that an agent's name may have, where letters are largest: on a phone. The whole name stands in its title"""
WIDTHS = {**dict.fromkeys("fijlrtI.-", 0.42), **dict.fromkeys("mwMW", 1.0), **dict.fromkeys("ABCDEFGHJKLNOPQRSTUVXYZ", 0.75)}
"""Of letters in a wide font, where they are far from 0.63"""

At = Callable[[datetime], float]
"""Where a moment stands"""


@dataclass(frozen=True)
class Picture:
    svg: Markup
    left_out: int
    """agents for which there is no lane"""


def gantt(visits: Sequence[VisitView], failures: Sequence[EventEntry], now: datetime) -> Picture:
    """`visits`: the newest round first, as the timeline gives them; of `failures` those in that time are marked."""
    lanes = list(dict.fromkeys(v.agent or v.meant_for or NOBODY for v in visits))
    shown = {name: number for number, name in enumerate(sorted(lanes[:MOST_LANES]))}
    begins, ends = _window(visits, now)
    height = TOP + LANE * len(shown) + BOTTOM

    def at(moment: datetime) -> float:
        return LABEL + (moment - begins) / (ends - begins) * (WIDTH - LABEL - RIGHT)

    def parts() -> Iterator[Markup]:
        said = f"Who did what from {begins:%H:%M:%S} to {ends:%H:%M:%S} UTC; the table below says the same"
        yield Markup('<svg class="picture gantt" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, said)
        yield from _ticks(begins, ends, at, height)
        for name, number in shown.items():
            y = TOP + LANE * number
            text = fitted(name)
            yield Markup('<path class="grid" d="M0 {}H{}"/>').format(y + LANE, WIDTH)
            yield Markup('<text x="{}" y="{}" text-anchor="end">{}<title>{}</title></text>').format(LABEL - 8, y + 16, text, name)
        for visit in visits:
            if (lane := shown.get(visit.agent or visit.meant_for or NOBODY)) is not None:
                yield from _visit(visit, TOP + LANE * lane, at, now)
        for event in failures:
            if event.agent in shown and begins <= event.at <= ends:
                yield _mark(at(event.at), TOP + LANE * shown[event.agent], f"{event.code}: {event.message[:300]}")
        yield Markup("</svg>")

    return Picture(Markup("").join(parts()), len(lanes) - len(shown))


def fitted(name: str) -> str:
    """As much of a name as there is room for."""
    ends = list(accumulate(WIDTHS.get(letter, 0.63) for letter in name))
    return name if not ends or ends[-1] <= ROOM else name[: sum(end <= ROOM - 1 for end in ends)] + "…"


def _window(visits: Sequence[VisitView], now: datetime) -> tuple[datetime, datetime]:
    known = [phase for visit in visits for phase in visit.phases]
    begins = min((phase.begins for phase in known), default=now)
    ends = max((phase.ends or now for phase in known), default=now)
    return begins, max(ends, begins + timedelta(seconds=1))


def _ticks(begins: datetime, ends: datetime, at: At, height: int) -> Iterator[Markup]:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        moment = begins + share * (ends - begins)
        anchor = "start" if not share else "end" if share == 1 else "middle"
        x = at(moment)
        yield Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, TOP, height - BOTTOM)
        yield Markup('<text x="{:.1f}" y="{}" text-anchor="{}" data-time="{}">{}</text>').format(
            x, height - 8, anchor, moment.isoformat(), f"{moment:%H:%M:%S}"
        )


def _visit(visit: VisitView, y: float, at: At, now: datetime) -> Iterator[Markup]:
    for phase in visit.phases:
        ends = phase.ends or now
        width = max(LEAST, at(ends) - at(phase.begins))
        goes_on = " on" if phase.ends is None else ""
        yield Markup('<rect class="p-{}{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="2"><title>{}</title></rect>').format(
            phase.kind, goes_on, at(phase.begins), y + (LANE - BAR) // 2, width, BAR, _told(visit, phase, now)
        )
    if visit.state == "rejected" and visit.phases:
        yield _mark(at(visit.phases[-1].ends or now), y, f"round {visit.round}: rejected: {(visit.reason or '')[:300]}")


def _mark(x: float, y: float, said: str) -> Markup:
    middle = y + LANE / 2
    path = f"M{x - 4:.1f} {middle - 4}l8 8m0 -8l-8 8"
    return Markup('<g class="mark"><path d="{}"/><title>{}</title></g>').format(path, said)


def _told(visit: VisitView, phase: PhaseView, now: datetime) -> str:
    seconds = ((phase.ends or now) - phase.begins).total_seconds()
    attempt = f", attempt {visit.attempt}" if visit.attempt > 1 else ""
    who = visit.agent or (f"meant for {visit.meant_for}" if visit.meant_for else NOBODY)
    return f"round {visit.round}, {called(visit.blocks)}: {phase.kind} {seconds:.1f} s{'…' if phase.ends is None else ''} ({who}{attempt}; {visit.state})"
