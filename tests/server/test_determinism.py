"""The tokens of a seeded or greedy request, from servers with room and without, first and again, alone and beside rows
that fail."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.compose import load
from service.engine.async_engine import AsyncEngine
from tests.server.asking import STORY, ask, native
from tests.server.live import Live
from tests.service.api.asgi import error_of, events_of, settings_of
from tests.service.engine.fakes import endless

NUM_REQUESTS = 6


@pytest.fixture(scope="module")
def crowded(tiny_packed: Path) -> Iterator[Live]:
    """A server with room for few of the requests that it runs, so that some lose their place and begin again."""
    settings = {
        "model": str(tiny_packed),
        "backend": "cpu",
        "n_threads": 1,
        "max_running": NUM_REQUESTS,
        "kv_tokens": 576,
        "n_batch": 24,
    }
    engine = AsyncEngine()
    engine.start(lambda: load(settings_of(**settings)))
    with Live(settings, engine=engine) as server:
        yield server


def wish(i: int) -> dict[str, Any]:
    """Requests of many lengths and samplers; those of one parity share the beginning of a prompt."""
    return {
        "prompt": STORY * (2 + i % 2) + str(i),
        "seed": i,
        "temperature": [0, 1.0, 1.6][i % 3],
        "repeat_penalty": 1.1,
        "n_predict": 120,
        "ignore_eos": True,
    }


def tokens_of(live: Live, i: int, **fields: Any) -> list[int]:
    return list(native(live, **{**wish(i), **fields})["tokens"])


@pytest.fixture(scope="module")
def alone(model: Live) -> list[list[int]]:
    """What each request gets on a server with room, by itself and with nothing cached."""
    tokens = [tokens_of(model, i, cache_prompt=False) for i in range(NUM_REQUESTS)]
    assert len({tuple(one) for one in tokens}) == NUM_REQUESTS
    return tokens


def test_who_loses_its_place_gets_the_same_tokens(crowded: Live, alone: list[list[int]]) -> None:
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        for _ in range(2):
            assert list(pool.map(lambda i: tokens_of(crowded, i), range(NUM_REQUESTS))) == alone
    assert int(crowded.engine.stats()["preemptions"]) > 0
    crowded.at_rest()


def test_what_the_cache_holds_moves_no_token(model: Live, alone: list[list[int]]) -> None:
    for _ in range(2):
        answers = [native(model, **wish(i)) for i in range(NUM_REQUESTS)]
        assert [answer["tokens"] for answer in answers] == alone
    assert all(answer["tokens_cached"] > 0 for answer in answers)


def test_another_seed_and_another_choice_take_other_tokens(model: Live, alone: list[list[int]]) -> None:
    sampled = wish(1)
    assert native(model, **{**sampled, "seed": 99})["tokens"] != alone[1]
    first, *others = (answer["tokens"] for answer in native(model, **sampled, n=3))
    assert first == alone[1]
    assert others[0] != others[1]
    assert first not in others


def test_a_greedy_request_needs_no_seed(model: Live, alone: list[list[int]]) -> None:
    assert all(tokens_of(model, 0, seed=seed) == alone[0] for seed in (-1, 5, None))


def test_a_seed_goes_to_the_last_bit(model: Live) -> None:
    tokens = [tokens_of(model, 1, seed=seed, n_predict=20) for seed in (2**64 - 1, 2**64 - 2, 2**63, 2**32, 0)]
    assert len({tuple(one) for one in tokens}) == 5
    assert tokens[0] == tokens_of(model, 1, seed=2**64 - 1, n_predict=20)


def test_a_row_that_fails_ends_its_own_request_and_no_other() -> None:
    def fail(row: Any) -> str | None:
        is_bad = b"bad" in bytes(token for token in row.request.prompt_ids if token < 256)
        return "not a number" if is_bad and row.request.num_generated == 5 else None

    def good(i: int) -> str:
        return str(ask(live, "/completion", prompt=f"good {i}", seed=i, n_predict=40)["content"])

    with Live(choose=endless, step_s=0.001, row_error=fail, max_running=8, max_queue=16, num_blocks=128) as live:
        before = [good(i) for i in range(4)]
        with ThreadPoolExecutor(8) as pool:
            bad = [pool.submit(live.post, "/completion", {"prompt": f"bad {i}", "n_predict": 40}) for i in range(2)]
            late = pool.submit(ask, live, "/completion", prompt="bad 9", n_predict=40, seed=2, stream=True)
            assert list(pool.map(good, range(4))) == before
        for answer in bad:
            error_of(answer.result(), 500, "internal_error")
        *told, last = events_of(late.result())
        assert last["error"]["code"] == "internal_error"
        assert len("".join(event["content"] for event in told)) == 5
        live.at_rest()
        assert live.http.get(live.url + "/health/ready").status_code == 200
