"""How far a running request is, in plain numbers, for whoever watches. Knows no steps."""

from __future__ import annotations

from dataclasses import dataclass

from service.engine.request import Request


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of tokens. num_computed: those in the KV cache, num_cached of them found there; num_left: most to come."""

    id: str
    n_ctx: int
    num_prompt: int
    num_cached: int
    num_computed: int
    num_generated: int
    num_left: int

    @staticmethod
    def of(request: Request) -> Progress:
        return Progress(
            id=request.id,
            n_ctx=request.limits.n_ctx,
            num_prompt=len(request.prompt_ids),
            num_cached=request.num_cached,
            num_computed=request.num_computed,
            num_generated=request.num_generated,
            num_left=request.limit - request.total,
        )
