"""Server-sent events: frames, keep-alive comments, and the one place where a streamed reply is closed.

Only `data:` lines of ASCII JSON (with an `event:` line where a family's clients read it) and comments, separated by one
empty line: parsers in use split on `\\n\\n`, and an `id:` field beside a comment breaks one of them. Built on
sse-starlette; its own pings (sent while data flows, too) and its own reaction to signals are off. Knows no shapes: a
`Reply` makes the events.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from service.api.answer import Answer, failure_of
from service.api.errors import from_engine
from service.api.record import Record
from service.api.reply import Reply
from service.engine.errors import EngineError
from service.engine.request import Delta

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def frame(event: Mapping[str, Any], *, named: bool = False) -> bytes:
    """One event. ASCII, because some clients split lines at U+2028 or U+0085, which JSON leaves bare. `named`: some
    clients look for its type, one of a few words of ours, on a line before the data."""
    name = b"event: " + event["type"].encode("ascii") + b"\n" if named else b""
    return name + b"data: " + _encode(event).encode("ascii") + b"\n\n"


class EventStream(EventSourceResponse):
    """The reply's events as they come, then `[DONE]`; an error after the first token is an event of its own.

    `first`: what was read of the reply already. However the response ends (the client leaves, a send fails, the server
    stops), its `finally` ends every generation.
    """

    def __init__(self, reply: Reply, first: tuple[Answer, Delta] | None, record: Record, ping_s: float) -> None:
        super().__init__(self._frames(), ping=0, sep="\n")
        self._reply = reply
        self._first = first
        self._record = record
        self._ping_s = ping_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._reply.aclose()

    async def _frames(self) -> AsyncIterator[bytes]:
        answer = self._reply.answers[0]
        named = answer.has_named_events
        try:
            async for read in self._deltas():
                if read is None:
                    yield PING
                    continue
                answer, delta = read
                events = b"".join(frame(event, named=named) for event in self._reply.events(answer, delta))
                if events:
                    yield events
                if (failure := failure_of(delta)) is not None:
                    raise failure
        except EngineError as error:
            shown = from_engine(error)
            self._record.code = shown.code
            logger.warning("stream ended early: %s", error)
            yield frame(answer.failure(shown), named=named)
        yield DONE

    async def _deltas(self) -> AsyncIterator[tuple[Answer, Delta] | None]:
        """The reply's deltas; None after each `ping_s` of silence."""
        if self._first is not None:
            yield self._first
        while True:
            read = self._reply.take()
            if read is not None:
                yield read
            elif self._reply.is_finished:
                return
            elif not await self._reply.wait(self._ping_s):
                yield None
