"""The per-token verbs: norm, quantize, gate, embed, RoPE. All in fp32, each row on its own.

Only forms whose result for a row does not depend on the other rows: exact element-wise operations, `exp`, `amax`, and
`mean` over the last axis of a contiguous matrix by one thread. Knows no weights. Formulas: "The Era of 1-bit LLMs"
(arXiv 2402.17764) with absmax activations; RoPE as in RoFormer (arXiv 2104.09864), NeoX halves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cpu_fallback.linear import Form, Quantized
from cpu_fallback.threads import WorkPool

CHUNK_VALUES = 1 << 16
"""Values per piece (256 KB in fp32), so that the dozen passes of a verb run in the L2 cache."""
MIN_ABSMAX = 1e-5
_MAX_CODE = torch.tensor(127.0)  # as a tensor: `127 / a` of a Python number is a reciprocal and a product in torch

Rows = Callable[[slice, Tensor], Tensor]
"""(token span, buffer [n, W]) -> those rows of the values to quantize, f32, ours to overwrite."""


@dataclass(frozen=True, slots=True)
class RopeTables:
    """f32 [P, 2, 1, D]: cosines of both halves, and sines with the sign of the half they meet."""

    cos_sin: Tensor


def norm_quantize(x: Tensor, gain: Tensor, eps: float, form: Form, pool: WorkPool) -> Quantized:
    """RMS norm by gain f32 [H], then quantize: f32 [T, H] -> Quantized [T, H]."""
    _check_width(x, gain)
    x = x.contiguous()
    T, H = x.shape
    return _quantized(T, H, lambda span, out: _norm(x[span], gain, eps, out), form, pool)


def quantize(x: Tensor, form: Form, pool: WorkPool) -> Quantized:
    """f32 [T, K] -> Quantized [T, K]; x is not modified."""
    T, K = x.shape
    return _quantized(T, K, lambda span, out: out.copy_(x[span]), form, pool)


def gate_norm_quantize(
    gate_up: Tensor, gain: Tensor | None, eps: float, act: Literal["relu2", "silu"], form: Form, pool: WorkPool
) -> Quantized:
    """f32 [T, 2F] (gate | up) -> act(gate) * up -> RMS norm by gain f32 [F] if given -> Quantized [T, F]."""
    if act not in ("relu2", "silu"):
        raise ValueError(f"act must be relu2 or silu, not {act!r}")
    T, F = gate_up.shape[0], gate_up.shape[1] // 2
    gate, up = gate_up[:, :F], gate_up[:, F:]
    if gain is not None:
        _check_width(up, gain)

    def rows(span: slice, out: Tensor) -> Tensor:
        y = _gate(gate[span], act, out).mul_(up[span])
        return y if gain is None else _norm(y, gain, eps, y)

    return _quantized(T, F, rows, form, pool)


def _check_width(x: Tensor, gain: Tensor) -> None:
    if x.shape[-1] != gain.shape[0]:
        raise ValueError(f"activations of width {x.shape[-1]} do not fit a gain of {gain.shape[0]}")


def _quantized(T: int, W: int, rows: Rows, form: Form, pool: WorkPool) -> Quantized:
    """Quantize the values that `rows` yields, a chunk of tokens at a time."""
    codes = torch.empty(T, W, dtype=torch.float32 if form == "float32" else torch.int8)
    scale = torch.empty(T, 1)
    tokens = max(1, CHUNK_VALUES // W)

    def chunk(index: int) -> None:
        span = slice(index * tokens, (index + 1) * tokens)
        out = codes[span]
        y = rows(span, out if form == "float32" else torch.empty(out.shape))
        absmax = y.abs().amax(-1, keepdim=True).clamp_min_(MIN_ABSMAX)
        torch.div(absmax, 127.0, out=scale[span])
        # No clamp: |y| <= absmax, so the product is at most 127 * (1 + 2^-22) and rounds to 127.
        y.mul_(torch.div(_MAX_CODE, absmax)).round_()
        if form == "int8":
            # A bad row has a bad scale, which is what keeps it visible; NaN has no defined int8.
            out.copy_(y.nan_to_num_(nan=0.0))

    pool.run(-(-T // tokens), chunk)
    return Quantized(codes, scale)


def _norm(x: Tensor, gain: Tensor, eps: float, out: Tensor) -> Tensor:
    """(x * r) * gain into `out`, r = 1 / sqrt(mean(x^2) + eps). x is contiguous and may be `out`."""
    r = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return torch.mul(x, r, out=out).mul_(gain)


def _gate(gate: Tensor, act: str, out: Tensor) -> Tensor:
    """relu(g)^2 or silu(g) into `out`. torch's own silu has a vector form and another for the tail: not invariant."""
    if act == "relu2":
        return torch.relu_(out.copy_(gate)).square_()
    return torch.div(gate, torch.neg(gate).exp_().add_(1.0), out=out)


def rope_tables(head_dim: int, theta: float, scaling: Any | None, num_positions: int) -> RopeTables:
    """Tables for positions 0 .. num_positions - 1, f32 throughout. Raises ValueError for scaled RoPE, odd head_dim."""
    if scaling is not None:
        raise ValueError(f"this wing serves plain RoPE only, not scaling {scaling!r}")
    if head_dim % 2 or head_dim < 2:
        raise ValueError(f"head_dim must be a positive even number, got {head_dim}")
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), 1.0 / theta**steps)
    cos, sin = angles.cos(), angles.sin()
    both = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
    return RopeTables(both.unsqueeze(2))


def rope(x: Tensor, positions: Tensor, tables: RopeTables) -> Tensor:
    """x f32 [T, heads, D] -> a new tensor, each head turned by its token's position."""
    cos, sin = tables.cos_sin.index_select(0, positions).unbind(1)
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1).mul_(sin))
