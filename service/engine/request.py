"""One generation: what it was asked (SamplingParams, Limits), how far it is (Request), what a step adds to it (Delta).

There is no prefill and no decode state. A request has *computed* tokens (their keys and values are in the cache) and
*total* tokens (prompt + generated); every step closes some of the gap, and when the gap is closed a token is sampled.
Chunked prefill, prefix hits and preemption are then the same subtraction (the idea is vLLM v1's).

Knows nothing of text, time, threads or how blocks are managed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from service.engine.breakers import Breakers
from service.engine.errors import EngineError
from service.engine.grammar import Grammar, Matcher
from service.engine.guesser import Guesser

UNLIMITED = -1
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""Every sampler that has a place in the order, in the order they have unless a request gives another."""

StopKind: TypeAlias = Literal["eos", "word", "limit"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; values already resolved and in range. `seed` is already drawn: 0 .. 2**64 - 1."""

    seed: int
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.1
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
    # What follows is not in the fixed chain of sampler.py: a request that asks for any of it goes through chain.py.
    samplers: tuple[str, ...] = SAMPLERS
    min_keep: int = 0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1

    @property
    def is_plain(self) -> bool:
        """The fixed chain of sampler.py is all it asks for."""
        return self.samplers == SAMPLERS and not (
            self.min_keep > 1
            or self.dynatemp_range > 0.0
            or self.top_n_sigma > 0.0
            or self.xtc_probability > 0.0
            or self.dry_multiplier > 0.0
            or self.mirostat
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a request may take, and what ends it; effective values.

    n_ctx: most tokens of prompt and output together. n_batch: most prompt tokens of it in one step.
    n_threads: its wish, None for none. max_tokens: most generated tokens, -1 for as many as n_ctx allows.
    stop: strings that end the output, part of it only with include_stop. stop_token_ids: tokens that end it beside the
    model's own. The first min_tokens tokens end nothing: until then no token of end_ids is chosen, and no stop string
    is looked for. cache_prompt: what the prefix cache holds may be used.
    """

    n_ctx: int
    n_batch: int
    n_threads: int | None = None
    max_tokens: int = UNLIMITED
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()
    cache_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """What is told of the tokens themselves: of each generated one (logprobs), of each of the prompt (prompt_logprobs).

    A number is how many of the likeliest tokens are told beside it; None tells nothing.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None


NOTHING = Report()


@dataclass(frozen=True, slots=True)
class Logprobs:
    """How likely the model held one token where it stands: ln of its probability over the whole vocabulary, before any
    bias, penalty or cut. rank: 1 for the likeliest. top: (token id, logprob) of the likeliest, equal ones by id."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class FinishReason(StrEnum):
    """Why a generation ended: STOP a token or a string that ends it; LENGTH max_tokens or n_ctx."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Delta:
    """What one or several steps added to a generation; the last one carries `finish`.

    text excludes stop strings (unless they were asked for) and never ends inside a character. token_ids includes the
    token that ended it, which has no text either. num_generated, num_cached (prompt tokens taken from the prefix
    cache), prompt_ms and predicted_ms are totals up to this delta. stop_kind and stopping_word are set with finish STOP
    or LENGTH, error with finish ERROR. Where the request's Report asks for them, logprobs stand beside token_ids, and
    prompt_logprobs, all in one delta, beside the prompt's tokens from its second on. num_drafted, num_accepted: guessed
    tokens that were checked up to here, and those that were right.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    stop_kind: StopKind | None = None
    stopping_word: str = ""
    error: EngineError | None = None
    num_generated: int = 0
    num_cached: int = 0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()
    num_drafted: int = 0
    num_accepted: int = 0

    def then(self, later: Delta) -> Delta:
        """This delta and the one after it, as one."""
        return Delta(
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            finish=later.finish,
            stop_kind=later.stop_kind,
            stopping_word=later.stopping_word,
            error=later.error,
            num_generated=max(self.num_generated, later.num_generated),
            num_cached=max(self.num_cached, later.num_cached),
            prompt_ms=max(self.prompt_ms, later.prompt_ms),
            predicted_ms=max(self.predicted_ms, later.predicted_ms),
            logprobs=self.logprobs + later.logprobs,
            prompt_logprobs=self.prompt_logprobs + later.prompt_logprobs,
            num_drafted=max(self.num_drafted, later.num_drafted),
            num_accepted=max(self.num_accepted, later.num_accepted),
        )


class Request:
    """One generation on its way, owned by the engine thread from the moment it is added.

    token_ids: prompt, then what was generated. num_computed of them are in the cache, num_cached of those were found
    there. block_ids: the KV blocks held, in order; token i sits in block_ids[i // block_tokens]. block_keys: chained
    hashes of its leading full blocks of tokens, as far as anybody asked for them. limit: most tokens it may come to.
    salt: requests of different salts share no cached blocks. mu: Mirostat's surprise limit, in bits. breakers: finds
    the sequence breakers of DRY in its tokens; without it there are none. num_scored: leading tokens of which it has
    been told how likely the prompt's next one was. matcher: how far the output is in its grammar; None where it has
    none. guesser: what guesses its next tokens; prediction, what its client expects them to be, is in there.

    While it lives, 0 <= num_cached <= num_computed < total <= limit; each method below keeps that, or asserts.
    The one exception is the instant at which a prompt with max_tokens = 0 is evaluated: computed == total == limit.
    """

    __slots__ = (
        "block_ids",
        "block_keys",
        "breakers",
        "choice_index",
        "guesser",
        "id",
        "is_plain",
        "limit",
        "limits",
        "matcher",
        "mu",
        "num_cached",
        "num_computed",
        "num_scored",
        "params",
        "prompt_ids",
        "report",
        "salt",
        "token_ids",
    )

    def __init__(
        self,
        id: str,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        limits: Limits,
        choice_index: int = 0,
        salt: bytes = b"",
        breakers: Breakers | None = None,
        matcher: Matcher | None = None,
        report: Report = NOTHING,
        prediction: Sequence[int] = (),
    ) -> None:
        self.id = id
        self.prompt_ids = prompt_ids
        self.params = params
        self.limits = limits
        self.choice_index = choice_index
        self.salt = salt
        self.matcher = matcher
        self.breakers = breakers
        self.is_plain = params.is_plain
        self.mu = 2 * params.mirostat_tau
        self.report = report
        self.guesser = Guesser(prediction)
        self.limit = self._most_tokens()
        self.token_ids: list[int] = list(prompt_ids)
        self.num_computed = 0
        self.num_cached = 0
        self.num_scored = 0
        self.block_ids: list[int] = []
        self.block_keys: list[bytes] = []
        assert 0 < self.total <= self.limit, f"prompt of {self.total} tokens, limit {self.limit}"
        assert self.total < self.limit or limits.max_tokens == 0, "no room to generate a token"

    def _most_tokens(self) -> int:
        if self.limits.max_tokens == UNLIMITED:
            return self.limits.n_ctx
        return min(self.limits.n_ctx, len(self.prompt_ids) + self.limits.max_tokens)

    @property
    def total(self) -> int:
        """Tokens known so far."""
        return len(self.token_ids)

    @property
    def gap(self) -> int:
        """Tokens known and not computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.prompt_ids)

    @property
    def is_full(self) -> bool:
        """No further token may be generated."""
        return len(self.token_ids) >= self.limit

    @property
    def reads_cache(self) -> bool:
        """It may take over blocks that are computed already. Whoever wants its prompt's logprobs has to compute it."""
        return self.limits.cache_prompt and self.report.prompt_logprobs is None

    @property
    def is_decoding(self) -> bool:
        """It has shown output and lacks only its newest token; one that is recomputed is not decoding."""
        return self.gap == 1 and self.num_generated > 0

    def adopt(self, block_id: int, num_tokens: int) -> None:
        """Take over a full block of `num_tokens` that is in the cache already; at least one token stays to compute."""
        assert self.num_computed == len(self.block_ids) * num_tokens, "adopted blocks come before computed ones"
        self.block_ids.append(block_id)
        self.num_computed += num_tokens
        self.num_cached += num_tokens
        assert self.num_computed < self.total

    def advance(self, num_tokens: int) -> None:
        """`num_tokens` more are computed."""
        self.num_computed += num_tokens
        assert 0 <= self.num_cached <= self.num_computed <= self.total

    def append(self, token_id: int, mu: float | None = None) -> None:
        """One more token is generated; all before it are computed. `mu` is what comes of it for Mirostat.

        Only here does `mu` move, so a row that is run again starts from where it did.
        """
        assert self.gap == 0, f"{self.gap} tokens before it are not computed"
        assert not self.is_full, f"already {self.total} tokens of {self.limit}"
        self.token_ids.append(token_id)
        if mu is not None:
            self.mu = mu

    def supposing(self, token_ids: Sequence[int]) -> Request:
        """A stand-in that has these tokens, too, to choose the one after them for. It is never scheduled."""
        other = copy(self)
        other.token_ids = [*self.token_ids, *token_ids]
        if self.matcher is not None and token_ids:
            other.matcher = self.matcher.ahead(token_ids)
        return other

    def rewind(self) -> list[int]:
        """Give up everything computed, keep every token; the blocks that were held are returned, to be released."""
        block_ids, self.block_ids = self.block_ids, []
        self.num_computed = self.num_cached = 0
        return block_ids
