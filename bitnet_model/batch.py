"""The tensors of one step: ForwardBatch, all that a forward pass needs, and DrawBatch, how its rows draw their tokens.

DecodeBatch is what is left of a ForwardBatch where every row is the newest token of its request.

Axis letters, used in every docstring of this project:
    T  tokens in the step        H    hidden size           K  inputs of a linear     V  vocabulary
    B  rows (one per request)    Hq   query heads           N  outputs of a linear    R  rows whose logits are wanted
    D  head size                 Hkv  key and value heads   F  feed-forward size      E  extra ids per logit row

Prefill chunks and decode rows are mixed freely: row b owns the tokens starts[b] .. starts[b+1]-1, which sit at the
absolute positions lengths[b]-count .. lengths[b]-1. The layout follows vLLM's paged attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The tensors of one step (on the CPU unless the wing asks for another device).

    token_ids     int64 [T]              ids to embed, the rows one after the other
    positions     int64 [T]              absolute position of each token in its request
    slots         int64 [T]              where its key and value go: block_id * block_tokens + offset in the block
    block_tables  int32 [B, max_blocks]  block ids of each row in order of position, padded with 0
    lengths       int32 [B]              keys visible to the row's LAST query: computed before + tokens in this step
    starts        int32 [B + 1]          offsets of the rows in T; starts[0] = 0, starts[B] = T
    logit_rows    int64 [R]              indices into T whose hidden state is wanted
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    lengths: Tensor
    starts: Tensor
    logit_rows: Tensor


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Rows of one token each.

    token_ids     int64 [B]              the newest token of each row
    lengths       int32 [B]              keys visible to it, its own included: it sits at position lengths - 1
    block_tables  int32 [B, max_blocks]  as in ForwardBatch, with blocks for every round that is asked for
    """

    token_ids: Tensor
    lengths: Tensor
    block_tables: Tensor


@dataclass(frozen=True, slots=True)
class DrawBatch:
    """How the next token of each of R rows is drawn, or the next of several rounds: biases, penalties, top_k, top_p,
    min_p, temperature, one random number.

    parameters     float64 [R, 8]       temperature (0: the likeliest), top_k (1 or more), top_p (1: all), min_p (0:
                                        all), repeat, presence and frequency penalty, and of how many of its last tokens
    randoms        float64 [rounds, R]  of [0, 1)
    windows        int64   [W]          the tokens whose logits are penalised, as often as they occur, row after row;
                                        a row's window goes on with what its earlier rounds drew
    window_starts  int32   [R + 1]      offsets of the rows in W; [0] = 0, [R] = W
    bias_ids       int64   [E]          tokens with a bias, row after row; -inf forbids one
    biases         float32 [E]          added before the penalties
    bias_starts    int32   [R + 1]      offsets of the rows in E

    The samplers' meaning is that of service/engine/sampler.py. Equal logits go to the lower id.
    """

    parameters: Tensor
    randoms: Tensor
    windows: Tensor
    window_starts: Tensor
    bias_ids: Tensor
    biases: Tensor
    bias_starts: Tensor
