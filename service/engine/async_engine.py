"""The bridge between the event loop and the engine thread: admission, permits, one Generation for each request.

All that is `async` here, and every Generation, belongs to one event loop: the first that awaits anything. A permit
lives exactly as long as a Generation (TGI's rule), so whatever a client does, closing its Generation is the only
clean-up there is. Each step of the engine costs the loop at most one call, whatever the number of requests in it.

Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from service.engine.breakers import Breakers
from service.engine.choices import Choices
from service.engine.errors import Draining, EngineError, GrammarsBusy, InvalidParameter, QueueFull
from service.engine.generation import Generation
from service.engine.grammar import Grammar, Matcher
from service.engine.progress import Progress
from service.engine.prompt import Prompt, PromptEncoder, encode_prediction, encode_prompt, refuse_unknown_ids
from service.engine.request import NOTHING, Delta, FinishReason, Limits, Report, Request, SamplingParams
from service.engine.stopwatch import Observer, Stopwatch
from service.engine.text_tools import TextTools
from service.engine.thread import EngineInfo, EngineThread, Loaded, State
from service.engine.watchdog import Watchdog

logger = logging.getLogger(__name__)

T = TypeVar("T")

__all__ = ["AsyncEngine", "EngineInfo", "EngineOptions", "Generation", "Loaded", "State"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """max_queue: requests that may wait beyond those running, 0 for any number. Seconds for one grammar to compile,
    and limits of the watchdog in seconds."""

    max_queue: int = 512
    num_admission_threads: int = 2
    grammar_deadline_s: float = 5.0
    watchdog_soft_s: float = 30.0
    watchdog_hard_s: float = 300.0


class AsyncEngine:
    """`on_hang` is called, in the watchdog's thread, after the engine was declared dead for a step without end.
    `observer` may be set before the first request."""

    def __init__(
        self,
        options: EngineOptions = EngineOptions(),
        *,
        on_hang: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self.observer: Observer | None = None
        self._clock = clock
        self._on_hang = on_hang
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generations: dict[str, Generation] = {}
        self._num_permits = 0
        self._num_opened = 0
        self._state_changed = asyncio.Event()
        self._all_closed = asyncio.Event()
        self._admission = ThreadPoolExecutor(options.num_admission_threads, thread_name_prefix="admission")
        self._thread = EngineThread(
            on_change=lambda: self._call_loop(self._follow_state),
            on_deltas=lambda: self._call_loop(self._deliver),
            clock=clock,
        )
        self._watchdog = Watchdog(
            lambda: self._thread.busy_s,
            soft_s=options.watchdog_soft_s,
            hard_s=options.watchdog_hard_s,
            on_hang=self._give_up_on_step,
        )

    @property
    def state(self) -> State:
        return self._thread.state

    @property
    def info(self) -> EngineInfo:
        """Raises ModelLoading, or EngineDead if loading failed."""
        return self._thread.require().info

    @property
    def tokenizer(self) -> PromptEncoder:
        """Raises ModelLoading, or EngineDead if loading failed."""
        return self._thread.require().tokenizer

    def raise_if_unavailable(self) -> None:
        """Raises ModelLoading, Draining or EngineDead unless new requests are welcome."""
        self._thread.raise_if_unavailable()

    def stats(self) -> dict[str, int | float | str]:
        """For metrics and tests: the engine's stats once loaded, open generations, and the age of the present step."""
        loaded = self._thread.loaded
        return {
            "state": self.state,
            "open": self._num_permits,
            "inbox": self._thread.inbox_size,
            "heartbeat_age_s": self._thread.busy_s or 0.0,
            **(loaded.engine.stats() if loaded else {}),
        }

    def progress(self) -> list[Progress]:
        """How far each request in a step is, oldest first. Raises ModelLoading, EngineDead."""
        return self._thread.require().engine.progress()

    async def with_tokenizer(self, work: Callable[[TextTools], T]) -> T:
        """What `work` makes of the model's tokenizer, on a worker thread and under a permit. Raises what it raises;
        ModelLoading, Draining, EngineDead, QueueFull."""
        self._bind_loop()
        self.raise_if_unavailable()
        self._take_permits(1)
        try:
            tokenizer = self._thread.require().tokenizer
            return await asyncio.get_running_loop().run_in_executor(self._admission, work, tokenizer)
        finally:
            self._num_permits -= 1

    def start(self, factory: Callable[[], Loaded]) -> None:
        """Start the engine thread, which calls `factory` (it loads the model) and then serves. Once, from any thread,
        with or without an event loop."""
        self._thread.start(factory)
        self._watchdog.start()

    async def wait_ready(self) -> None:
        """Return when requests are welcome. Raises EngineDead, caused by the factory's exception, if loading failed."""
        self._bind_loop()
        while self.state == "loading":
            self._state_changed.clear()
            await self._state_changed.wait()
        self.raise_if_unavailable()

    async def open(self, prompt: Prompt, params: SamplingParams, limits: Limits, request_id: str) -> Generation:
        """Admit one request. `limits` are effective values; `request_id` is for logs and need not be unique.

        Raises ModelLoading, Draining, EngineDead, QueueFull, ContextLengthExceeded, InvalidParameter.
        """
        choices = await self.open_all([prompt], params, limits, request_id)
        return choices.generations[0]

    async def open_all(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        limits: Limits,
        request_id: str,
        *,
        n: int = 1,
        report: Report = NOTHING,
        prediction: str = "",
    ) -> Choices:
        """Admit n choices of each prompt, all or none; each is a generation with a permit of its own.

        Choice c of a prompt says what it says alone, whatever n, the other prompts, and what the client expects it to
        say (`prediction`, as text). Raises as `open`.
        """
        self._bind_loop()
        self.raise_if_unavailable()
        started_s = self._clock()
        num_permits = len(prompts) * n
        self._take_permits(num_permits)
        try:
            requests = await self._admit(prompts, params, limits, request_id, n, report, prediction)
        except BaseException:
            self._num_permits -= num_permits
            raise
        arrived = asyncio.Event()
        generations = [
            Generation(request, request_id, self._close, place, arrived, self._stopwatch(request, started_s))
            for place, request in enumerate(requests)
        ]
        self._generations.update((generation.engine_id, generation) for generation in generations)
        for request in requests:
            self._thread.submit(request)
        return Choices(generations, arrived)

    def _stopwatch(self, request: Request, started_s: float) -> Stopwatch | None:
        if self.observer is None:
            return None
        return Stopwatch(self.observer, self._clock, started_s, len(request.prompt_ids))

    def _take_permits(self, num: int) -> None:
        max_queue = self.options.max_queue
        ceiling = self.info.max_running + max_queue
        if max_queue and num > ceiling:
            message = f"the request asks for {num} generations at once, and this server lets in {ceiling} at most"
            raise InvalidParameter(message, "n")
        if max_queue and self._num_permits + num > ceiling:
            raise QueueFull(max_queue)
        self._num_permits += num

    async def _admit(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        limits: Limits,
        request_id: str,
        n: int,
        report: Report,
        prediction: str,
    ) -> list[Request]:
        loaded = self._thread.require()
        refuse_unknown_ids([token_id for token_id, _ in params.logit_bias], loaded.info.vocab_size, "logit_bias")
        loop = asyncio.get_running_loop()
        grammar_ends_s = loop.time() + self.options.grammar_deadline_s
        predicted_ids: tuple[int, ...] = ()
        if prediction:
            predicted_ids = await loop.run_in_executor(
                self._admission, encode_prediction, prediction, limits, loaded.tokenizer
            )
        requests = []
        for prompt in prompts:  # one after the other, so that a batch does not keep both threads from everybody else
            prompt_ids = await loop.run_in_executor(self._admission, encode_prompt, prompt, limits, loaded.tokenizer)
            for choice_index in range(n):
                self._num_opened += 1
                id = f"{request_id}/{self._num_opened}"
                matcher = await self._start_grammar(params.grammar, loaded, grammar_ends_s)
                breakers = _breakers(params, loaded.tokenizer)
                request = Request(
                    id,
                    prompt_ids,
                    params,
                    limits,
                    choice_index,
                    breakers=breakers,
                    matcher=matcher,
                    report=report,
                    prediction=predicted_ids,
                )
                requests.append(request)
            loaded.engine.check_fits(requests[-1])
        self.raise_if_unavailable()
        return requests

    async def _start_grammar(self, grammar: Grammar | None, loaded: Loaded, ends_s: float) -> Matcher | None:
        """A matcher at the grammar's beginning, until `ends_s` of the loop's clock: raises InvalidParameter if it was
        being compiled then, and GrammarsBusy if it waited."""
        if grammar is None:
            return None
        if loaded.grammars is None:
            raise InvalidParameter("this server cannot constrain an output", grammar.param)
        compiling = loaded.grammars.submit(grammar)
        try:
            left_s = max(ends_s - asyncio.get_running_loop().time(), 0.0)
            return await asyncio.wait_for(asyncio.wrap_future(compiling), left_s)
        except TimeoutError:
            deadline_s = self.options.grammar_deadline_s
            if compiling.cancelled():  # it was still in the queue
                message = f"other grammars are being compiled, and this one waited {deadline_s:g} s"
                raise GrammarsBusy(message) from None
            message = f"invalid '{grammar.param}': it takes more than {deadline_s:g} s to compile"
            raise InvalidParameter(message, grammar.param) from None

    def _close(self, generation: Generation) -> None:
        """The one clean-up of a request: aborted unless it has finished, and its permit back."""
        del self._generations[generation.engine_id]
        self._num_permits -= 1
        if not generation.is_finished:
            self._thread.abort(generation.engine_id)
        if not self._generations:
            self._all_closed.set()

    async def drain(self, deadline_s: float) -> bool:
        """Take nothing new, and wait until every Generation is closed. At the deadline, in seconds from now, those
        unfinished get a final delta with the error Draining. Returns whether none had to."""
        self._bind_loop()
        self._thread.drain()
        self._all_closed.clear()
        if not self._generations:
            return True
        try:
            await asyncio.wait_for(self._all_closed.wait(), deadline_s)
        except TimeoutError:
            logger.warning("drain: %d requests are open at the deadline", len(self._generations))
            return not self._fail_all(Draining("the server is shutting down and could not finish this request in time"))
        return True

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """End at once; what is unfinished gets EngineDead. True if the engine thread ended in time: one that is loading
        or hangs in a kernel cannot be stopped, and goes with the process."""
        self._thread.die("shut down")
        self._watchdog.stop()
        self._admission.shutdown(wait=False, cancel_futures=True)
        has_ended = self._thread.join(timeout_s)
        if (loaded := self._thread.loaded) is not None and loaded.grammars is not None:
            loaded.grammars.close()
        return has_ended

    def _give_up_on_step(self, busy_s: float) -> None:
        self._thread.die(f"a step has been running for {busy_s:.1f} s")
        self._on_hang()

    def _follow_state(self) -> None:
        self._state_changed.set()
        if self.state == "dead":
            self._fail_all(self._thread.death())

    def _fail_all(self, error: EngineError) -> int:
        """End every unfinished generation with this error; how many there were."""
        unfinished = [generation for generation in self._generations.values() if not generation.is_finished]
        for generation in unfinished:
            self._thread.abort(generation.engine_id)
            generation.deliver(Delta(finish=FinishReason.ERROR, error=error))
        return len(unfinished)

    def _deliver(self) -> None:
        for engine_id, delta in self._thread.collect().items():
            if engine_id in self._generations:
                self._generations[engine_id].deliver(delta)

    def _bind_loop(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._loop in (None, loop), "an AsyncEngine serves one event loop"
        self._loop = loop

    def _call_loop(self, call: Callable[[], None]) -> None:
        """Have the event loop call this. Without a loop, or with one that is closed, nobody is left to be told."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            logger.debug("the event loop is closed")


def _breakers(params: SamplingParams, tokenizer: PromptEncoder) -> Breakers | None:
    """What finds DRY's sequence breakers in one request's tokens, where it has DRY."""
    return Breakers(params.dry_sequence_breakers, tokenizer.spell) if params.dry_multiplier else None
