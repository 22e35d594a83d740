"""The NEON path under qemu-user, where a cross compiler and qemu are at hand: the same bytes as on this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cpu_fallback.native_support import BUILD, ROOT, library

CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
CROSS_ROOT = "/usr/aarch64-linux-gnu"  # where Debian's cross compiler keeps the loader and libstdc++


def run(*command: str | Path) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def digests(compiler: str, build: Path, *runner: str) -> dict[str, list[str]]:
    """isa -> lines of native_digest.cpp, linked with the library in `build`."""
    source, headers = ROOT / "tests" / "cpu_fallback" / "native_digest.cpp", ROOT / "cpu_fallback" / "native"
    program = build / "native_digest"
    link = ("-L", build, "-lbitnet_native", f"-Wl,-rpath,{build}")
    run(compiler, "-std=c++17", "-I", headers, source, *link, "-o", program)
    by_isa: dict[str, list[str]] = {}
    for line in run(*runner, program).splitlines():
        isa, rest = line.split(" ", 1)
        by_isa.setdefault(isa, []).append(rest)
    return by_isa


@pytest.mark.timeout(600)
def test_neon_gives_the_bytes_of_every_path_of_this_machine() -> None:
    if not (shutil.which(CROSS) and shutil.which(QEMU) and shutil.which("c++") and shutil.which("cmake")):
        pytest.skip(f"needs {CROSS}, {QEMU}, c++ and cmake")
    library()
    arm = BUILD.parent / "native-arm"
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={CROSS}")
    run("cmake", "-S", ROOT / "cpu_fallback" / "native", "-B", arm, *system)
    run("cmake", "--build", arm, "--parallel", "2")
    there, here = digests(CROSS, arm, QEMU, "-L", CROSS_ROOT), digests("c++", BUILD)
    assert set(there) == {"neon_dot", "portable"}
    for isa, lines in (there | here).items():
        assert lines == there["portable"], isa
