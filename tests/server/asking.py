"""Questions to a running server, and what of an answer is the model's: its text and its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.server.live import Live

MESSAGES = [{"role": "user", "content": "Tell me of a small model."}]
STORY = "Once upon a time there was a small model, "
# The least that each generation route has to be asked.
LEAST: Mapping[str, Mapping[str, Any]] = {
    "/chat/completions": {"messages": MESSAGES},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/completion": {"prompt": STORY},
    "/completions": {"prompt": STORY},
    "/v1/completions": {"prompt": STORY},
    "/v1/responses": {"input": STORY},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 400},
}
_NOT_THE_MODELS = ("id", "created", "created_at", "timings", "generation_settings")


def ask(live: Live, path: str, **fields: Any) -> Any:
    """The body of a success. Fields that are None are left out."""
    body = {name: value for name, value in {**LEAST[path], **fields}.items() if value is not None}
    response = live.post(path, body)
    assert response.status_code == 200, (body, response.text)
    return response.json() if response.headers["content-type"] == "application/json" else response.text


def native(live: Live, **fields: Any) -> Any:
    """A native completion, greedy and unpenalised unless the fields say otherwise, with its tokens."""
    plain = {"temperature": 0, "repeat_penalty": 1, "n_predict": 12, "return_tokens": True}
    return ask(live, "/completion", **{**plain, **fields})


def content_of(answer: Any) -> Any:
    """The answer without what differs from one time to the next, and without the settings that it says back."""
    if isinstance(answer, list):
        return [content_of(item) for item in answer]
    if isinstance(answer, dict):
        return {name: content_of(value) for name, value in answer.items() if name not in _NOT_THE_MODELS}
    return answer
