"""Exact integer products of quantized activations and int8 weights, on stock torch.

Two forms with the same integers. "int8" is torch._int_mm, fast where oneDNN has VNNI or AMX and a naive loop
elsewhere. "float32" widens a block of weights into a reused buffer that stays in cache and multiplies in fp32, which
is exact while partial sums stay below 2^24, in whatever order a BLAS forms them. Either way the sums are integers, so
they depend on no tile, batch or thread. Knows no layout but a row-major [N, K] matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cpu_fallback.pack import MAX_CODE, MAX_EXACT
from cpu_fallback.threads import WorkPool, scratch

Form: TypeAlias = Literal["int8", "float32"]

BLOCK_WEIGHTS = 1 << 19
"""Weights widened at a time, 2 MB in fp32. 6912 x 2560 on one thread of a busy Zen 3 (2025-11), in ms at 2^17, 2^18,
2^19, 2^20 weights: 1 token 11, 4.5, 4.7, 4.3; 16 tokens 26, 20, 18, 18; 512 tokens 620, 460, 390, 410."""
PARALLEL_PRODUCTS = 1 << 25
"""From here on (about 1.5 ms of work) a product is cut so that every thread has pieces; waking one takes 0.05 ms."""
SINGLE_ROWS = 6
"""Up to here "int8" multiplies row by row: a 2B-4T step on a VNNI machine took 15 ms at 1 row, 81 at 2, 108 at 8."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """Codes [T, K], whole numbers of -127..127, in f32 or int8 as the form wants; scale f32 [T, 1].

    A row that held NaN or inf has a scale of NaN or inf; its codes mean nothing.
    """

    codes: Tensor
    scale: Tensor


def best_form() -> Form:
    """The faster form on this CPU."""
    return "int8" if torch.cpu._is_vnni_supported() else "float32"


def linear(
    q: Quantized, codes: Tensor, row_scale: Tensor, residual: Tensor | None, max_weight: int, pool: WorkPool
) -> Tensor:
    """Quantized [T, K] x codes int8 [N, K] -> f32 [T, N] = float(sum) * (scale * row_scale), plus residual [T, N].

    `max_weight` is the largest magnitude of a weight code. Raises ValueError where the shapes do not fit.
    """
    (T, K), N = q.codes.shape, codes.shape[0]
    if codes.shape[1] != K or (residual is not None and residual.shape != (T, N)):
        extra = "" if residual is None else f", residual {list(residual.shape)}"
        raise ValueError(f"activations [{T}, {K}] do not fit weights {list(codes.shape)}{extra}")
    out = torch.empty(T, N)
    rows = _rows_per_block(T, N, K, pool.num_threads)

    def block(index: int) -> None:
        span = slice(index * rows, (index + 1) * rows)
        y = out[:, span]
        scale = q.scale * row_scale[span]
        if q.codes.dtype == torch.int8:
            _multiply_int8(q.codes, codes[span], scale, y)
        else:
            _multiply_float32(q.codes, codes[span], scale, max_weight, y)
        if residual is not None:
            y.add_(residual[:, span])

    pool.run(-(-N // rows), block)
    return out


def _rows_per_block(T: int, N: int, K: int, num_threads: int) -> int:
    rows = max(1, BLOCK_WEIGHTS // K)
    if num_threads > 1 and T * N * K >= PARALLEL_PRODUCTS:
        rows = min(rows, -(-N // (2 * num_threads)))
    return rows


def _multiply_int8(x: Tensor, w: Tensor, scale: Tensor, out: Tensor) -> None:
    """x int8 [T, K] x w int8 [n, K], int32 sums, times scale [T, n] -> out."""
    if 1 < len(x) <= SINGLE_ROWS:
        sums = torch.cat([torch._int_mm(row[None], w.t()) for row in x.unbind()])
    else:
        sums = torch._int_mm(x, w.t())
    torch.mul(sums, scale, out=out)


def _multiply_float32(x: Tensor, w: Tensor, scale: Tensor, max_weight: int, out: Tensor) -> None:
    """x f32 [T, K] x w int8 [n, K], exact sums, times scale [T, n] -> out."""
    n, K = w.shape
    wide = scratch("weights", n, K)
    wide.copy_(w)
    exact = (MAX_EXACT - 1) // (MAX_CODE * max_weight)
    if exact >= K:
        torch.mm(x, wide.t(), out=out)
        out.mul_(scale)
        return
    # Longer sums of an int8 head pass 2^24: pieces of K that stay below it, added in f64, rounded once.
    sums = torch.zeros(len(x), n, dtype=torch.float64)
    for start in range(0, K, exact):
        span = slice(start, start + exact)
        sums.add_(torch.mm(x[:, span], wide[:, span].t()))
    torch.mul(sums.to(torch.float32), scale, out=out)
