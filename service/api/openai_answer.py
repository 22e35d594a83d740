"""What the answers in OpenAI's two shapes, chats and texts, have in common: tokens told beside text, usage at the end.

Knows neither shape.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from service.api.answer import Answer, Event
from service.api.logprobs import Track, by_id
from service.api.schemas import OpenAIBody
from service.api.tally import Tally
from service.engine.request import Logprobs


@dataclass(slots=True)
class OpenAIAnswer(Answer):
    """`begun`: the first chunk is sent, and with it what is told of the prompt. `scores`: of the prompt's tokens, from
    the second on."""

    begun: bool = False
    scores: tuple[Logprobs, ...] = ()
    track: Track = field(init=False)

    def __post_init__(self) -> None:
        is_wanted = self.generation.report.logprobs is not None or self.wishes.return_token_ids is True
        self.track = Track(self.tokenizer, is_wanted=is_wanted, first_char=len(self.echoed))

    @property
    @abstractmethod
    def wishes(self) -> OpenAIBody:
        """The body, as what it is."""

    @property
    @abstractmethod
    def chunk_name(self) -> str:
        """The `object` of a chunk."""

    @property
    def echoed(self) -> str:
        """What the text begins with before anything is generated."""
        return ""

    def closing(self, total: Tally) -> Iterator[Event]:
        if self.wants_usage:
            yield {**self.head(self.chunk_name), "choices": [], "usage": total.usage()}

    def of_prompt(self) -> Event:
        """What is told of the prompt beside its text."""
        told: Event = {}
        if self.wishes.prompt_logprobs is not None:
            told["prompt_logprobs"] = by_id(self.scores, self.tokenizer, self.wishes.prompt_logprobs)
        if self.wishes.return_token_ids:
            told["prompt_token_ids"] = list(self.generation.prompt_ids)
        return told
