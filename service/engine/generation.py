"""The client's end of one request: an async stream of deltas that never queues and never holds the engine up.

What the engine adds while nobody reads is merged into one Delta, so a reader that never comes costs at most the text of
one context. It lives in the event loop's thread; the engine thread never touches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from service.engine.request import Delta, FinishReason, Limits, Report, Request, SamplingParams
from service.engine.stopwatch import Stopwatch


class Generation:
    """One admitted request. One task reads it; whoever opened it must `aclose` it, or use `async with`.

    place: which it is of the generations that were opened together, which also share `arrived`.
    """

    def __init__(
        self,
        request: Request,
        request_id: str,
        on_close: Callable[[Generation], None],
        place: int = 0,
        arrived: asyncio.Event | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.request_id = request_id
        self.place = place
        self.choice_index = request.choice_index
        self.engine_id = request.id
        self.prompt_ids: tuple[int, ...] = request.prompt_ids
        self.report: Report = request.report
        self.params: SamplingParams = request.params
        self.limits: Limits = request.limits
        self._on_close = on_close
        self._stopwatch = stopwatch
        self._pending: Delta | None = None
        self._arrived = arrived or asyncio.Event()
        self._is_closed = False
        self.is_finished = False

    async def next(self) -> Delta | None:
        """Everything since the last call, merged; waits if there is nothing. None after the final delta."""
        while (delta := self.take()) is None:
            if self.is_finished:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return delta

    def take(self) -> Delta | None:
        """The same without waiting; None if there is nothing."""
        delta, self._pending = self._pending, None
        return delta

    def deliver(self, delta: Delta) -> None:
        """Called by the engine's side, in the event loop's thread; what comes after the final delta is dropped."""
        if self.is_finished:
            return
        self._pending = self._pending.then(delta) if self._pending else delta
        self.is_finished = delta.finish is not None
        self._arrived.set()
        if self._stopwatch is not None:
            self._stopwatch.note(delta)

    async def aclose(self) -> None:
        """Abort if unfinished and give the permit back; idempotent. A task waiting in `next` gets finish ABORT."""
        if self._is_closed:
            return
        self._is_closed = True
        self._on_close(self)
        self.deliver(Delta(finish=FinishReason.ABORT))

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Delta:
        delta = await self.next()
        if delta is None:
            raise StopAsyncIteration
        return delta

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
