"""The weight side of BitNet's arithmetic: packed planes, their checks, and ternarizing masters at load.

Packed: uint8 [N/4, K], byte (r, k) holds output rows r, r+N/4, r+2N/4, r+3N/4 in bits 1:0, 3:2, 5:4, 7:6; a code is
ternary + 1, and code 3 does not exist. Masters: absmean quantization of "The Era of 1-bit LLMs" (arXiv 2402.17764),
in the rounding of transformers' AutoBitLinear. All of it works in slices, so the memory beside the tensor is small.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

SLICE_ELEMENTS = 1 << 15  # temporaries below malloc's mmap threshold leave no holes between the tensors that stay


def has_unused_code(planes: Tensor) -> bool:
    """Whether a code 3 occurs in uint8 [N/4, K]."""
    return any(bool((part & (part >> 1) & 0x55).any()) for part in slices(planes, 2 * SLICE_ELEMENTS))


def is_finite(tensor: Tensor) -> bool:
    """Whether a float tensor holds neither NaN nor infinity: its extremes show both, and need no temporary."""
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def absmean(master: Tensor) -> float:
    """mean|W| of a float tensor [N, K], summed in fp64 in one fixed order; NaN and infinity come out as themselves."""
    sums = [float(np.sum(part.float().abs().numpy(), dtype=np.float64)) for part in slices(master)]
    return sum(sums) / master.numel()


def ternarize(master: Tensor, mean: float) -> tuple[Tensor, float]:
    """Pack clamp(round(W / mean), -1, 1) of a float tensor [N, K] -> (planes uint8 [N/4, K], scale = bf16(mean)).

    As transformers does: the mean is at least 1e-5, its reciprocal is taken in fp32, halves round to even.
    """
    clamped = torch.tensor(mean, dtype=torch.float32).clamp_min(1e-5)
    inverse = 1.0 / clamped
    num_outputs, num_inputs = master.shape
    quarters = master.view(4, num_outputs // 4, num_inputs)
    planes = torch.empty(num_outputs // 4, num_inputs, dtype=torch.uint8)
    rows = max(1, SLICE_ELEMENTS // (4 * num_inputs))
    for start in range(0, num_outputs // 4, rows):
        part = quarters[:, start : start + rows].float()
        codes = part.mul_(inverse).round_().clamp_(-1, 1).add_(1).to(torch.uint8)
        planes[start : start + rows] = codes[0] | (codes[1] << 2) | (codes[2] << 4) | (codes[3] << 6)
    return planes, float(clamped.to(torch.bfloat16))


def slices(tensor: Tensor, num_elements: int = SLICE_ELEMENTS) -> Iterator[Tensor]:
    """The tensor's elements in order, so many at a time."""
    flat = tensor.reshape(-1)
    return (flat[start : start + num_elements] for start in range(0, flat.numel(), num_elements))
