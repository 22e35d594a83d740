"""Do products of 16 and of 64 rows have the same bits?

Hopper multiplies tiles of 64 rows by another instruction (a warp group's) than tiles below. Decoding works on 16 rows;
prompts could work on 64 only if a row's sums came out alike.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

import triton_kernels
from benchmarks.gpu.bench import Figure, Options
from triton_kernels.bf16 import product
from triton_kernels.chain import wait_for_predecessor
from triton_kernels.device import Device

DEPTH, COLUMNS = 128, 32
TALL, SHORT = 64, 16


@triton.jit
def product_kernel(
    out,  # f32 [tiles * ROWS, N]
    a,  # bf16 [tiles * ROWS, K]
    b,  # bf16 [K, N]
    ROWS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    BF16: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, K)
    n = tl.arange(0, N)
    x = tl.load(a + row[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    if not BF16:
        x, y = x.to(tl.float32), y.to(tl.float32)
    total = product(x, y, tl.zeros([ROWS, N], tl.float32), BF16)
    tl.store(out + row[:, None] * N + n[None, :], total)


def products(options: Options) -> Iterator[Figure]:
    """The share of sums that are the same in tiles of both heights, of numbers of very different sizes."""
    device: Device = triton_kernels.load(options.device).opened
    rows = 4096 if options.on_gpu else TALL
    there = device.torch_device
    a, b = (wide(*shape).to(there, torch.bfloat16) for shape in ((rows, DEPTH), (DEPTH, COLUMNS)))
    tall, short = (multiplied(a, b, height, device) for height in (TALL, SHORT))
    same = float((tall == short).float().mean())
    yield Figure(f"sums that are the same in tiles of {TALL} and of {SHORT} rows", same, "of 1")


def wide(*shape: int) -> Tensor:
    """Normal numbers times powers of two from 2^-6 to 2^6."""
    source = torch.Generator().manual_seed(9)
    return torch.randn(*shape, generator=source) * 2.0 ** torch.randint(-6, 7, shape, generator=source)


def multiplied(a: Tensor, b: Tensor, height: int, device: Device) -> Tensor:
    """bf16 a [M, K] x b [K, N] -> f32 [M, N], in tiles of so many rows."""
    out = device.empty(a.shape[0], b.shape[1], dtype=torch.float32)
    device.launch(
        product_kernel,
        (a.shape[0] // height,),
        out=out,
        a=a,
        b=b,
        ROWS=height,
        K=a.shape[1],
        N=b.shape[1],
        BF16=device.bf16,
        num_warps=4,
    )
    return out
