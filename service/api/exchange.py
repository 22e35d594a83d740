"""One request over HTTP: check, admit, wait for the first event, then answer whole or as a stream.

The way of every generation route, whatever its shapes. A client that leaves ends its generations, streamed or not,
while they wait for admission, in the queue or run. Knows no field and no shape.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from service.api.answer import Answer, failure_of, new_id
from service.api.body import parse_object, read_bytes
from service.api.choices import read_choices, read_prediction, read_report
from service.api.parameters import read_limits, read_sampling
from service.api.record import Record
from service.api.reply import Reply
from service.api.schemas import Body, read_body
from service.api.sse import EventStream
from service.config import Settings
from service.engine.async_engine import AsyncEngine, EngineInfo, Generation
from service.engine.prompt import Prompt, PromptEncoder
from service.engine.request import Delta
from service.metrics import Metrics

T = TypeVar("T")

# Above this a body is parsed off the event loop, which other streams are waiting for.
LARGE_BODY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """How long a stream's status line waits for the first event, and after how much silence a comment is sent."""

    first_byte_s: float = 10.0
    ping_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Service:
    """What every route needs; `app.state.service` holds the one there is."""

    engine: AsyncEngine
    settings: Settings
    times: StreamTimes
    metrics: Metrics


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def read_request(request: Request, read: Callable[[dict[str, Any]], T]) -> T:
    """What `read` makes of the JSON object of the body; off the event loop where that is large. Raises ApiError."""
    raw = await read_bytes(request, service_of(request).settings.max_body_bytes)
    if len(raw) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(lambda: read(parse_object(raw)))
    return read(parse_object(raw))


@dataclass(frozen=True, slots=True)
class Family(Generic[Body]):
    """What tells one family of generation routes from another: its body, its prompts, its answers, its ids, and how its
    body is read."""

    body: type[Body]
    prompts: Callable[[Body], Sequence[Prompt]]
    answer: Callable[[Body, EngineInfo, Generation, PromptEncoder, int], Answer]
    id_prefix: str
    read: Callable[[type[Body], Mapping[str, Any]], Body] = read_body

    async def respond(self, request: Request) -> Response:
        """Serve one request. Raises ApiError, EngineError, ClientDisconnect."""
        service = service_of(request)
        service.engine.raise_if_unavailable()
        body = await read_request(request, lambda fields: self.read(self.body, fields))
        record: Record = request.state.record
        record.stream = body.stream is True
        if record.stream:
            begin = self._begin(service, body, record)
            reply, first = await unless_gone(request.receive, begin)
            return EventStream(reply, first, record, service.times.ping_s)
        return JSONResponse(await unless_gone(request.receive, self._whole(service, body, record)))

    async def _open(self, service: Service, body: Body, record: Record) -> Reply:
        """Admit the request; from here on somebody must close the reply."""
        engine = service.engine
        limits = read_limits(body, engine.info, service.settings)
        params = read_sampling(body, limits, engine.info, service.settings)
        prompts, report = self.prompts(body), read_report(body)
        n = read_choices(body, len(prompts))
        prediction = read_prediction(body, service.settings)
        choices = await engine.open_all(
            prompts, params, limits, new_id(self.id_prefix), n=n, report=report, prediction=prediction
        )
        record.generation = choices.generations[0].request_id
        record.prompt_tokens = sum(len(generation.prompt_ids) for generation in choices.generations[::n])
        created = int(time.time())
        answers = [self.answer(body, engine.info, made, engine.tokenizer, created) for made in choices.generations]
        return Reply(answers, choices, record)

    async def _begin(self, service: Service, body: Body, record: Record) -> tuple[Reply, tuple[Answer, Delta] | None]:
        """The reply and its first delta, if that came in time; what fails at once is raised, as a true status."""
        reply = await self._open(service, body, record)
        try:
            await reply.wait(service.times.first_byte_s)
            first = reply.take()
            if first is not None:
                _, delta = first
                if not delta.text and (failure := failure_of(delta)) is not None:
                    raise failure
        except BaseException:
            await reply.aclose()
            raise
        return reply, first

    async def _whole(self, service: Service, body: Body, record: Record) -> Any:
        reply = await self._open(service, body, record)
        try:
            return await reply.whole()
        finally:
            await reply.aclose()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first (ClientDisconnect).

    The body must have been read: the next thing to receive is then the client's leaving.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_client_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
