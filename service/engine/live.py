"""What the engine keeps of a request while it has it. Knows no steps and no other request."""

from __future__ import annotations

from dataclasses import dataclass

from service.engine.detokenizer import Detokenizer
from service.engine.plan import RowResult, ScheduledRow
from service.engine.request import Logprobs, Request


@dataclass(slots=True)
class Live:
    """A request in the engine with its text, times (seconds of the engine's clock) and what is not told yet."""

    request: Request
    text: Detokenizer
    started_s: float | None = None
    first_token_s: float | None = None
    num_cached: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()

    def note(self, row: ScheduledRow, result: RowResult) -> None:
        """Keep what the result of its row tells for the next delta."""
        if row.drafts:
            self.num_drafted += len(row.drafts)
            self.num_accepted += len(result.later_ids)
        self.prompt_logprobs += result.prompt_logprobs
        self.request.num_scored += len(result.prompt_logprobs)
        if result.logprobs is not None:
            self.logprobs = (result.logprobs,)

    def take(self) -> tuple[tuple[Logprobs, ...], tuple[Logprobs, ...]]:
        """What is to be told now."""
        told = self.logprobs, self.prompt_logprobs
        self.logprobs = self.prompt_logprobs = ()
        return told
