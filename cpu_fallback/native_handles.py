"""The native wing's handles: tensors and pages kept alive, and the same by address for the library.

They are opaque to the model. Layouts are those of native/abi.h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cpu_fallback.native_library import (
    NativeCache,
    NativeMemory,
    NativeQuantized,
    NativeRope,
    NativeTable,
    NativeWeights,
)

ACTS = {"relu2": 0, "silu": 1}


@dataclass(frozen=True, slots=True)
class Quantized:
    """codes int8 [T, K rounded up to 16] (0 beyond K), scale f32 [T], sums int32 [T] of a token's codes."""

    codes: Tensor
    scale: Tensor
    sums: Tensor
    width: int

    def native(self) -> NativeQuantized:
        """The same by address."""
        return NativeQuantized(
            self.codes.data_ptr(), self.scale.data_ptr(), self.sums.data_ptr(), self.codes.shape[0], self.width
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """Ternary weights at 2 bits; row_scale f32 [N rounded up to 16]."""

    memory: NativeMemory
    row_scale: Tensor
    native: NativeWeights


@dataclass(frozen=True, slots=True)
class Table:
    """An int8 vocabulary table; row_scale f32 and row_sums int32 [V rounded up to 16].

    An embedding also has a refinement: four bits more of each value, for lookups. Of a table in halves `low` has the
    lower four bits of the codes, `memory` the upper ones.
    """

    memory: NativeMemory
    refinement: NativeMemory | None
    low: NativeMemory | None
    row_scale: Tensor
    row_sums: Tensor
    native: NativeTable


@dataclass(frozen=True, slots=True)
class RopeTables:
    """cos, sin f32 [positions, D / 2]."""

    cos: Tensor
    sin: Tensor

    def native(self) -> NativeRope:
        """The same by address."""
        return NativeRope(self.cos.data_ptr(), self.sin.data_ptr(), self.cos.shape[0])


@dataclass(frozen=True, slots=True)
class Cache:
    """The paged cache; pages are taken from the system as they are first written."""

    memory: NativeMemory
    native: NativeCache


def round_up(count: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `count`."""
    return -(-count // unit) * unit


def dense(tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...], what: str) -> Tensor:
    """The tensor, contiguous. Raises ValueError unless it has this dtype and shape (None: any extent)."""
    extents = zip(shape, tensor.shape, strict=False)
    fits = tensor.dim() == len(shape) and all(want in (None, got) for want, got in extents)
    if tensor.dtype != dtype or not fits or tensor.device.type != "cpu":
        wanted = ", ".join("*" if extent is None else str(extent) for extent in shape)
        raise ValueError(f"{what} must be {dtype} [{wanted}] on the CPU, got {tensor.dtype} {list(tensor.shape)}")
    return tensor.contiguous()


def address_of(tensor: Tensor | None) -> int | None:
    """Where a tensor's data lies; None stays None (a null pointer)."""
    return None if tensor is None else tensor.data_ptr()


def memory_bytes(handle: Weights | Table | RopeTables | Cache) -> int:
    """Bytes a handle keeps; a cache's pages count in full though the system gives them as they are written."""
    match handle:
        case Weights(memory, row_scale):
            return memory.num_bytes + row_scale.nbytes
        case Table(memory, refinement, low, row_scale, row_sums):
            further = sum(part.num_bytes for part in (refinement, low) if part is not None)
            return memory.num_bytes + further + row_scale.nbytes + row_sums.nbytes
        case RopeTables(cos, sin):
            return cos.nbytes + sin.nbytes
        case Cache(memory):
            return memory.num_bytes
    raise TypeError(f"not a handle of the native wing: {type(handle).__name__}")
