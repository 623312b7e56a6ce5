"""Curves as SVG that stands in a page: colours come from its style sheet, so it is right in light and dark."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

from fedcybgd.coordinator.pictures.axis import is_drawn, labels, spread, ticks, written

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 250, 62, 14, 12, 40
COLOURS = 8
"""Classes c0 to c7 of the style sheet; the curves after the last begin again"""
LETTERS, DIGIT = 20, 10
"""Height of a line of them, and width of a digit, as large as they are on a phone"""
DOTTED = 50
"""A curve of more points is a line without dots"""


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[tuple[float, float]]
    """by x"""


@dataclass(frozen=True)
class Level:
    """Something to be held against: a line across the picture."""

    name: str
    y: float


def curves(
    title: str, drawn: Sequence[Curve], x: str, y: str, levels: Sequence[Level] = (), counted: bool = False, most: float = math.inf
) -> Markup:
    """`x` and `y` are the labels of the axes. A point that is no number is a gap.

    `counted`: of what is on the x axis there are no parts; `most`: there is no more of what is on the y axis.
    """
    points = [p for c in drawn for p in c.points if all(map(is_drawn, p))]
    (x0, x1), (y0, y1) = (
        spread([p[0] for p in points], from_zero=True),
        spread([*(p[1] for p in points), *(level.y for level in levels)], from_zero=False, most=most),
    )
    across, up = ticks(x0, x1, counted), ticks(y0, y1)
    heights = labels(up)
    left, right, bottom = max(LEFT, 26 + DIGIT * max(map(len, heights), default=0)), WIDTH - RIGHT, HEIGHT - BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return left + (px - x0) / (x1 - x0) * (right - left), bottom - (py - y0) / (y1 - y0) * (bottom - TOP)

    def parts() -> Iterator[Markup]:
        yield Markup('<svg class="picture" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
        for tick, height in zip(up, heights, strict=True):
            _, py = at(x0, tick)
            yield Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(left, py, right)
            yield Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(left - 6, py + 4, height)
        for tick, place in zip(across, labels(across), strict=True):
            px, _ = at(tick, y0)
            yield Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(px, bottom + 16, place)
        yield Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(left, TOP, bottom, right)
        yield Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format((left + right) / 2, HEIGHT - 6, x)
        middle = (TOP + bottom) / 2
        yield Markup('<text x="13" y="{}" text-anchor="middle" transform="rotate(-90 13 {})">{}</text>').format(middle, middle, y)
        places = [(at(x0, level.y)[1], level.name) for level in levels]
        for py, _ in places:
            yield Markup('<path class="level" d="M{} {:.1f}H{}"/>').format(left, py, right)
        for py, name in _apart(places):
            yield Markup('<text class="level" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(right, py - 4, name)
        for number, curve in enumerate(drawn):
            for is_there, some in groupby(curve.points, lambda point: all(map(is_drawn, point))):
                if is_there:
                    part = Curve(curve.name, [*some])
                    yield from _curve(part, number % COLOURS, [at(*point) for point in part.points], len(curve.points) <= DOTTED)
        yield Markup("</svg>")

    if not points:
        return Markup('<p class="empty">{}: nothing is measured yet.</p>').format(title)
    return Markup("").join(parts())


def _apart(places: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Names that would be written over each other are written beside each other."""
    found: list[tuple[float, str]] = []
    for y, name in sorted(places):
        if found and y - found[-1][0] < LETTERS:
            found[-1] = found[-1][0], f"{found[-1][1]}, {name}"
        else:
            found.append((y, name))
    return found


def _curve(curve: Curve, colour: int, places: Sequence[tuple[float, float]], dotted: bool) -> Iterator[Markup]:
    if len(places) > 1:
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield Markup('<path class="line c{}" d="M{}"><title>{}</title></path>').format(colour, line, curve.name)
    if dotted or len(places) == 1:
        for (x, y), (px, py) in zip(places, curve.points, strict=True):
            said = f"{curve.name}: {written(py)} at {written(px)}"
            yield Markup('<circle class="c{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(colour, x, y, said)


def legend(drawn: Sequence[Curve]) -> Markup:
    """Which colour is which curve."""
    key = Markup('<li><svg class="key" viewBox="0 0 20 8" aria-hidden="true"><path class="line c{}" d="M0 4H20"/></svg> {}</li>')
    return Markup('<ul class="legend">{}</ul>').format(
        Markup("").join(key.format(n % COLOURS, escape(c.name)) for n, c in enumerate(drawn))
    )
