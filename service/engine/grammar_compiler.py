"""Grammars into matchers, by llguidance: a parser that tells for each token of the vocabulary whether it may come next.

A grammar is a stranger's program. What bounds it: the length of its text; the library's own fuel for building and for
each step; a trial of the first tokens before admission; a deadline for each of these, after which the request is
given up; the memory of all grammars that live at a time; and stacks large enough for the deepest nesting that fits into
the text (the library recurses, and a stack that overflows ends the process). All of the library's work is done in pools
of threads of its own, and it lets go of the interpreter lock meanwhile; the mask for the next token is made while the
model computes.

Every request compiles its own: copies of one matcher share its lexer and thereby the count of its states, which is
bounded, so that a request would fail by what others with the same grammar have written. It costs a millisecond for a
schema of everyday size, 9 ms for 40 tools (2 cores, 2026-11).

Knows no requests, no HTTP and no torch.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from service.engine.errors import GrammarsBusy, InvalidParameter
from service.engine.grammar import JSON_STYLE, Grammar, MatcherError

MAX_GRAMMAR_BYTES = 64 << 10
MAX_REASON_CHARS = 300
NUM_TRIAL_TOKENS = 4
STEP_DEADLINE_S = 1.0
"""A mask comes in far less than a millisecond; the library's own fuel runs out within a tenth of a second."""
QUICK_STEP_S = 0.002
"""Looking ahead takes a step for each token looked at, which everybody else waits for: nobody looks ahead in a grammar
whose last step took longer."""
STACK_BYTES = 256 << 20
"""Address space, taken as it is used. Measured: 64 MiB suffice for a chain of 7900 rules, 8 MiB do not for 4000."""
MAX_LIVE_BYTES = 1 << 30
"""Of all compiled grammars together, those of waiting requests included."""
# What a compiled grammar holds, at most: measured 30 MB for 2500 properties in 64 kB.
BYTES_PER_GRAMMAR, BYTES_PER_TEXT_BYTE = 256 << 10, 500


class GrammarVocabulary(Protocol):
    """What matchers need of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to the text; b"" for control tokens and ids without a token."""
        ...

    def encode_text(self, text: str, *, begins: bool) -> list[int]:
        """Its ids; only where it begins may anything be put before it."""
        ...


class GrammarCompiler:
    """Matchers over one vocabulary. Safe to use from several threads.

    The vocabulary is handed to the library with the first grammar: 128,000 tokens take it 45 MB and half a second,
    which a server that is never asked for one does not pay.
    """

    def __init__(self, vocabulary: GrammarVocabulary, *, num_compilers: int = 2, num_steppers: int = 2) -> None:
        self._vocabulary = vocabulary
        self._adapted: tuple[LLTokenizer, NDArray[np.bool_]] | None = None
        self._adapting = threading.Lock()
        self._limits = LLParserLimits(
            initial_lexer_fuel=100_000, step_lexer_fuel=100_000, max_lexer_states=10_000, verbose_errors=False
        )
        self._live_bytes = 0
        self._lock = threading.Lock()  # guards _live_bytes
        # Filled by finalizers: they may run in any thread at any point, so they must not wait for the lock.
        self._freed: SimpleQueue[int] = SimpleQueue()
        self._compilers = roomy_pool(num_compilers, "grammar-compile")
        self._steppers = roomy_pool(num_steppers, "grammar-step")

    def submit(self, grammar: Grammar) -> Future[GrammarMatcher]:
        """A matcher at the grammar's beginning, before long. Its failure is InvalidParameter or GrammarsBusy."""
        return self._compilers.submit(self.matcher, grammar)

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """The same, now, in a thread with room. Raises InvalidParameter, GrammarsBusy."""
        text_bytes = len(grammar.text.encode())
        if text_bytes > MAX_GRAMMAR_BYTES:
            raise _refusal(grammar, f"it has {text_bytes} bytes, the limit is {MAX_GRAMMAR_BYTES}")
        num_bytes = BYTES_PER_GRAMMAR + BYTES_PER_TEXT_BYTE * text_bytes
        self._take(num_bytes)
        try:
            tokenizer, usable = self._adapt()
            matcher = GrammarMatcher(self._compile(grammar, tokenizer, usable), usable, self._steppers)
        except BaseException:
            self._freed.put(num_bytes)
            raise
        weakref.finalize(matcher, self._freed.put, num_bytes)
        return matcher

    def close(self) -> None:
        """End the threads once they are idle."""
        for pool in (self._compilers, self._steppers):
            pool.shutdown(wait=False, cancel_futures=True)

    def live_bytes(self) -> int:
        """What the compiled grammars hold, at most."""
        return self._take(0)

    def _take(self, num_bytes: int) -> int:
        """So many more; all there are now. Raises GrammarsBusy."""
        with self._lock:
            while not self._freed.empty():
                self._live_bytes -= self._freed.get()
            if self._live_bytes + num_bytes > MAX_LIVE_BYTES:
                raise GrammarsBusy(f"the grammars of other requests fill the {MAX_LIVE_BYTES >> 20} MiB there are")
            self._live_bytes += num_bytes
            return self._live_bytes

    def _adapt(self) -> tuple[LLTokenizer, NDArray[np.bool_]]:
        with self._adapting:
            if self._adapted is None:
                self._adapted = _adapt(self._vocabulary)
            return self._adapted

    def _compile(self, grammar: Grammar, tokenizer: LLTokenizer, usable: NDArray[np.bool_]) -> LLMatcher:
        try:
            source = _source(grammar)
        except Exception as error:  # of the library's Python side, which raises bare ones
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise _refusal(grammar, reason) from None
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=self._limits)
        if not matcher.is_error():
            self._try_out(matcher.deep_copy(), grammar, usable)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())
        return matcher

    def _try_out(self, matcher: LLMatcher, grammar: Grammar, usable: NDArray[np.bool_]) -> None:
        """Take the first few steps: what is too complex mostly shows there, and what no text satisfies."""
        for _ in range(NUM_TRIAL_TOKENS):
            allowed = np.flatnonzero(_bits(matcher.compute_bitmask(), usable))
            if matcher.is_error() or not allowed.size:
                raise _refusal(grammar, matcher.get_error() or "no token of this model can begin it")
            if matcher.is_stopped() or not matcher.consume_token(int(allowed[0])):
                break
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())


