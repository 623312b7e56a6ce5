"""A picture of points in panels beside each other, as SVG that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, MARGIN, LINE = 460, 320, 60, 16
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2")
"""One a group; the groups after the last begin again."""


@dataclass(frozen=True)
class Point:
    name: str
    group: str
    x: float
    y: float


def scatter(panels: Sequence[tuple[str, Sequence[Point]]], up: str) -> str:
    """Each panel has a label for its x and its points; `up` is the label of all y."""
    groups = list(dict.fromkeys(point.group for _, points in panels for point in points))
    colours = {group: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}
    parts = [_panel(label, points, up, colours, number * WIDTH) for number, (label, points) in enumerate(panels)]
    for number, group in enumerate(groups):
        y = HEIGHT + LINE * (number + 1)
        parts.append(f'<circle cx="{MARGIN}" cy="{y - 4}" r="4" fill="{colours[group]}"/>')
        parts.append(f'<text x="{MARGIN + 10}" y="{y}">{escape(group)}</text>')
    width, height = WIDTH * len(panels), HEIGHT + LINE * (len(groups) + 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="#222"><rect width="{width}" height="{height}" fill="#fff"/>\n'
        + "\n".join(parts) + "\n</svg>\n"
    )  # fmt: skip


def _panel(label: str, points: Sequence[Point], up: str, colours: dict[str, str], left: int) -> str:
    x0, y0, x1, y1 = left + MARGIN, HEIGHT - MARGIN, left + WIDTH - 20, 30
    parts = [
        f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="#888"/>',
        f'<text x="{(x0 + x1) / 2}" y="{HEIGHT - 20}" text-anchor="middle">{escape(label)}</text>',
        f'<text x="{left + 16}" y="{(y0 + y1) / 2}" text-anchor="middle" transform="rotate(-90 {left + 16} {(y0 + y1) / 2})">{escape(up)}</text>',
    ]
    if not points:
        return "\n".join([*parts, f'<text x="{(x0 + x1) / 2}" y="{(y0 + y1) / 2}" text-anchor="middle">nothing measured</text>'])
    (low_x, high_x), (low_y, high_y) = _range([p.x for p in points], from_zero=True), _range([p.y for p in points])
    for share in (0.0, 0.5, 1.0):
        x, y = x0 + share * (x1 - x0), y0 - share * (y0 - y1)
        parts.append(f'<text x="{x:.1f}" y="{y0 + 16}" text-anchor="middle">{low_x + share * (high_x - low_x):,.4g}</text>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{low_y + share * (high_y - low_y):,.4g}</text>')
    for point in points:
        x = x0 + (point.x - low_x) / (high_x - low_x) * (x1 - x0)
        y = y0 - (point.y - low_y) / (high_y - low_y) * (y0 - y1)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colours[point.group]}"/>')
        anchor, beside = ("end", -9) if x > (x0 + x1) / 2 else ("start", 9)
        parts.append(f'<text x="{x + beside:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(point.name)}</text>')
    return "\n".join(parts)


def _range(values: Sequence[float], from_zero: bool = False) -> tuple[float, float]:
    low, high = (0.0 if from_zero else min(values)), max(values)
    spread = (high - low) or abs(high) or 1.0
    return (low if from_zero else low - 0.1 * spread), high + 0.1 * spread
