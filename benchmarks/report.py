"""What every benchmark prints beside its figures: the machine, the versions and the date; where results go; and plots.

Plots need matplotlib, which is loaded only for them.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """Name the processor, the cores this process may use, the memory and the versions that matter."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": f"{int(memory) / 2**20:.0f}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("bitnet-serve", "torch", "triton")},
    }


def write(
    path: Path | None, question: str, rows: list[dict[str, Any]], versions: Mapping[str, str] | None = None
) -> None:
    """Print the rows as a table and, given a path, keep them as JSON with the machine and `versions` beside them."""
    about = machine() | dict(versions or {})
    print(f"\n{question}")
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"question": question, "machine": about, "rows": rows}, indent=2) + "\n")


class OtherLoad:
    """How many cores everybody else kept busy, the host of a virtual machine included, since this was made.

    A figure taken beside a tenth of a core of others is worth little on two cores. Children count as ours once they
    have ended.
    """

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._others_s = self._others_now_s()

    def cores(self) -> float:
        return (self._others_now_s() - self._others_s) / (time.perf_counter() - self._began_s)

    def _others_now_s(self) -> float:
        user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, _lines("/proc/stat")[0].split()[1:9])
        busy_s = (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")
        return busy_s - sum(os.times()[:4])


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` of the values do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def panels_of(count: int) -> tuple[Any, list[Any]]:
    """A figure with so many panels, one above the other: (figure, axes)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * count), layout="constrained")
    about = machine()
    figure.suptitle(", ".join(about[name] for name in ("cpu", "date")) + f", bitnet-serve {about['bitnet-serve']}")
    return figure, list(figure.subplots(count, squeeze=False)[:, 0])


def bars(axis: Any, values: Mapping[str, Mapping[str, float]], *, title: str, unit: str) -> None:
    """Bars of series -> case -> value, the series side by side, on a logarithmic scale."""
    cases = list(dict.fromkeys(case for of_case in values.values() for case in of_case))
    width = 0.8 / len(values)
    for place, (series, of_case) in enumerate(values.items()):
        where = [cases.index(case) + (place - (len(values) - 1) / 2) * width for case in of_case]
        drawn = axis.bar(where, list(of_case.values()), width, label=series)
        axis.bar_label(drawn, fmt="%.3g", fontsize=6)
    axis.set_xticks(range(len(cases)), cases)
    axis.set_yscale("log")
    axis.set_ylabel(unit)
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
