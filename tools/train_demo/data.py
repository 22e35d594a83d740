"""Corpus and training rows.

Turns the plain-text corpus and the chat file into fixed rows of token ids with a loss mask, once, so that training only
slices arrays.  A row holds whole pieces, each opened by <|begin_of_text|>; attention stays inside a piece.

It does not know about the model.
"""

import json
import lzma
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.documents import read_documents

from .subjects import Subjects, asked_things
from .variants import KIND_OF, small_sums, variant
from .vocabulary import END, END_OF_TURN, special_id, train_tokenizer

# How often a conversation of a source enters an epoch (fractions: that share of them).  Sources that invent bookings
# and opinions stay out or low: a model of this size would learn their tone, not their sense.
CHAT_WEIGHTS = {
    "templates": 6.0,
    "personality-chat": 2.0,
    "chatterbot-corpus": 2.0,
    "country-json": 6.0,
    "wordnet": 1.0,
    "sentence-with-word": 2.0,
    "story-tinystories": 0.3,  # their requests name something that is often beside the story; see subjects.py
    "self-instruct-seeds": 1.0,
    "dolly": 1.0,
    "fairytaleqa": 0.05,  # long questions, answers of a few words: much work for few targets
    "self-dialogue": 0.05,
    "topical-chat": 0.0,
    "schema-guided": 0.0,
}
# What people say first to a demo, and the factor on the weights of such conversations.
FIRST_WORDS = re.compile(
    r"(hello|hi|hey|good (morning|evening|afternoon|day|night)|thanks?|thank you|bye|goodbye|how are you|"
    r"who (are|made) you|what('s| is) your name|what are you|what can you do|are you|"
    r"tell me (a joke|about yourself))\b",
    re.IGNORECASE,
)
FIRST_WORDS_FACTOR = 3
# Questions about letters, which tokens do not show.
ABOUT_LETTERS = re.compile(
    r"(how many letters|write '\w+' in capital|what is the first letter|what letter)", re.IGNORECASE
)
ABOUT_LETTERS_FACTOR = 0.2
# Copies of a story: one as it is, the others variants. Six of those with a request were learnt by heart by the small
# model, in 4.7 passes (2026-11-26).
REQUEST_COPIES = 3
SAME_SUBJECT_COPIES = 1  # of one with a request whose subject has nothing that could stand for it
STORY_COPIES = 3  # of one that stands alone
SUM_COPIES = 3
# Sources of plain text by set; all others are books.
TEXT_SETS = {
    "tinystories": "story",
    "african-storybook": "story",
    "pratham-books": "story",
    "fairytaleqa": "tale",
}
SET_NAMES = ("story", "tale", "book", "chat")
HELD_OUT = "held-out"  # rows of text that no set holds, to watch a run by
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are a friendly assistant.", "You tell stories for children.")
SYSTEM_SHARE = 0.1
JOINED_SHARE = 0.15
MAX_JOINED_CHARS = 300
MAX_STORY_CHARS = 1700  # what fits a row of 512 tokens

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Rows:
    """token_ids [R, L] uint16 and loss [R, L] bool: whether the token at that place is a target."""

    token_ids: NDArray[np.uint16]
    loss: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        np.savez_compressed(path, token_ids=self.token_ids, loss=self.loss)

    @classmethod
    def load(cls, path: Path) -> "Rows":
        with np.load(path) as arrays:
            return cls(arrays["token_ids"], arrays["loss"])


# ---------------------------------------------------------------- corpus
def read_index(path: Path) -> list[tuple[str, float]]:
    """(source, ease) of every pre-training document in order."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        next(file)
        fields = (line.rstrip("\n").split("\t") for line in file)
        return [(row[2], float(row[5])) for row in fields]


def read_chats(path: Path) -> list[tuple[str, list[Message]]]:
    """(source, messages) of every conversation."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [(record["source"], record["messages"]) for record in records]


