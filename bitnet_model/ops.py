"""The seam: every arithmetic verb of the model, as one Protocol that each wing satisfies.

Axis letters are those of `batch.py`. Activations are f32 unless said. A wing knows neither this floor nor the engine:
it gets plain tensors and its own opaque handles (`plan.py`). Canonical arithmetic, the same for every wing: RMS norm
and quantization in fp32 (code = clamp(rint(y * (127 / a)), -127, 127), a = max(max|y|, 1e-5), scale = a / 127, half
to even), integer sums exact, one rescale acc * (scale * row_scale), fp32 scores and softmax. No result may depend on
what else is in the batch, on chunking, or on the number of threads.

This is the only file of the floor that imports a wing, and only when `load_ops` is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from bitnet_model.batch import DecodeBatch, DrawBatch, ForwardBatch
from bitnet_model.errors import BackendUnavailable as BackendUnavailable  # callers look for it beside load_ops
from bitnet_model.plan import Activation, Cache, ModelPlan, Quantized, RopeTables, Table, Weights

logger = logging.getLogger(__name__)

Backend: TypeAlias = Literal["auto", "triton", "cpu"]
CacheDtype: TypeAlias = Literal["bf16", "int8"]
StepFunction: TypeAlias = Callable[[ForwardBatch, Cache], Tensor]
"""(batch, cache) -> f32 [R, H]: the hidden states of batch.logit_rows before the final norm."""

DrawFunction: TypeAlias = Callable[[Tensor, DrawBatch], Tensor]
"""(f32 [R, H], draws of one round) -> the next token of each row, int64 [R].

-1 where a row's logits are no finite numbers, -2 where its biases forbid every token.
"""

DecodeFunction: TypeAlias = Callable[[DecodeBatch, DrawBatch, Cache], Tensor]
"""(rows, draws, cache) -> int64 [rounds, B]: rounds of a step and a draw, each on the tokens of the one before it.

A row for which there is no token (-1 or -2 as above) has none in the rounds that follow either.
"""


class Ops(Protocol):
    """The verbs of one wing. Bad shapes raise ValueError with the numbers, never a wrong result."""

    @property
    def name(self) -> str:
        """The wing: "cpu", "triton"."""
        ...

    @property
    def head_dtypes(self) -> tuple[str, ...]:
        """What `pack_table` takes as `head_dtype`, the default first."""
        ...

    def pack(self, segments: Sequence[tuple[Tensor, Tensor]]) -> Weights:
        """Take over the ternary weights of one fused linear.

        Each segment is (planes uint8 [Ni/4, K], row_scale f32 [Ni]). Byte r of a segment's column holds rows r, r+Ni/4,
        r+2Ni/4, r+3Ni/4 in bits 1:0, 3:2, 5:4, 7:6; code = ternary + 1. Segments share K and are never concatenated as
        bytes. Outputs come in canonical order, segment after segment. The tensors may be freed after the call.
        """
        ...

    def pack_table(self, weight: Tensor, *, embedding: bool, head_dtype: str | None) -> Table:
        """Take over a [V, H] bf16 or f32 table for lookup (embedding), as output head (head_dtype not None), or both.

        ValueError names the available head dtypes when `head_dtype` is not one of them.
        """
        ...

    def embed(self, table: Table, token_ids: Tensor) -> Tensor:
        """ids int64 [T] -> f32 [T, H]."""
        ...

    def norm_quantize(self, x: Tensor, gain: Tensor, eps: float) -> Quantized:
        """RMS norm, then quantize per token: f32 [T, H], gain f32 [H] -> Quantized [T, H]."""
        ...

    def quantize(self, x: Tensor) -> Quantized:
        """Quantize per token: f32 [T, K] -> Quantized [T, K]. Zeros give codes 0; NaN and inf stay visible."""
        ...

    def ternary_linear(self, q: Quantized, w: Weights, residual: Tensor | None = None) -> Tensor:
        """Quantized [T, K] x Weights [N, K] -> f32 [T, N], plus `residual` f32 [T, N] if given (not modified)."""
        ...

    def gate_norm_quantize(self, gate_up: Tensor, gain: Tensor | None, eps: float, act: Activation) -> Quantized:
        """f32 [T, 2F] (gate | up) -> act(gate) * up -> RMS norm by gain f32 [F] -> Quantized [T, F].

        act "relu2" is relu(g)^2, "silu" is g * sigmoid(g). Without a gain there is no norm.
        """
        ...

    def rope_tables(self, head_dim: int, theta: float, scaling: Any | None, num_positions: int) -> RopeTables:
        """fp32 tables for positions 0 .. num_positions - 1. `scaling` None is plain RoPE; ValueError for any other."""
        ...

    def new_cache(
        self,
        num_layers: int,
        num_blocks: int,
        block_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: CacheDtype,
    ) -> Cache:
        """A zeroed paged cache of num_blocks * block_tokens slots per layer."""
        ...

    def cache_tokens(
        self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: CacheDtype, weight_bytes: int
    ) -> int | None:
        """Tokens of cache that a device of its own has memory for beside `weight_bytes` of weights, 90 % of it used.

        None where the cache lives in the system's memory, which is given out as it is used. May be negative.
        """
        ...

    def zero_blocks(self, cache: Cache, block_ids: Sequence[int]) -> None:
        """Zero these blocks in every layer (a row that went bad may have left NaN there)."""
        ...

    def rope_write_kv(
        self, qkv: Tensor, positions: Tensor, tables: RopeTables, cache: Cache, layer: int, slots: Tensor
    ) -> Tensor:
        """qkv f32 [T, (Hq + 2 Hkv) * D] in the order q | k | v -> roped q f32 [T, Hq, D] (NeoX halves).

        Writes roped k and v of each token to its slot of `layer`, rounded to the cache's dtype.
        """
        ...

    def paged_attention(
        self, q: Tensor, cache: Cache, layer: int, block_tables: Tensor, lengths: Tensor, starts: Tensor
    ) -> Tensor:
        """Causal attention of ragged rows: q f32 [T, Hq, D] -> f32 [T, Hq * D].

        Query i of row b sits at position p = lengths[b] - (starts[b+1] - starts[b]) + i and sees keys 0 .. p, read from
        the cache (its own included). Scores are scaled by 1 / sqrt(D). Slots beyond a row's length may hold NaN.
        """
        ...

    def head(self, x: Tensor, gain: Tensor, eps: float, table: Table) -> Tensor:
        """Final RMS norm and output head: f32 [R, H] -> logits f32 [R, V]."""
        ...

    def head_topk(
        self, x: Tensor, gain: Tensor, eps: float, table: Table, k: int, extra_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The k largest logits of each row, then those of `extra_ids` int64 [R, E] (-1 = none).

        Returns (ids int64, logits f32), both [R, min(k, V) + E]: first by (logit descending, id ascending), then the
        extra ids as given, with -inf where the id is -1.
        """
        ...

    def compile(self, plan: ModelPlan) -> StepFunction | None:
        """A callable that runs a whole step of `plan` with the same bits as the verbs, or None (then: verb by verb)."""
        ...

    @property
    def wants_proof(self) -> bool:
        """Whether what it runs in one call is to be compared with its verbs before it serves (service/engine/proof)."""
        ...

    def simpler(self, step: StepFunction) -> StepFunction | None:
        """What to run instead of a step of `compile` that gave wrong results, until it is None (then: verb by verb)."""
        ...

    def warm_up(
        self, step: StepFunction | None, cache: Cache, max_rows: int, max_blocks: int, max_tokens: int, draws: bool
    ) -> Iterator[tuple[int, int]]:
        """Do now what the first steps on `cache` would wait for (compile, capture); yields (done, total) as it goes.

        `step` is what `compile` or `simpler` returned, `draws` whether the wing draws. Steps will have up to max_rows
        rows of one token with tables of max_blocks, or up to max_tokens tokens in all. Nothing in the cache changes.
        """
        ...

    def compile_draw(self, plan: ModelPlan) -> DrawFunction | None:
        """A callable that takes hidden states to tokens, or None (then: `head_topk`, and the caller draws)."""
        ...

    def compile_decode(self, plan: ModelPlan) -> DecodeFunction | None:
        """A callable for several rounds of decoding at once, with the tokens of as many steps and draws, or None."""
        ...

    def set_threads(self, n: int) -> None:
        """Use n threads from the next verb on. Results do not change."""
        ...

    def describe(self) -> dict[str, str]:
        """What this wing is and why it was chosen, for the log: wing, isa, threads, why."""
        ...

    def memory_bytes(self, handle: Any) -> int:
        """Bytes one of this wing's handles keeps resident."""
        ...

    def close(self) -> None:
        """End the wing's threads and give torch its own back. No verb is called afterwards."""
        ...


