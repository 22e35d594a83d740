"""The native library for tests: built from the sources at hand, once a run, wherever cmake and a compiler are found."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cpu_fallback.native_library import FILE_NAME, NativeLibrary, find_library
from cpu_fallback.native_loading import ISAS
from cpu_fallback.native_wing import NativeCpuWing

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "native"

every_isa = pytest.mark.parametrize("isa", ISAS)


@functools.cache
def library() -> NativeLibrary:
    """Skips where there is neither a compiler nor a built library."""
    if shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++")):
        configure = ["cmake", "-S", str(ROOT / "cpu_fallback" / "native"), "-B", str(BUILD)]
        for command in (configure, ["cmake", "--build", str(BUILD), "--parallel", "2"]):
            subprocess.run(command, check=True, capture_output=True)
        return NativeLibrary(BUILD / FILE_NAME)
    path = find_library()
    if path is None:
        pytest.skip("no native library: neither cmake with a compiler nor a built one was found")
    return NativeLibrary(path)


def open_wing(isa: str, threads: int = 1) -> NativeCpuWing:
    """Skips where this machine cannot run `isa`."""
    if reason := library().refusal(isa):
        pytest.skip(f"{isa}: {reason}")
    return NativeCpuWing(library(), isa, threads, "test")


def random_planes(generator: torch.Generator, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """(ternary int64 [rows, width], planes uint8 [rows/4, width]) in the checkpoint's packing."""
    ternary = torch.randint(-1, 2, (rows, width), generator=generator)
    codes = (ternary + 1).reshape(4, rows // 4, width)
    return ternary, (codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6).to(torch.uint8)


def quantize_by_definition(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32 [T, K] -> (codes, scale): clamp(rint(y * (127 / a)), -127, 127), a = max(max |y|, 1e-5), in f32."""
    a = np.maximum(np.abs(y).max(-1), np.float32(1e-5)).astype(np.float32)
    codes = np.clip(np.rint(y * (np.float32(127) / a)[:, None]), -127, 127)
    return codes.astype(np.int8), a / np.float32(127)


def normalize_by_definition(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """(x * r) * g in f32, the mean of squares in 64 lanes and a fixed tree, as the native kernels sum it."""
    width = x.shape[-1]
    padded = np.zeros((x.shape[0], -(-width // 64) * 64), np.float32)
    padded[:, :width] = x
    lanes = np.zeros((x.shape[0], 64), np.float32)
    for chunk in np.split(padded * padded, padded.shape[1] // 64, axis=1):
        lanes += chunk
    four = lanes.reshape(-1, 4, 16)
    tree = (four[:, 0] + four[:, 1]) + (four[:, 2] + four[:, 3])
    for half in (8, 4, 2, 1):
        tree = tree[:, :half] + tree[:, half : 2 * half]
    mean = tree[:, 0] / np.float32(width)
    r = np.float32(1) / np.sqrt(mean + np.float32(eps))
    y: np.ndarray = (x * r[:, None]) * gain
    return y
