"""The BitNet b1.58 transformer, read top down; every arithmetic verb is `ops.<name>`.

This is the definition of the model: RMS norm and quantize, ternary q|k|v, RoPE, paged attention, an optional sub-norm,
ternary output, and the same for the gated feed-forward ("The Era of 1-bit LLMs", arXiv 2402.17764; sub-norms and relu^2
as in the 2B-4T report, arXiv 2504.12285). The residual stream is fp32. A wing may run the whole plan in one call with
the same bits. Knows no file, no request and no layout of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bitnet_model.batch import ForwardBatch
from bitnet_model.config import ModelConfig
from bitnet_model.ops import CacheDtype, DecodeFunction, DrawFunction, Ops, StepFunction
from bitnet_model.plan import Cache, LayerPlan, ModelPlan, Quantized


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """What a wing runs in one call, with the results of the verbs; None where it cannot or is not to.

    step: a forward pass. draw: hidden states f32 [R, H] and a DrawBatch to tokens. decode: rows of one token, a
    DrawBatch and the cache to the tokens of several rounds.
    """

    step: StepFunction | None = None
    draw: DrawFunction | None = None
    decode: DecodeFunction | None = None


class Model:
    """A loaded model on one wing. Not thread-safe: one thread runs forwards."""

    def __init__(self, config: ModelConfig, ops: Ops, plan: ModelPlan) -> None:
        self.config = config
        self.ops = ops
        self.plan = plan
        self._layers = tuple(Layer(ops, plan, layer, index) for index, layer in enumerate(plan.layers))
        self.shortcuts = Shortcuts(ops.compile(plan), ops.compile_draw(plan), ops.compile_decode(plan))

    @property
    def draw(self) -> DrawFunction | None:
        return self.shortcuts.draw

    @property
    def decode(self) -> DecodeFunction | None:
        return self.shortcuts.decode

    def simpler(self, step: StepFunction) -> StepFunction | None:
        """A step with fewer shortcuts inside, or None. See `Ops.simpler`."""
        return self.ops.simpler(step)

    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        """Run one step, writing its keys and values -> f32 [R, H]: batch.logit_rows, before the final norm."""
        if self.shortcuts.step is not None:
            return self.shortcuts.step(batch, cache)
        x = self.ops.embed(self.plan.embedding, batch.token_ids)
        for layer in self._layers:
            x = layer.forward(x, batch, cache)
        return x[batch.logit_rows]

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states f32 [R, H] -> logits f32 [R, V]."""
        return self.ops.head(x, self.plan.head_gain, self.plan.eps, self.plan.head)

    def top_logits(self, x: Tensor, k: int, extra_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest logits per row and those of extra_ids [R, E] -> (ids, logits), both [R, min(k, V) + E]."""
        return self.ops.head_topk(x, self.plan.head_gain, self.plan.eps, self.plan.head, k, extra_ids)

    def new_cache(self, num_blocks: int, block_tokens: int, dtype: CacheDtype) -> Cache:
        """A zeroed KV cache for all layers."""
        plan = self.plan
        return self.ops.new_cache(len(plan.layers), num_blocks, block_tokens, plan.num_kv_heads, plan.head_dim, dtype)

    def warm_up(self, cache: Cache, max_rows: int, max_blocks: int, max_tokens: int) -> Iterator[tuple[int, int]]:
        """Do now what the first steps would wait for; yields (done, total). See `Ops.warm_up`."""
        draws = self.draw is not None or self.decode is not None
        return self.ops.warm_up(self.shortcuts.step, cache, max_rows, max_blocks, max_tokens, draws)

    def memory_report(self) -> dict[str, int]:
        """Resident bytes by part; a tied head counts once, under embedding."""
        ops, plan = self.ops, self.plan
        linears = [handle for layer in plan.layers for handle in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        gains = [gain for layer in plan.layers for gain in layer_gains(layer)]
        return {
            "embedding": ops.memory_bytes(plan.embedding),
            "layers": sum(ops.memory_bytes(handle) for handle in linears) + sum(gain.nbytes for gain in gains),
            "head": plan.head_gain.nbytes + (0 if plan.head is plan.embedding else ops.memory_bytes(plan.head)),
            "rope": ops.memory_bytes(plan.rope),
        }


class Layer:
    """One transformer layer: attention and feed-forward, each adding to the residual stream."""

    def __init__(self, ops: Ops, plan: ModelPlan, layer: LayerPlan, index: int) -> None:
        self.ops = ops
        self.plan = plan
        self.layer = layer
        self.index = index

    def forward(self, x: Tensor, batch: ForwardBatch, cache: Cache) -> Tensor:
        """f32 [T, H] -> f32 [T, H]."""
        return self.mlp(self.attention(x, batch, cache))

    def attention(self, x: Tensor, batch: ForwardBatch, cache: Cache) -> Tensor:
        """x + o(subnorm(attend(qkv(norm(x)))))."""
        ops, layer = self.ops, self.layer
        h = ops.norm_quantize(x, layer.attn_gain, self.plan.eps)
        qkv = ops.ternary_linear(h, layer.qkv)
        q = ops.rope_write_kv(qkv, batch.positions, self.plan.rope, cache, self.index, batch.slots)
        a = ops.paged_attention(q, cache, self.index, batch.block_tables, batch.lengths, batch.starts)
        return ops.ternary_linear(self.sub_norm(a), layer.o, x)

    def sub_norm(self, a: Tensor) -> Quantized:
        """The sub-norm of the bitnet family, or none (llama)."""
        if self.layer.attn_sub_gain is None:
            return self.ops.quantize(a)
        return self.ops.norm_quantize(a, self.layer.attn_sub_gain, self.plan.eps)

    def mlp(self, x: Tensor) -> Tensor:
        """x + down(subnorm(act(gate(norm(x))) * up(norm(x))))."""
        ops, layer = self.ops, self.layer
        h = ops.norm_quantize(x, layer.ffn_gain, self.plan.eps)
        gate_up = ops.ternary_linear(h, layer.gate_up)
        f = ops.gate_norm_quantize(gate_up, layer.ffn_sub_gain, self.plan.eps, self.plan.act)
        return ops.ternary_linear(f, layer.down, x)


def layer_gains(layer: LayerPlan) -> list[Tensor]:
    """The gains a layer has, two or four."""
    gains = (layer.attn_gain, layer.attn_sub_gain, layer.ffn_gain, layer.ffn_sub_gain)
    return [gain for gain in gains if gain is not None]
