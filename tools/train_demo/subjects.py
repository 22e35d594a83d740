"""Requests for stories, made from the stories themselves.

A small model keeps to a subject only if the requests it learnt from name what their stories are truly about.  So the
subject is the thing a story mentions most, against how often stories mention it at all; a story without one gets no
request.  The things that can be asked for are those the chat file asks for.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable

REQUESTS = (
    "Tell me a story about {}.",
    "Write a short story about {}.",
    "Make up a story about {}.",
    "Can you tell me a story about {}?",
    "I want to hear a story about {}.",
    "Tell me a bedtime story about {}.",
)
PEOPLE = ("girl", "boy", "man", "woman", "king", "queen", "princess", "mom", "dad")
ASKED_FOR = re.compile(r"story about ((?:an? |the )?([a-z]+))(?: and ((?:an? |the )?([a-z]+)))?[.?!]")
MIN_MENTIONS = 3
ADJECTIVES = ("red", "blue", "green", "yellow", "big", "little", "small", "old", "new", "happy", "sad", "pretty")
NOTHINGS = ("friend", "game", "day")  # what any story is about
PERSON_SHARE = 0.3
DESCRIBED_SHARE = 0.6
PAIR_SHARE = 0.3
OPENING_CHARS = 160  # where a story says who it is about
EARLY_CHARS = 400  # where a story has come to its subject


def asked_things(prompts: Iterable[str]) -> dict[str, str]:
    """Word -> how a request names it ("dog" -> "a dog"), of every thing that a request for a story names."""
    things: dict[str, str] = {}
    for prompt in prompts:
        for found in ASKED_FOR.finditer(prompt):
            things |= {word: phrase for phrase, word in (found.group(1, 2), found.group(3, 4)) if word}
    return things


def words_of(text: str) -> Counter[str]:
    """Words in lower case, with those in -s counted for the word without it."""
    return Counter(word.removesuffix("s") for word in re.findall(r"[a-z]+", text.lower()))


class Subjects:
    """What stories are about, seen against all of them."""

    def __init__(self, stories: list[str], things: dict[str, str]) -> None:
        apart = PEOPLE + NOTHINGS
        self.things = {word.removesuffix("s"): phrase for word, phrase in things.items() if word not in apart}
        self.num_stories = len(stories)
        self.mentioned_in = Counter(word for story in stories for word in words_of(story).keys() & self.things.keys())

    def of(self, story: str) -> list[str]:
        """Phrases for the things a story mentions often, the most telling first."""
        counts, early = words_of(story), words_of(story[:EARLY_CHARS])
        rarity = {
            word: counts[word] * math.log(1 + self.num_stories / max(1, self.mentioned_in[word]))
            for word in early.keys() & self.things.keys()
            if counts[word] >= MIN_MENTIONS
        }
        return [self.things[word] for word in sorted(rarity, key=lambda word: (-rarity[word], word))]

    def main(self, story: str) -> str | None:
        """The one word for what the story is about most; None if it is about nothing in particular."""
        return next((phrase.split()[-1] for phrase in self.of(story)), None)

    def request(self, story: str, rng: random.Random) -> str | None:
        """A request that the story answers; None if it is about nothing in particular."""
        subjects = self.of(story)
        if not subjects:
            return None
        named = self._described(subjects[0], story, rng)
        opening = words_of(story[:OPENING_CHARS])
        person = next((word for word in PEOPLE if opening[word]), None)
        if person and rng.random() < PERSON_SHARE:
            named = f"a {person} and {named}"
        elif len(subjects) > 1 and rng.random() < PAIR_SHARE:
            named += f" and {subjects[1]}"
        return rng.choice(REQUESTS).format(named)

    def _described(self, phrase: str, story: str, rng: random.Random) -> str:
        """Now and then "a red ball" for "a ball", where the story begins with a red one."""
        *article, word = phrase.split()
        found = re.search(rf"\b({'|'.join(ADJECTIVES)}) {word}\b", story[:EARLY_CHARS].lower())
        if not found or article not in (["a"], ["an"]) or rng.random() >= DESCRIBED_SHARE:
            return phrase
        return f"{'an' if found[1] == 'old' else 'a'} {found[1]} {word}"
