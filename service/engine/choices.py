"""The generations that answer one request (several prompts, several choices of each), read as one stream.

They are prompt-major: choice c of prompt p of n choices each has place p * n + c. One task reads them all, so they
share one event for what has arrived, and a reader wakes once however many of them got something. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.engine.generation import Generation
from service.engine.request import Delta


class Choices:
    """One or more generations that live and end together; whoever opened them must `aclose` them."""

    def __init__(self, generations: Sequence[Generation], arrived: asyncio.Event) -> None:
        self.generations = tuple(generations)
        self._arrived = arrived
        self._turn = 0

    async def next(self) -> tuple[int, Delta] | None:
        """The place of a generation that has something, and all of it since it was last read; waits if none has.

        None after the final delta of every generation.
        """
        while (read := self.take()) is None and not self.is_finished:
            await self.wait()
        return read

    def take(self) -> tuple[int, Delta] | None:
        """The same without waiting; None if none has anything.

        Nobody is passed over for long: the search begins behind the one that was read last.
        """
        self._arrived.clear()
        for place in self._places_in_turn():
            delta = self.generations[place].take()
            if delta is not None:
                self._turn = place + 1
                return place, delta
        return None

    @property
    def is_finished(self) -> bool:
        """Nothing more will come than what is to be taken now."""
        return all(generation.is_finished for generation in self.generations)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """After `take` had nothing: wait until there is something. False if there is nothing after so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def _places_in_turn(self) -> list[int]:
        num = len(self.generations)
        return [(self._turn + i) % num for i in range(num)]

    async def aclose(self) -> None:
        """Abort what is unfinished and give every permit back; idempotent."""
        for generation in self.generations:
            await generation.aclose()
