from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.detokenizer import Detokenizer


def oracle(data: bytes, stop: list[str]) -> tuple[str, str]:
    """The whole at once: the text up to the stop string that is complete first, and that string."""
    text = data.decode("utf-8", "replace")
    for end in range(len(text) + 1):
        met = [word for word in stop if word and text[:end].endswith(word)]
        if met:
            word = max(met, key=len)
            return text[: end - len(word)], word
    return text, ""


def run(tokens: list[bytes], stop: list[str]) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(stop)
    pieces = []
    for token in tokens:
        pieces.append(detokenizer.push(token))
        if detokenizer.stopping_word:
            return pieces, detokenizer
    return [*pieces, detokenizer.flush()], detokenizer


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    tokens = []
    while data:
        size = rng.randint(0, 4)
        tokens.append(data[:size])
        data = data[size:]
    return tokens


def test_characters_split_between_tokens_come_whole() -> None:
    pieces, _ = run([b"\xf0", b"\x9f\x98", b"\x80!", b"\xc3", b"\xa9"], [])
    assert pieces == ["", "", "\U0001f600!", "", "é", ""]


def test_a_stop_string_that_is_to_be_included_ends_the_text_and_is_never_held_back() -> None:
    detokenizer = Detokenizer(["low", "world"], include_stop=True)
    assert [detokenizer.push(data) for data in (b"hel", b"lo ", b"wor", b"ldly")] == ["hel", "lo ", "wor", "ld"]
    assert detokenizer.stopping_word == "world"
    assert detokenizer.flush() == ""


def test_no_stop_string_is_looked_for_where_none_may_stop() -> None:
    detokenizer = Detokenizer(["ab"])
    assert [detokenizer.push(data, may_stop=False) for data in (b"ab", b"xa")] == ["ab", "xa"]
    assert [detokenizer.push(data) for data in (b"b", b"ab", b"c")] == ["b", "", ""]
    assert detokenizer.stopping_word == "ab"


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    assert run([b"ab\xe2\x82"], [])[0] == ["ab", "\ufffd"]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=40), seed=st.integers(0, 1 << 32))
def test_any_bytes_decode_as_python_decodes_the_whole(data: bytes, seed: int) -> None:
    pieces, _ = run(cut(data, random.Random(seed)), [])
    assert "".join(pieces) == data.decode("utf-8", "replace")


def test_the_brute_force_oracle_agrees_on_random_texts_and_stop_strings() -> None:
    rng = random.Random(7)
    num_stopped = 0
    for _ in range(3000):
        alphabet = rng.choice(["ab", "abc", "aé€\U0001f600", "ab\ufffd"])
        data = "".join(rng.choices(alphabet, k=rng.randint(0, 25))).encode()
        if rng.random() < 0.3 and data:
            i = rng.randrange(len(data))
            data = data[:i] + bytes([rng.randrange(256)]) + data[i + 1 :]
        stop = ["".join(rng.choices(alphabet, k=rng.randint(0, 5))) for _ in range(rng.randint(0, 4))]
        pieces, detokenizer = run(cut(data, rng), stop)
        assert ("".join(pieces), detokenizer.stopping_word) == oracle(data, stop), (data, stop)
        num_stopped += bool(detokenizer.stopping_word)
    assert 500 < num_stopped < 2950


def test_text_that_may_become_a_stop_string_is_held_back_and_no_more_than_that() -> None:
    rng = random.Random(3)
    for _ in range(600):
        text = "".join(rng.choices("ab", k=12))
        stop = ["".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(3)]
        detokenizer, shown = Detokenizer(stop), ""
        for i, char in enumerate(text, start=1):
            shown += detokenizer.push(char.encode())
            if detokenizer.stopping_word:
                break
            held = next(n for n in range(i, -1, -1) if any(word.startswith(text[i - n : i]) for word in stop))
            assert shown == text[: i - held]


@pytest.mark.parametrize("tokens", [[b"Hello\n", b"User:", b" x"], [b"Hello", b"\nUs", b"er", b": x"]])
def test_a_stop_string_across_tokens_is_excluded_wherever_the_borders_are(tokens: list[bytes]) -> None:
    pieces, detokenizer = run(tokens, ["\nUser:"])
    assert "".join(pieces) == "Hello"
    assert detokenizer.stopping_word == "\nUser:"


def test_held_text_is_flushed_at_the_end() -> None:
    pieces, detokenizer = run([b"a <", b"/s"], ["</s>"])
    assert pieces == ["a ", "", "</s"]
    assert detokenizer.stopping_word == ""


def test_a_failed_partial_match_is_not_lost_or_doubled() -> None:
    assert "".join(run([b"aa", b"a", b"b!"], ["aaab?"])[0]) == "aaab!"
    assert "".join(run([b"x", b"aaaa", b"ab"], ["aab"])[0]) == "xaaa"


def test_of_stop_strings_ending_together_the_longest_is_met() -> None:
    pieces, detokenizer = run([b"xabc"], ["c", "abc", "bc"])
    assert ("".join(pieces), detokenizer.stopping_word) == ("x", "abc")


def test_nothing_comes_after_a_stop_string() -> None:
    detokenizer = Detokenizer(["."])
    assert detokenizer.push(b"one. two") == "one"
    assert detokenizer.push(b" three") == ""
    assert detokenizer.flush() == ""


def test_a_stop_string_completed_by_the_final_replacement_character_counts() -> None:
    pieces, detokenizer = run([b"ab\xe2"], ["b\ufffd"])
    assert ("".join(pieces), detokenizer.stopping_word) == ("a", "b\ufffd")


def test_empty_stop_strings_are_ignored() -> None:
    assert run([b"abc"], [""])[0] == ["abc", ""]
