"""Everything per token and element: norm, gate, quantize to int8, and the embedding lookup.

One program owns one token's row, so a row's reductions run in an order that depends on its length alone and never on
the batch. The arithmetic is IEEE, in the order written: rounded division and square root, half to even. NaN and
infinity stay visible: they make the row's scale infinite. Knows nothing of where the rows come from.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: RET505 (Triton drops the untaken branch of a constant condition, but not what follows its return)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.pack import padded
from triton_kernels.tuning import power_of_two

LONGEST_ROW = 65536
RESIDENT_WARPS = 32
"""Warps that a processor holds of these kernels, by their registers. Rows beyond that come in turns, each asked for
while the one before is summed: one program a row, an H200 took 45 us for 2,048 rows of 6,912 (2026-11-26)."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """Activations of T tokens as int8.

    codes     int8 [T, padded K]  zeros past K
    scale     f32 [T]             value = code * scale; infinite for a row that held NaN or infinity
    code_sum  int32 [T]           the sum of a token's codes
    """

    codes: Tensor
    scale: Tensor
    code_sum: Tensor
    num_values: int


@triton.jit
def round_half_even(x):
    """rint for |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. NaN stays NaN."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def magnitude(y):
    """|y|, with NaN as infinity: a maximum would lose it."""
    return tl.where(y == y, tl.abs(y), float("inf"))


@triton.jit
def to_codes(y, largest):
    """int8 codes of y by its row's `largest` magnitude (at least 1e-5). NaN becomes 0; the scale tells of it."""
    code = round_half_even(y * tl.math.div_rn(127.0, largest))
    code = tl.where(code == code, code, 0.0)
    return tl.minimum(tl.maximum(code, -127.0), 127.0).to(tl.int8)


@triton.jit
def normed(x, gain, eps, WIDTH: tl.constexpr):
    """RMS norm of one row: (x * r) * gain."""
    mean = tl.math.div_rn(tl.sum(x * x, axis=0), WIDTH * 1.0)
    r = tl.math.div_rn(1.0, tl.math.sqrt_rn(mean + eps))
    return (x * r) * gain


@triton.jit
def gated(gate, up, RELU2: tl.constexpr):
    """act(gate) * up: relu(gate)^2 or gate * sigmoid(gate)."""
    if RELU2:
        # a comparison, not a maximum: NaN must pass
        positive = tl.where(gate < 0.0, 0.0, gate)
        return (positive * positive) * up
    else:
        return (gate * tl.math.div_rn(1.0, 1.0 + tl.exp(-gate))) * up


