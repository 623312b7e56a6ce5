"""Curves as SVG that stands in a page: colours come from its style sheet, so it is right in light and dark."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fedcybgd.coordinator.pictures.axis import spread, ticks, written

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 250, 62, 14, 12, 40
COLOURS = 8
"""Classes c0 to c7 of the style sheet; the curves after the last begin again"""
LETTERS = 20
"""Height of a line of them, as large as they are on a phone"""
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


def curves(title: str, drawn: Sequence[Curve], x: str, y: str, levels: Sequence[Level] = ()) -> Markup:
    """`x` and `y` are the labels of the axes. Points that are no numbers are left out."""
    good = [Curve(c.name, [p for p in c.points if all(map(math.isfinite, p))]) for c in drawn]
    (x0, x1), (y0, y1) = (
        spread([p[0] for c in good for p in c.points], from_zero=True),
        spread([*(p[1] for c in good for p in c.points), *(level.y for level in levels)], from_zero=False),
    )
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return LEFT + (px - x0) / (x1 - x0) * (right - LEFT), bottom - (py - y0) / (y1 - y0) * (bottom - TOP)

    def parts() -> Iterator[Markup]:
        yield Markup('<svg class="picture" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
        for tick in ticks(y0, y1):
            _, py = at(x0, tick)
            yield Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, py, right)
            yield Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, py + 4, written(tick))
        for tick in ticks(x0, x1):
            px, _ = at(tick, y0)
            yield Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(px, bottom + 16, written(tick))
        yield Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(LEFT, TOP, bottom, right)
        yield Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format((LEFT + right) / 2, HEIGHT - 6, x)
        middle = (TOP + bottom) / 2
        yield Markup('<text x="13" y="{}" text-anchor="middle" transform="rotate(-90 13 {})">{}</text>').format(middle, middle, y)
        places = [(at(x0, level.y)[1], level.name) for level in levels]
        for py, _ in places:
            yield Markup('<path class="level" d="M{} {:.1f}H{}"/>').format(LEFT, py, right)
        for py, name in _apart(places):
            yield Markup('<text class="level" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(right, py - 4, name)
        for number, curve in enumerate(good):
            yield from _curve(curve, number % COLOURS, [at(*point) for point in curve.points])
        yield Markup("</svg>")

    if not any(curve.points for curve in good):
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


def _curve(curve: Curve, colour: int, places: Sequence[tuple[float, float]]) -> Iterator[Markup]:
    if len(places) > 1:
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield Markup('<path class="line c{}" d="M{}"><title>{}</title></path>').format(colour, line, curve.name)
    if len(places) <= DOTTED:
        for (x, y), (px, py) in zip(places, curve.points, strict=True):
            said = f"{curve.name}: {written(py)} at {written(px)}"
            yield Markup('<circle class="c{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(colour, x, y, said)


def legend(drawn: Sequence[Curve]) -> Markup:
    """Which colour is which curve."""
    key = Markup('<li><svg class="key" viewBox="0 0 20 8" aria-hidden="true"><path class="line c{}" d="M0 4H20"/></svg> {}</li>')
    return Markup('<ul class="legend">{}</ul>').format(
        Markup("").join(key.format(n % COLOURS, escape(c.name)) for n, c in enumerate(drawn))
    )
