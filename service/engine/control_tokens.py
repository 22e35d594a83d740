"""Control tokens are the template's to write, not the user's.

A chat template turns messages into one text, and a tokenizer reads `<|eot_id|>` in it as one token whoever wrote it.
So the messages' own spellings of control tokens are interrupted by a guard, a character found nowhere else, before the
template sees them; filters like `trim` and `capitalize` work on the text as they should. Afterwards what is spelled
without a guard is the template's. Those spellings are then replaced by secret aliases, the guards are taken out, and a
twin of the tokenizer, which knows the aliases and not the spellings, encodes the whole in one go. So everything but
the control tokens is cut exactly as if the messages had been harmless.

Not covered: a template that computes a control token out of a message's words, other than by joining or changing case.
The idea of marking is that of transformers' `sanitize_control_tokens`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

from tokenizers import Tokenizer as Backend

from service.engine.errors import RequestError
from service.engine.prompt import Message
from service.engine.tools import Tool

GUARDS = range(0xF0000, 0xFFFFE)  # private use: in no alphabet, no white space, no case
ALIASES = range(0x100000, 0x10FFFE)
# Templates join roles into control tokens ('<|' + role + '|>'), so these pass as they are, and any other is guarded.
KNOWN_ROLES = frozenset(["system", "user", "assistant", "developer", "tool", "function", "ipython", "model"])


class Guard:
    """Finds the control tokens' spellings in messages and interrupts them."""

    def __init__(self, spellings: Sequence[str]) -> None:
        longest_first = "|".join(re.escape(text) for text in sorted(spellings, key=len, reverse=True)) or "(?!)"
        # A template may change the case of what it is given; overlapping spellings are all found.
        self._anywhere = re.compile(f"(?=(?:{longest_first}))", re.IGNORECASE)
        lowered = [text.lower() for text in spellings]
        self._beginnings = {text[:end] for text in lowered for end in range(1, len(text))}
        self._endings = {text[start:] for text in lowered for start in range(1, len(text))}
        self._longest = max(map(len, lowered), default=1)

    def protect(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[list[Message], str]:
        """The messages with guards, and the guard: a character that is in none of them, nor in the tools."""
        used = set(chain.from_iterable(text for message in messages for text in (message.role, message.content)))
        calls = [call for message in messages for call in message.tool_calls]
        nested = [call.arguments for call in calls] + [tool.parameters for tool in tools]
        used.update(*(_decoded(text) for text in nested), *(tool.description for tool in tools))
        guard = next((chr(code) for code in GUARDS if chr(code) not in used), None)
        if guard is None:
            raise RequestError("the messages use up the private-use characters", "messages")
        protected = [
            replace(
                message,
                role=self._role(message.role, guard),
                content=self._content(message.content, guard),
                tool_calls=tuple(
                    replace(call, id=self._content(call.id, guard), arguments=self._json(call.arguments, guard))
                    for call in message.tool_calls
                ),
                tool_call_id=self._content(message.tool_call_id, guard),
            )
            for message in messages
        ]
        return protected, guard

    def protect_tools(self, tools: Sequence[Tool], guard: str) -> list[Tool]:
        """The tools with guards."""
        return [
            replace(
                tool,
                description=self._content(tool.description, guard),
                parameters=self._json(tool.parameters, guard),
            )
            for tool in tools
        ]

    def _json(self, text: str, guard: str) -> str:
        """JSON with guards in its strings, keys included, as they read without escapes."""

        def walk(value: Any) -> Any:
            match value:
                case str():
                    return self._content(value, guard)
                case dict():
                    return {self._content(key, guard): walk(item) for key, item in value.items()}
                case list():
                    return [walk(item) for item in value]
            return value

        return json.dumps(walk(json.loads(text)), ensure_ascii=False)

    def _role(self, role: str, guard: str) -> str:
        return role if role in KNOWN_ROLES else role[:1] + guard + role[1:]

    def _content(self, content: str, guard: str) -> str:
        places = {match.start() + 1 for match in self._anywhere.finditer(content)}
        places.update(self._open_end(content))
        places.update(self._open_start(content))
        if not places:
            return content
        cuts = [0, *sorted(places), len(content)]
        return guard.join(content[start:end] for start, end in pairwise(cuts))

    def _open_end(self, content: str) -> list[int]:
        """Where the next text might complete a control token that this one begins."""
        end = len(content.rstrip())
        tail = content[max(0, end - self._longest) : end].lower()
        return [end] if any(tail[start:] in self._beginnings for start in range(len(tail))) else []

    def _open_start(self, content: str) -> list[int]:
        """Where this text might complete a control token that the text before begins."""
        start = len(content) - len(content.lstrip())
        head = content[start : start + self._longest].lower()
        if not any(head[:end] in self._endings for end in range(1, len(head) + 1)):
            return []
        has_case = content[start].upper() != content[start].lower()
        return [start + 1] if has_case else [start]  # `capitalize` must find the first letter first


def _decoded(text: str) -> str:
    """JSON with its characters written as they are."""
    return json.dumps(json.loads(text), ensure_ascii=False)


class AliasedTokenizer:
    """A tokenizer's twin in which control tokens are spelled in secret."""

    def __init__(self, backend: Backend, control_ids: Mapping[str, int]) -> None:
        """control_ids: spelling -> id, of added tokens. Costs a second copy of the vocabulary."""
        nonce = "".join(chr(secrets.choice(ALIASES)) for _ in range(6))
        self._aliases = {text: nonce + chr(ALIASES[place]) for place, text in enumerate(control_ids)}
        self._spelled = re.compile("|".join(map(re.escape, sorted(control_ids, key=len, reverse=True))) or "(?!)")
        spec = json.loads(backend.to_str())
        for token in spec["added_tokens"]:
            token["content"] = self._aliases.get(token["content"], token["content"])
        self._twin = Backend.from_str(json.dumps(spec))
        # An alias is in no vocabulary, so the twin may number the added tokens anew.
        self._ids: dict[int, int] = {}
        for token_id, added in backend.get_added_tokens_decoder().items():
            twin_id = self._twin.token_to_id(self._aliases.get(added.content, added.content))
            assert twin_id is not None, f"the twin lost {added.content!r}"
            self._ids[twin_id] = token_id
        self._control_ids = frozenset(control_ids.values())

    def encode(self, guarded: str, guard: str) -> list[int]:
        """Ids of a text in which only spellings without a guard are control tokens. Raises RequestError."""
        aliased = self._spelled.sub(lambda match: self._aliases[match[0]], guarded).replace(guard, "")
        ids = self._twin.encode(aliased, add_special_tokens=False).ids
        if any(token_id in self._control_ids and token_id not in self._ids for token_id in ids):
            raise RequestError(
                "a message spells a control token in a way the tokenizer cannot take as text", "messages"
            )
        return [self._ids.get(token_id, token_id) for token_id in ids]
