"""Fixtures shared by all groups: both CPU wings, and random checkpoints in the three on-disk formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bitnet_model.ops import Ops, load_ops
from tools.make_checkpoint import write_checkpoint


@pytest.fixture(scope="module", params=["torch", "native"])
def ops(request: pytest.FixtureRequest) -> Iterator[Ops]:
    """Each CPU wing, on two threads. The native one is skipped where it was not built, as after an install without a
    compiler: everything must hold there on torch alone."""
    wing = load_ops("cpu", isa="torch" if request.param == "torch" else "auto", threads=2)
    if request.param == "native" and wing.describe()["isa"] == "torch":
        pytest.skip("the native CPU wing is not built here")
    yield wing
    wing.close()


def _checkpoint(factory: pytest.TempPathFactory, fmt: str, preset: str) -> Path:
    return write_checkpoint(factory.mktemp(f"{preset}-{fmt}"), fmt, preset)


@pytest.fixture(scope="session")
def tiny_packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 layers, hidden 128, vocabulary 512, in the format of 2B-4T."""
    return _checkpoint(tmp_path_factory, "packed", "tiny")


@pytest.fixture(scope="session")
def tiny_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `tiny_packed` as bf16 masters."""
    return _checkpoint(tmp_path_factory, "master", "tiny")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 layers, hidden 128, vocabulary 512, in the format of the Falcon 1.58-bit models."""
    return _checkpoint(tmp_path_factory, "llama", "tiny")


@pytest.fixture(scope="session")
def small_packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 layers, hidden 512, vocabulary 4096, in the format of 2B-4T."""
    return _checkpoint(tmp_path_factory, "packed", "small")


@pytest.fixture(scope="session")
def small_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `small_packed` as bf16 masters."""
    return _checkpoint(tmp_path_factory, "master", "small")


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 layers, hidden 512, vocabulary 4096, in the format of the Falcon 1.58-bit models."""
    return _checkpoint(tmp_path_factory, "llama", "small")
