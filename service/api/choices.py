"""From a checked body to how many choices it wants, what they are expected to say, and what is to be told of their
tokens. Knows no routes."""

from __future__ import annotations

from service.api.errors import invalid_parameter, not_supported
from service.api.schemas import ChatBody, CompletionBody, Generation, NativeBody, Several
from service.config import Settings
from service.engine.request import Report

MAX_GENERATIONS = 128


def read_choices(body: Generation, num_prompts: int) -> int:
    """Choices of each prompt. Raises ApiError."""
    n = (body.n if isinstance(body, Several) else None) or 1
    if n * num_prompts > MAX_GENERATIONS:
        message = f"invalid 'prompt': prompts times 'n' should be at most {MAX_GENERATIONS} (got {num_prompts} x {n})"
        raise invalid_parameter("prompt", message)
    if isinstance(body, CompletionBody) and body.best_of not in (None, n):
        raise not_supported("best_of", f"'best_of' other than 'n' is not supported by this server (got {body.best_of})")
    return n


def read_report(body: Generation) -> Report:
    """What is to be told of the tokens themselves. Raises ApiError."""
    match body:
        case ChatBody():
            if body.top_logprobs and not body.logprobs:
                message = f"invalid 'top_logprobs': should come with 'logprobs': true (got {body.top_logprobs})"
                raise invalid_parameter("top_logprobs", message)
            return Report(body.top_logprobs or 0 if body.logprobs else None, body.prompt_logprobs)
        case CompletionBody():
            echoed = body.logprobs if body.echo else None
            wishes = [wish for wish in (echoed, body.prompt_logprobs) if wish is not None]
            return Report(body.logprobs, max(wishes, default=None))
        case NativeBody():
            return Report(body.n_probs or None)
    return Report()


def read_prediction(body: Generation, settings: Settings) -> str:
    """What the output will mostly say; "" where nothing is known. Raises ApiError."""
    if not isinstance(body, ChatBody) or body.prediction is None:
        return ""
    if not settings.draft_max:
        raise not_supported(
            "prediction", "'prediction' is not supported by this server: it was started with draft_max 0"
        )
    return body.prediction.text
