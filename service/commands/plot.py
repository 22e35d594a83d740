"""A small line chart as SVG text: one look at a few numbers, without a plotting library.

The x axis has one place for each value, evenly spaced, as sizes that double want it; the y axis begins at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 60, 60
COLORS = ("#0f766e", "#b45309", "#4338ca", "#be123c")
NUM_TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name and its (x, y) points."""

    name: str
    points: tuple[tuple[float, float], ...]


def line_chart(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """The whole SVG document."""
    xs = sorted({x for one in series for x, _ in one.points})
    step = nice_step(max((y for one in series for _, y in one.points), default=1.0))
    top = step * NUM_TICKS

    def place(x: float, y: float) -> tuple[float, float]:
        across = (xs.index(x) + 0.5) / len(xs)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 26, title, 'font-size="15" font-weight="600"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_name, 'text-anchor="middle"'),
        _text(LEFT, TOP - 12, y_name, 'fill="#555"'),
    ]
    for tick in range(NUM_TICKS + 1):
        _, y = place(xs[0], tick * step)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick * step:g}", 'text-anchor="end" fill="#555"'))
    parts += [_text(place(x, 0)[0], HEIGHT - BOTTOM + 20, f"{x:g}", 'text-anchor="middle" fill="#555"') for x in xs]
    for number, one in enumerate(series):
        color = COLORS[number % len(COLORS)]
        places = [place(x, y) for x, y in one.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in places]
        parts.append(_text(WIDTH - RIGHT - 170 * (len(series) - number), TOP - 12, one.name, f'fill="{color}"'))
    return "\n".join([*parts, "</svg>\n"])


def nice_step(largest: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten of which NUM_TICKS reach `largest`."""
    wanted = max(largest, 1e-9) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def _text(x: float, y: float, text: str, attributes: str) -> str:
    size = "" if "font-size" in attributes else ' font-size="13"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{size} {attributes}>{escape(text)}</text>'
