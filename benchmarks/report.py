"""What every benchmark prints beside its figures: the machine, the versions and the date; and where results go."""

from __future__ import annotations

import json
import os
import platform
import time
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


def write(path: Path | None, question: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table and, given a path, keep them as JSON with the machine beside them."""
    about = machine()
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
