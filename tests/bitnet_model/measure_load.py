"""Run in a process of its own: load a folder into a wing that only stores, and print what that cost.

Prints the growth of the process's peak memory while loading, and the bytes the wing keeps.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bitnet_model.checkpoint import load_model
from tests.bitnet_model.fakes import StoringOps


def peak_bytes() -> int:
    """VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def main() -> None:
    warm, folder = map(Path, sys.argv[1:])
    load_model(warm, StoringOps(), head_dtype="int8")  # type: ignore[arg-type]  # thread pools, first-call buffers
    before = peak_bytes()
    ops = StoringOps()
    load_model(folder, ops, head_dtype="int8")  # type: ignore[arg-type]
    kept = sum(ops.memory_bytes(handle) for handle in [*ops.packed, *ops.tables])
    print(peak_bytes() - before, kept)


if __name__ == "__main__":
    main()