def load_ops(backend: Backend, *, isa: str = "auto", threads: int | None, dense: str = "auto") -> Ops:
    """Load the wing for `backend`; logs what was chosen and why.

    `isa` is the CPU wing's instruction set, `threads` its number of threads (None: all the cores this process may use).
    `dense` is whether the GPU wing keeps a copy of the weights at one byte each: on, off, or auto, where there is room.
    "auto" takes a GPU that will do, else the CPU. Raises BackendUnavailable when something asked for by name cannot run
    here; "auto" never does.
    """
    if backend == "triton":
        return _load_triton("asked for", dense)
    if backend not in ("auto", "cpu"):
        raise ValueError(f"backend must be auto, triton or cpu, not {backend!r}")
    why = "asked for"
    if backend == "auto":
        try:
            return _load_triton("auto: there is a GPU that will do", dense)
        except BackendUnavailable as error:
            why = f"auto: {error}"
    import cpu_fallback

    try:
        ops: Ops = cpu_fallback.load(isa, threads)
    except RuntimeError as error:
        raise BackendUnavailable(str(error)) from error
    logger.info("backend cpu (%s): %s", why, ", ".join(f"{key} {value}" for key, value in ops.describe().items()))
    return ops


def _load_triton(why: str, dense: str) -> Ops:
    import triton_kernels

    try:
        ops: Ops = triton_kernels.load(why=why, dense=dense)
    except RuntimeError as error:
        raise BackendUnavailable(f"backend triton: {error}") from error
    logger.info("backend triton (%s): %s", why, ", ".join(f"{key} {value}" for key, value in ops.describe().items()))
    return ops


def survey() -> dict[str, str | None]:
    """Every backend and CPU instruction set, and why it cannot run here (None: it can). Starts no kernel."""
    import triton_kernels
    from cpu_fallback import native_loading

    isas = {f"cpu {isa}": native_loading.available(isa) for isa in native_loading.ISAS}
    return {"triton": triton_kernels.unavailable_reason(), **isas, "cpu torch": None}
