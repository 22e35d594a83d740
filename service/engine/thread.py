"""The engine thread: it loads the model, takes in what came, steps, and announces what was added. Nobody else steps.

Between it and the rest of the process stand an inbox and an outbox under one lock. The inbox holds each request at most
once, and aborting an entry that was not taken in yet just removes it; the outbox merges deltas of a request. So both
stay bounded by the number of requests their owner lets in, however long a step takes or however late he collects.

Idle, it sleeps on a condition. (One thread that owns inference is llama.cpp's server.) Knows no event loop, no clients.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from service.engine.engine import Engine
from service.engine.errors import Draining, EngineDead, ModelLoading
from service.engine.grammar_compiler import GrammarCompiler
from service.engine.request import Delta, Request
from service.engine.text_tools import TextTools

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["loading", "ready", "draining", "dead"]
_ORDER: tuple[State, ...] = ("loading", "ready", "draining", "dead")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What there is to know of a loaded engine. n_ctx: what a silent request gets; n_ctx_max: the most it may ask for;
    n_batch, n_threads: the ceilings; created: Unix time in seconds; eos_ids: the tokens that end a generation;
    fingerprint: the same as long as nothing but the request decides what a seeded request says."""

    model_id: str
    created: int
    vocab_size: int
    n_ctx: int
    n_ctx_max: int
    n_batch: int
    n_threads: int
    max_running: int
    kv_tokens: int
    eos_ids: tuple[int, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a factory makes. The engine thread owns `engine`; `tokenizer` is called from admission threads.

    grammars: None where no output can be constrained.
    """

    engine: Engine
    tokenizer: TextTools
    info: EngineInfo
    grammars: GrammarCompiler | None = None


class EngineThread:
    """`on_change` is called after each change of state, `on_deltas` when the outbox is no longer empty, and not again
    before it was collected; both from whatever thread did it, and they must not block. `clock`: seconds, monotonic."""

    def __init__(
        self,
        on_change: Callable[[], None],
        on_deltas: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_change = on_change
        self._on_deltas = on_deltas
        self._clock = clock
        self._changed = threading.Condition()  # guards all that follows
        self._state: State = "loading"
        self._reason = ""
        self._cause: BaseException | None = None
        self._loaded: Loaded | None = None
        self._incoming: dict[str, Request] = {}
        self._aborts: set[str] = set()
        self._outbox: dict[str, Delta] = {}
        self._busy_since_s: float | None = None
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def busy_s(self) -> float | None:
        """Seconds for which the present step has been running; None while idle or loading."""
        since_s = self._busy_since_s
        return None if since_s is None else self._clock() - since_s

    @property
    def inbox_size(self) -> int:
        return len(self._incoming) + len(self._aborts)

    @property
    def loaded(self) -> Loaded | None:
        """None as long as there is no model."""
        return self._loaded

    def require(self) -> Loaded:
        """What was loaded. Raises ModelLoading, or EngineDead if it never will be."""
        if self._loaded is None:
            raise (self.death() if self._state == "dead" else ModelLoading())
        return self._loaded

    def raise_if_unavailable(self) -> None:
        """Raises ModelLoading, Draining or EngineDead unless new requests are welcome."""
        if self._state == "dead":
            raise self.death()
        if self._state == "draining":
            raise Draining
        self.require()

    def death(self) -> EngineDead:
        """Why it is dead, caused by what killed it. A new one each time: a raised exception collects tracebacks."""
        error = EngineDead(self._reason)
        error.__cause__ = self._cause
        return error

    def start(self, factory: Callable[[], Loaded]) -> None:
        """Call `factory` in the new thread, then serve what it made. Once."""
        assert self._thread is None, "started already"
        self._thread = threading.Thread(target=self._run, args=(factory,), name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Have the request taken in before the next step."""
        with self._changed:
            self._incoming[request.id] = request
            self._changed.notify_all()

    def abort(self, request_id: str) -> None:
        """Have the request dropped before the next step, or never taken in."""
        with self._changed:
            if self._incoming.pop(request_id, None) is None and self._state != "dead":
                self._aborts.add(request_id)
                self._changed.notify_all()

    def collect(self) -> dict[str, Delta]:
        """Empty the outbox: what was added to each request since the last call."""
        with self._changed:
            outbox, self._outbox = self._outbox, {}
        return outbox

    def drain(self) -> None:
        """Announce that nothing new is welcome; what is here goes on."""
        self._enter("draining")

    def die(self, reason: str, cause: BaseException | None = None) -> None:
        """End after the present step, if it ends. The first reason stays."""
        self._enter("dead", reason, cause)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; True if it has ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _enter(self, state: State, reason: str = "", cause: BaseException | None = None) -> None:
        """Go on to a later state; nothing ever goes back."""
        with self._changed:
            if _ORDER.index(state) <= _ORDER.index(self._state):
                return
            self._reason, self._cause = reason, cause
            self._state = state
            self._changed.notify_all()
        self._on_change()

    def _run(self, factory: Callable[[], Loaded]) -> None:
        try:
            self._loaded = factory()
            self._enter("ready")
        except BaseException as error:
            logger.error("loading failed: %s", error)
            self.die(f"loading failed: {error}", error)
            return
        try:
            self._serve(self._loaded.engine)
        except BaseException as error:
            logger.exception("the engine died")
            self.die(error.reason if isinstance(error, EngineDead) else repr(error), error)
        finally:
            self._busy_since_s = None

    def _serve(self, engine: Engine) -> None:
        while self._take_in(engine):
            self._announce(engine.step())
            if not engine.has_work:
                engine.check_idle()

    def _take_in(self, engine: Engine) -> bool:
        """Wait for work and take the inbox in; False when it is time to end."""
        with self._changed:
            self._busy_since_s = None
            while not (self._incoming or self._aborts or engine.has_work or self._state == "dead"):
                self._changed.wait()
            if self._state == "dead":
                return False
            incoming, self._incoming = self._incoming, {}
            aborts, self._aborts = self._aborts, set()
            self._busy_since_s = self._clock()
        for request in incoming.values():
            engine.add(request)
        for request_id in aborts:
            engine.abort(request_id)
        return True

    def _announce(self, deltas: list[tuple[str, Delta]]) -> None:
        """Put a step's deltas into the outbox, and say so once."""
        if not deltas:
            return
        with self._changed:
            was_empty = not self._outbox
            for request_id, delta in deltas:
                earlier = self._outbox.get(request_id)
                self._outbox[request_id] = earlier.then(delta) if earlier else delta
        if was_empty:
            self._on_deltas()
