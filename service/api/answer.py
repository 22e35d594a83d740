"""What one generation looks like to its client: the facts that the answers of every family of routes share. Where a
request has several choices, each has an answer of its own, and `join` and `closing` say what they come to together.

A family (`chat.py`, `completions.py`, `native.py`) says how a whole answer and how each event of a stream are shaped;
it does not know whether it is streamed. Knows no transport.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from service.api.errors import ApiError
from service.api.parameters import generation_settings
from service.api.schemas import Generation as Body
from service.api.tally import Tally
from service.engine.async_engine import EngineInfo, Generation
from service.engine.errors import EngineError, GenerationFailed
from service.engine.prompt import PromptEncoder
from service.engine.request import Delta, FinishReason

Event = dict[str, Any]


def failure_of(delta: Delta) -> EngineError | None:
    """Why this delta ends its generation before its time, if it does."""
    if delta.error is not None:
        return delta.error
    if delta.finish in (FinishReason.ABORT, FinishReason.ERROR):
        return GenerationFailed("the generation ended before it was complete")
    return None


@dataclass(slots=True)
class Answer(ABC):
    """One answer under construction. has_named_events: the family's clients read the type of an event on a line of its
    own."""

    has_named_events: ClassVar[bool] = False

    body: Body
    info: EngineInfo
    generation: Generation
    tokenizer: PromptEncoder
    created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def whole(self, text: str, last: Delta) -> Event:
        """The body of a plain response: all of the text, and the delta that ended it."""

    @abstractmethod
    def events(self, delta: Delta) -> Iterator[Event]:
        """The events of a stream for one delta, called in order: its text also where it ends in an error, whose own
        event is sse.py's."""

    def join(self, wholes: Sequence[Event], total: Tally) -> Event | list[Event]:
        """One body for the whole answers of all choices, of which this answer is the first."""
        if len(wholes) == 1:
            return wholes[0]
        choices = [choice for whole in wholes for choice in whole["choices"]]
        return {**wholes[0], "choices": choices, "usage": total.usage(), "timings": total.timings()}

    def closing(self, total: Tally) -> Iterator[Event]:  # noqa: ARG002 - for the families that have something to say
        """The events behind those of all choices."""
        yield from ()

    @property
    def index(self) -> int:
        """Which of the choices of its request it is."""
        return self.generation.place

    def failure(self, error: ApiError) -> Event:
        """The event that ends a stream before its time."""
        return error.body

    @property
    def id(self) -> str:
        return self.generation.request_id

    @property
    def wants_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and options.include_usage is True

    def head(self, object_name: str) -> Event:
        """The keys at the top of every OpenAI object."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.info.model_id,
            "system_fingerprint": self.info.fingerprint,
        }

    def tally(self, last: Delta) -> Tally:
        """What was counted up to this delta."""
        return Tally(
            prompt_tokens=len(self.generation.prompt_ids),
            cached_tokens=last.num_cached,
            generated_tokens=last.num_generated,
            prompt_ms=last.prompt_ms,
            predicted_ms=last.predicted_ms,
            drafted_tokens=last.num_drafted,
            accepted_tokens=last.num_accepted,
        )

    def usage(self, last: Delta) -> Event:
        return self.tally(last).usage()

    def timings(self, last: Delta) -> Event:
        return self.tally(last).timings()

    def progress(self, delta: Delta) -> Event:
        """What every event of a stream tells of how far it is, where that is asked for."""
        options = self.body.stream_options
        told: Event = {"usage": None} if self.wants_usage else {}
        if options is not None and options.continuous_usage_stats:
            told["usage"] = self.usage(delta)
        if self.body.timings_per_token:
            told["timings"] = self.timings(delta)
        return told

    def settings(self) -> Event:
        """What became effective of the request's parameters."""
        effective = generation_settings(self.generation.params, self.generation.limits, self.info)
        return {
            **effective,
            "ignore_eos": self.body.ignore_eos is True,
            "n_probs": self.generation.report.logprobs or 0,
            "post_sampling_probs": False,
            "timings_per_token": self.body.timings_per_token is True,
            "stream": self.body.stream is True,
        }

    def extras(self, last: Delta) -> Event:
        """What our last chunk and whole objects carry beyond OpenAI's keys."""
        return {"timings": self.timings(last), "generation_settings": self.settings()}


def new_id(prefix: str) -> str:
    """A fresh name of a generation."""
    return f"{prefix}-{uuid.uuid4().hex}"


def finish_reason(last: Delta) -> str:
    """OpenAI's name of why it ended."""
    return "stop" if last.finish is FinishReason.STOP else "length"
