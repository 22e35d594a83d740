"""What one generation looks like to its client: the facts that the answers of every family of routes share.

A family (`chat.py`, `completions.py`, `native.py`) says how a whole answer and how each event of a stream are shaped;
it does not know whether it is streamed. Knows no transport.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from service.api.parameters import generation_settings
from service.api.schemas import Generation as Body
from service.engine.async_engine import EngineInfo, Generation
from service.engine.errors import EngineError, GenerationFailed
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
    """One answer under construction."""

    body: Body
    info: EngineInfo
    generation: Generation
    created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def whole(self, text: str, last: Delta) -> Event:
        """The body of a plain response: all of the text, and the delta that ended it."""

    @abstractmethod
    def events(self, delta: Delta) -> Iterator[Event]:
        """The events of a stream for one delta, called in order; none of them for an error, which is sse.py's."""

    @property
    def id(self) -> str:
        return self.generation.request_id

    @property
    def wants_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and options.include_usage is True

    def head(self, object_name: str) -> Event:
        """The keys at the top of every OpenAI object."""
        return {"id": self.id, "object": object_name, "created": self.created, "model": self.info.model_id}

    def usage(self, last: Delta) -> Event:
        """Tokens counted as the clients expect: the prompt with its cached part, the output with its end token."""
        prompt_tokens = len(self.generation.prompt_ids)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": last.num_generated,
            "total_tokens": prompt_tokens + last.num_generated,
            "prompt_tokens_details": {"cached_tokens": last.num_cached},
        }

    def timings(self, last: Delta) -> Event:
        """llama.cpp's timings: prompt_n is what was evaluated for this request, without what the cache held."""
        prompt_n = len(self.generation.prompt_ids) - last.num_cached
        return {
            "cache_n": last.num_cached,
            **_pace("prompt", prompt_n, last.prompt_ms),
            **_pace("predicted", last.num_generated, last.predicted_ms),
        }

    def settings(self) -> Event:
        """What became effective of the request's parameters."""
        effective = generation_settings(self.generation.params, self.generation.limits, self.info)
        return {**effective, "ignore_eos": self.body.ignore_eos is True, "stream": self.body.stream is True}

    def extras(self, last: Delta) -> Event:
        """What our last chunk and whole objects carry beyond OpenAI's keys."""
        return {"timings": self.timings(last), "generation_settings": self.settings()}


def _pace(name: str, tokens: int, ms: float) -> Event:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": round(ms, 3),
        f"{name}_per_token_ms": round(ms / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(tokens * 1000 / ms, 3) if ms > 0 else 0.0,
    }


def new_id(prefix: str) -> str:
    """A fresh name of a generation."""
    return f"{prefix}-{uuid.uuid4().hex}"


def finish_reason(last: Delta) -> str:
    """OpenAI's name of why it ended."""
    return "stop" if last.finish is FinishReason.STOP else "length"
