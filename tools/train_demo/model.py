"""The BitNet b1.58 2B-4T architecture, written for quantization-aware training.

Every projection keeps a full-precision master weight; the forward pass sees its ternary image and int8 activations, the
backward pass goes straight through both roundings.  Names of parameters are those of the checkpoint format, so export
is a walk over `named_parameters`.

It does not know about data, schedules or files.

Sources: Ma et al. 2024, "The Era of 1-bit LLMs" (absmean weights, eq. 1-3; per-token absmax activations);
Ma et al. 2025, "BitNet b1.58 2B4T Technical Report" (squared ReLU, sub-norms); Bengio et al. 2013 (straight-through).
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

QUERY_BLOCK = 128


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Sizes of the demo model; `num_heads * head_dim == hidden_size` because attn_sub_norm spans the hidden size."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    ffn_size: int = 768
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 2048

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def to_dict(self) -> dict[str, int | float]:
        return asdict(self)


def absmean(weight: Tensor) -> Tensor:
    """The ternary scale mean|W| [] in fp32, rounded to bf16: it is exported so, and nothing is lost then."""
    return weight.abs().mean().clamp_min(1e-5).to(torch.bfloat16).float()


def straight_through(x: Tensor, image: Tensor) -> Tensor:
    """`image` going forward, x going backward.

    In differentiable operators alone: as a `torch.autograd.Function`, compiled for a GPU by torch 2.11, it let no
    gradient through, and 160 million tokens taught the layers nothing (2026-11-26; why was not found out).
    """
    return x + (image - x).detach()


def ternarize(weight: Tensor) -> Tensor:
    """Ternary image of a master weight [N, K], times its scale: W -> clamp(round(W/m), -1, 1) * m, m = mean|W|."""
    scale = absmean(weight)
    return straight_through(weight, (weight / scale).round().clamp(-1, 1) * scale)


def round_activation(x: Tensor) -> Tensor:
    """Activations as int8 codes by their token's absmax see them, back in floating point."""
    scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    return straight_through(x, (x * scale).round() / scale)


class BitLinear(nn.Module):
    """A projection [N, K] without bias.  The caller rounds the input, because q/k/v and gate/up share theirs."""

    weight: nn.Parameter

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_size, in_size) * in_size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, ternarize(self.weight).to(x.dtype))


def project_together(x: Tensor, projections: tuple[BitLinear, ...]) -> tuple[Tensor, ...]:
    """Projections of one input as one matrix product: the narrow ones (k, v) alone use a CPU badly."""
    images = torch.cat([ternarize(p.weight) for p in projections]).to(x.dtype)
    return functional.linear(x, images).split([p.weight.shape[0] for p in projections], -1)


