"""The suite's figures as one drawing: tokens a second over the batch, ours beside its floors and the baselines.

    python -m benchmarks.gpu.plot RESULT.json DRAWING.svg

An SVG written by hand, so that no plotting package is needed where the suite runs.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 480, 80, 250, 40, 50
COLOURS = ("#1f6f8b", "#d1495b", "#3c896d", "#6d597a", "#b08968", "#777777")

Point = tuple[float, float]
Line = tuple[str, list[Point], bool]


def lines(result: dict[str, Any]) -> list[Line]:
    """(name, points, dashed) of each series; floors are dashed."""
    found: dict[tuple[str, bool], list[Point]] = {}
    for row in result["rows"]:
        batch = re.search(r"batch (\d+)", row["case"])
        if row["unit"] != "tok/s" or batch is None:
            continue
        what = row["case"].replace(batch[0], "").strip(" ,")
        name = f"{row['section']} {what}".strip()
        found.setdefault((name, False), []).append((float(batch[1]), row["value"]))
        if row["section"] == "steps":
            found.setdefault((f"{name}: floor", True), []).append((float(batch[1]), row["bound"]))
    return [(name, sorted(points), dashed) for (name, dashed), points in found.items()]


def draw(title: str, series: Sequence[Line]) -> str:
    """Both axes logarithmic."""
    xs = [x for _, points, _ in series for x, _ in points] or [1.0]
    ys = [y for _, points, _ in series for _, y in points] or [1.0]
    x_of, x_ticks = scale(xs, LEFT, WIDTH - RIGHT, base=2)
    y_of, y_ticks = scale(ys, HEIGHT - BOTTOM, TOP, base=10)
    parts = [text(LEFT, TOP - 18, title, size=15)]
    parts += [f'<path d="M{x_of(x):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>' for x in x_ticks]
    parts += [f'<path d="M{LEFT} {y_of(y):.1f}H{WIDTH - RIGHT}" stroke="#eee"/>' for y in y_ticks]
    parts += [text(x_of(x), HEIGHT - BOTTOM + 18, f"{x:g}", anchor="middle") for x in x_ticks]
    parts += [text(LEFT - 8, y_of(y) + 4, f"{y:,.0f}", anchor="end") for y in y_ticks]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "requests in a step", anchor="middle"))
    parts.append(text(8, TOP - 18, "tok/s"))
    for index, (name, points, dashed) in enumerate(series):
        colour = COLOURS[index // 2 % len(COLOURS)] if len(series) > len(COLOURS) else COLOURS[index % len(COLOURS)]
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        at = TOP + 10 + 20 * index
        parts.append(f'<path d="M{WIDTH - RIGHT + 14} {at}h22" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(text(WIDTH - RIGHT + 42, at + 4, name))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def scale(values: Iterable[float], start: float, end: float, base: int) -> tuple[Any, list[float]]:
    """A logarithmic axis from `start` to `end` that holds all values, and where its ticks are."""
    known = [value for value in values if value > 0]
    low, high = math.floor(math.log(min(known), base)), math.ceil(math.log(max(known), base))
    high = max(high, low + 1)

    def place(value: float) -> float:
        return start + (math.log(value, base) - low) / (high - low) * (end - start)

    return place, [float(base) ** power for power in range(low, high + 1)]


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def main(source: str, target: str) -> None:
    result = json.loads(Path(source).read_text())
    Path(target).write_text(draw(result["question"], lines(result)))


if __name__ == "__main__":
    main(*sys.argv[1:])
