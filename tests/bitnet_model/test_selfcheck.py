"""The self-check finds what is right and what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet_model.checkpoint import load_model
from bitnet_model.config import ModelConfig
from bitnet_model.model import Model
from bitnet_model.ops import Ops
from bitnet_model.selfcheck import (
    PUBLISHED_FIRST,
    PUBLISHED_MEANS,
    check_exact,
    check_published,
    compare_wings,
    has_published_shape,
    logits_of,
    sample_ids,
)
from tools.reference import compare, load_reference, reference_logits


@pytest.fixture(scope="module")
def model(ops: Ops, tiny_packed: Path) -> Model:
    return load_model(tiny_packed, ops, head_dtype=ops.head_dtypes[0])


def test_every_promise_of_exactness_holds_on_a_sound_wing(model: Model) -> None:
    findings = check_exact(model, 2)
    assert [finding.name for finding in findings if not finding.passed] == []
    assert len(findings) == 4


class Careless:
    """A wing whose quantizer depends on how many tokens it is given: what the check is there to find."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def compile(self, plan: object) -> None:
        return None

    def norm_quantize(self, x: torch.Tensor, gain: torch.Tensor, eps: float) -> Any:
        return self._ops.norm_quantize(x * (1 + x.shape[0] / 50), gain + x.shape[0] / 10, eps)


def test_a_wing_that_depends_on_its_company_is_found_out(model: Model) -> None:
    careless: Any = Careless(model.ops)
    findings = check_exact(Model(model.config, careless, model.plan), 1)
    assert {finding.name for finding in findings if not finding.passed} >= {"in chunks of 5 = at once"}


def test_the_logits_it_looks_at_are_the_models(model: Model, tiny_packed: Path) -> None:
    ids = sample_ids(model.config)
    found = compare(logits_of(model, ids), reference_logits(load_reference(tiny_packed), ids))
    assert found.rms_error < 0.1


def test_wings_that_agree_within_rounding_pass_and_others_do_not(model: Model) -> None:
    logits = logits_of(model, sample_ids(model.config))
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)) * logits.std()
    assert compare_wings(logits, logits).passed
    assert compare_wings(logits + 0.02 * noise, logits).passed
    assert not compare_wings(logits + 0.5 * noise, logits).passed
    assert not compare_wings(logits.roll(1, -1), logits).passed


def published() -> torch.Tensor:
    """Logits [12, 8] that are what was published."""
    means = torch.tensor(PUBLISHED_MEANS)
    logits = means[:, None].repeat(1, 8)
    first = torch.tensor(PUBLISHED_FIRST)
    logits[0, :5] = first
    logits[0, 5:] = (8 * means[0] - first.sum()) / 3
    return logits


def test_the_published_logits_pass_and_a_wrong_one_is_named() -> None:
    assert all(finding.passed for finding in check_published(published()))
    wrong = published()
    wrong[4] += 0.5
    means, first = check_published(wrong)
    assert not means.passed
    assert "worst at 4" in means.detail
    assert first.passed


def test_only_the_shape_of_2b_4t_is_held_to_the_published_logits(tiny_packed: Path) -> None:
    config = ModelConfig.from_folder(tiny_packed)
    assert not has_published_shape(config)
    shape = {"hidden_size": 2560, "intermediate_size": 6912, "num_layers": 30, "vocab_size": 128256}
    assert has_published_shape(dataclasses.replace(config, **shape))