class RMSNorm(nn.Module):
    """x * gain / rms(x) over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rope_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [length, head_dim] for the split-halves (NeoX) rotation, fp32."""
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angles = torch.outer(torch.arange(length, device=device).float(), inverse)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, Hq, T, D]."""
    left, right = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-right, left], -1) * sin.to(x.dtype)


def pieces_of(starts: Tensor) -> Tensor:
    """What `attend` may look at, of starts bool [B, T]: where a piece begins. A row always begins one."""
    if starts.is_cuda:
        return offsets_of(starts)
    piece = starts.cumsum(-1)
    return ((piece[:, :, None] == piece[:, None, :]).tril())[:, None]


def offsets_of(starts: Tensor) -> Tensor:
    """Where the pieces of starts bool [B, T] begin in the B * T tokens, and their end: int32 [P + 1]."""
    starts = starts.clone()
    starts[:, 0] = True
    offsets = functional.pad(starts.flatten().nonzero().flatten(), (0, 1), value=starts.numel()).int()
    torch._dynamo.mark_dynamic(offsets, 0)  # else a layer is compiled anew for every number of pieces
    return offsets


def attend(q: Tensor, k: Tensor, v: Tensor, pieces: Tensor) -> Tensor:
    """Causal attention inside pieces: q [B, Hq, T, D] over k, v [B, Hkv, T, D] -> [B, Hq, T, D].

    `pieces` is a bool mask [B, 1, T, T], or on a GPU int32 offsets [P + 1] of the pieces in the B * T tokens.

    On a CPU a block of queries meets only the keys up to its own end, as plain batched products.  Forward and backward
    of a layer of 2,048 tokens took 24 ms so, 53 ms with `scaled_dot_product_attention` (torch 2.13, one Zen 4 core,
    bf16).
    """
    if q.is_cuda:
        return attend_pieces(q, k, v, pieces)
    num_rows, num_heads, length, head_dim = q.shape
    num_kv_heads = k.shape[1]
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    outs = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        queries = q[:, :, start:end].reshape(num_rows * num_kv_heads, -1, head_dim)
        scores = (queries @ k[:, :end].mT).view(num_rows, num_heads, end - start, end) * head_dim**-0.5
        weights = scores.float().masked_fill(~pieces[:, :, start:end, :end], -torch.inf).softmax(-1)
        weights = weights.to(v.dtype).view(num_rows * num_kv_heads, -1, end)
        outs.append((weights @ v[:, :end]).view(num_rows, num_heads, end - start, head_dim))
    return torch.cat(outs, 2)


def attend_pieces(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """`attend` over offsets int32 [P + 1], in the fused kernel for pieces of any length (bf16, fp16)."""
    num_rows, num_heads, length, head_dim = q.shape
    k, v = (x.repeat_interleave(num_heads // k.shape[1], 1) for x in (k, v))
    packed = [x.transpose(1, 2).reshape(-1, num_heads, head_dim) for x in (q, k, v)]
    return _fused(*packed, offsets, length).view(num_rows, length, num_heads, head_dim).transpose(1, 2)


@torch.compiler.disable  # there is nothing in it to compile
def _fused(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
    out: Tensor = varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=(-1, 0))
    return out


class Attention(nn.Module):
    """Grouped-query attention with a norm between the heads and the output projection."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        hidden, kv_size = config.hidden_size, config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = BitLinear(hidden, hidden)
        self.k_proj = BitLinear(hidden, kv_size)
        self.v_proj = BitLinear(hidden, kv_size)
        self.o_proj = BitLinear(hidden, hidden)
        self.attn_sub_norm = RMSNorm(hidden, config.norm_eps)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], pieces: Tensor) -> Tensor:
        projected = project_together(round_activation(x), (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (self._heads(y) for y in projected)
        y = attend(rotate(q, *rope), rotate(k, *rope), v, pieces)
        y = self.attn_sub_norm(y.transpose(1, 2).flatten(2))
        out: Tensor = self.o_proj(round_activation(y))
        return out


class FeedForward(nn.Module):
    """down(norm(relu(gate x)^2 * up x))."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.gate_proj = BitLinear(config.hidden_size, config.ffn_size)
        self.up_proj = BitLinear(config.hidden_size, config.ffn_size)
        self.down_proj = BitLinear(config.ffn_size, config.hidden_size)
        self.ffn_sub_norm = RMSNorm(config.ffn_size, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project_together(round_activation(x), (self.gate_proj, self.up_proj))
        y = self.ffn_sub_norm(functional.relu(gate).square() * up)
        out: Tensor = self.down_proj(round_activation(y))
        return out


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], pieces: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, pieces)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, layers and last norm; a class of its own only so that parameter names start with `model.`."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)


class DemoModel(nn.Module):
    """The language model; the head is the (unquantized) embedding."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)

    def hidden(self, token_ids: Tensor, pieces: Tensor | None = None) -> Tensor:
        """Last normed states [B, T, H] of token_ids [B, T]; `pieces` as `attend` takes them, None is one a row."""
        if pieces is None:
            starts = torch.zeros_like(token_ids)
            starts[:, 0] = 1
            pieces = pieces_of(starts == 1)
        rope = rope_tables(token_ids.shape[1], self.config.head_dim, self.config.rope_theta, token_ids.device)
        x = self.model.embed_tokens(token_ids)
        for layer in self.model.layers:
            x = layer(x, rope, pieces)
        out: Tensor = self.model.norm(x)
        return out

    def compile_parts(self) -> None:
        """Compile the layer: one piece of code for all of them, so it takes seconds and not minutes."""
        for layer in self.model.layers:
            layer.compile(dynamic=False)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., V] of states [..., H]."""
        return functional.linear(states, self.model.embed_tokens.weight.to(states.dtype))

    def forward(self, token_ids: Tensor, pieces: Tensor | None = None) -> Tensor:
        return self.logits(self.hidden(token_ids, pieces))
