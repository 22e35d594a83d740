"""What the tests of the CPU wing share: wings in both forms of integer product, and random inputs by seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from cpu_fallback.linear import Form
from cpu_fallback.wing import TorchWing
from tests import oracle

FORMS: tuple[Form, ...] = ("float32", "int8")


@contextmanager
def wing(threads: int = 1, form: Form | None = None) -> Iterator[TorchWing]:
    """A wing whose threads end with the block."""
    one = TorchWing(threads, form)
    try:
        yield one
    finally:
        one.close()


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal f32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ternary(seed: int, N: int, K: int) -> np.ndarray:
    """Uniform in -1, 0, 1."""
    return np.random.default_rng(seed).integers(-1, 2, (N, K))


def segment(seed: int, N: int, K: int) -> tuple[Tensor, Tensor]:
    """A random (planes, row_scale) for `pack`."""
    row_scale = np.random.default_rng(seed + 1).uniform(0.1, 2.0, N).astype(np.float32)
    return torch.from_numpy(oracle.plane_bytes(ternary(seed, N, K))), torch.from_numpy(row_scale)
