"""Requests for stories name what the stories are about."""

from __future__ import annotations

import random

from tools.train_demo.subjects import Subjects, asked_things

DOG = "A girl had a dog. The dog was big. The dog ran to a tree. The girl saw the tree, and the dogs of the tree ran."
CAT = "A cat sat by a tree. The cat saw a tree. The cat ate. The tree fell. The cat cried, so the cat slept."
THINGS = {"dog": "a dog", "cat": "a cat", "tree": "a tree", "girl": "a girl", "moon": "the moon"}


def test_the_things_to_ask_for_are_read_off_requests() -> None:
    prompts = ("Tell me a story about a dog.", "Make up a story about the moon and an owl!", "Tell me a story.")
    assert asked_things(prompts) == {"dog": "a dog", "moon": "the moon", "owl": "an owl"}


def test_a_thing_that_few_stories_mention_goes_before_one_that_all_do() -> None:
    subjects = Subjects([DOG, CAT], THINGS)
    assert subjects.of(DOG) == ["a dog", "a tree"]
    assert subjects.of(CAT) == ["a cat", "a tree"]


def test_people_are_named_only_beside_a_subject() -> None:
    subjects, rng = Subjects([DOG, CAT], THINGS), random.Random(0)
    requests = [subjects.request(DOG, rng) or "" for _ in range(100)]
    assert all("dog" in request for request in requests)
    assert 10 < sum("a girl and a dog" in request for request in requests) < 60
    assert any("a dog and a tree" in request for request in requests)


def test_a_story_about_nothing_in_particular_is_not_asked_for() -> None:
    assert Subjects([DOG], THINGS).request("They went home. They were glad.", random.Random(0)) is None


def test_a_thing_that_a_story_comes_to_late_is_not_its_subject() -> None:
    late = "They went home. " * 40 + "The dog saw a dog and a dog."
    assert Subjects([late], THINGS).of(late) == []


def test_a_request_may_say_what_the_thing_is_like_where_the_story_does() -> None:
    story = "A girl had a red ball. The ball was new. The ball fell, and the old ball fell."
    subjects, rng = Subjects([story], {"ball": "a ball"}), random.Random(0)
    requests = {subjects.request(story, rng) or "" for _ in range(60)}
    assert any("a red ball" in request for request in requests)
    assert any("a ball" in request for request in requests)
    assert not any("old ball" in request for request in requests)
