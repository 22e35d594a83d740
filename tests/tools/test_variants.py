"""Variants of stories are about another thing from the first word to the last, and the sums are right."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest

from tools.train_demo.subjects import Subjects
from tools.train_demo.variants import KIND_OF, NAMES, plural, small_sums, variant

STORY = 'Tim had a dog. "Dogs bark," said Sue. The big dog saw Tim\'s ball, an old ball, and a happy dog is a good dog.'
APPLE = "An apple fell. Lily ate an apple and a red apple. Apples are good."


class First(random.Random):
    """Takes the first of what there is to choose from."""

    def choice(self, seq: Sequence[str]) -> str:  # type: ignore[override]
        return seq[0]


def test_another_subject_takes_its_place_everywhere_with_its_article() -> None:
    told = variant([APPLE], "apple", First(1))[0]
    name = told.split(". ")[1].split()[0]
    assert told == f"A banana fell. {name} ate a banana and a red banana. Bananas are good."
    back = variant(["A banana fell. A red banana fell."], "banana", First(1))[0]
    assert back == "An apple fell. A red apple fell."


def test_a_request_and_its_story_change_alike() -> None:
    for seed in range(20):
        request, told = variant(["Tell me a story about a dog and Tim.", STORY], "dog", random.Random(seed))
        found = re.fullmatch(r"Tell me a story about an? (\w+) and (\w+)\.", request)
        assert found is not None
        thing, name = found.groups()
        assert "dog" not in told.lower()
        assert thing in KIND_OF["dog"]
        assert len(re.findall(rf"\b{thing}\b", told)) == 4
        assert plural(thing).capitalize() in told
        assert told.startswith(f"{name} had a")
        assert f"{name}'s ball, an old ball" in told


def test_what_a_story_mentions_anyway_does_not_become_its_subject() -> None:
    everything = "A dog, a cat. " + " ".join(word for word in KIND_OF["dog"] if word not in ("dog", "wolf"))
    assert variant([everything], "dog", random.Random(0))[0].startswith("A wolf, a cat.")
    assert variant(["A dog, a cat. " + " ".join(KIND_OF["dog"])], "dog", random.Random(0))[0].startswith("A dog")


def test_a_thing_of_no_kind_stays_and_so_does_a_story_without_names() -> None:
    assert variant(["The moon rose."], "moon", random.Random(0)) == ["The moon rose."]
    assert variant(["The moon rose."], None, random.Random(0)) == ["The moon rose."]


def test_names_stay_apart_and_girls_stay_girls() -> None:
    girls, boys = (set(group.split()) for group in NAMES)
    for seed in range(20):
        told = variant(["Lily and Sue saw Tim. Lily said hi, Sue said hi."], None, random.Random(seed))[0]
        found = re.fullmatch(r"(\w+) and (\w+) saw (\w+)\. \1 said hi, \2 said hi\.", told)
        assert found is not None
        assert {found[1], found[2]} < girls
        assert found[1] != found[2]
        assert found[3] in boys


@pytest.mark.parametrize(
    ("word", "words"),
    [("dog", "dogs"), ("puppy", "puppies"), ("donkey", "donkeys"), ("fox", "foxes"), ("mouse", "mice")],
)
def test_plurals(word: str, words: str) -> None:
    assert plural(word) == words


def test_the_subject_of_a_variant_is_found_in_it() -> None:
    things = {word: f"a {word}" for word in KIND_OF}
    story = "A dog came. " + "The dog ran. " * 4
    subjects = Subjects([story], things)
    told = variant([story], subjects.main(story), random.Random(5))[0]
    assert subjects.main(story) == "dog"
    assert subjects.main(told) == told.split()[1]


def test_sums_and_differences_are_right() -> None:
    pairs = small_sums()
    assert len({question for question, _ in pairs}) == len(pairs)
    for question, answer in pairs:
        left, result = answer.removesuffix(".").split(" = ")
        first, sign, second = left.split()
        assert int(result) == int(first) + (1 if sign == "+" else -1) * int(second) >= 0
        assert re.findall(r"\d+", question) == [first, second]
