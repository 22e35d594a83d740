from __future__ import annotations

import pytest

from service.engine.errors import ContextLengthExceeded, EngineDead, GenerationFailed
from service.engine.request import Delta, FinishReason, Limits, Request, SamplingParams


def request(num_prompt: int, n_ctx: int = 16, max_tokens: int = -1) -> Request:
    return Request("r", tuple(range(num_prompt)), SamplingParams(seed=1), Limits(n_ctx, 8, max_tokens=max_tokens))


@pytest.mark.parametrize(("max_tokens", "limit"), [(-1, 16), (0, 5), (3, 8), (100, 16)])
def test_the_limit_is_the_context_or_what_max_tokens_leaves_of_it(max_tokens: int, limit: int) -> None:
    assert request(5, max_tokens=max_tokens).limit == limit


def test_a_prompt_that_leaves_no_room_cannot_become_a_request() -> None:
    with pytest.raises(AssertionError, match="no room"):
        request(16)
    with pytest.raises(AssertionError):
        request(17)
    assert request(16, max_tokens=0).is_full


def test_generation_waits_for_the_tokens_before_it() -> None:
    one = request(3)
    with pytest.raises(AssertionError, match="not computed"):
        one.append(7)
    one.advance(3)
    one.append(7)
    assert (one.total, one.gap, one.num_generated, one.is_decoding) == (4, 1, 1, True)


def test_nothing_is_computed_that_is_not_known() -> None:
    with pytest.raises(AssertionError):
        request(3).advance(4)


def test_rewinding_keeps_every_token_and_gives_the_blocks_up() -> None:
    one = request(5)
    one.adopt(9, 4)
    one.block_ids.append(3)
    one.advance(1)
    one.append(7)
    assert one.rewind() == [9, 3]
    assert (one.num_computed, one.num_cached, one.block_ids, one.total) == (0, 0, [], 6)
    assert not one.is_decoding


def test_adopting_always_leaves_a_token_to_compute() -> None:
    with pytest.raises(AssertionError):
        request(4).adopt(1, 4)


def test_merged_deltas_say_what_the_two_said() -> None:
    first = Delta("a", (1,), num_generated=1, num_cached=4, prompt_ms=5.0, predicted_ms=1.0)
    last = Delta("b", (2, 3), FinishReason.STOP, "word", ".", num_generated=3, num_cached=4, prompt_ms=5.0)
    merged = first.then(last)
    assert merged == Delta("ab", (1, 2, 3), FinishReason.STOP, "word", ".", None, 3, 4, 5.0, 1.0)


def test_a_context_error_holds_all_phrases_that_clients_look_for() -> None:
    for error in (ContextLengthExceeded(20, 16), ContextLengthExceeded(20, 16, at_least=True)):
        for phrase in ("prompt is too long", "exceeds the available context size", "maximum context length"):
            assert phrase in str(error)
        assert (error.n_prompt_tokens, error.n_ctx) == (20, 16)


def test_what_killed_the_engine_is_not_told_to_clients() -> None:
    assert "secret" not in str(EngineDead("secret path"))
    assert "bad row" in str(GenerationFailed("bad row"))
