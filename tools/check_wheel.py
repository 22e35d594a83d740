"""Is a wheel whole, and small enough? Run by `make wheel`.

    python tools/check_wheel.py dist/bitnet_serve-*.whl

It must hold the four packages and the demo model, stay below 40 MB, and, unless there was no compiler, hold the native
library.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

MAX_BYTES = 40_000_000
NEEDED = (
    "service/cli.py",
    "service/api/page/index.html",
    "bitnet_model/model.py",
    "bitnet_model/demo/model.safetensors",
    "bitnet_model/demo/tokenizer.json",
    "bitnet_model/demo/MODEL_CARD.md",
    "cpu_fallback/wing.py",
    "triton_kernels/wing.py",
)
LIBRARY = "cpu_fallback/native/libbitnet_native.so"


def problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel, one line each."""
    names = set(zipfile.ZipFile(wheel).namelist())
    needed = (*NEEDED, LIBRARY) if shutil.which("c++") else NEEDED
    found = [f"{name} is missing" for name in needed if name not in names]
    if wheel.stat().st_size > MAX_BYTES:
        found.append(f"{wheel.stat().st_size} bytes are more than {MAX_BYTES}")
    return found


def main() -> None:
    wheel = Path(sys.argv[1])
    found = problems(wheel)
    for problem in found:
        print(f"{wheel.name}: {problem}", file=sys.stderr)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
