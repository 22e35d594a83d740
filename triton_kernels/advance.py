"""From one round of decoding to the next: its tokens become inputs, on the device.

Knows neither how tokens are drawn nor what a step does with them.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.chain import allow_successor, wait_for_predecessor
from triton_kernels.device import Device


@triton.jit(do_not_specialize=["R", "width", "block_tokens"])
def advance_kernel(
    token_ids,  # int64 [R]
    positions,  # int64 [R]
    slots,  # int64 [R]
    lengths,  # int32 [R]
    turn,  # int32 [1]
    drawn,  # int64 [rounds, R]
    block_tables,  # int32 [R, width]
    R,
    width,
    block_tokens,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The inputs of the next round, by one program. A row without a token is padding from here on."""
    wait_for_predecessor(PDL)
    allow_successor(PDL)
    r = tl.arange(0, BLOCK)
    inside = r < R
    t = tl.load(turn)
    token_id = tl.load(drawn + t.to(tl.int64) * R + r, mask=inside, other=-1)
    length = tl.load(lengths + r, mask=inside, other=0)
    goes_on = (token_id >= 0) & (length > 0)
    position = length.to(tl.int64)
    there = goes_on & (position // block_tokens < width)
    block = tl.load(block_tables + r.to(tl.int64) * width + position // block_tokens, mask=there, other=0)
    slot = block.to(tl.int64) * block_tokens + position % block_tokens
    tl.store(token_ids + r, tl.maximum(token_id, 0), mask=inside)
    tl.store(positions + r, tl.where(there, position, 0), mask=inside)
    tl.store(slots + r, tl.where(there, slot, -1), mask=inside)
    tl.store(lengths + r, tl.where(there, length + 1, 0), mask=inside)
    tl.debug_barrier()
    tl.store(turn, t + 1)


def advance(
    token_ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    lengths: Tensor,
    block_tables: Tensor,
    turn: Tensor,
    drawn: Tensor,
    block_tokens: int,
    device: Device,
) -> None:
    """Turn a decode step's inputs (`graphs.DecodeInputs`) into those of the next round, and `turn` with them."""
    num_rows, width = block_tables.shape
    device.launch(
        advance_kernel,
        (1,),
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        lengths=lengths,
        turn=turn,
        drawn=drawn,
        block_tables=block_tables,
        R=num_rows,
        width=width,
        block_tokens=block_tokens,
        BLOCK=triton.next_power_of_2(num_rows),
        num_warps=4,
    )
