"""Variants of stories, and the small sums.

A small model learns a few thousand stories by heart before it learns to read the request.  In a variant another animal
or thing takes the place of the subject and other names those of the people, in request and story alike, so that the
request is the only place that tells what the story will be about.
"""

import random
import re
from collections.abc import Callable, Sequence

# Words that can stand for each other without making nonsense of most sentences.
KINDS = (
    "dog puppy cat kitten rabbit bear mouse horse fox goat pig cow squirrel lion monkey elephant tiger donkey wolf",
    "bird butterfly bee owl duck parrot crow hen goose swan chicken",
    "fish frog turtle crocodile hippo",
    "ball doll kite balloon hat box drum robot book ring key crown",
    "car truck train boat bike ship",
    "apple banana cake cookie mango carrot pumpkin",
    "park garden forest beach lake farm castle market",
)
KIND_OF = {word: kind.split() for kind in KINDS for word in kind.split()}
PLURALS = {"mouse": "mice", "wolf": "wolves", "goose": "geese", "fish": "fish"}
NAMES = (
    "Lily Sue Lucy Amy Mia Sally Anna Emma Sarah Jane Ella Mary Bella Molly Betty Emily Kate Alice",
    "Tim Tom Sam Ben Jack Bob Billy Leo Joe Peter John Fred James Andy Timmy Finn Bobby Jake",
)
VOWELS = tuple("aeiou")
LARGEST_TERM = 12


def plural(word: str) -> str:
    """The plural of a word of KINDS."""
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith("y"):
        return word[:-1] + "ies" if word[-2] not in VOWELS else word + "s"
    return word + ("es" if word.endswith(("x", "ch")) else "s")


def _replace_noun(texts: Sequence[str], old: str, new: str) -> list[str]:
    """`new` for the noun `old`, also in the plural and with a capital, and the article that goes with it."""
    forms = {old: new} | ({plural(old): plural(new)} if plural(old) != old else {})
    noun = re.compile(rf"\b(?:(an?)( (?:\w+ )??))?({'|'.join(forms)})\b", re.IGNORECASE)

    def put(found: re.Match[str]) -> str:
        article, between, word = found.groups()
        image = forms[word.lower()]
        image = image.capitalize() if word[0].isupper() else image
        if article is None:
            return image
        if between == " ":  # another word between decides the article by itself
            article = article[0] + ("n" if image.lower().startswith(VOWELS) else "")
        return f"{article}{between}{image}"

    return [noun.sub(put, text) for text in texts]


def _replace_names(texts: Sequence[str], rng: random.Random) -> list[str]:
    """Other names for the girls and boys among NAMES, a girl's for a girl's, no two alike."""
    present = set(re.findall(r"\b[A-Z][a-z]+\b", " ".join(texts)))
    names: dict[str, str] = {}
    for known in (group.split() for group in NAMES):
        old = [name for name in known if name in present]
        names |= zip(old, rng.sample(known, len(old)), strict=True)
    if not names:
        return list(texts)
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    return [pattern.sub(lambda found: names[found[1]], text) for text in texts]


def variant(texts: Sequence[str], subject: str | None, rng: random.Random) -> list[str]:
    """The texts of one story (or of a request and its story) with other names and another subject.

    A `subject` of no kind stays, and so do the things that the texts mention beside it.
    """
    texts = _replace_names(texts, rng)
    said = " ".join(texts).lower()
    others = [word for word in KIND_OF.get(subject or "", ()) if not re.search(rf"\b{word}", said)]
    return _replace_noun(texts, subject, rng.choice(others)) if subject and others else texts


def small_sums() -> list[tuple[str, str]]:
    """(question, answer) of every sum and difference of two numbers up to LARGEST_TERM, worded as the chats do."""
    sums: tuple[Callable[[int, int], str], ...] = (
        lambda a, b: f"What is {a} plus {b}?",
        lambda a, b: f"What is {a} + {b}?",
        lambda a, b: f"{a} + {b} = ?",
    )
    terms = range(LARGEST_TERM + 1)
    pairs = [(ask(a, b), f"{a} + {b} = {a + b}.") for ask in sums for a in terms for b in terms]
    return pairs + [(f"What is {a} minus {b}?", f"{a} - {b} = {a - b}.") for a in terms for b in range(a + 1)]