@triton.jit
def store_quantized(y, t, i, codes, scale, code_sum, STRIDE: tl.constexpr):
    largest = tl.maximum(tl.max(magnitude(y), axis=0), 1e-5)
    code = to_codes(y, largest)
    tl.store(codes + t * STRIDE + i, code, mask=i < STRIDE)
    tl.store(scale + t, tl.math.div_rn(largest, 127.0))
    tl.store(code_sum + t, tl.sum(code.to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["T"])
def quantize_kernel(
    codes,
    scale,
    code_sum,
    x,  # f32 [T, WIDTH]
    gain,  # f32 [WIDTH]
    eps,
    T,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    i = tl.arange(0, BLOCK)
    inside = i < WIDTH
    # the rows to come are asked for while this one is summed
    for turn in tl.range(0, T - tl.program_id(0), tl.num_programs(0), num_stages=STAGES):
        t = tl.program_id(0).to(tl.int64) + turn
        y = tl.load(x + t * WIDTH + i, mask=inside, other=0.0)
        if NORM:
            y = normed(y, tl.load(gain + i, mask=inside, other=0.0), eps, WIDTH)
        store_quantized(y, t, i, codes, scale, code_sum, STRIDE)


@triton.jit(do_not_specialize=["T"])
def gate_kernel(
    codes,
    scale,
    code_sum,
    gate_up,  # f32 [T, 2 * WIDTH]
    gain,  # f32 [WIDTH]
    eps,
    T,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    RELU2: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    i = tl.arange(0, BLOCK)
    inside = i < WIDTH
    for turn in tl.range(0, T - tl.program_id(0), tl.num_programs(0), num_stages=STAGES):
        t = tl.program_id(0).to(tl.int64) + turn
        gate = tl.load(gate_up + t * 2 * WIDTH + i, mask=inside, other=0.0)
        up = tl.load(gate_up + t * 2 * WIDTH + WIDTH + i, mask=inside, other=0.0)
        y = gated(gate, up, RELU2)
        if NORM:
            y = normed(y, tl.load(gain + i, mask=inside, other=0.0), eps, WIDTH)
        store_quantized(y, t, i, codes, scale, code_sum, STRIDE)


@triton.jit
def embed_kernel(
    out,  # f32 [T, WIDTH]
    table,  # bf16 or f32 [V, stride]
    token_ids,  # int64 [T]
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(token_ids + t)
    value = tl.load(table + row * stride + i, mask=i < WIDTH, other=0.0)
    tl.store(out + t * WIDTH + i, value.to(tl.float32), mask=i < WIDTH)


def quantize(x: Tensor, gain: Tensor | None, eps: float, device: Device) -> Quantized:
    """f32 [T, K] -> Quantized [T, K], after an RMS norm where a gain f32 [K] is given."""
    check_width(x, x.shape[-1], gain)
    q = new_quantized(x.shape[0], x.shape[1], device)
    launch_rows(quantize_kernel, q, gain, eps, device, x=x)
    return q


def gate_quantize(gate_up: Tensor, gain: Tensor | None, eps: float, act: str, device: Device) -> Quantized:
    """f32 [T, 2F] (gate | up) -> act(gate) * up -> RMS norm where a gain f32 [F] is given -> Quantized [T, F]."""
    check_act(act)
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate and up need an even number of columns, not {gate_up.shape[-1]}")
    check_width(gate_up, gate_up.shape[-1] // 2, gain)
    q = new_quantized(gate_up.shape[0], gate_up.shape[1] // 2, device)
    launch_rows(gate_kernel, q, gain, eps, device, gate_up=gate_up, RELU2=act == "relu2")
    return q


def embed(table: Tensor, token_ids: Tensor, width: int, device: Device) -> Tensor:
    """Rows of `table` [V, at least width] for int64 ids [T] -> f32 [T, width]. The ids are trusted to be in range."""
    out = device.empty(token_ids.shape[0], width, dtype=torch.float32)
    block = min(1024, power_of_two(width))
    if out.shape[0]:
        device.launch(
            embed_kernel,
            (out.shape[0], triton.cdiv(width, block)),
            out=out,
            table=table,
            token_ids=token_ids,
            stride=table.stride(0),
            WIDTH=width,
            BLOCK=block,
            num_warps=4,
        )
    return out


def new_quantized(num_tokens: int, width: int, device: Device) -> Quantized:
    return Quantized(
        codes=device.empty(num_tokens, padded(width), dtype=torch.int8),
        scale=device.empty(num_tokens, dtype=torch.float32),
        code_sum=device.empty(num_tokens, dtype=torch.int32),
        num_values=width,
    )


def launch_rows(kernel: object, q: Quantized, gain: Tensor | None, eps: float, device: Device, **inputs: Any) -> None:
    num_tokens, stride = q.codes.shape
    if num_tokens == 0:
        return
    block = power_of_two(stride)
    warps = row_warps(block)
    resident = device.num_processors * max(1, RESIDENT_WARPS // warps)
    device.launch(
        kernel,
        (min(num_tokens, resident),),
        codes=q.codes,
        scale=q.scale,
        code_sum=q.code_sum,
        gain=q.scale if gain is None else gain,
        eps=eps,
        T=num_tokens,
        WIDTH=q.num_values,
        STRIDE=stride,
        BLOCK=block,
        STAGES=1 if num_tokens <= resident else 2,
        NORM=gain is not None,
        num_warps=warps,
        **inputs,
    )


def row_warps(block: int) -> int:
    """Sixteen values a thread up to 8192. Rows past 16384 spill 224 bytes a thread, and as much with 32 warps.

    Never by the number of tokens: it is part of the order of a row's sum.
    """
    return min(16, max(1, block // 512))


def check_act(act: str) -> None:
    if act not in ("relu2", "silu"):
        raise ValueError(f"act must be relu2 or silu, not {act!r}")


def check_width(x: Tensor, width: int, gain: Tensor | None) -> None:
    if x.dim() != 2 or not 0 < width <= LONGEST_ROW:
        raise ValueError(f"rows must be [T, 1 .. {LONGEST_ROW}], not {list(x.shape)}")
    if gain is not None and gain.shape != (width,):
        raise ValueError(f"a row of {width} values needs a gain of {width}, not {list(gain.shape)}")
