"""Several choices and several prompts in one request, on each family of routes, whole and streamed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.api.asgi import CHAT, Client, error_of
from tests.service.engine.fakes import hashed

SEEDED = {"seed": 7, "max_tokens": 30}
PATHS = ["/chat/completions", "/v1/completions"]
Texts = dict[int, str]


@pytest.fixture(scope="module")
def talker() -> Iterator[Client]:
    """A client of an engine whose choices differ."""
    with Client(choose=hashed, max_running=4, max_queue=200, num_blocks=200) as client:
        yield client


def body_of(**fields: Any) -> dict[str, Any]:
    return {**CHAT, "prompt": "hello there", **SEEDED, **fields}


def text_of(choice: dict[str, Any]) -> str:
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def streamed(events: list[dict[str, Any]]) -> Texts:
    """The text of each choice of an OpenAI stream."""
    texts: defaultdict[int, str] = defaultdict(str)
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
    return dict(texts)


@pytest.mark.parametrize("path", PATHS)
def test_n_choices_are_indexed_and_the_first_is_what_one_alone_says(talker: Client, path: str) -> None:
    alone = talker.post(path, body_of()).json()
    answer = talker.post(path, body_of(n=5)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4]
    texts = [text_of(choice) for choice in answer["choices"]]
    assert texts[0] == text_of(alone["choices"][0])
    assert len(set(texts)) == 5
    usage = answer["usage"]
    assert usage["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] > alone["usage"]["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["timings"]["predicted_n"] == usage["completion_tokens"]


@pytest.mark.parametrize("path", PATHS)
def test_n_choices_are_streamed_side_by_side_and_end_once(talker: Client, path: str) -> None:
    whole = talker.post(path, body_of(n=3)).json()
    _, events = talker.stream(path, body_of(n=3, stream_options={"include_usage": True}))
    assert streamed(events) == {choice["index"]: text_of(choice) for choice in whole["choices"]}
    ends = [choice for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(choice["index"] for choice in ends) == [0, 1, 2]
    assert {c["index"]: c["finish_reason"] for c in ends} == {c["index"]: c["finish_reason"] for c in whole["choices"]}
    assert [event["choices"] == [] for event in events] == [False] * (len(events) - 1) + [True]
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [events[-1]["usage"][name] for name in counts] == [whole["usage"][name] for name in counts]
    assert len({event["id"] for event in events}) == 1
    assert len({event["created"] for event in events}) == 1


def test_each_choice_of_a_chat_stream_has_its_own_role_chunk(talker: Client) -> None:
    _, events = talker.stream("/chat/completions", body_of(n=3))
    roles = [event["choices"][0]["index"] for event in events if "role" in event["choices"][0]["delta"]]
    assert sorted(roles) == [0, 1, 2]


PROMPTS: list[tuple[Any, list[Any]]] = [
    (["a", "bc"], ["a", "bc"]),
    ([[256, 97], [256, 98, 99]], ["a", "bc"]),
    ([[256, 97], "bc", [256, "d", 101]], ["a", "bc", "de"]),
    (["one"], ["one"]),
    ([256, "ab", 99, "", "d"], ["abcd"]),
    (["ab", 99], ["abc"]),
    (["", "a"], ["", "a"]),
]


@pytest.mark.parametrize(("prompt", "texts"), PROMPTS, ids=str)
def test_prompts_of_every_form_are_answered_in_order(client: Client, prompt: Any, texts: list[str]) -> None:
    answer = client.post("/v1/completions", {"prompt": prompt}).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(texts))
    native = client.post("/completion", {"prompt": prompt}).json()
    results = native if isinstance(native, list) else [native]
    assert [(result["index"], result["content"]) for result in results] == list(enumerate(texts))
    assert isinstance(native, list) == (len(texts) > 1)
    _, events = client.stream("/v1/completions", {"prompt": prompt})
    assert streamed(events) == dict(enumerate(texts))


def test_a_text_begins_with_the_start_token_only_where_it_is_first(client: Client) -> None:
    counts = [
        client.post("/completion", {"prompt": prompt, "n_predict": 0}).json()["tokens_evaluated"]
        for prompt in ("ab", ["ab", 99], [97, "b"], [256, "ab"])
    ]
    assert counts == [3, 4, 2, 3]


def test_prompts_times_n_are_prompt_major_and_each_prompt_counts_once(talker: Client) -> None:
    prompts = ["first prompt", "second, longer prompt"]
    answer = talker.post("/v1/completions", {"prompt": prompts, "n": 3, **SEEDED}).json()
    alone = [talker.post("/v1/completions", {"prompt": prompt, "n": 3, **SEEDED}).json() for prompt in prompts]
    expected = [choice["text"] for one in alone for choice in one["choices"]]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert answer["usage"]["prompt_tokens"] == 13 + 22
    assert answer["usage"]["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in alone)


def test_native_results_each_have_their_own_prompt_settings_and_end(talker: Client) -> None:
    body = {"prompt": ["one", [256, 97]], "n": 2, "seed": 3, "n_predict": 9}
    results = talker.post("/completion", body).json()
    assert [result["index"] for result in results] == [0, 1, 2, 3]
    assert [result["prompt"] for result in results] == ["one", "one", [256, 97], [256, 97]]
    assert all(result["stop"] and result["generation_settings"]["seed"] == 3 for result in results)
    _, events = talker.stream("/completion", body)
    texts: defaultdict[int, str] = defaultdict(str)
    for event in events:
        texts[event["index"]] += event["content"]
    assert dict(texts) == {result["index"]: result["content"] for result in results}
    assert sorted(event["index"] for event in events if event["stop"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [*PATHS, "/completion"])
def test_a_full_queue_takes_all_choices_or_none(path: str, stream: bool) -> None:
    with Client(max_running=1, max_queue=3) as client:
        body = {**CHAT, "prompt": "a", "stream": stream}
        error = error_of(client.post(path, {**body, "n": 5}), 400, "invalid_parameter")
        assert (error["param"], "4" in error["message"]) == ("n", True)
        assert client.post(path, {**body, "n": 4}).status_code == 200
        client.until(lambda: client.engine.stats()["open"] == 0)


@pytest.mark.parametrize("path", [*PATHS, "/completion"])
def test_one_choice_that_fails_fails_the_request_and_frees_the_others(path: str) -> None:
    def fail(row: Any) -> str | None:
        return "poisoned" if row.request.choice_index == 1 and row.request.num_generated == 3 else None

    with Client(choose=hashed, row_error=fail) as client:
        body = {**CHAT, "prompt": "abc", "seed": 1, "max_tokens": 100, "n": 3}
        error_of(client.post(path, body), 500, "internal_error")
        _, events = client.stream(path, body)
        assert events[-1].keys() == {"error"}
        client.until(lambda: client.engine.stats()["open"] == 0)
        client.until(lambda: client.engine.stats()["blocks_used"] == 0)


def test_the_log_line_counts_all_choices(talker: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    answer = talker.post("/v1/completions", {"prompt": ["ab", "cd"], "n": 2, **SEEDED}).json()
    (record,) = [record for record in caplog.records if "completion_tokens" in record.getMessage()]
    fields = record.__dict__["fields"]
    assert fields["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert fields["prompt_tokens"] == answer["usage"]["prompt_tokens"] == 6