Look: TypeAlias = tuple[NDArray[np.bool_], Sequence[int] | None]
"""Which tokens may come next, bool [V], and those that must, as the tokenizer spells them; None after a slow step."""


class GrammarMatcher:
    """One generation in its grammar; satisfies `Matcher`. After `advance` the next mask is made in the pool at once."""

    def __init__(
        self, state: LLMatcher, usable: NDArray[np.bool_], pool: ThreadPoolExecutor, token_ids: Sequence[int] = ()
    ) -> None:
        self._state = state
        self._usable = usable
        self._pool = pool
        self._next: Future[Look] = pool.submit(self._step, token_ids)
        self._failure = ""

    def mask(self) -> NDArray[np.bool_]:
        return self._looked()[0]

    def forced(self) -> Sequence[int] | None:
        try:
            return self._looked()[1]
        except MatcherError:
            return None

    def ahead(self, token_ids: Sequence[int]) -> GrammarMatcher:
        try:
            self._looked()  # until then the state is at work
        except MatcherError:
            return self
        return GrammarMatcher(self._state.deep_copy(), self._usable, self._pool, token_ids)

    def _looked(self) -> Look:
        if self._failure:
            raise MatcherError(self._failure)
        try:
            return self._next.result(STEP_DEADLINE_S)
        except TimeoutError:
            self._failure = f"the grammar took more than {STEP_DEADLINE_S:g} s for one token"
        except Exception as error:
            self._failure = f"the grammar cannot go on: {_first_line(str(error))}"
        raise MatcherError(self._failure)

    def advance(self, token_ids: Sequence[int]) -> None:
        self._next = self._pool.submit(self._step, token_ids)

    def _step(self, token_ids: Sequence[int]) -> Look:
        began_s = time.thread_time()  # of this thread, not of those it waits for
        self._state.consume_tokens(list(token_ids))
        allowed = _bits(self._state.compute_bitmask(), self._usable)
        if self._state.is_error():
            raise MatcherError(self._state.get_error())
        if not allowed.any():
            raise MatcherError("no token of this model can continue it")
        is_quick = time.thread_time() - began_s < QUICK_STEP_S
        return allowed, self._state.compute_ff_tokens() if is_quick else None


def roomy_pool(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads are there already, with stacks of STACK_BYTES."""
    all_here = threading.Barrier(num_threads + 1)
    before = threading.stack_size(STACK_BYTES)
    try:
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        for _ in range(num_threads):
            pool.submit(all_here.wait)
    finally:
        threading.stack_size(before)
    all_here.wait()
    return pool


class _Adapter:
    """A vocabulary as llguidance reads one."""

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        self.tokens = [vocabulary.token_bytes(token_id) for token_id in range(vocabulary.vocab_size)]
        self.special_token_ids = [token_id for token_id, spelling in enumerate(self.tokens) if not spelling]
        self.eos_token_id = min(vocabulary.eos_ids)
        self.bos_token_id = None
        self._vocabulary = vocabulary

    def __call__(self, text: str) -> Sequence[int]:
        if not isinstance(text, str):
            raise TypeError("text, not bytes")  # the library asks once which of the two is taken
        return self._vocabulary.encode_text(text, begins=False)


def _adapt(vocabulary: GrammarVocabulary) -> tuple[LLTokenizer, NDArray[np.bool_]]:
    """The library's tokenizer; and which ids may ever be chosen, bool [V]: those with a text, and those that end."""
    adapter = _Adapter(vocabulary)
    usable = np.array([bool(spelling) for spelling in adapter.tokens])
    eos_ids = sorted(token_id for token_id in vocabulary.eos_ids if token_id < vocabulary.vocab_size)
    usable[eos_ids] = True
    tokenizer = LLTokenizer(TokenizerWrapper(adapter), n_vocab=vocabulary.vocab_size, eos_token=eos_ids)
    return tokenizer, usable


def _bits(mask: bytes, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The library's bits, lowest first, as bool [V]."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=len(usable), bitorder="little")
    return bits.view(np.bool_) & usable


def _source(grammar: Grammar) -> str:
    """What the library compiles."""
    match grammar.kind:
        case "json_schema":
            overrides: Any = JSON_STYLE
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides=overrides)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "grammar":
            return LLMatcher.grammar_from_lark(any_to_lark(grammar.text))
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)


def _refusal(grammar: Grammar, reason: str) -> InvalidParameter:
    kind = {"json_schema": "JSON schema", "lark": "grammar"}.get(grammar.kind, grammar.kind)
    return InvalidParameter(f"invalid '{grammar.param}': the {kind} cannot be used: {_shown(reason)}", grammar.param)


def _shown(reason: str) -> str:
    """The library's reason on one line; it quotes the grammar at length."""
    words = " ".join(reason.replace("<non-verbose/>", "").split())
    return words if len(words) <= MAX_REASON_CHARS else words[: MAX_REASON_CHARS - 3] + "..."


def _first_line(reason: str) -> str:
    return _shown(reason.partition("\n")[0])
