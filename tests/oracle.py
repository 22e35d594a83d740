"""Every verb of the seam, as plainly as it can be written: numpy, int64 sums, float64, loops over rows.

Independent of the wings. Where the canonical arithmetic is a chain of exact fp32 steps (plain quantization, the
rescale of integer sums), the oracle takes the same steps, so a wing must equal it bit for bit; everything else is
float64, to be met within the rounding of fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def plane_bytes(ternary: NDArray[np.signedinteger]) -> NDArray[np.uint8]:
    """Ternary [N, K] -> planes uint8 [N/4, K]: byte r holds rows r, r + N/4, r + 2N/4, r + 3N/4, lowest bits first."""
    quarters = (np.asarray(ternary) + 1).astype(np.uint8).reshape(4, -1, ternary.shape[1])
    planes: NDArray[np.uint8] = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    return planes


def unpack(planes: NDArray[np.uint8]) -> I64:
    """Planes uint8 [N/4, K] -> ternary int64 [N, K]."""
    return np.concatenate([(planes >> shift & 3).astype(np.int64) - 1 for shift in (0, 2, 4, 6)])


def bf16(x: NDArray[np.floating]) -> F64:
    """x rounded to bfloat16, half to even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def quantize(x: NDArray[np.floating]) -> tuple[I64, F32]:
    """x [T, K] -> codes int64 [T, K], scale f32 [T], in fp32 steps."""
    y = np.asarray(x, np.float32)
    absmax = np.maximum(np.abs(y).max(axis=1), np.float32(1e-5))
    codes = np.clip(np.rint(y * (np.float32(127) / absmax)[:, None]), -127, 127)
    return codes.astype(np.int64), absmax / np.float32(127)


def rms_norm(x: NDArray[np.floating], gain: NDArray[np.floating], eps: float) -> F64:
    """x [T, H] -> float64 [T, H]."""
    y = np.asarray(x, np.float64)
    r: F64 = 1.0 / np.sqrt((y * y).mean(axis=1, keepdims=True) + eps)
    return y * r * np.asarray(gain, np.float64)


def gate(gate_up: NDArray[np.floating], act: str) -> F64:
    """[T, 2F] (gate | up) -> float64 [T, F]."""
    g, u = np.split(np.asarray(gate_up, np.float64), 2, axis=1)
    return np.maximum(g, 0.0) ** 2 * u if act == "relu2" else g / (1.0 + np.exp(-g)) * u


def linear(codes: I64, scale: F32, weights: I64, row_scale: F32, residual: F32 | None = None) -> F32:
    """codes [T, K] x weights [N, K] -> f32 [T, N]: int64 sums, one rescale, in fp32 steps."""
    sums = (codes @ weights.T).astype(np.float32)
    out = sums * (np.asarray(scale, np.float32)[:, None] * np.asarray(row_scale, np.float32))
    return out if residual is None else out + residual


def rope(x: NDArray[np.floating], positions: Sequence[int], theta: float) -> F64:
    """x [T, heads, D] -> float64 [T, heads, D]; halves (i, i + D/2) turn by position / theta^(2i/D)."""
    D = x.shape[-1]
    angles = np.outer(positions, theta ** (-np.arange(0, D, 2) / D))[:, None, :]
    a, b = np.split(np.asarray(x, np.float64), 2, axis=-1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1)


def attention(q: NDArray[np.floating], keys: NDArray[np.floating], values: NDArray[np.floating]) -> F64:
    """One row: q [count, Hq, D] at the last positions of keys, values [length, Hkv, D] -> float64 [count, Hq * D]."""
    (count, Hq, D), (length, Hkv, _) = q.shape, keys.shape
    out = np.empty((count, Hq, D))
    for i in range(count):
        seen = length - count + i + 1
        for h in range(Hq):
            kv = h // (Hq // Hkv)
            scores = keys[:seen, kv].astype(np.float64) @ q[i, h].astype(np.float64) / np.sqrt(D)
            weights = np.exp(scores - scores.max())
            out[i, h] = weights @ values[:seen, kv].astype(np.float64) / weights.sum()
    return out.reshape(count, Hq * D)


def quantize_head(weight: NDArray[np.floating]) -> tuple[I64, F32]:
    """[V, H] -> int8 codes as int64, scale f32 [V] = absmax / 127; a row of zeros has scale 0."""
    w = np.asarray(weight, np.float32)
    absmax = np.abs(w).max(axis=1)
    factor = np.float32(127) / np.where(absmax == 0, np.float32(1), absmax)
    return np.rint(w * factor[:, None]).astype(np.int64), absmax / np.float32(127)


def top_k(logits: F32, k: int, extra_ids: I64) -> tuple[I64, F32]:
    """The k largest of each row by (logit descending, id ascending), then the extra ids (-1 has the logit -inf)."""
    ids = np.array([sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in logits], np.int64)
    ids = np.concatenate([ids.reshape(len(logits), -1), extra_ids], axis=1)
    return ids, np.where(ids < 0, -np.inf, np.take_along_axis(logits, np.maximum(ids, 0), axis=1)).astype(np.float32)
