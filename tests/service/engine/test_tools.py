from __future__ import annotations

import json
import random

import pytest

from service.engine.grammar_compiler import GrammarCompiler
from service.engine.prompt import Message
from service.engine.template import ChatTemplate
from service.engine.tool_messages import in_words
from service.engine.tool_reader import Arguments, CallBegun, Piece, ToolReader, Words
from service.engine.tools import Tool, ToolCall, ToolUse, spelled, tool_grammar
from tests.service.engine.fakes import END, EOS, FakeTokenizer

CITY = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
WEATHER = Tool("weather", "the weather of a city", CITY)
CLOCK = Tool("clock", "what time it is", '{"type": "object", "properties": {}, "additionalProperties": false}')
ASK = spelled(ToolCall("", "weather", '{"city": "} a \\"}\\" </tool_call>"}'))
TIME = spelled(ToolCall("", "clock", "{}"))


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(FakeTokenizer())


def accepts(compiler: GrammarCompiler, use: ToolUse, text: str) -> bool | None:
    """Whether the text may be written, and then end; None if only the former."""
    matcher = compiler.submit(tool_grammar(use)).result(20)
    for byte in text.encode():
        if not matcher.mask()[byte]:
            return False
        matcher.advance([byte])
    return True if matcher.mask()[[EOS, END]].all() else None


TEXTS: list[tuple[str, bool | None, bool | None, bool | None]] = [
    # auto, auto without parallel calls, required
    ("Plain words,\nand < more <tool_cal", True, True, False),
    ("", True, True, None),
    (ASK, True, True, True),
    ("Let me see. " + TIME, True, True, False),
    (ASK + "\n" + TIME, True, False, True),
    (ASK + " and words", False, False, False),
    ("<tool_call> words", False, False, False),
    ("words <tool_call>", None, None, False),
    (spelled(ToolCall("", "other", "{}")), False, False, False),
    (spelled(ToolCall("", "weather", "{}")), False, False, False),
    (spelled(ToolCall("", "weather", '{"city": 5}')), False, False, False),
    (spelled(ToolCall("", "weather", '{"city":"a"}')), False, False, False),
]


@pytest.mark.parametrize(("text", "auto", "single", "required"), TEXTS)
def test_what_an_answer_may_be(
    compiler: GrammarCompiler, text: str, auto: bool | None, single: bool | None, required: bool | None
) -> None:
    tools = (WEATHER, CLOCK)
    assert accepts(compiler, ToolUse(tools), text) is auto
    assert accepts(compiler, ToolUse(tools, parallel=False), text) is single
    assert accepts(compiler, ToolUse(tools, "required"), text) is required


def read(pieces: list[str]) -> list[Piece]:
    reader = ToolReader()
    found = [piece for text in pieces for piece in reader.push(text, final=False)]
    return [*found, *reader.push("", final=True)]


def joined(found: list[Piece]) -> list[object]:
    """The words, and each call with all of its arguments."""
    words = "".join(piece.text for piece in found if isinstance(piece, Words))
    calls = [piece for piece in found if isinstance(piece, CallBegun)]
    texts = ["".join(p.text for p in found if isinstance(p, Arguments) and p.index == call.index) for call in calls]
    return [words, *((call.name, text) for call, text in zip(calls, texts, strict=True))]


@pytest.mark.parametrize("seed", range(40))
def test_however_an_answer_is_cut_into_pieces_it_reads_the_same(seed: int) -> None:
    rng = random.Random(seed)
    calls = [("weather", '{"city": "} a \\"}\\\\\\" </tool_call>\\n<tool_call>", "o": {"p": [{}]}}'), ("clock", "{}")]
    words = rng.choice(["", "Let me <tool see. ", "<", "a\n"])
    text = words + "\n".join(spelled(ToolCall("", *call)) for call in calls)
    cuts = sorted(rng.sample(range(len(text)), rng.randrange(len(text)))) if seed else range(len(text))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert joined(read(pieces)) == [words, *calls]


def test_arguments_are_passed_on_as_they_come() -> None:
    reader = ToolReader()
    head, tail = ASK.split("} a")
    assert list(reader.push(head, final=False)) == [CallBegun(0, "weather"), Arguments(0, '{"city": "')]
    assert list(reader.push("} a", final=False)) == [Arguments(0, "} a")]
    assert list(reader.push(tail, final=True)) == [Arguments(0, tail.removesuffix("}\n</tool_call>"))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("words <tool_ca", ["words <tool_ca"]),
        ("words <tool_call>", ["words "]),
        ('<tool_call>\n{"name": "wea', [""]),
        (ASK[:54], ["", ("weather", '{"city": ')]),
        ("no call", ["no call"]),
        ("", [""]),
    ],
)
def test_an_answer_that_was_cut_is_read_up_to_there(text: str, found: list[object]) -> None:
    assert joined(read([text])) == found


HISTORY = [
    Message("system", "Be brief."),
    Message("user", "What is the weather, and the time?"),
    Message("assistant", "", (ToolCall("1", "weather", '{"city": "Rome"}'), ToolCall("2", "clock", "{}"))),
    Message("tool", "sunny", tool_call_id="1"),
    Message("tool", "noon", tool_call_id="2"),
    Message("assistant", "Sunny, and noon."),
]


def test_a_conversation_in_words_has_no_tools_and_takes_turns() -> None:
    worded = in_words(HISTORY, [WEATHER])
    assert [message.role for message in worded] == ["system", "user", "assistant", "user", "assistant"]
    assert worded[0].content.startswith("Be brief.\n\nYou can call these functions")
    assert json.dumps(json.loads(CITY)) in worded[0].content
    assert worded[2].content == spelled(HISTORY[2].tool_calls[0]) + "\n" + spelled(HISTORY[2].tool_calls[1])
    assert worded[3].content == "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    assert not any(message.tool_calls for message in worded)
    assert in_words(HISTORY[1:2], [WEATHER])[0].role == "system"
    assert in_words(HISTORY[:2], []) == HISTORY[:2]


NATIVE = """{% if tools %}[{% for tool in tools %}{{ tool | tojson }}{% endfor %}]{% endif %}
{%- for message in messages %}{{ message.role }}:{{ message.content }}
{%- for call in message.tool_calls %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}
{%- endfor %}{{ message.tool_call_id }};{% endfor %}"""


def test_a_template_that_writes_calls_is_given_tools_and_calls_as_objects() -> None:
    template = ChatTemplate(NATIVE, {})
    assert template.takes_tools
    function = {"name": "clock", "description": "what time it is", "parameters": json.loads(CLOCK.parameters)}
    text = template.render(HISTORY[1:4], [CLOCK])
    assert text == (
        "[" + json.dumps({"type": "function", "function": function}) + "]"
        "user:What is the weather, and the time?;"
        'assistant:<tool_call>weather {"city": "Rome"}<tool_call>clock {};tool:sunny1;'
    )
    assert not ChatTemplate("{{ tools }}", {}).takes_tools
