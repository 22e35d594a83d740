"""Context lengths and the KV pool: what is filled in, what is refused with the numbers."""

from __future__ import annotations

import pytest

from service.config import ConfigError, load_settings
from service.sizes import Sizes, settle_sizes


def sizes(max_positions: int = 4096, device: int | None = None, **flags: int) -> Sizes:
    return settle_sizes(load_settings(flags).settings, max_positions, device)


def test_silent_settings_give_2048_tokens_of_context_and_8192_of_cache() -> None:
    assert sizes() == Sizes(n_ctx=2048, n_ctx_max=4096, kv_tokens=8192, max_running=16)


def test_a_short_model_shortens_the_context() -> None:
    assert sizes(max_positions=512) == Sizes(n_ctx=512, n_ctx_max=512, kv_tokens=8192, max_running=16)


def test_a_small_cache_shortens_the_context() -> None:
    assert sizes(kv_tokens=256) == Sizes(n_ctx=256, n_ctx_max=256, kv_tokens=256, max_running=16)


def test_a_gpu_fills_its_memory_with_cache_and_runs_more_requests() -> None:
    assert sizes(device=900_000) == Sizes(n_ctx=2048, n_ctx_max=4096, kv_tokens=900_000, max_running=256)
    assert sizes(device=900_000, kv_tokens=5000, max_running=8).kv_tokens == 5000


def test_more_cache_than_the_gpu_has_memory_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_tokens 5000 is above the 4500"):
        sizes(device=4500, kv_tokens=5000)
    with pytest.raises(ConfigError, match="KV cache of 1 tokens"):
        sizes(device=-3, n_ctx=16)


@pytest.mark.parametrize(
    ("flags", "numbers"),
    [
        ({"n_ctx": 8192}, ["n_ctx 8192", "4096"]),
        ({"n_ctx_max": 5000}, ["n_ctx_max 5000", "4096"]),
        ({"n_ctx": 300, "n_ctx_max": 200}, ["n_ctx 300", "n_ctx_max 200"]),
        ({"n_ctx": 1024, "kv_tokens": 1000}, ["1000", "1024"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(flags: dict[str, int], numbers: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        sizes(**flags)
    assert all(number in str(error.value) for number in numbers)
