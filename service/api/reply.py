"""All choices of one request on their way to its client: one `Answer` each, read together, ended together.

Also keeps the record's counts. Knows neither shapes, which the answers make, nor whether anybody streams.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from service.api.answer import Answer, Event, failure_of
from service.api.record import Record
from service.api.tally import Tally
from service.engine.choices import Choices
from service.engine.request import Delta, Logprobs


@dataclass(slots=True)
class _Gathered:
    """Every delta of one generation; joined once, since joining them one by one costs the square of their number."""

    last: Delta = field(default_factory=Delta)
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.last = delta
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs

    def whole(self) -> Delta:
        return replace(
            self.last,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            prompt_logprobs=tuple(self.prompt_logprobs),
        )


class Reply:
    """The answers of `choices`, in the order of their places; whoever made it must `aclose` it."""

    def __init__(self, answers: Sequence[Answer], choices: Choices, record: Record) -> None:
        self.answers = answers
        self._choices = choices
        self._record = record
        self._lasts = [Delta()] * len(answers)
        self._num_unfinished = len(answers)

    async def next(self) -> tuple[Answer, Delta] | None:
        """What one of the answers is to say next; None when all is said."""
        read = await self._choices.next()
        return None if read is None else self._note(*read)

    def take(self) -> tuple[Answer, Delta] | None:
        """The same without waiting; None if there is nothing."""
        read = self._choices.take()
        return None if read is None else self._note(*read)

    @property
    def is_finished(self) -> bool:
        """Nothing more will come than what is to be taken now."""
        return self._choices.is_finished

    async def wait(self, timeout_s: float) -> bool:
        """After `take` had nothing: wait until there is something. False if there is nothing after so long."""
        return await self._choices.wait(timeout_s)

    def _note(self, place: int, delta: Delta) -> tuple[Answer, Delta]:
        self._record.completion_tokens += max(0, delta.num_generated - self._lasts[place].num_generated)
        if delta.num_generated and not self._record.first_token_s:
            self._record.first_token_s = time.monotonic()
        self._lasts[place] = delta
        if delta.finish is not None:
            self._record.finish = delta.finish.value
            self._num_unfinished -= 1
        return self.answers[place], delta

    def events(self, answer: Answer, delta: Delta) -> Iterator[Event]:
        """The events of a stream for what `next` returned last, with those that close it behind the last of all."""
        yield from answer.events(delta)
        if self._num_unfinished == 0 and failure_of(delta) is None:
            yield from answer.closing(self._total())

    async def whole(self) -> Event | list[Event]:
        """Wait for everything -> the body of a plain response. Raises the error of a generation that failed."""
        gathered = [_Gathered() for _ in self.answers]
        while (read := await self.next()) is not None:
            answer, delta = read
            if (failure := failure_of(delta)) is not None:
                raise failure
            gathered[answer.generation.place].add(delta)
        wholes = []
        for answer, parts in zip(self.answers, gathered, strict=True):
            last = parts.whole()
            wholes.append(answer.whole(last.text, last))
        return self.answers[0].join(wholes, self._total())

    def _total(self) -> Tally:
        """All of them together; a prompt counts once, however many choices it has."""
        tallies = []
        for answer, last in zip(self.answers, self._lasts, strict=True):
            tally = answer.tally(last)
            is_first = answer.generation.choice_index == 0
            tallies.append(tally if is_first else replace(tally, prompt_tokens=0, cached_tokens=0))
        return reduce(Tally.beside, tallies)

    async def aclose(self) -> None:
        """Abort what is unfinished and give the permits back; idempotent."""
        await self._choices.aclose()
