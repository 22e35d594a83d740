"""Which instruction set of the native library to use, and a check of it before the first request.

Before a path is used, every kernel of it is compared with the portable one on small odd shapes; all results must have
the same bytes, floats included. A path that differs is refused with the reason, and the next one is tried.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cpu_fallback.native_library import NativeLibrary, find_library
from cpu_fallback.native_wing import NativeCpuWing

logger = logging.getLogger(__name__)

ISAS = ("avx512_vnni", "avx2_vnni", "avx2", "neon_dot", "portable")
"""Fastest first."""

Check: TypeAlias = Callable[[NativeLibrary, str], str | None]
"""(library, isa) -> why it must not be used, or None."""


def available(isa: str, library: NativeLibrary | None = None) -> str | None:
    """Why `isa` cannot run here, or None if it can. "auto" asks for any of ISAS. Does not run the self-check."""
    try:
        library = library or _library()
    except RuntimeError as error:
        return str(error)
    return None if isa == "auto" else library.refusal(isa)


def load(isa: str, threads: int, library: NativeLibrary | None = None, check: Check | None = None) -> NativeCpuWing:
    """The native wing on `isa` ("auto": the fastest that runs and passes `check`, by default the self-check).

    Raises RuntimeError with the reason when there is no library, or when `isa` was asked for by name and cannot run.
    """
    library = library or _library()
    reasons = []
    for candidate in ISAS if isa == "auto" else (isa,):
        reason = library.refusal(candidate) or (check or self_check)(library, candidate)
        if reason is None:
            why = "asked for" if isa != "auto" else "the fastest this processor runs"
            return NativeCpuWing(library, candidate, threads, why)
        reasons.append(f"{candidate}: {reason}")
        logger.log(logging.WARNING if "self-check" in reason else logging.DEBUG, "cpu_isa %s", reasons[-1])
    raise RuntimeError("; ".join(reasons))


def self_check(library: NativeLibrary, isa: str) -> str | None:
    """Compare every kernel of `isa` with the portable one. Returns None, or which verb gave other bytes."""
    if isa == "portable":
        return None
    with (
        closing(NativeCpuWing(library, isa, 1, "self-check")) as candidate,
        closing(NativeCpuWing(library, "portable", 1, "self-check")) as portable,
    ):
        for (verb, got), (_, wanted) in zip(probe(candidate), probe(portable), strict=True):
            if not torch.equal(got.view(torch.uint8), wanted.view(torch.uint8)):
                return f"the self-check failed: {verb} differs from the portable path"
    return None


def _library() -> NativeLibrary:
    path = find_library()
    if path is None:
        raise RuntimeError("the native library is not built: it needs cmake and a C++17 compiler at install")
    try:
        return NativeLibrary(path)
    except OSError as error:
        raise RuntimeError(f"the native library cannot be loaded: {error}") from error


_LINEARS = ((20, 36, (1, 2, 3, 17)), (132, 548, (1, 8, 13)), (708, 276, (35,)), (4868, 20, (8,)))
"""(N, K, tokens): rows and columns beyond and below whole blocks; 548 = 34 blocks and a quarter, past every span; the
last two are enough of everything for the wide ways of a linear, and some rows and tokens more."""


def probe(wing: NativeCpuWing) -> Iterator[tuple[str, Tensor]]:
    """(verb, result) of every kernel on fixed inputs."""
    generator = torch.Generator().manual_seed(0)

    def floats(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    for rows, width, tokens in _LINEARS:
        codes = torch.randint(0, 3, (4, rows // 4, width), generator=generator, dtype=torch.uint8)
        planes = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
        weights = wing.pack([(planes, floats(rows).abs())])
        weight = floats(rows + 3, width)
        table, halves = (wing.pack_table(weight, embedding=True, head_dtype=t) for t in ("int8", "int4-rescore"))
        gain = floats(width)
        for count in tokens:
            x = floats(count, width) * torch.tensor([1e-9, 1.0, 30.0]).repeat(count)[:count, None]
            q = wing.norm_quantize(x, gain, 1e-5)
            yield from (("norm_quantize", q.codes), ("norm_quantize", q.scale), ("norm_quantize", q.sums))
            yield "ternary_linear", wing.ternary_linear(q, weights, floats(count, rows))
            yield "head", wing.head(x, gain, 1e-5, table)
            yield "head in halves", wing.head(x, gain, 1e-5, halves)
            none = torch.zeros(count, 0, dtype=torch.int64)
            yield "head_topk in halves", wing.head_topk(x, gain, 1e-5, halves, rows // 64, none)[1]
            for act in ("relu2", "silu"):
                yield "gate_norm_quantize", wing.gate_norm_quantize(floats(count, 2 * width), gain, 1e-5, act).codes
    for dtype in ("bf16", "int8"):
        yield "paged_attention", _attend(wing, dtype, floats(11, (6 + 2 * 2) * 20))


def _attend(wing: NativeCpuWing, dtype: Literal["bf16", "int8"], qkv: Tensor) -> Tensor:
    """Eleven tokens of two requests, 6 heads on 2 of 20 dimensions, blocks of 4 tokens."""
    batch: Any = SimpleNamespace(
        positions=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1]),
        slots=torch.tensor([4, 5, 6, 7, 0, 1, 2, 3, 12, 8, 9]),
        block_tables=torch.tensor([[1, 0, 3], [2, 0, 0]], dtype=torch.int32),
        lengths=torch.tensor([9, 2], dtype=torch.int32),
        starts=torch.tensor([0, 9, 11], dtype=torch.int32),
    )
    cache = wing.new_cache(1, 4, 4, 2, 20, dtype)
    tables = wing.rope_tables(20, 10000.0, None, 16)
    q = wing.rope_write_kv(qkv, batch.positions, tables, cache, 0, batch.slots)
    return wing.paged_attention(q, cache, 0, batch.block_tables, batch.lengths, batch.starts)
