"""The joint between engine and runner: what one step shall do (StepPlan), and what came of it (RowResult).

Launch and wait are two verbs. On a CPU the work is done when `launch` returns; a GPU runner returns at once and
`Pending.tokens()` waits, so that a later engine may plan the next step while this one runs.

Knows no tensors: a runner turns a plan into its batch by reading the requests' tokens, blocks and parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.engine.request import Logprobs, Request


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """Tokens [start, start + count) of `request` are computed this step; its blocks for them are in place.

    sample: the row reaches the newest token, so the next one is to be chosen from its last logits. In a plan of several
    rounds the row begins with the newest token, and those after it are the ones chosen on the way. drafts: the last so
    many of its tokens are guesses of what comes after the newest one. Wherever those before it are right, the next
    token is chosen.
    """

    request: Request
    start: int
    count: int
    sample: bool
    drafts: tuple[int, ...] = ()

    @property
    def scored(self) -> range:
        """Positions whose logits are wanted to tell how likely the prompt's next token was."""
        if self.request.report.prompt_logprobs is None:
            return range(0)
        start = max(self.start, self.request.num_scored)
        return range(start, max(start, min(self.start + self.count, len(self.request.prompt_ids) - 1)))

    @property
    def has_result(self) -> bool:
        """Something comes back for it; else it is just computed."""
        return self.sample or len(self.scored) > 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: at most one row a request, oldest request first; `num_threads` CPU threads.

    rounds: with more than one, every row decodes so many tokens, one after the other: as many as a request is sure to
    want and to draw alike (`draws.num_ahead`). Then no row has drafts.
    """

    rows: tuple[ScheduledRow, ...]
    num_threads: int
    rounds: int = 1

    @property
    def num_tokens(self) -> int:
        return sum(row.count for row in self.rows)

    @property
    def has_drafts(self) -> bool:
        return any(row.drafts for row in self.rows)

    def num_known(self, row: ScheduledRow) -> int:
        """Tokens of the row that its request has when the step begins."""
        return row.count - len(row.drafts) - (self.rounds - 1)


@dataclass(frozen=True, slots=True)
class RowResult:
    """The token chosen for one row, or why there is none (then `token_id` means nothing, and only this row failed).

    For a row without `sample` it means nothing either. Where the request's Report asks for them, logprobs tell of the
    token chosen, and prompt_logprobs of the tokens after those `scored`. mu: the request's Mirostat state once it has
    this token; None where it uses none. is_grammar: what failed is the request's own grammar. later_ids: the tokens of
    the rounds after the first, or those after the drafts that were right; fewer where a row failed on the way (its own
    next step says why).
    """

    token_id: int
    error: str | None = None
    mu: float | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: tuple[Logprobs, ...] = ()
    is_grammar: bool = False
    later_ids: tuple[int, ...] = ()


class Pending(Protocol):
    """A step under way."""

    def tokens(self) -> Sequence[RowResult]:
        """Wait; one result for each row with `has_result`, in row order. Raises if the step as a whole failed."""
        ...


class Runner(Protocol):
    """Turns plans into tokens; owns the KV cache. Called from the engine thread only.

    What a row yields depends on its request's tokens, parameters and position alone, never on the other rows, so a
    plan may be split and run in parts, and a row may be run again.
    """

    def launch(self, plan: StepPlan) -> Pending:
        """Start a step of one or more rows. Raises if it cannot even be started."""
        ...

    def zero_blocks(self, block_ids: Sequence[int]) -> None:
        """Overwrite these blocks with zeros before anybody uses them again."""
        ...
