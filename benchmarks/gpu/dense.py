"""The baseline of the GPU suite: a dense bf16 transformer of the same shape, in torch's own matrix products.

Only its cost is meant: weights and caches are random, and RoPE and the cache write are left out, which flatters it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class DenseShape:
    """linears: (N, K) of q|k|v, o, gate|up and down."""

    linears: list[tuple[int, int]]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


class DenseModel:
    """bf16 weights of every layer and of the head."""

    def __init__(self, shape: DenseShape, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self.layers = [[self.random(n, k) for n, k in shape.linears] for _ in range(shape.num_layers)]
        self.head = self.random(shape.vocab_size, shape.linears[0][1])

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=self.device) / 64

    @property
    def num_bytes(self) -> int:
        return self.head.nbytes + sum(weight.nbytes for layer in self.layers for weight in layer)

    def decoder(self, num_rows: int, context: int) -> Callable[[], Tensor]:
        """A decode step of one token a row over `context` cached tokens: the best token of each row."""
        shape = self.shape
        pages = (num_rows, shape.num_kv_heads, context, shape.head_dim)
        caches = [(self.random(*pages), self.random(*pages)) for _ in self.layers]
        start = self.random(num_rows, shape.linears[0][1])

        def step() -> Tensor:
            x = start
            for weights, (keys, values) in zip(self.layers, caches, strict=True):
                x = self.layer(x, weights, keys, values)
            return functional.linear(normed(x), self.head).argmax(-1)

        return step

    def prefill(self, num_tokens: int) -> Callable[[], Tensor]:
        """A prompt in one step: the best token after it."""
        start = self.random(num_tokens, self.shape.linears[0][1])
        pages = (1, self.shape.num_kv_heads, num_tokens, self.shape.head_dim)
        keys, values = self.random(*pages), self.random(*pages)

        def step() -> Tensor:
            x = start
            for weights in self.layers:
                x = self.layer(x, weights, keys, values, is_prompt=True)
            return functional.linear(normed(x[-1:]), self.head).argmax(-1)

        return step

    def layer(self, x: Tensor, weights: list[Tensor], keys: Tensor, values: Tensor, is_prompt: bool = False) -> Tensor:
        """Rows of one token each over caches of their own, or the tokens of one prompt."""
        qkv, o, gate_up, down = weights
        heads, size = self.shape.num_heads, self.shape.head_dim
        q = functional.linear(normed(x), qkv)[:, : heads * size].reshape(len(x), heads, 1, size)
        if is_prompt:
            q = q.transpose(0, 2)
        attended = functional.scaled_dot_product_attention(q, keys, values, is_causal=is_prompt, enable_gqa=True)
        if is_prompt:
            attended = attended.transpose(0, 2)
        x = x + functional.linear(attended.reshape(len(x), -1), o)
        gate, up = functional.linear(normed(x), gate_up).chunk(2, -1)
        return x + functional.linear(functional.relu(gate).square() * up, down)


def normed(x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:])
