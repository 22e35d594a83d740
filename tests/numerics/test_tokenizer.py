"""Our tokenizer beside transformers', on the same folders."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from service.engine.prompt import Message
from service.engine.tokenizer import Tokenizer

PIECES = [*"abcXYZ 019<|>_'\n\t\r.é你😀\u0301\u200d", "the", " and", "<|", "|>", "don't", "   ", "\U000f0000"]
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|user|>", "<|reserved_special_token_0|>"]
# The shapes of well-known templates, with the special tokens that the test vocabulary has.
TEMPLATES = [
    None,
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}",
    "{% for message in messages %}\n    {% if loop.first and messages[0]['role'] != 'system' %}\n"
    "        {{- '<|begin_of_text|>system\\nYou are helpful.<|eot_id|>\\n' }}\n    {% endif %}\n"
    "    {{- message.role + '\\n' + message.content + '<|eot_id|>' + '\\n' }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}\n    {{- 'assistant\\n' }}\n{% endif %}\n",
    "{% for m in messages %}{{ m | tojson }}{{ m.content.split('|')[-1].strip() }}{% endfor %}",
    "{%- set ns = namespace(at=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.at = loop.index0 %}"
    "{%- endif %}{%- endfor %}{%- for m in messages[ns.at:] %}{{ m.content | upper | replace('A', 'aa') ~ eos_token }}"
    "{%- endfor %}",
]


def text(rng: random.Random, pieces: list[str]) -> str:
    return "".join(rng.choices(pieces, k=rng.randrange(30)))


def conversations(seed: int, pieces: list[str]) -> list[list[dict[str, str]]]:
    rng = random.Random(seed)
    roles = ("system", "user", "assistant", "user")
    return [
        [{"role": role, "content": text(rng, pieces)} for role in roles[rng.randrange(2) : rng.randrange(2, 5)]]
        for _ in range(60)
    ]


def messages_of(conversation: list[dict[str, str]]) -> list[Message]:
    return [Message(turn["role"], turn["content"]) for turn in conversation]


def with_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    assert tokenizer.bos_id is not None
    return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]


@pytest.fixture(params=["tiny_packed", "tiny_llama"])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any, Path]:
    from transformers import AutoTokenizer

    folder: Path = request.getfixturevalue(request.param)
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder), folder


def test_prompts_are_cut_as_in_transformers(pair: tuple[Tokenizer, Any, Path]) -> None:
    ours, theirs, _ = pair
    rng = random.Random(1)
    for _ in range(200):
        prompt = "a" + text(rng, PIECES + SPECIAL)
        ids = ours.encode_text(prompt)
        assert ids == theirs(prompt).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("template", TEMPLATES)
def test_chats_are_cut_as_in_transformers(
    pair: tuple[Tokenizer, Any, Path], template: str | None, tmp_path: Path
) -> None:
    ours, theirs, folder = pair
    if template is not None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        (tmp_path / "chat_template.jinja").write_text(template)
        ours = Tokenizer.from_folder(tmp_path)
    for conversation in conversations(2, PIECES):
        expected = theirs.apply_chat_template(
            conversation, chat_template=template, add_generation_prompt=True, return_dict=False
        )
        assert ours.encode_chat(messages_of(conversation)) == with_bos(expected, ours)


def test_special_text_in_chats_is_plain_as_in_transformers(pair: tuple[Tokenizer, Any, Path]) -> None:
    """transformers cuts words at the borders of special text, so the texts are compared, and the special tokens."""
    ours, theirs, _ = pair
    special = set(theirs.all_special_ids) | set(theirs.get_added_vocab().values())
    for conversation in conversations(3, [piece for piece in PIECES if ord(piece[0]) < 0xF0000] + SPECIAL):
        ids = ours.encode_chat(messages_of(conversation))
        expected = with_bos(
            theirs.apply_chat_template(
                conversation, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
            ),
            ours,
        )
        assert [i for i in ids if i in special] == [i for i in expected if i in special]
        assert theirs.decode(ids) == theirs.decode(expected)
