"""The native CPU wing: the seam's verbs, and the whole step in one call, on libbitnet_native.

Torch tensors in and out; their addresses go to the library, which has its own thread pool. Knows neither the model nor
the engine: plans and batches are read by attribute. Floats do not depend on the instruction set, the threads, or what
else is in the batch. One int8 table serves both the head and the embedding lookup.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cpu_fallback.halves import halves_pay
from cpu_fallback.native_handles import (
    ACTS,
    Cache,
    Quantized,
    RopeTables,
    Table,
    Weights,
    address_of,
    dense,
    memory_bytes,
    round_up,
)
from cpu_fallback.native_library import (
    NativeBatch,
    NativeCache,
    NativeContext,
    NativeLibrary,
    NativeMemory,
    NativeSegment,
    NativeTable,
    NativeWeights,
)
from cpu_fallback.native_step import CompiledStep, Draws

logger = logging.getLogger(__name__)


class NativeCpuWing:
    """The Ops protocol on libbitnet_native. Bad shapes raise ValueError with the numbers."""

    name = "cpu"
    wants_proof = False  # its paths are compared with each other when it is loaded
    head_dtypes = ("auto", "int8", "int4-rescore")

    def __init__(self, library: NativeLibrary, isa: str, threads: int, why: str) -> None:
        """Holds torch to one thread until `close`. Raises RuntimeError when this machine cannot run `isa`."""
        self._library = library
        self._context = NativeContext(library, isa, threads)
        self._isa, self._threads, self._why = isa, threads, why
        self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the cores are the pool's; loading beside torch's own took twice as long

    # --- weights and tables ---

    def pack(self, segments: Sequence[tuple[Tensor, Tensor]]) -> Weights:
        """[(planes uint8 [Ni/4, K], row_scale f32 [Ni]), ...] -> Weights. The tensors may be freed afterwards.

        Raises ValueError for shapes that do not go together, a K that is no multiple of 4, and code 3.
        """
        if not segments:
            raise ValueError("pack needs at least one segment")
        width = segments[0][0].shape[-1]
        if width % 4 or width == 0:
            raise ValueError(f"K must be a positive multiple of 4, got {width}")
        planes = [dense(planes, torch.uint8, (None, width), "planes") for planes, _ in segments]
        rows = 4 * sum(plane.shape[0] for plane in planes)
        row_scale = torch.zeros(round_up(rows, 16))
        scales = [
            dense(s, torch.float32, (4 * p.shape[0],), "row_scale") for p, (_, s) in zip(planes, segments, strict=True)
        ]
        torch.cat(scales, out=row_scale[:rows])
        memory = NativeMemory(self._library, round_up(rows, 16) * round_up(width, 16) // 4, huge=True)
        native = NativeWeights(memory.address, row_scale.data_ptr(), rows, width)
        array = (NativeSegment * len(planes))(*(NativeSegment(p.data_ptr(), 4 * p.shape[0]) for p in planes))
        self._context.call("pack", array, len(planes), native)
        return Weights(memory, row_scale, native)

    def pack_table(self, weight: Tensor, *, embedding: bool, head_dtype: str | None) -> Table:
        """[V, H] bf16 or f32 -> an int8 Table for lookup (with four bits more of each value), head, or both.

        A head of "int4-rescore" keeps its int8 codes in halves: the upper four bits of all rows say which few can be
        the largest, and those are rescored with the lower four. The logits are those of "int8". "auto" does so for
        large heads whose rows fit (halves_pay).

        Raises ValueError when head_dtype is none of head_dtypes and not None, or H is no multiple of 4.
        """
        if head_dtype not in (None, *self.head_dtypes):
            raise ValueError(f"head_dtype {head_dtype!r} is not available: {' and '.join(self.head_dtypes)} are")
        if weight.dtype not in (torch.bfloat16, torch.float32) or weight.dim() != 2 or weight.shape[1] % 4:
            raise ValueError(
                f"a table must be bf16 or f32 [V, H], H a multiple of 4, got {weight.dtype} {list(weight.shape)}"
            )
        weight = weight.contiguous()
        rows, width = weight.shape
        if head_dtype == "auto":
            head_dtype = "int4-rescore" if halves_pay(weight) else "int8"
            logger.info("head_dtype auto: %s for a head of %d rows", head_dtype, rows)
        if head_dtype == "int4-rescore":
            memory = NativeMemory(self._library, round_up(rows, 16) * round_up(width, 8) // 2, huge=True)
            low = NativeMemory(self._library, round_up(rows, 16) * round_up(width, 128) // 2, huge=True)
        else:
            memory, low = NativeMemory(self._library, round_up(rows, 16) * width, huge=True), None
        refinement = NativeMemory(self._library, rows * width // 2, huge=False) if embedding else None
        row_scale, row_sums = torch.zeros(round_up(rows, 16)), torch.zeros(round_up(rows, 16), dtype=torch.int32)
        finer = refinement.address if refinement else None
        lower = low.address if low else None
        native = NativeTable(memory.address, row_scale.data_ptr(), row_sums.data_ptr(), finer, lower, rows, width)
        self._context.call("pack_table", weight.data_ptr(), weight.dtype == torch.bfloat16, native)
        return Table(memory, refinement, low, row_scale, row_sums, native)

    def embed(self, table: Table, token_ids: Tensor) -> Tensor:
        """ids int64 [T] -> f32 [T, H]. Raises ValueError for an id outside the vocabulary."""
        ids = dense(token_ids, torch.int64, (None,), "token_ids")
        out = torch.empty(len(ids), table.native.width)
        self._context.call("embed", table.native, ids.data_ptr(), len(ids), out.data_ptr())
        return out

    # --- pointwise verbs and the linear ---

    def _quantized(self, tokens: int, width: int) -> Quantized:
        codes = torch.empty(tokens, round_up(width, 16), dtype=torch.int8)
        return Quantized(codes, torch.empty(tokens), torch.empty(tokens, dtype=torch.int32), width)

    def norm_quantize(self, x: Tensor, gain: Tensor, eps: float) -> Quantized:
        """RMS norm, then quantize per token: f32 [T, H], gain f32 [H] -> Quantized."""
        gain = dense(gain, torch.float32, (x.shape[-1],), "gain")
        return self._norm_quantize(x, gain, eps)

    def quantize(self, x: Tensor) -> Quantized:
        """f32 [T, K] -> Quantized. NaN and infinities show in the scale."""
        return self._norm_quantize(x, None, 0.0)

    def _norm_quantize(self, x: Tensor, gain: Tensor | None, eps: float) -> Quantized:
        x = dense(x, torch.float32, (None, None), "x")
        out = self._quantized(*x.shape)
        self._context.call("norm_quantize", x.data_ptr(), address_of(gain), eps, out.native())
        return out

    def gate_norm_quantize(
        self, gate_up: Tensor, gain: Tensor | None, eps: float, act: Literal["relu2", "silu"]
    ) -> Quantized:
        """f32 [T, 2F] (gate | up) -> act(gate) * up -> norm by gain f32 [F] if given -> Quantized [T, F]."""
        gate_up = dense(gate_up, torch.float32, (None, None), "gate_up")
        tokens, both = gate_up.shape
        if both % 2 or act not in ACTS:
            raise ValueError(f"gate_up must be [T, 2F] and act one of {sorted(ACTS)}, got {both} columns and {act!r}")
        gain = None if gain is None else dense(gain, torch.float32, (both // 2,), "gain")
        out = self._quantized(tokens, both // 2)
        self._context.call("gate_norm_quantize", gate_up.data_ptr(), address_of(gain), eps, ACTS[act], out.native())
        return out

    def ternary_linear(self, q: Quantized, w: Weights, residual: Tensor | None = None) -> Tensor:
        """Quantized [T, K] x Weights [N, K] -> f32 [T, N], plus residual f32 [T, N] if given (not modified)."""
        tokens, rows = q.codes.shape[0], w.native.rows
        if q.width != w.native.width:
            raise ValueError(f"activations of K={q.width} do not go with weights of K={w.native.width}")
        if residual is not None:
            residual = dense(residual, torch.float32, (tokens, rows), "residual")
        out = torch.empty(tokens, rows)
        self._context.call("linear", q.native(), w.native, address_of(residual), out.data_ptr())
        return out

    # --- attention and its cache ---

    def rope_tables(self, head_dim: int, theta: float, scaling: Any | None, num_positions: int) -> RopeTables:
        """fp32 tables of positions 0 .. num_positions - 1. Raises ValueError for scaled RoPE or an odd head_dim."""
        if scaling is not None:
            raise ValueError(f"this wing serves plain RoPE only, not scaling {scaling!r}")
        if head_dim % 2 or head_dim < 2:
            raise ValueError(f"head_dim must be a positive even number, got {head_dim}")
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), 1.0 / theta**steps)
        return RopeTables(angles.cos(), angles.sin())

    def new_cache(
        self,
        num_layers: int,
        num_blocks: int,
        block_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: Literal["bf16", "int8"],
    ) -> Cache:
        """A zeroed cache of num_blocks * block_tokens slots per layer. Raises ValueError for another dtype."""
        extents = (num_layers, num_blocks, block_tokens, num_kv_heads, head_dim)
        if dtype not in ("bf16", "int8") or min(extents) < 1 or head_dim % 2:
            raise ValueError(
                f"a cache is bf16 or int8 with positive extents and an even head_dim, got {dtype!r} {extents}"
            )
        native = NativeCache(None, *extents, dtype == "int8")
        memory = NativeMemory(self._library, self._library.shape_cache(native), huge=False)
        native.base = memory.address
        return Cache(memory, native)

    def cache_tokens(self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: str, weight_bytes: int) -> None:
        """The cache lives in the system's memory."""

    def zero_blocks(self, cache: Cache, block_ids: Sequence[int]) -> None:
        """Zero these blocks in every layer. Raises ValueError for an id outside the cache."""
        ids = torch.tensor(list(block_ids), dtype=torch.int64)
        self._library.zero_blocks(cache.native, ids.data_ptr(), len(ids))

    def rope_write_kv(
        self, qkv: Tensor, positions: Tensor, tables: RopeTables, cache: Cache, layer: int, slots: Tensor
    ) -> Tensor:
        """qkv f32 [T, (Hq + 2 Hkv) * D] -> roped q f32 [T, Hq, D]; writes k and v to their slots of `layer`."""
        qkv = dense(qkv, torch.float32, (None, None), "qkv")
        tokens, head_dim, kv_heads = qkv.shape[0], cache.native.head_dim, cache.native.kv_heads
        heads = qkv.shape[1] // head_dim - 2 * kv_heads
        if qkv.shape[1] % head_dim or heads < 1 or heads % kv_heads or tables.cos.shape[1] * 2 != head_dim:
            raise ValueError(f"qkv of {qkv.shape[1]} columns does not go with {kv_heads} key-value heads of {head_dim}")
        positions = dense(positions, torch.int64, (tokens,), "positions")
        slots = dense(slots, torch.int64, (tokens,), "slots")
        batch = NativeBatch(positions=positions.data_ptr(), slots=slots.data_ptr(), tokens=tokens)
        out = torch.empty(tokens, heads, head_dim)
        self._context.call(
            "rope_write", qkv.data_ptr(), heads, tables.native(), cache.native, layer, batch, out.data_ptr()
        )
        return out

    def paged_attention(
        self, q: Tensor, cache: Cache, layer: int, block_tables: Tensor, lengths: Tensor, starts: Tensor
    ) -> Tensor:
        """Causal attention of ragged rows: q f32 [T, Hq, D] -> f32 [T, Hq * D]. Unseen slots may hold NaN."""
        q = dense(q, torch.float32, (None, None, cache.native.head_dim), "q")
        tokens, heads, head_dim = q.shape
        if heads % cache.native.kv_heads:
            raise ValueError(f"{heads} heads are no multiple of {cache.native.kv_heads} key-value heads")
        tables = dense(block_tables, torch.int32, (None, None), "block_tables")
        requests = tables.shape[0]
        lengths = dense(lengths, torch.int32, (requests,), "lengths")
        starts = dense(starts, torch.int32, (requests + 1,), "starts")
        batch = NativeBatch(
            block_tables=tables.data_ptr(),
            lengths=lengths.data_ptr(),
            starts=starts.data_ptr(),
            tokens=tokens,
            requests=requests,
            max_blocks=tables.shape[1],
        )
        out = torch.empty(tokens, heads * head_dim)
        self._context.call("attention", q.data_ptr(), heads, cache.native, layer, batch, out.data_ptr())
        return out

    # --- the head ---

    def head(self, x: Tensor, gain: Tensor, eps: float, table: Table) -> Tensor:
        """Final RMS norm and int8 head: f32 [R, H] -> logits f32 [R, V]."""
        x, gain = self._head_inputs(x, gain, table)
        out = torch.empty(x.shape[0], table.native.rows)
        self._context.call("head", x.data_ptr(), gain.data_ptr(), eps, table.native, x.shape[0], out.data_ptr())
        return out

    def head_topk(
        self, x: Tensor, gain: Tensor, eps: float, table: Table, k: int, extra_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(ids int64, logits f32) [R, min(k, V) + E]: by (logit descending, id ascending), then extra_ids [R, E]."""
        x, gain = self._head_inputs(x, gain, table)
        rows, k = x.shape[0], min(k, table.native.rows)
        extra_ids = dense(extra_ids, torch.int64, (rows, None), "extra_ids")
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        extra = extra_ids.shape[1]
        ids, logits = torch.empty(rows, k + extra, dtype=torch.int64), torch.empty(rows, k + extra)
        inputs = (x.data_ptr(), gain.data_ptr(), eps, table.native, rows, k)
        self._context.call("head_topk", *inputs, extra_ids.data_ptr(), extra, ids.data_ptr(), logits.data_ptr())
        return ids, logits

    def head_draw(self, x: Tensor, gain: Tensor, eps: float, table: Table, draws: Any) -> Tensor:
        """The next token of each row, drawn as `draws` says (a DrawBatch of one round): int64 [R].

        -1 where a row's logits are no finite numbers, -2 where its biases forbid every token.
        """
        x, gain = self._head_inputs(x, gain, table)
        drawn = Draws(draws)
        if (drawn.native.num_rows, drawn.native.rounds) != (x.shape[0], 1):
            raise ValueError(f"{x.shape[0]} rows need as many draws of one round, not {list(draws.randoms.shape)}")
        ids = torch.empty(x.shape[0], dtype=torch.int64)
        self._context.call("head_draw", x.data_ptr(), gain.data_ptr(), eps, table.native, drawn.native, ids.data_ptr())
        return ids

    def _head_inputs(self, x: Tensor, gain: Tensor, table: Table) -> tuple[Tensor, Tensor]:
        width = table.native.width
        return dense(x, torch.float32, (None, width), "x"), dense(gain, torch.float32, (width,), "gain")

    # --- the whole step ---

    def compile(self, plan: Any) -> CompiledStep:
        """A callable (batch, cache) -> f32 [R, H] that runs every layer in one call, with the bits of the verbs."""
        return CompiledStep(self._context, plan)

    def compile_decode(self, plan: Any) -> Callable[[Any, Any, Cache], Tensor]:
        """A callable (rows, draws, cache) -> ids int64 [rounds, B]: rounds of steps and draws in one call."""
        return self.compile(plan).decode

    def simpler(self, step: object) -> None:
        """None: there is nothing between the whole step and the verbs."""

    def warm_up(self, *_: object) -> Iterator[tuple[int, int]]:
        """Nothing: the first step is like any other."""
        return iter(())

    def compile_draw(self, plan: Any) -> Callable[[Tensor, Any], Tensor]:
        """A callable (x f32 [R, H], draws) -> ids int64 [R]: the head, the samplers and the draw in one call."""
        return lambda x, draws: self.head_draw(x, plan.head_gain, plan.eps, plan.head, draws)

    # --- what it is ---

    def set_threads(self, n: int) -> None:
        """Use n threads from the next verb on; results do not change."""
        if n < 1:
            raise ValueError(f"threads must be at least 1, got {n}")
        if n != self._threads:
            self._context.call("set_threads", n)
            self._threads = n

    def describe(self) -> dict[str, str]:
        """Wing, isa, threads, why."""
        return {"wing": "cpu (native)", "isa": self._isa, "threads": str(self._threads), "why": self._why}

    def memory_bytes(self, handle: Weights | Table | RopeTables | Cache) -> int:
        """Bytes a handle keeps; a cache's pages count in full though the system gives them as they are written."""
        return memory_bytes(handle)

    def close(self) -> None:
        """End the pool's threads and give torch its former number of threads back."""
        self._context.close()
        torch.set_num_threads(self._torch_threads)
