"""Which CPU wing is taken, and what is said about it."""

from __future__ import annotations

import logging
from typing import NoReturn

import pytest

import cpu_fallback
from cpu_fallback.threads import allowed_threads


def no_library(isa: str, threads: int) -> NoReturn:
    raise RuntimeError("the native library is not built")


def test_torch_by_name_is_the_torch_wing() -> None:
    ops = cpu_fallback.load("torch", 2)
    about = ops.describe()
    assert (about["wing"], about["isa"], about["threads"]) == ("cpu", "torch", "2")
    assert "torch only" in about["why"]
    ops.set_threads(1)
    assert ops.describe()["threads"] == "1"
    assert ops.compile(None) is None
    ops.close()


def test_auto_without_a_native_library_is_the_torch_wing_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cpu_fallback"):
        ops = cpu_fallback.load("auto", 1, no_library)
    assert ops.describe()["isa"] == "torch"
    assert "the native library is not built" in caplog.text
    ops.close()


def test_a_native_path_by_name_without_a_library_is_refused_with_the_cure() -> None:
    words = r"cpu_isa portable cannot run here \(the native library is not built\); use cpu_isa auto or torch"
    with pytest.raises(RuntimeError, match=words):
        cpu_fallback.load("portable", 1, no_library)


def test_an_unknown_instruction_set_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="auto, torch, avx512_vnni"):
        cpu_fallback.load("sse9", 1)


def test_threads_left_open_are_all_that_this_process_may_use() -> None:
    ops = cpu_fallback.load("torch", None)
    assert ops.describe()["threads"] == str(allowed_threads())
    ops.close()
