"""What this machine can do at best: bytes read, int8 and fp32 products a second, measured beside what they judge.

cpu_limits.cpp is compiled for the machine at hand. Knows no kernel and no model.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu_limits.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-pthread", "-Wno-psabi", "-Wno-ignored-attributes")
MEMORY_BYTES = 256 << 20
"""Far beyond any cache."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine can do with so many threads."""

    gigabytes_per_s: float
    gigamacs_per_s: float
    gigafloats_per_s: float
    instruction: str

    def reading_s(self, num_bytes: float) -> float:
        return num_bytes / self.gigabytes_per_s / 1e9

    def multiplying_s(self, macs: float) -> float:
        return macs / self.gigamacs_per_s / 1e9

    def adding_s(self, products: float) -> float:
        """So many fp32 products, each added to a sum."""
        return products / self.gigafloats_per_s / 1e9

    def best(self, other: Limits) -> Limits:
        """The higher of each: what held at some time between two measurements."""
        return Limits(
            max(self.gigabytes_per_s, other.gigabytes_per_s),
            max(self.gigamacs_per_s, other.gigamacs_per_s),
            max(self.gigafloats_per_s, other.gigafloats_per_s),
            self.instruction,
        )


def build_limits(folder: Path) -> Path:
    """Compile cpu_limits.cpp for this machine."""
    program = folder / "cpu_limits"
    subprocess.run(["c++", *FLAGS, "-o", str(program), str(SOURCE)], check=True)
    return program


def measure_limits(program: Path, threads: int, num_bytes: int = MEMORY_BYTES) -> Limits:
    """The median piece of each limit, summed over the threads; `num_bytes` are read again and again."""
    command = [str(program), str(threads), str(num_bytes)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    macs, instruction = lines[1].split(" ", 1)
    return Limits(float(lines[0]), float(macs), float(lines[2]), instruction)
