"""What this machine is, as far as the standard library and /proc can tell: processor, memory, versions.

Knows neither torch nor models.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("bitnet-serve", "torch", "triton", "numpy", "tokenizers", "safetensors", "fastapi", "uvicorn", "pydantic")


def processor() -> str:
    """The processor's name."""
    lines = _lines(Path("/proc/cpuinfo"))
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """(total, available) bytes of memory, both cut to what the cgroup of this process grants."""
    sizes = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in _lines(proc / "meminfo"))
    }
    total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    limit, used = _number(cgroups / "memory.max"), _number(cgroups / "memory.current")
    if limit is not None and limit < total:
        total, available = limit, min(available, max(0, limit - (used or 0)))
    return total, available


def versions() -> dict[str, str]:
    """Of Python and the packages that matter; "none" for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def allowed_cores() -> int:
    """CPUs in this process's affinity mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def human(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if num_bytes < 1000:
            break
        num_bytes, unit = num_bytes / 1000, larger
    return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.3g} {unit}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
