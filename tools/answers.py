"""Answers of a checkpoint folder to fixed prompts, drawn by the engine that serves, and figures about them.

Seeds are fixed and tokens depend on nothing but the request and the model, so a table of answers can be made again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.compose import load
from service.config import Settings
from service.engine.async_engine import Loaded
from service.engine.prompt import Message
from service.engine.request import Delta, Limits, Request, SamplingParams

PROMPTS = (
    "Hello!",
    "How are you today?",
    "What is your name?",
    "Who made you?",
    "What can you do?",
    "Tell me a joke.",
    "Tell me a story about a dog.",
    "Write a short story about a girl and a red ball.",
    "Tell me a bedtime story.",
    "Tell me a story about a bird and a tree.",
    "Continue this story: Tom and his sister found a small box in the garden.",
    "What is 3 plus 4?",
    "What is the opposite of big?",
    "What is the capital of France?",
    "What does the word 'happy' mean?",
    "Use the word 'river' in a sentence.",
    "How do you spell 'house'?",
    "I am sad today.",
    "Thank you, that was nice!",
    "Good night!",
)
LOOP_WORDS, LOOP_TIMES = 5, 3
STORY_THINGS = (
    "a dog", "a cat", "a bird", "a tree", "a ball", "a fish", "a flower", "a rabbit", "a car", "a doll", "a bear",
    "the moon", "a frog", "a king", "a hat", "a boat", "a mouse", "a horse", "an apple", "a box",
)  # fmt: skip
STORY_SEEDS = range(1, 11)
"""Of each thing so many stories are asked for."""
STORY_TOKENS = 300
KEPT_TIMES = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What came for a prompt; `ended` by an end token, not by the limit."""

    prompt: str
    seed: int
    text: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """distinct[n-1]: different n-grams of words per n-gram over all answers; loops: share of answers that repeat
    LOOP_WORDS words in a row LOOP_TIMES times or more; ended: share that ended by themselves."""

    num_answers: int
    num_words: int
    ended: float
    distinct: tuple[float, float, float]
    loops: float


def load_engine(folder: Path, max_tokens: int) -> Loaded:
    """The engine of a folder on the CPU wing, as it is served."""
    return load(Settings(model=str(folder), offline=True, backend="cpu", kv_tokens=32 * (max_tokens + 256)))


def answer_all(loaded: Loaded, prompts: Sequence[str], seeds: Sequence[int], max_tokens: int) -> list[Answer]:
    """One answer per prompt and seed at the default sampling of the service, prompts in order, seeds inside."""
    engine, limits = loaded.engine, Limits(loaded.info.n_ctx, loaded.info.n_batch, max_tokens=max_tokens)
    asked = list(itertools.product(prompts, seeds))
    for number, (prompt, seed) in enumerate(asked):
        ids = loaded.tokenizer.encode_chat([Message("user", prompt)])
        engine.add(Request(str(number), tuple(ids), SamplingParams(seed=seed), limits))
    gathered = [Delta()] * len(asked)
    while engine.has_work:
        for request_id, delta in engine.step():
            gathered[int(request_id)] = gathered[int(request_id)].then(delta)
    return [
        Answer(prompt, seed, delta.text.strip(), delta.stop_kind == "eos")
        for (prompt, seed), delta in zip(asked, gathered, strict=True)
    ]


def ask_for_stories(loaded: Loaded) -> list[tuple[str, Answer]]:
    """(thing, story) of every request for a story about one of STORY_THINGS."""
    prompts = [f"Tell me a story about {thing}." for thing in STORY_THINGS]
    answers = answer_all(loaded, prompts, STORY_SEEDS, STORY_TOKENS)
    things = [thing.split()[-1] for thing in STORY_THINGS for _ in STORY_SEEDS]
    return list(zip(things, answers, strict=True))


def num_naming(stories: Sequence[tuple[str, Answer]], times: int) -> int:
    """How many stories have the thing that was asked for in them so many times or more."""
    return sum(answer.text.lower().count(thing) >= times for thing, answer in stories)


def figures(answers: Sequence[Answer]) -> Figures:
    """Raises ValueError for no answers."""
    if not answers:
        raise ValueError("no answers to take figures of")
    words = [answer.text.split() for answer in answers]
    return Figures(
        num_answers=len(answers),
        num_words=sum(map(len, words)),
        ended=sum(answer.ended for answer in answers) / len(answers),
        distinct=(_distinct(words, 1), _distinct(words, 2), _distinct(words, 3)),
        loops=sum(_loops(text) for text in words) / len(answers),
    )


def _ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    grams = [gram for words in texts for gram in _ngrams(words, n)]
    return len(set(grams)) / max(1, len(grams))


def _loops(words: Sequence[str]) -> bool:
    return max(Counter(_ngrams(words, LOOP_WORDS)).values(), default=0) >= LOOP_TIMES
