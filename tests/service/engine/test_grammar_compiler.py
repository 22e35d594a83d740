from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest

from service.engine import grammar_compiler
from service.engine.errors import GrammarsBusy, InvalidParameter
from service.engine.grammar import Grammar, GrammarKind, MatcherError
from service.engine.grammar_compiler import MAX_GRAMMAR_BYTES, MAX_LIVE_BYTES, GrammarCompiler, GrammarMatcher
from tests.service.engine.fakes import END, EOS, VOCAB_SIZE, FakeTokenizer

NUM_PADDING = 7


class PaddedTokenizer(FakeTokenizer):
    """A model with more embeddings than the tokenizer has tokens."""

    vocab_size = VOCAB_SIZE + NUM_PADDING

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id >= VOCAB_SIZE else super().token_bytes(token_id)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(PaddedTokenizer())
    yield made
    made.close()


def start(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> GrammarMatcher:
    return compiler.submit(Grammar(kind, text, "field")).result(20)


def allowed(matcher: GrammarMatcher) -> set[int]:
    mask = matcher.mask()
    assert (mask.shape, mask.dtype) == ((VOCAB_SIZE + NUM_PADDING,), np.bool_)
    return set(np.flatnonzero(mask).tolist())


def write(matcher: GrammarMatcher, text: str) -> None:
    for byte in text.encode():
        assert byte in allowed(matcher), f"{chr(byte)!r} is not allowed in {text!r}"
        matcher.advance([byte])


ENDS = {EOS, END}
ACCEPTED: list[tuple[GrammarKind, str, str]] = [
    ("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}', '{"a": 12}'),
    ("json_schema", '{"const": "zwölf \\" \\\\"}', '"zwölf \\" \\\\"'),
    ("json_schema", '{"type": "array", "items": {"enum": [1, null, "x"]}, "minItems": 2}', '[1, null, "x"]'),
    ("regex", "[a-c]{2,3}(x|yz)", "abyz"),
    ("grammar", 'root ::= "ab" [0-9]+ ("," [0-9])*', "ab12,3"),
    ("grammar", 'start: "ab" /[0-9]+/ | %json {"type": "boolean"}', "true"),
]


@pytest.mark.parametrize(("kind", "grammar", "text"), ACCEPTED)
def test_a_text_of_the_grammar_can_be_written_and_then_ended(
    compiler: GrammarCompiler, kind: GrammarKind, grammar: str, text: str
) -> None:
    matcher = start(compiler, kind, grammar)
    assert not ENDS & allowed(matcher)
    write(matcher, text)
    assert allowed(matcher) >= ENDS


def test_after_the_last_character_there_is_nothing_but_the_end(compiler: GrammarCompiler) -> None:
    matcher = start(compiler, "regex", "abc")
    write(matcher, "abc")
    assert allowed(matcher) == ENDS


def test_no_grammar_allows_padding_or_control_tokens(compiler: GrammarCompiler) -> None:
    assert allowed(start(compiler, "regex", "(.|\n)*")) == {*range(256), *ENDS} - {
        *range(0x80, 0xC2),
        *range(0xF5, 256),
    }
    with pytest.raises(InvalidParameter, match="doesn't satisfy the grammar"):
        start(compiler, "grammar", f"start: <[{VOCAB_SIZE}-{VOCAB_SIZE + 3}]>")


def test_looking_changes_nothing_and_matchers_of_one_grammar_are_independent(compiler: GrammarCompiler) -> None:
    first, second = (start(compiler, "regex", "ab|cd") for _ in range(2))
    assert allowed(first) == allowed(first) == {ord("a"), ord("c")}
    first.advance([ord("a")])
    assert allowed(first) == allowed(first) == {ord("b")}
    assert allowed(second) == {ord("a"), ord("c")}


def test_what_the_grammar_leaves_no_choice_about_is_forced(compiler: GrammarCompiler) -> None:
    matcher = start(compiler, "regex", "(ab|cd)efg[xy]")
    assert matcher.forced() == []
    matcher.advance([ord("c")])
    assert matcher.forced() == [*b"defg"]
    matcher.advance(b"defg")
    assert matcher.forced() == []
    assert allowed(matcher) == {ord("x"), ord("y")}


def test_nobody_looks_ahead_after_a_slow_step(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = start(compiler, "regex", "abcdef")
    assert matcher.forced() == [*b"abcdef"]
    monkeypatch.setattr(grammar_compiler, "QUICK_STEP_S", 0.0)
    matcher.advance(b"a")
    assert matcher.forced() is None
    assert allowed(matcher) == {ord("b")}


def test_looking_ahead_changes_nothing_and_goes_on_from_where_it_looks(compiler: GrammarCompiler) -> None:
    matcher = start(compiler, "regex", "ab(c|d)")
    further = matcher.ahead(b"ab")
    assert allowed(further) == {ord("c"), ord("d")}
    assert allowed(further.ahead(b"c")) == ENDS
    assert allowed(matcher) == {ord("a")}
    further.advance(b"d")
    assert allowed(further) == ENDS
    assert allowed(matcher) == {ord("a")}


def test_looking_behind_what_is_not_allowed_fails_there_alone(compiler: GrammarCompiler) -> None:
    matcher = start(compiler, "regex", "ab(c|d)")
    astray = matcher.ahead(b"ax")
    with pytest.raises(MatcherError):
        astray.mask()
    assert astray.forced() is None
    with pytest.raises(MatcherError):
        astray.ahead(b"b").mask()
    assert allowed(matcher.ahead(b"a")) == {ord("b")}


def test_white_space_has_one_spelling(compiler: GrammarCompiler) -> None:
    matcher = start(compiler, "json_schema", '{"type": "object", "x-guidance": {"whitespace_flexible": true}}')
    assert allowed(matcher) == {ord("{")}
    write(matcher, '{"a": 1, ')
    assert allowed(matcher) == {ord('"')}


REFUSED: list[tuple[GrammarKind, str, str]] = [
    ("json_schema", '{"type": "object", "properties": {"a": {"not": {}}}}', "not"),
    ("json_schema", '{"x-guidance": {"lenient": true}, "uniqueItems": true, "type": "array"}', "uniqueItems"),
    ("json_schema", '{"type": "nonsense"}', "nonsense"),
    ("json_schema", '{"$ref": "http://example.com/schema"}', "http://example.com"),
    ("json_schema", '{"$ref": "file:///etc/passwd"}', "file:///etc/passwd"),
    ("json_schema", '{"$ref": "#"}', ""),
    ("json_schema", '{"enum": []}', "empty"),
    ("json_schema", '{"type": "string", "minLength": 5, "maxLength": 2}', "minLength"),
    ("json_schema", '{"type": "string", "pattern": "(?=a)b"}', "look-around"),
    ("regex", "a(", "unclosed group"),
    ("regex", "(?=a)b", "look-around"),
    ("grammar", "nonsense", "::="),
    ("grammar", 'root ::= "a" other', "other"),
    ("grammar", "start: FOO", "FOO"),
    ("grammar", "start: start", ""),
]


@pytest.mark.parametrize(("kind", "grammar", "reason"), REFUSED)
def test_what_cannot_be_enforced_is_refused_with_the_reason(
    compiler: GrammarCompiler, kind: GrammarKind, grammar: str, reason: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        start(compiler, kind, grammar)
    assert caught.value.param == "field"
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def names(number: int) -> list[str]:
    return [f"r{place:04x}" for place in range(number)]


def chain(number: int, pattern: str) -> str:
    """Rules that lead one to the next."""
    rules = [pattern.format(this, other) for this, other in zip(names(number), names(number + 1)[1:], strict=True)]
    return "\n".join(rules)


def nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


HOSTILE: dict[str, tuple[GrammarKind, str]] = {
    "nested repetition": ("regex", "((a{1000}){1000}){1000}"),
    "nested repetition, later": ("regex", "ab((a{1000}){1000}){1000}"),
    "optional": ("regex", "(a?){1000}a{1000}"),
    "deep groups": ("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "stars": ("regex", "a" + "*" * 60_000),
    "exponential": ("regex", "(.*)(a|b)*a(.){200}"),
    "pattern": ("json_schema", '{"type": "string", "pattern": "^((a{1000}){1000}){1000}$"}'),
    "deep schema": ("json_schema", nested(2000)),
    "properties": ("json_schema", json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(2000)}})),
    "alternatives": ("json_schema", json.dumps({"anyOf": [{"required": [f"a{i}"]} for i in range(2000)]})),
    "multiples": ("json_schema", '{"type": "integer", "multipleOf": 9973, "minimum": -1e15, "maximum": 1e15}'),
    "big number": ("json_schema", '{"type": "integer", "minimum": -1' + "0" * 4000 + "}"),
    "rules": ("grammar", "start: r0000\n" + chain(4600, "{}:{}") + '\nr11f8:"a"'),
    "terminals": ("grammar", ("start: R0000\n" + chain(4600, "{}:{}").upper() + '\nR11F8:"a"')),
    "gbnf rules": ("grammar", "root ::= r0000\n" + chain(3300, "{} ::= {}") + '\nr0ce4 ::= "a"'),
    "doubling": ("grammar", "start: R0\n" + "\n".join(f"R{i}: R{i + 1} R{i + 1}" for i in range(60)) + '\nR60: "a"'),
    "doubling rules": (
        "grammar",
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(60)) + '\nr60: "a"',
    ),
    "deep lark": ("grammar", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "deep gbnf": ("grammar", "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "repeated rule": ("grammar", 'start: x{100000000}\nx: "a"'),
    "ambiguous": ("grammar", 'start: s\ns: s s s | s s | "a" | ""'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_runs_within_its_limits(compiler: GrammarCompiler, name: str) -> None:
    kind, text = HOSTILE[name]
    assert len(text) <= MAX_GRAMMAR_BYTES
    started_s = time.monotonic()
    try:
        matcher = start(compiler, kind, text)
    except InvalidParameter:
        matcher = None
    assert time.monotonic() - started_s < 15  # seconds of a loaded machine
    try:
        for _ in range(30 if matcher else 0):
            tokens = allowed(matcher) - ENDS
            if not tokens:
                break
            matcher.advance([min(tokens)])
    except MatcherError as error:
        with pytest.raises(MatcherError, match=re.escape(str(error))):
            matcher.mask()


def test_a_grammar_above_the_limit_is_not_even_looked_at(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidParameter, match=f"{MAX_GRAMMAR_BYTES + 1} bytes, the limit is {MAX_GRAMMAR_BYTES}"):
        start(compiler, "regex", "é" * (MAX_GRAMMAR_BYTES // 2) + "a")


def wait_until_freed(compiler: GrammarCompiler, most_bytes: int) -> None:
    """A thread may still be at the last mask of a matcher that is gone."""
    deadline_s = time.monotonic() + 10
    while compiler.live_bytes() > most_bytes:
        assert time.monotonic() < deadline_s, f"{compiler.live_bytes()} bytes are still held"
        time.sleep(0.01)


def steps_to_failure(matcher: GrammarMatcher) -> int:
    for step in range(1000):
        try:
            tokens = np.flatnonzero(matcher.mask())
        except MatcherError:
            return step
        matcher.advance([int(tokens[0])])
    raise AssertionError("it never fails")


def test_what_others_have_written_by_the_same_grammar_does_not_bring_a_generation_nearer_to_its_limits(
    compiler: GrammarCompiler,
) -> None:
    lengths = []
    for _ in range(3):
        matcher = start(compiler, "regex", "[b-z]{20}((a{1000}){1000}){1000}")
        lengths.append(steps_to_failure(matcher))
    assert lengths[0] == lengths[1] == lengths[2] >= 20


def test_all_grammars_that_live_are_bounded_by_their_size_and_leave_room_as_they_go() -> None:
    compiler = GrammarCompiler(FakeTokenizer())
    large = json.dumps({"const": 1, "description": "b" * 60_000})
    start(compiler, "json_schema", large)
    wait_until_freed(compiler, 0)  # else it may be counted beside the next one
    living = [start(compiler, "json_schema", large)]
    living += [start(compiler, "json_schema", large) for _ in range(MAX_LIVE_BYTES // compiler.live_bytes() - 1)]
    assert len(living) > 16
    assert MAX_LIVE_BYTES // 2 < compiler.live_bytes() <= MAX_LIVE_BYTES
    with pytest.raises(GrammarsBusy, match=f"{MAX_LIVE_BYTES >> 20} MiB"):
        start(compiler, "json_schema", large)
    del living[:2]
    wait_until_freed(compiler, MAX_LIVE_BYTES - MAX_LIVE_BYTES // 20)
    living.append(start(compiler, "json_schema", large))
    living.clear()
    with pytest.raises(InvalidParameter):
        start(compiler, "regex", "a(")
    wait_until_freed(compiler, 0)
    compiler.close()
