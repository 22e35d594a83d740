"""Every way the engine says no, as one tree.

    EngineError
    ├── RequestError                the request's own fault; the same request will fail again
    │   ├── InvalidParameter        a value that cannot be honoured
    │   └── ContextLengthExceeded   the prompt does not fit the request's context
    ├── Unavailable                 nobody's fault; try again after `retry_after_s`
    │   ├── ModelLoading
    │   ├── Draining
    │   ├── QueueFull
    │   ├── GrammarsBusy
    │   └── EngineDead
    └── GenerationFailed            this one request's row went wrong while it ran; its neighbours go on
        └── GrammarFailed           its grammar came to its limits

Knows nothing of statuses or JSON: one table in `service/api/errors.py` maps this tree onto HTTP.
"""

# ruff: noqa: N818 -- the classes are named after the condition they report, as clients read it

from __future__ import annotations


class EngineError(Exception):
    """Base of everything the engine raises on purpose; `str()` is fit to be shown to a client."""


class RequestError(EngineError):
    """The request itself is wrong. `param` names the field at fault where one is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidParameter(RequestError):
    """A field holds a value that this model or this deployment cannot honour."""


class ContextLengthExceeded(RequestError):
    """The prompt does not fit `n_ctx` tokens. `n_prompt_tokens` is a lower bound where `at_least` is set."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int, *, at_least: bool = False) -> None:
        # Agents of three worlds look for one phrase or the other, so the message holds them all.
        count = f"at least {n_prompt_tokens}" if at_least else f"{n_prompt_tokens}"
        super().__init__(
            f"prompt is too long: {count} tokens, which exceeds the available context size ({n_ctx} tokens): "
            f"this request's maximum context length is {n_ctx} tokens, prompt and output together"
        )
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx


class Unavailable(EngineError):
    """The engine takes no work just now. `retry_after_s`: seconds after which a retry makes sense."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelLoading(Unavailable):
    """The model is not loaded yet."""

    def __init__(self) -> None:
        super().__init__("the model is loading", retry_after_s=5)


class Draining(Unavailable):
    """The server is shutting down: it takes nothing new, and at its deadline ends what still runs."""

    def __init__(self, message: str = "the server is shutting down") -> None:
        super().__init__(message, retry_after_s=30)


class QueueFull(Unavailable):
    """`max_queue` requests are waiting already."""

    def __init__(self, max_queue: int) -> None:
        super().__init__(f"the queue is full: {max_queue} requests are waiting", retry_after_s=1)
        self.max_queue = max_queue


class GrammarsBusy(Unavailable):
    """Other requests' grammars take all the compilers, or all the memory, that there are."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=2)


class EngineDead(Unavailable):
    """The engine has stopped and will not come back in this process. `reason` is for the log, not for clients."""

    def __init__(self, reason: str) -> None:
        super().__init__("the engine has stopped", retry_after_s=30)
        self.reason = reason


class GenerationFailed(EngineError):
    """One request's row went wrong: logits that are not numbers, or a forward that raises with it and not without."""


class GrammarFailed(GenerationFailed):
    """The request's grammar became too complex, or too slow, on the way. The request's own fault."""
