"""The output head: final norm and logits.

Two forms of the [V, H] table. bf16: tensor-core products in fp32, with one tile shape for every number of rows, so that
a row's logits do not depend on its company. int8: a scale per vocabulary row and quantized activations, whose integer
sums do not depend on anything. With both (int8-rescore) int8 finds the candidates and `rescore.py` gives them the bits
of the bf16 form.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.bf16 import product, store_bf16
from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device
from triton_kernels.pack import padded
from triton_kernels.pointwise import check_width, normed, quantize, row_warps
from triton_kernels.tuning import power_of_two

HEAD_DTYPES = ("bf16", "int8", "int8-rescore")
# for every number of rows, and to score candidates again: the order of the sum over H is part of the result
BF16_TILE = {"BLOCK_V": 128, "BLOCK_T": 64, "BLOCK_K": 64}


@dataclass(frozen=True, slots=True)
class Table:
    """A [V, H] table. What it is not used for is None; a tied bf16 table is stored once.

    embedding  bf16 or f32 [V, padded H]
    exact      bf16 [V, padded H]
    codes      int8 [V, padded H]
    scale      f32 [V] of the codes
    """

    embedding: Tensor | None
    exact: Tensor | None
    codes: Tensor | None
    scale: Tensor | None
    width: int

    @property
    def is_rescored(self) -> bool:
        return self.exact is not None and self.codes is not None


def pack_table(weight: Tensor, *, embedding: bool, head_dtype: str | None, device: Device) -> Table:
    """Take over a [V, H] bf16 or f32 table; an f32 table is rounded to bf16 for a bf16 head."""
    if weight.dim() != 2 or weight.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"a table must be bf16 or f32 [V, H], not {weight.dtype} {list(weight.shape)}")
    if head_dtype not in (None, *HEAD_DTYPES):
        raise ValueError(f"the GPU head is {' or '.join(HEAD_DTYPES)}, not {head_dtype!r}")
    width = weight.shape[1]
    rows = torch.nn.functional.pad(weight, (0, padded(width) - width))
    has_exact, has_codes = head_dtype in ("bf16", "int8-rescore"), head_dtype in ("int8", "int8-rescore")
    held = rows.to(device.torch_device) if embedding or has_exact else None
    exact = held.to(torch.bfloat16) if has_exact and held is not None else None
    codes, scale = (tensor.to(device.torch_device) for tensor in int8_rows(rows)) if has_codes else (None, None)
    return Table(held if embedding else None, exact, codes, scale, width)


def int8_rows(rows: Tensor, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: codes [V, H], scale f32 [V] = absmax / 127. In chunks, to need little memory."""
    codes, scales = torch.empty(rows.shape, dtype=torch.int8), torch.empty(rows.shape[0])
    for start in range(0, rows.shape[0], chunk):
        part = rows[start : start + chunk].float().cpu()
        largest = part.abs().amax(1)
        factor = 127 / torch.where(largest == 0, 1.0, largest)
        codes[start : start + chunk] = (part * factor[:, None]).round().to(torch.int8)
        scales[start : start + chunk] = largest / 127
    return codes, scales


