"""The torch-only CPU wing: every verb of the seam on stock torch, no compiler needed.

Binds the rooms of this package to one thread pool and one form of integer product. It runs verb by verb and has no
coarser grain: its cost is in the verbs themselves, not in their dispatch, so `compile` declines. Knows neither the
model nor the engine. Not thread-safe: one thread at a time calls verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor

from cpu_fallback import cache as kv
from cpu_fallback import head, linear, pack, pointwise
from cpu_fallback.attention import Attention
from cpu_fallback.cache import Cache
from cpu_fallback.head import Table
from cpu_fallback.linear import Form, Quantized
from cpu_fallback.pack import PackedWeights
from cpu_fallback.pointwise import RopeTables
from cpu_fallback.threads import WorkPool


class TorchWing:
    """The verbs. Contracts are those of the seam; shapes and errors stand at the functions called here."""

    name = "cpu"
    wants_proof = False
    head_dtypes = ("int8",)

    def __init__(self, threads: int, form: Form | None = None) -> None:
        """`form` None takes the faster integer product for this CPU; the results are the same."""
        self._why = "fastest here" if form is None else "asked for"
        self._form: Form = form or linear.best_form()
        self._pool = WorkPool(threads)
        self._attention = Attention(self._pool)

    def pack(self, segments: Sequence[tuple[Tensor, Tensor]]) -> PackedWeights:
        """(planes, row_scale) of each segment -> one weight matrix, int8."""
        return pack.pack(segments)

    def pack_table(self, weight: Tensor, *, embedding: bool, head_dtype: str | None) -> Table:
        """[V, H] -> embedding (as given) and/or head (int8)."""
        return head.pack_table(weight, embedding=embedding, head_dtype=head_dtype)

    def embed(self, table: Table, token_ids: Tensor) -> Tensor:
        """ids [T] -> f32 [T, H]."""
        return head.embed(table, token_ids)

    def norm_quantize(self, x: Tensor, gain: Tensor, eps: float) -> Quantized:
        """f32 [T, H] -> Quantized [T, H]."""
        return pointwise.norm_quantize(x, gain, eps, self._form, self._pool)

    def quantize(self, x: Tensor) -> Quantized:
        """f32 [T, K] -> Quantized [T, K]."""
        return pointwise.quantize(x, self._form, self._pool)

    def ternary_linear(self, q: Quantized, w: PackedWeights, residual: Tensor | None = None) -> Tensor:
        """Quantized [T, K] -> f32 [T, N]."""
        return linear.linear(q, w.codes, w.row_scale, residual, 1, self._pool)

    def gate_norm_quantize(
        self, gate_up: Tensor, gain: Tensor | None, eps: float, act: Literal["relu2", "silu"]
    ) -> Quantized:
        """f32 [T, 2F] -> Quantized [T, F]."""
        return pointwise.gate_norm_quantize(gate_up, gain, eps, act, self._form, self._pool)

    def rope_tables(self, head_dim: int, theta: float, scaling: Any | None, num_positions: int) -> RopeTables:
        """fp32 cosines and sines."""
        return pointwise.rope_tables(head_dim, theta, scaling, num_positions)

    def new_cache(
        self,
        num_layers: int,
        num_blocks: int,
        block_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: Literal["bf16", "int8"],
    ) -> Cache:
        """A zeroed paged cache."""
        return kv.new_cache(num_layers, num_blocks, block_tokens, num_kv_heads, head_dim, dtype)

    def cache_tokens(self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: str, weight_bytes: int) -> None:
        """The cache lives in the system's memory."""

    def zero_blocks(self, cache: Cache, block_ids: Sequence[int]) -> None:
        """Zero these blocks in every layer."""
        kv.zero_blocks(cache, block_ids)

    def rope_write_kv(
        self, qkv: Tensor, positions: Tensor, tables: RopeTables, cache: Cache, layer: int, slots: Tensor
    ) -> Tensor:
        """qkv f32 [T, (Hq + 2 Hkv) * D] -> q f32 [T, Hq, D]; roped keys and values go to the cache."""
        keys, values = cache.keys[layer], cache.values[layer]
        Hkv, D = keys.rows.shape[1:]
        x = qkv.view(len(qkv), -1, D)
        roped = pointwise.rope(x[:, :-Hkv], positions, tables)
        keys.write(slots, roped[:, -Hkv:])
        values.write(slots, x[:, -Hkv:])
        return roped[:, :-Hkv]

    def paged_attention(
        self, q: Tensor, cache: Cache, layer: int, block_tables: Tensor, lengths: Tensor, starts: Tensor
    ) -> Tensor:
        """q f32 [T, Hq, D] -> f32 [T, Hq * D]."""
        return self._attention.paged(q, cache, layer, block_tables, lengths, starts)

    def head(self, x: Tensor, gain: Tensor, eps: float, table: Table) -> Tensor:
        """f32 [R, H] -> logits f32 [R, V]."""
        return head.logits(self.norm_quantize(x, gain, eps), table, self._pool)

    def head_topk(
        self, x: Tensor, gain: Tensor, eps: float, table: Table, k: int, extra_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """f32 [R, H] -> (ids, logits) of the k largest and of extra_ids."""
        return head.top_k(self.norm_quantize(x, gain, eps), table, k, extra_ids, self._pool)

    def compile(self, plan: object) -> Callable[..., Tensor] | None:  # noqa: ARG002
        """None: this wing has no coarse grain (module docstring)."""
        return None

    def simpler(self, step: object) -> None:
        """None: there is nothing between the whole step and the verbs."""

    def warm_up(self, *_: object) -> Iterator[tuple[int, int]]:
        """Nothing: the first step is like any other."""
        return iter(())

    def compile_draw(self, plan: object) -> Callable[..., Tensor] | None:  # noqa: ARG002
        """None: the engine draws from what `head_topk` ranks."""
        return None

    def compile_decode(self, plan: object) -> Callable[..., Tensor] | None:  # noqa: ARG002
        """None: the engine repeats forward and draw."""
        return None

    def set_threads(self, n: int) -> None:
        """Use n threads from the next verb on."""
        self._pool.set_threads(n)

    def describe(self) -> dict[str, str]:
        """wing, isa, threads, and why."""
        product = "torch._int_mm" if self._form == "int8" else "fp32 GEMM"
        why = f"torch only; integer products by {product} ({self._why})"
        return {"wing": self.name, "isa": "torch", "threads": str(self._pool.num_threads), "why": why}

    def memory_bytes(self, handle: object) -> int:
        """Bytes of the tensors a handle holds, at any depth."""
        if isinstance(handle, Tensor):
            return handle.nbytes
        if isinstance(handle, tuple):
            return sum(self.memory_bytes(part) for part in handle)
        names = getattr(handle, "__dataclass_fields__", ())
        return sum(self.memory_bytes(getattr(handle, name)) for name in names)

    def close(self) -> None:
        """End the wing's threads and give torch its own back."""
        self._pool.close()
