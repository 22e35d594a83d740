"""The whole wing on a tiny model: its two grains, its batches, and the CPU wing beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import cpu_fallback
import triton_kernels
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model, Shortcuts
from tests.bitnet_model.traffic import BLOCK_TOKENS, Row, Traffic, slots_of
from tests.triton_kernels.fake_capture import FakeCapture
from tools.make_checkpoint import write_checkpoint
from triton_kernels.cache import bytes_per_token
from triton_kernels.device import open_device
from triton_kernels.tuning import DenseTile, LinearTile, dense_gated_key, dense_key, gated_key, gated_tile
from triton_kernels.wing import TritonWing

CPU = open_device(torch.device("cpu"))
PROMPT = [(17 * i + 3) % 490 for i in range(9)]
OTHER = [(31 * i + 7) % 490 for i in range(2)]


@pytest.fixture(scope="module", params=["packed", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"layers": 2 if request.param == "packed" else 1, "hidden": 64, "inter": 96, "heads": 2, "kv_heads": 1}
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param, "tiny", **shape)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder, triton_kernels.load("cpu"), head_dtype="bf16")


def prefilled(model: Model, prompt: list[int], dtype: str = "bf16") -> tuple[Traffic, Row]:
    traffic = Traffic(model, dtype, num_blocks=8)  # type: ignore[arg-type]
    row = traffic.admit(prompt)
    traffic.step([(row, len(prompt))])
    return traffic, row


def poison(traffic: Traffic, rows: list[Row]) -> None:
    """NaN in every slot that these rows have not computed, where the cache can hold it."""
    used = torch.zeros(traffic.num_slots, dtype=torch.bool)
    for row in rows:
        used[slots_of(row, 0, row.computed)] = True
    free = ~used.view(-1, BLOCK_TOKENS)
    for pages in traffic.cache.tensors:
        if pages.is_floating_point() and pages.numel():
            pages.transpose(2, 3)[:, free] = torch.nan


def test_both_wings_say_the_same(folder: Path, model: Model) -> None:
    cpu = load_model(folder, cpu_fallback.load("torch", 1), head_dtype="int8")
    ours, theirs = (torch.cat(prefilled(one, PROMPT)[1].hidden) for one in (model, cpu))
    error = (ours - theirs).square().mean().sqrt() / theirs.std()
    # one code that rounds the other way is a finite step; a wrong scale, mask or tile is of the order of one
    assert error < 0.05
    difference = model.logits(ours) - cpu.logits(ours)
    assert difference.square().mean().sqrt() / cpu.logits(ours).std() < 0.03


def test_decode_in_company_gives_the_bits_of_a_prefill_alone(model: Model) -> None:
    dtype = "int8" if model.config.act == "silu" else "bf16"
    whole = torch.cat(prefilled(model, PROMPT, dtype)[1].hidden)
    traffic, other = prefilled(model, OTHER, dtype)
    row = traffic.admit(PROMPT)
    other.token_ids += PROMPT[:5]
    traffic.step([(row, 5)])
    poison(traffic, [row, other])
    traffic.step([(other, 1), (row, 1)])
    traffic.step([(row, 3), (other, 1)])
    assert torch.equal(torch.cat(row.hidden), whole)


@pytest.mark.parametrize("folder", ["packed"], indirect=True)
def test_the_whole_step_and_the_verbs_agree_bit_for_bit(folder: Path) -> None:
    verbs = load_model(folder, triton_kernels.load("cpu"), head_dtype="bf16")
    verbs.shortcuts = Shortcuts()
    capture = FakeCapture()
    wing = TritonWing(CPU, "a test", lambda: capture)
    captured = load_model(folder, wing, head_dtype="bf16")
    assert [done for done, _ in captured.warm_up(captured.new_cache(1, BLOCK_TOKENS, "bf16"), 1, 1, 16)][-1] == 6
    # one decode step and one of 16 tokens, rounds and draws, greedy and not, the head with and without a penalty window
    assert (capture.num_captures, capture.num_replays) == (8, 2)
    rows = []
    for one in (verbs, captured):
        traffic, row = prefilled(one, OTHER)
        row.token_ids += PROMPT[:2]
        second = traffic.admit(PROMPT[:4])
        for work in ([(row, 1), (second, 2)], [(row, 1), (second, 1)], [(second, 1)]):
            traffic.step(work)
        rows.append(torch.cat([*row.hidden, *second.hidden]))
    assert torch.equal(*rows)
    # of another cache than the one that was warmed up: mixed steps, one size of them, and decode of two rows and one
    assert (capture.num_captures, capture.num_replays) == (11, 6)


@pytest.mark.parametrize("folder", ["packed"], indirect=True)
def test_a_warm_up_touches_no_slot(folder: Path) -> None:
    model = load_model(folder, TritonWing(CPU, "a test", FakeCapture), head_dtype="bf16")
    cache = model.new_cache(2, BLOCK_TOKENS, "bf16")
    steps = list(model.warm_up(cache, 2, 2, 16))
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))
    assert not any(tensor.any() for tensor in cache.tensors)


@pytest.mark.parametrize("folder", ["packed"], indirect=True)
def test_weights_at_one_byte_each_move_no_bit_and_are_kept_while_there_is_room(folder: Path, model: Model) -> None:
    plan = model.plan
    layer = plan.layers[0]
    tile = asdict(DenseTile(64, 16, 64, 1, num_warps=4, num_stages=1, fetch=1))
    shapes = [(w.num_outputs, w.padded_k) for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    tuned = {dense_key(16, n, k): tile for n, k in shapes} | {dense_gated_key(16, *shapes[2]): tile}
    device = open_device(torch.device("cpu"), tuned=tuned)
    whole = torch.cat(prefilled(model, PROMPT)[1].hidden)
    room = 2 * 4 * sum(n * (k + 4) for n, k in shapes)
    for given, copies in ((room, 8), (shapes[0][0] * (shapes[0][1] + 4), 1), (0, 0)):
        wing = TritonWing(device, "a test", dense_room=given)
        other = load_model(folder, wing, head_dtype="bf16")
        packed = [w for layer in other.plan.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        assert sum(w.dense is not None for w in packed) == copies
        assert torch.equal(torch.cat(prefilled(other, PROMPT)[1].hidden), whole)
    assert wing.describe()["int8 copies of weights"] == "none"
    copied = load_model(folder, triton_kernels.load("cpu", dense="on"), head_dtype="bf16")
    assert copied.ops.describe()["int8 copies of weights"] == "all"
    assert copied.memory_report()["layers"] > 3 * model.memory_report()["layers"]
    with pytest.raises(ValueError, match="auto, on or off, not 'yes'"):
        triton_kernels.load("cpu", dense="yes")


@pytest.mark.parametrize("folder", ["packed"], indirect=True)
def test_a_measured_row_puts_the_gate_into_the_epilogue_and_moves_no_bit(model: Model) -> None:
    wing, layer = model.ops, model.plan.layers[0]
    h = wing.norm_quantize(torch.randn(3, 64, generator=torch.Generator().manual_seed(2)), layer.ffn_gain, 1e-5)
    key = gated_key(4, layer.gate_up.num_packed, layer.gate_up.padded_k)
    rows = {key: asdict(LinearTile(16, 16, 128, 1, 4, 1))}
    devices = [open_device(torch.device("cpu"), tuned=tuned) for tuned in ({}, rows)]
    assert [gated_tile(3, layer.gate_up.num_packed, layer.gate_up.padded_k, device) for device in devices] == [
        None,
        LinearTile(16, 16, 128, 1, 4, 1),
    ]
    plain, fused = (
        TritonWing(device, "a test").gate(h, layer.gate_up, layer.ffn_sub_gain, 1e-5, "relu2") for device in devices
    )
    assert torch.equal(plain.codes, fused.codes)
    assert torch.equal(plain.scale, fused.scale)


def test_the_best_logits_are_those_of_all_logits(model: Model) -> None:
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    extra = torch.tensor([[5, -1], [-1, -1], [0, 511]])
    ids, best = model.top_logits(hidden, 7, extra)
    logits = model.logits(hidden)
    assert torch.equal(best[:, :7], logits.sort(dim=1, descending=True).values[:, :7])
    assert torch.equal(best, logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf))
    assert torch.equal(ids[:, 7:], extra)


def test_memory_is_counted_once_where_a_table_is_tied(model: Model) -> None:
    ops = model.ops
    table = ops.pack_table(torch.zeros(6, 128, dtype=torch.bfloat16), embedding=True, head_dtype="bf16")
    assert ops.memory_bytes(table) == 6 * 128 * 2
    assert ops.memory_bytes(ops.pack([(torch.zeros(3, 8, dtype=torch.uint8), torch.ones(12))])) == 3 * (128 + 16 + 8)
    assert ops.describe()["wing"] == ops.name == "triton"
    with pytest.raises(ValueError, match="not supported"):
        ops.rope_tables(16, 1e4, {"factor": 8}, 10)
    with pytest.raises(ValueError, match="without an embedding"):
        ops.embed(ops.pack_table(torch.zeros(2, 4), embedding=False, head_dtype="bf16"), torch.zeros(1).long())


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_cache_takes_what_is_reckoned_for_its_tokens(model: Model, dtype: str) -> None:
    held = model.ops.new_cache(3, 5, 8, 2, 16, dtype)  # type: ignore[arg-type]
    assert model.ops.memory_bytes(held) == 5 * 8 * bytes_per_token(3, 2, 16, dtype)
    assert model.ops.cache_tokens(3, 2, 16, dtype, 0) is None  # type: ignore[arg-type]
