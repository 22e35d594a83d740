"""Cross entropy of held-out text under a checkpoint folder: by this project's wings, or by transformers.

A text is cut into windows of `window - 1` tokens, each opened by the tokenizer's first token; every token of the text
is predicted exactly once. Bits per byte compare models whatever their vocabularies are.

Knows no sampling and no training. For checkpoints that fit a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bitnet_model.batch import ForwardBatch
from bitnet_model.checkpoint import load_model
from bitnet_model.ops import load_ops
from service.engine.blocks import BLOCK_TOKENS
from service.engine.tokenizer import Tokenizer
from tools.documents import read_documents

PATHS = ("native", "torch", "transformers")

Forward = Callable[[Sequence[int]], Tensor]
"""ids of one sequence [T] -> logits [T, V]."""


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Sums over a text; nats."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def per_token(self) -> float:
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.per_token)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes


# ---------------------------------------------------------------- texts
def first_documents(path: Path, max_bytes: int = 0, max_document_bytes: int = 0) -> list[str]:
    """Documents from the start of a file until they hold `max_bytes`, longer ones left out (0: no limit)."""
    chosen, size = [], 0
    for text in read_documents(path):
        if 0 < max_document_bytes < len(text.encode()):
            continue
        chosen.append(text)
        size += len(text.encode())
        if 0 < max_bytes <= size:
            break
    return chosen


# ---------------------------------------------------------------- loss
def windows(token_ids: Sequence[int], window: int, first_id: int) -> Iterator[list[int]]:
    """Pieces of at most `window` ids, each opened by `first_id`."""
    for start in range(0, len(token_ids), window - 1):
        yield [first_id, *token_ids[start : start + window - 1]]


def held_out_loss(forward: Forward, tokenizer: Tokenizer, texts: Iterable[str], window: int = 512) -> HeldOutLoss:
    """Cross entropy of the texts' tokens; no end token is counted. ValueError if texts have no first token."""
    first_id = tokenizer.bos_id
    if first_id is None:
        raise ValueError("this tokenizer starts a text with no token, so the first token of a window has no context")
    nats, num_tokens, num_bytes = 0.0, 0, 0
    for text in texts:
        num_bytes += len(text.encode())
        for piece in windows(tokenizer.encode_text(text)[1:], window, first_id):
            logits = forward(piece)[:-1].float()
            nats += functional.cross_entropy(logits, torch.tensor(piece[1:]), reduction="sum").item()
            num_tokens += len(piece) - 1
    return HeldOutLoss(nats, num_tokens, num_bytes)


# ---------------------------------------------------------------- who computes
def forward_of(path_name: str, folder: Path, window: int) -> Forward:
    """The logits of a folder, for sequences of at most `window` tokens, by one of PATHS.

    native: the wing that serves, whole steps in C++. torch: the same model verb by verb. transformers: in bf16.
    """
    if path_name == "transformers":
        return _transformers_forward(folder)
    if path_name not in PATHS:
        raise ValueError(f"the path must be one of {', '.join(PATHS)}, not {path_name!r}")
    return _wing_forward(folder, "torch" if path_name == "torch" else "auto", window)


def _wing_forward(folder: Path, isa: str, window: int) -> Forward:
    ops = load_ops("cpu", isa=isa, threads=None)
    if isa != "torch" and ops.describe()["isa"] == "torch":
        raise ValueError("the native CPU wing is not built here")
    model = load_model(folder, ops, head_dtype=ops.head_dtypes[0], max_positions=window)
    cache = model.new_cache(-(-window // BLOCK_TOKENS), BLOCK_TOKENS, "bf16")

    @torch.inference_mode()
    def forward(token_ids: Sequence[int]) -> Tensor:
        return model.logits(model.forward(one_row(token_ids), cache))

    return forward


def one_row(token_ids: Sequence[int]) -> ForwardBatch:
    """One sequence from its start, in the first blocks of the cache, every logit wanted."""
    length = len(token_ids)
    places = torch.arange(length)
    return ForwardBatch(
        token_ids=torch.tensor(token_ids),
        positions=places,
        slots=places,
        block_tables=torch.arange(-(-length // BLOCK_TOKENS), dtype=torch.int32)[None],
        lengths=torch.tensor([length], dtype=torch.int32),
        starts=torch.tensor([0, length], dtype=torch.int32),
        logit_rows=places,
    )


def _transformers_forward(folder: Path) -> Forward:
    """Raises ValueError if a tensor is missing or left over."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    model, info = loaded
    if problems := {name: keys for name, keys in info.items() if keys}:
        raise ValueError(f"{folder} does not load cleanly: {problems}")
    model.eval()

    @torch.inference_mode()
    def forward(token_ids: Sequence[int]) -> Tensor:
        logits: Tensor = model(torch.tensor([token_ids])).logits[0]
        return logits

    return forward