@triton.jit
def norm_kernel(
    out,  # bf16 [T, STRIDE]
    x,  # f32 [T, WIDTH]
    gain,  # f32 [WIDTH]
    eps,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BF16: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < WIDTH
    row = tl.load(x + t * WIDTH + i, mask=inside, other=0.0)
    y = normed(row, tl.load(gain + i, mask=inside, other=0.0), eps, WIDTH)
    store_bf16(out + t * STRIDE + i, y, i < STRIDE, BF16)


@triton.jit
def logit_tile(
    w_at, x_at, there, K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    INT8: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    """The products [BLOCK_V, BLOCK_T] of table rows at w_at [BLOCK_V, 1] and tokens at x_at [1, BLOCK_T] over K.

    Tokens that are not `there` [1, BLOCK_T] are zeros and are not read: with a read of the same token for each of them,
    every program would ask one slice of the cache for the same few bytes at the same time.
    """
    total = tl.zeros([BLOCK_V, BLOCK_T], dtype=tl.int32 if INT8 else tl.float32)
    for i in range(K // BLOCK_K):
        rk = i * BLOCK_K + tl.arange(0, BLOCK_K)
        w = tl.load(w_at + rk[None, :])
        y = tl.load(x_at + rk[:, None], mask=there, other=0)
        if INT8:
            total = tl.dot(w, y, total, out_dtype=tl.int32)
        elif BF16:
            total = product(w, y, total, True)
        else:
            total = product(w.to(tl.float32), y.to(tl.float32), total, False)
    return total


@triton.jit(do_not_specialize=["T"])
def head_kernel(
    out,  # f32 [T, V]
    x,  # bf16 or int8 [T, K]
    table,  # bf16 or int8 [V, K]
    token_scale,  # f32 [T], for int8
    row_scale,  # f32 [V], for int8
    T,
    V: tl.constexpr,
    K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INT8: tl.constexpr,
    BF16: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    # neighbouring programs share a tile of the table, which is the larger operand
    rt = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    rv = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    x_at = x + rt.to(tl.int64)[None, :] * K
    w_at = table + tl.minimum(rv, V - 1).to(tl.int64)[:, None] * K
    total = logit_tile(w_at, x_at, (rt < T)[None, :], K, BLOCK_V, BLOCK_T, BLOCK_K, INT8, BF16)
    allow_successor(PDL)
    inside = (rt < T)[:, None] & (rv < V)[None, :]
    logits = tl.trans(total).to(tl.float32)
    if INT8:
        token = tl.load(token_scale + rt, mask=rt < T, other=0.0)[:, None]
        logits *= token * tl.load(row_scale + rv, mask=rv < V, other=0.0)[None, :]
    tl.store(out + rt.to(tl.int64)[:, None] * V + rv[None, :], logits, mask=inside)


def head(x: Tensor, gain: Tensor, eps: float, table: Table, device: Device) -> Tensor:
    """Final RMS norm and output head: f32 [R, H] -> logits f32 [R, V]; in bf16 where the table has it."""
    if table.exact is None:
        return int8_logits(x, gain, eps, table, device)
    check_rows(x, table)
    logits = device.empty(x.shape[0], table.exact.shape[0], dtype=torch.float32)
    if x.shape[0]:
        y = normed_bf16(x, gain, eps, table.exact.shape[1], device)
        multiply(logits, y, table.exact, None, BF16_TILE, device)
    return logits


def int8_logits(x: Tensor, gain: Tensor, eps: float, table: Table, device: Device) -> Tensor:
    """The same by int8 codes of both: f32 [R, V]."""
    if table.codes is None or table.scale is None:
        raise ValueError("this table was packed without a head (head_dtype None)")
    check_rows(x, table)
    logits = device.empty(x.shape[0], table.codes.shape[0], dtype=torch.float32)
    if x.shape[0]:
        q = quantize(x, gain, eps, device)
        tile = {"BLOCK_V": 128, "BLOCK_T": min(64, max(16, power_of_two(x.shape[0]))), "BLOCK_K": 128}
        multiply(logits, q.codes, table.codes, (q.scale, table.scale), tile, device)
    return logits


def check_rows(x: Tensor, table: Table) -> None:
    if x.shape[-1] != table.width:
        raise ValueError(f"the head takes rows of {table.width} values, not {list(x.shape)}")


def multiply(
    logits: Tensor,
    x: Tensor,
    rows: Tensor,
    scales: tuple[Tensor, Tensor] | None,
    tile: dict[str, int],
    device: Device,
) -> None:
    """x [R, K] times table rows [V, K] -> logits [R, V]; scales are those of int8 tokens and table rows."""
    token_scale, row_scale = (logits, logits) if scales is None else scales
    device.launch(
        head_kernel,
        (triton.cdiv(x.shape[0], tile["BLOCK_T"]), triton.cdiv(rows.shape[0], tile["BLOCK_V"])),
        out=logits,
        x=x,
        table=rows,
        token_scale=token_scale,
        row_scale=row_scale,
        T=x.shape[0],
        V=rows.shape[0],
        K=rows.shape[1],
        INT8=scales is not None,
        BF16=device.bf16,
        **tile,
        num_warps=head_warps(device),
        num_stages=3,
    )


def head_warps(device: Device) -> int:
    return 8 if device.wgmma else 4


def normed_bf16(x: Tensor, gain: Tensor, eps: float, stride: int, device: Device) -> Tensor:
    check_width(x, x.shape[1], gain)
    out = device.empty(x.shape[0], stride, dtype=torch.bfloat16)
    block = power_of_two(stride)
    device.launch(
        norm_kernel,
        (x.shape[0],),
        out=out,
        x=x,
        gain=gain,
        eps=eps,
        WIDTH=x.shape[1],
        STRIDE=stride,
        BLOCK=block,
        BF16=device.bf16,
        num_warps=row_warps(block),
    )
    return out
