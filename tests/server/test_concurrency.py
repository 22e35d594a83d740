"""A real (random, tiny) model behind a real server: what a client gets does not depend on who else is served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.live import Live
from tests.service.api.asgi import events_of

NUM_CLIENTS = 16


def request_of(i: int) -> tuple[str, dict[str, Any]]:
    """Different routes, lengths, seeds, samplers, batch sizes and stops; some prompts share a beginning."""
    shared = "Once upon a time there was a small model. " * (1 + i % 3)
    fields: dict[str, Any] = {
        "stream": True,
        "seed": 1000 + i,
        "temperature": [0, 0.7, 1.3, 2][i % 4],
        "max_tokens": 12 + 5 * (i % 7),
        "top_k": [40, 0, 5][i % 3],
        "n_batch": [512, 7, 64][i % 3],
        "n_threads": 1 + i % 2,
        "stop": [[], ["e"], ["a", "the"]][i % 3],
    }
    if i % 2:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": f"{shared}{i}"}], **fields}
    return "/completion", {"prompt": f"{shared}{i}", **fields}


def text_of(live: Live, i: int) -> tuple[str, str]:
    path, body = request_of(i)
    response = live.http.post(live.url + path, json=body)
    assert response.status_code == 200, response.text
    events = events_of(response.text)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    return text, events[-1]["choices"][0]["finish_reason"]


def test_sixteen_streams_together_get_what_each_gets_alone(model: Live) -> None:
    alone = [text_of(model, i) for i in range(NUM_CLIENTS)]
    model.at_rest()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        together = list(pool.map(lambda i: text_of(model, i), range(NUM_CLIENTS)))
    assert together == alone
    assert len(set(alone)) > NUM_CLIENTS // 2
    assert {finish for _, finish in alone} <= {"stop", "length"}
    model.at_rest()


def test_a_seeded_answer_is_the_same_streamed_and_whole(model: Live) -> None:
    for i in (1, 2, 3):
        path, body = request_of(i)
        answer = model.post(path, {**body, "stream": False}).json()
        whole = answer["content"] if path == "/completion" else answer["choices"][0]["message"]["content"]
        assert whole == text_of(model, i)[0]


def test_streams_of_cancelled_neighbours_leave_no_mark(model: Live) -> None:
    alone = [text_of(model, i) for i in range(4)]

    def leave_early(i: int) -> None:
        path, body = request_of(i)
        with model.http.stream("POST", model.url + path, json={**body, "stop": [], "max_tokens": -1}) as answer:
            next(answer.iter_bytes())

    with ThreadPoolExecutor(8) as pool:
        leavers = [pool.submit(leave_early, i) for i in range(4, 12)]
        together = [text_of(model, i) for i in range(4)]
        for leaver in leavers:
            leaver.result()
    assert together == alone
    model.at_rest()


def test_the_limits_of_the_model_are_the_limits_of_requests(model: Live) -> None:
    info = model.engine.info
    assert model.post("/completion", {"prompt": "hi", "n_ctx": info.n_ctx_max + 1}).status_code == 400
    assert model.post("/completion", {"prompt": [info.vocab_size]}).status_code == 400
    answer = model.post("/completion", {"prompt": "hi", "n_predict": 4, "n_threads": 99}).json()
    assert answer["generation_settings"]["n_threads"] == info.n_threads
    model.at_rest()


EXTREMES: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1e-300},
    {"temperature": 2, "top_k": 0, "top_p": 1},
    {"top_p": 0},
    {"typical_p": 0},
    {"min_p": 1},
    {"top_k": 1},
    {"top_k": 10**30},
    {"repeat_penalty": 1e-300},
    {"repeat_penalty": 1e300},
    {"repeat_penalty": 2, "repeat_last_n": -1},
    {"repeat_last_n": 0},
    {"presence_penalty": 2, "frequency_penalty": -2},
    {"seed": 2**64 - 1},
    {"logit_bias": [[token_id, False] for token_id in range(511)]},
    {"logit_bias": {"5": 100}},
    {"n_predict": 0},
    {"n_ctx": 16, "n_predict": -1},
    {"n_batch": 1, "n_threads": 1},
]


@pytest.mark.parametrize("fields", EXTREMES, ids=lambda fields: str(fields)[:40])
def test_every_parameter_at_its_extremes_gives_an_answer(model: Live, fields: dict[str, Any]) -> None:
    answer = model.post("/completion", {"prompt": "hi", "n_predict": 6, **fields})
    assert answer.status_code == 200, answer.text
    model.at_rest()