def chat_copies(source: str, messages: list[Message], rng: random.Random) -> int:
    """How many times a conversation of `source` enters the epoch."""
    weight = CHAT_WEIGHTS.get(source, 1.0)
    if source in ("templates", "personality-chat") and FIRST_WORDS.match(messages[0]["content"]):
        weight *= FIRST_WORDS_FACTOR
    if ABOUT_LETTERS.match(messages[0]["content"]):
        weight *= ABOUT_LETTERS_FACTOR
    return int(weight) + (rng.random() < weight % 1)


# ---------------------------------------------------------------- pieces and rows
def render(messages: list[Message]) -> list[tuple[str, bool]]:
    """(text, is it a target) parts of a conversation; joined they are what the chat template gives."""
    parts: list[tuple[str, bool]] = []
    for message in messages:
        role, content = message["role"].capitalize(), message["content"].strip()
        answer = message["role"] == "assistant"
        parts.append((f"{role}: ", False))
        parts.append((content + END_OF_TURN, answer))
    return parts


def encode_chat(tokenizer: Tokenizer, messages: list[Message]) -> tuple[list[int], list[bool]]:
    """Ids (one <|begin_of_text|> first) and targets of a conversation; only the last answer is a target.

    It is encoded apart from the prompt, because at inference the prompt ends in "Assistant: " (a lone space token) and
    the answer starts a new piece, while earlier answers are part of the prompt.
    """
    parts = [text for text, _ in render(messages)]
    prompt = tokenizer.encode("".join(parts[:-1])).ids
    answer = tokenizer.encode(parts[-1], add_special_tokens=False).ids
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a plain document between <|begin_of_text|> and <|end_of_text|>."""
    return [*tokenizer.encode(text).ids, special_id(tokenizer, END)]


def stream_rows(documents: Iterable[list[int]], row_length: int) -> Rows:
    """Cut the joined documents into rows; every token but <|begin_of_text|> (the first id) is a target."""
    joined = np.fromiter((i for document in documents for i in document), dtype=np.uint16)
    rows = joined[: len(joined) // row_length * row_length].reshape(-1, row_length)
    return Rows(rows, np.ones_like(rows, dtype=bool) & (rows != joined[0]))


def pack_rows(pieces: list[tuple[list[int], list[bool]]], row_length: int, padding_id: int) -> Rows:
    """First-fit packing of whole pieces into rows; longer pieces are cut, the rest of a row is padding without loss."""
    rows: list[tuple[list[int], list[bool]]] = []
    open_rows: list[int] = []
    for ids, loss in pieces:
        ids, loss = ids[:row_length], loss[:row_length]
        place = next((r for r in open_rows if len(rows[r][0]) + len(ids) <= row_length), None)
        if place is None:
            place = len(rows)
            rows.append(([], []))
            open_rows = [*open_rows[-15:], place]  # a short list of open rows keeps the packing linear in time
        rows[place][0].extend(ids)
        rows[place][1].extend(loss)
    token_ids = np.full((len(rows), row_length), padding_id, np.uint16)
    targets = np.zeros((len(rows), row_length), bool)
    for r, (ids, loss) in enumerate(rows):
        token_ids[r, : len(ids)] = ids
        targets[r, : len(loss)] = loss
    return Rows(token_ids, targets)


# ---------------------------------------------------------------- preparation
def prepare(
    corpus: Path, out: Path, *, vocab_size: int, row_length: int, min_ease: float, seed: int = 1
) -> dict[str, int]:
    """Write tokenizer.json (unless it is there) and one .npz per set; returns the sizes of the sets in tokens.

    Where the corpus has text to hold out, it becomes a set of its own.
    """
    rng = random.Random(seed)
    out.mkdir(parents=True, exist_ok=True)
    texts = _plain_texts(corpus, min_ease)
    records = read_chats(corpus / "chat.jsonl.xz")
    things = asked_things(m[0]["content"] for source, m in records if source.startswith("story-"))
    subjects = Subjects(texts["story"], things)
    chats = _conversations(records, texts["story"], subjects, rng)
    tokenizer_path = out / "tokenizer.json"
    if not tokenizer_path.exists():
        rendered = ("".join(part for part, _ in render(m)).replace(END_OF_TURN, "\n") for m in chats)
        plain = (*texts["story"], *texts["tale"], *texts["book"][::4])
        train_tokenizer([*plain, *rendered], vocab_size).save(str(tokenizer_path))
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    texts["story"] += [
        variant([story], subjects.main(story), rng)[0] for story in texts["story"] for _ in range(STORY_COPIES - 1)
    ]
    sets = {
        "chat": pack_rows([encode_chat(tokenizer, m) for m in chats], row_length, special_id(tokenizer, END)),
    }
    for name, documents in texts.items():
        rng.shuffle(documents)
        sets[name] = stream_rows((encode_document(tokenizer, text) for text in documents), row_length)
    if (corpus / "heldout.txt.xz").exists():
        held_out = read_documents(corpus / "heldout.txt.xz")
        sets[HELD_OUT] = stream_rows((encode_document(tokenizer, text) for text in held_out), row_length)
    for name, rows in sets.items():
        rows.save(out / f"{name}.npz")
    return {name: rows.token_ids.size for name, rows in sets.items()}


def _plain_texts(corpus: Path, min_ease: float) -> dict[str, list[str]]:
    """Documents by set; only books with a simplicity score of `min_ease` or more are taken."""
    texts: dict[str, list[str]] = {"story": [], "tale": [], "book": []}
    index = read_index(corpus / "pretrain.index.tsv.xz")
    for (source, ease), text in zip(index, read_documents(corpus / "pretrain.txt.xz"), strict=True):
        name = TEXT_SETS.get(source, "book")
        if name != "book" or ease >= min_ease:
            texts[name].append(text)
    return texts


def _conversations(
    records: list[tuple[str, list[Message]]], stories: list[str], subjects: Subjects, rng: random.Random
) -> list[list[Message]]:
    """The conversations of an epoch in random order, each ending in an answer."""
    chats = [messages for source, messages in records for _ in range(chat_copies(source, messages, rng))]
    chats = [m[: -1 if m[-1]["role"] != "assistant" else None] for m in chats]
    chats += [_renamed(m, rng) for source, m in records if source.startswith("continue-")]
    chats += [_exchange(*pair) for pair in small_sums() for _ in range(SUM_COPIES)]
    chats += _requested(stories, subjects, rng)
    chats += [_joined(chats, rng) for _ in range(int(JOINED_SHARE * len(chats)))]
    chats = [_with_system_prompt(messages, rng) for messages in chats]
    rng.shuffle(chats)
    return chats


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _renamed(messages: list[Message], rng: random.Random) -> list[Message]:
    """The conversation with other names in it."""
    contents = variant([message["content"] for message in messages], None, rng)
    return [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]


def _requested(stories: list[str], subjects: Subjects, rng: random.Random) -> list[list[Message]]:
    """Requests for stories and the stories, each also about other things."""
    asked: list[list[Message]] = []
    for story in stories:
        if len(story) > MAX_STORY_CHARS or (subject := subjects.main(story)) is None:
            continue
        for copy in range(REQUEST_COPIES if subject in KIND_OF else SAME_SUBJECT_COPIES):
            told = story if copy == 0 else variant([story], subject, rng)[0]
            if request := subjects.request(told, rng):
                asked.append(_exchange(request, told))
    return asked


def _joined(chats: list[list[Message]], rng: random.Random) -> list[Message]:
    """Two or three short conversations in a row: the sources have few with several turns and a clear answer."""
    joined: list[Message] = []
    while len(joined) < rng.choice((4, 6)):
        messages = rng.choice(chats)
        if sum(len(message["content"]) for message in messages) < MAX_JOINED_CHARS:
            joined += messages
    return joined


def _with_system_prompt(messages: list[Message], rng: random.Random) -> list[Message]:
    """Some conversations get a system message, so that one sent by a client is not a surprise."""
    if messages[0]["role"] == "system" or rng.random() >= SYSTEM_SHARE:
        return messages
    return [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}, *messages]
