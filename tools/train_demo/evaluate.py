"""Held-out loss and sample answers of a training checkpoint or of an exported folder.

The folder is run by transformers, so the two figures check the export as well.  A text is cut into windows of
`window - 1` tokens, each opened by <|begin_of_text|>; every token of the text is predicted exactly once.

Sources: the sampling order (penalty over the last 64 tokens, top-k, top-p, temperature) is llama.cpp's.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .data import BEGIN, END, END_OF_TURN, Message, read_documents, render, special_id
from .export import load_checkpoint

Forward = Callable[[Tensor], Tensor]
PENALTY_WINDOW = 64


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Sums over a text; nats."""

    nats: float
    num_tokens: int
    num_bytes: int

    def __str__(self) -> str:
        per_token, bits = self.nats / self.num_tokens, self.nats / math.log(2) / self.num_bytes
        return (
            f"{self.num_tokens} tokens, {self.num_bytes} bytes: {per_token:.4f} nats/token "
            f"(perplexity {math.exp(per_token):.2f}), {bits:.4f} bits/byte"
        )


def forward_of_checkpoint(path: Path) -> Forward:
    """token_ids [B, T] -> logits [B, T, V] by the training model."""
    model, _ = load_checkpoint(path)
    return lambda token_ids: model(token_ids)


def forward_of_folder(path: Path) -> Forward:
    """token_ids [B, T] -> logits [B, T, V] by transformers; raises if a tensor is missing or left over."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, output_loading_info=True)
    model, info = loaded
    if problems := {name: keys for name, keys in info.items() if keys}:
        raise ValueError(f"{path} does not load cleanly: {problems}")
    model.eval()
    return lambda token_ids: model(token_ids).logits


def windows(token_ids: list[int], window: int, begin_id: int) -> Iterator[list[int]]:
    """Pieces of at most `window` ids, each opened by `begin_id`."""
    for start in range(0, len(token_ids), window - 1):
        yield [begin_id, *token_ids[start : start + window - 1]]


@torch.inference_mode()
def held_out_loss(forward: Forward, tokenizer: Tokenizer, texts: Iterable[str], window: int = 512) -> HeldOutLoss:
    """Cross entropy of the texts' tokens; the end token is not counted."""
    begin_id = special_id(tokenizer, BEGIN)
    nats, num_tokens, num_bytes = 0.0, 0, 0
    for text in texts:
        num_bytes += len(text.encode())
        for piece in windows(tokenizer.encode(text, add_special_tokens=False).ids, window, begin_id):
            ids = torch.tensor([piece])
            logits = forward(ids)[0, :-1].float()
            nats += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            num_tokens += len(piece) - 1
    return HeldOutLoss(nats, num_tokens, num_bytes)


def first_documents(path: Path, max_bytes: int, max_document_bytes: int = 0) -> list[str]:
    """Documents from the start of the held-out file, until they hold `max_bytes`, long ones left out (0: no limit)."""
    chosen, size = [], 0
    for text in read_documents(path):
        if 0 < max_document_bytes < len(text.encode()):
            continue
        chosen.append(text)
        size += len(text.encode())
        if 0 < max_bytes <= size:
            break
    return chosen


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    repeat_penalty: float = 1.1
    max_tokens: int = 256


def draw(logits: Tensor, history: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    """One token from logits [V]; `history` are the ids so far, prompt included."""
    logits = logits.float().clone()
    recent = torch.tensor(sorted(set(history[-PENALTY_WINDOW:])))
    seen = logits[recent]
    logits[recent] = torch.where(seen > 0, seen / sampling.repeat_penalty, seen * sampling.repeat_penalty)
    values, ids = logits.topk(min(sampling.top_k, len(logits)))
    probabilities = values.softmax(-1)
    kept = probabilities.cumsum(-1) - probabilities < sampling.top_p
    weights = (values[kept] / sampling.temperature).softmax(-1)
    return int(ids[kept][torch.multinomial(weights, 1, generator=generator)])


@torch.inference_mode()
def answer(
    forward: Forward, tokenizer: Tokenizer, messages: list[Message], sampling: Sampling, seed: int
) -> tuple[str, bool]:
    """(text, did it end its turn by itself); the whole context is computed anew for every token."""
    generator = torch.Generator().manual_seed(seed)
    prompt = "".join(text for text, _ in render(messages)) + "Assistant: "
    history = tokenizer.encode(prompt).ids
    start = len(history)
    ends = {special_id(tokenizer, END), special_id(tokenizer, END_OF_TURN)}
    for _ in range(sampling.max_tokens):
        token_id = draw(forward(torch.tensor([history]))[0, -1], history, sampling, generator)
        if token_id in ends:
            return tokenizer.decode(history[start:]), True
        history.append(token_id)
    return tokenizer.decode(history[start:]), False
