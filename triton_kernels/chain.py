"""Programmatic dependent launch: a kernel may start while its predecessor still runs, and waits where it must.

Only NVIDIA GPUs of compute capability 9.0 and newer have it, and only a `Device` with `pdl` uses it. Every kernel of
this wing waits before it touches anything that its predecessor wrote or may still read, and only then lets the next
one start. All of them must: a kernel waits for its predecessor alone, and what ran before that is done only because the
predecessor waited too. So what was there before the predecessor began may be read at once, and what no kernel of a step
writes (weights) in any case: a linear of few tokens asks for all its weights while its predecessor runs, which takes
about as long as they take to come from memory, and attention for the keys it will read.
Source: NVIDIA's PTX manual, griddepcontrol, prefetch.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_predecessor(PDL: tl.constexpr):
    """Until all kernels launched before have ended and what they wrote is visible."""
    if PDL:
        gdc_wait()


@triton.jit
def allow_successor(PDL: tl.constexpr):
    """The next kernel may be launched once every program is here or has ended. It promises nothing about memory."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def ask_ahead(at):
    """Have the lines at these addresses brought to the second-level cache. Nothing waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def ask_for_rows(at, num_bytes):
    """The same for so many bytes from each of these addresses (of bytes, or as numbers), by lines of 128 bytes."""
    for first in range(0, num_bytes, 128):
        ask_ahead(at + first)
