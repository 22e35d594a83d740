"""What a request's hidden states and logits may depend on: its tokens, and nothing else. All equalities are of bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model, Shortcuts
from bitnet_model.ops import CacheDtype, Ops
from tests.bitnet_model.fakes import WholeStep
from tests.bitnet_model.traffic import Row, Traffic, batch_of
from tools.checkpoint_weights import unpack_rows

PROMPT = [(17 * i + 3) % 490 for i in range(75)]
OTHERS = [[(31 * i + 7 * j) % 490 for i in range(length)] for j, length in enumerate((1, 9, 32, 33, 64, 110))]


@pytest.fixture(scope="module", params=["packed", "llama"])
def model(request: pytest.FixtureRequest, ops: Ops) -> Model:
    return load_model(request.getfixturevalue(f"tiny_{request.param}"), ops, head_dtype="int8")


def hidden_of(row: Row) -> Tensor:
    return torch.cat(row.hidden)


def alone(model: Model, dtype: CacheDtype = "bf16", chunk: int = len(PROMPT)) -> Tensor:
    """Hidden states of PROMPT computed alone, in chunks."""
    traffic = Traffic(model, dtype)
    row = traffic.admit(PROMPT)
    traffic.run([row], [chunk])
    return hidden_of(row)


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    assert bool(ours.isfinite().all())
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunking_a_prompt_changes_nothing(model: Model, dtype: CacheDtype, chunk: int) -> None:
    assert_same_bits(alone(model, dtype, chunk), alone(model, dtype))


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_company_in_the_batch_changes_nothing(model: Model, dtype: CacheDtype) -> None:
    traffic = Traffic(model, dtype)
    rows = [traffic.admit(token_ids) for token_ids in [*OTHERS, PROMPT]]
    traffic.run(rows, [1, 9, 1, 7, 64, 5, 11])
    assert_same_bits(hidden_of(rows[-1]), alone(model, dtype))


def test_the_order_of_the_batch_changes_nothing(model: Model) -> None:
    computed = []
    for step in (1, -1):
        traffic = Traffic(model)
        rows = [traffic.admit(token_ids) for token_ids in [*OTHERS, PROMPT]]
        traffic.run(rows[::step], [7] * len(rows))
        computed.append([hidden_of(row) for row in rows])
    for ours, theirs in zip(*computed, strict=True):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_nan_in_every_slot_that_is_not_ours_changes_nothing(model: Model, dtype: CacheDtype) -> None:
    traffic = Traffic(model, dtype)
    row = traffic.admit(PROMPT)
    traffic.poison([row])
    for count in (40, 1, 1, 20, 13):
        traffic.step([(row, count)])
        traffic.poison([row])
    assert_same_bits(hidden_of(row), alone(model, dtype))


@pytest.mark.parametrize("fmt", ["small_packed", "small_llama"])
def test_two_threads_compute_what_one_does(request: pytest.FixtureRequest, ops: Ops, fmt: str) -> None:
    """On the small preset: the tiny one's products are too small for a wing to share out."""
    model = load_model(request.getfixturevalue(fmt), ops, head_dtype="int8")
    ops.set_threads(1)
    one = alone(model)
    logits = model.logits(one)
    ops.set_threads(2)
    two, chunked, logits_of_two = alone(model), alone(model, chunk=40), model.logits(one)
    assert_same_bits(two, one)
    assert_same_bits(chunked, one)
    assert_same_bits(logits_of_two, logits)


def test_logits_of_a_row_are_the_same_alone_and_in_any_order(model: Model) -> None:
    hidden = alone(model)
    logits = model.logits(hidden)
    backwards = model.logits(hidden.flip(0)).flip(0)
    one_by_one = torch.cat([model.logits(hidden[i : i + 1]) for i in range(len(hidden))])
    assert_same_bits(backwards, logits)
    assert_same_bits(one_by_one, logits)


def test_the_top_logits_are_those_of_the_full_head(model: Model) -> None:
    hidden = alone(model)[:5]
    logits = model.logits(hidden)
    extra = torch.tensor([[3, -1], [500, 500], [0, 1], [-1, -1], [7, 9]])
    ids, values = model.top_logits(hidden, 8, extra)
    assert ids.shape == values.shape == (5, 10)
    assert_same_bits(values[:, :8], logits.sort(dim=-1, descending=True, stable=True).values[:, :8])
    assert torch.equal(logits.gather(1, ids[:, :8]), values[:, :8])
    assert values[0, 9] == values[3, 8] == -torch.inf
    assert values[1, 8] == logits[1, 500]


def test_only_the_rows_asked_for_come_back(model: Model) -> None:
    traffic = Traffic(model)
    row = traffic.admit(PROMPT)
    batch = replace(batch_of([(row, len(PROMPT))]), logit_rows=torch.tensor([74, 3]))
    assert_same_bits(model.forward(batch, traffic.cache), alone(model)[[74, 3]])


@pytest.mark.parametrize("fmt", ["tiny_packed", "tiny_master", "tiny_llama"])
def test_both_grains_of_dispatch_give_the_same_bits(request: pytest.FixtureRequest, ops: Ops, fmt: str) -> None:
    folder: Path = request.getfixturevalue(fmt)
    coarse: Any = WholeStep(ops)
    native = load_model(folder, ops, head_dtype="int8")
    verbs = load_model(folder, ops, head_dtype="int8")
    verbs.shortcuts = Shortcuts()
    verb_by_verb = alone(verbs, chunk=20)
    whole_step = alone(load_model(folder, coarse, head_dtype="int8"), chunk=20)
    assert coarse.num_steps == 4
    assert_same_bits(whole_step, verb_by_verb)
    assert_same_bits(alone(native, chunk=20), verb_by_verb)


def test_master_and_packed_checkpoints_of_one_seed_compute_the_same(
    tiny_master: Path, tiny_packed: Path, ops: Ops
) -> None:
    master, packed = (load_model(folder, ops, head_dtype="int8") for folder in (tiny_master, tiny_packed))
    assert_same_bits(alone(master), alone(packed))


def test_the_weights_reach_the_wing_in_canonical_order(tiny_packed: Path, ops: Ops) -> None:
    """One-hot activations read single columns of q | k | v through the whole loader."""
    model = load_model(tiny_packed, ops, head_dtype="int8")
    tensors = load_file(tiny_packed / "model.safetensors")
    names = [f"model.layers.1.self_attn.{projection}_proj" for projection in "qkv"]
    columns = torch.cat(
        [unpack_rows(tensors[name + ".weight"]) * tensors[name + ".weight_scale"].float() for name in names]
    )
    read = ops.ternary_linear(ops.quantize(torch.eye(128)), model.plan.layers[1].qkv)
    torch.testing.assert_close(read, columns.T, rtol=1e-6, atol=0)


def test_the_memory_report_names_every_part(model: Model) -> None:
    report = model.memory_report()
    tied = model.plan.head is model.plan.embedding
    assert set(report) == {"embedding", "layers", "head", "rope"}
    assert (report["head"] == model.plan.head_gain.nbytes) is tied
    assert all(size > 0 for size in report.values())
