"""From a folder to a plan: which values are refused, and that every format and layout gives the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitnet_model.checkpoint import load_model
from bitnet_model.plan import LayerPlan, ModelPlan
from tests.bitnet_model.fakes import StoringOps
from tests.bitnet_model.folders import Tensors, refusal, with_tensors
from tools.checkpoint_weights import random_scale, random_ternary, unpack_rows
from tools.make_checkpoint import write_checkpoint

Q = "model.layers.0.self_attn.q_proj"


def stored(folder: Path) -> tuple[StoringOps, ModelPlan]:
    ops = StoringOps()
    return ops, load_model(folder, ops, head_dtype="int8").plan  # type: ignore[arg-type]  # it only stores


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -1.5])
@pytest.mark.parametrize("fmt", ["tiny_packed", "tiny_llama"])
def test_a_scale_that_is_no_positive_number_is_refused_by_name(
    request: pytest.FixtureRequest, tmp_path: Path, fmt: str, value: float
) -> None:
    folder = request.getfixturevalue(fmt)

    def edit(tensors: Tensors) -> None:
        tensors[Q + ".weight_scale"] = torch.tensor([value], dtype=torch.bfloat16)

    assert f"{Q}.weight_scale is " in refusal(with_tensors(folder, tmp_path, edit))


def test_a_scale_whose_reciprocal_overflows_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        tensors[Q + ".weight_scale"] = torch.tensor([1e-39])

    assert f"{Q}.weight_scale is " in refusal(with_tensors(tiny_llama, tmp_path, edit))


def test_the_unused_code_is_refused_wherever_it_sits_in_a_byte(tiny_packed: Path, tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        for projection, shift in (("q", 0), ("k", 2), ("v", 4), ("o", 6)):
            name = f"model.layers.1.self_attn.{projection}_proj.weight"
            tensors[name][-1, -1] |= 3 << shift

    found = refusal(with_tensors(tiny_packed, tmp_path, edit))
    assert [line.split(" ")[0] for line in found.splitlines()] == [
        f"model.layers.1.self_attn.{projection}_proj.weight" for projection in "qkvo"
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.ffn_sub_norm.weight"]
)
def test_a_gain_or_table_that_is_not_finite_is_refused(
    tiny_packed: Path, tmp_path: Path, name: str, value: float
) -> None:
    def edit(tensors: Tensors) -> None:
        tensors[name].view(-1)[-1] = value

    assert f"{name} holds NaN or infinity" in refusal(with_tensors(tiny_packed, tmp_path, edit))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 0.0])
def test_a_master_without_a_usable_mean_is_refused(tiny_master: Path, tmp_path: Path, value: float) -> None:
    def edit(tensors: Tensors) -> None:
        tensors[Q + ".weight"].fill_(value) if value == 0 else tensors[Q + ".weight"].view(-1)[7:8].fill_(value)

    assert f"{Q}.weight has a mean magnitude of " in refusal(with_tensors(tiny_master, tmp_path, edit))


def test_all_bad_values_come_in_one_error(tiny_packed: Path, tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        tensors["model.embed_tokens.weight"][0, 0] = float("nan")
        tensors["model.layers.1.mlp.down_proj.weight_scale"][0] = float("nan")
        tensors["model.norm.weight"][5] = float("inf")

    assert len(refusal(with_tensors(tiny_packed, tmp_path, edit)).splitlines()) == 3


def segments_of(layer: LayerPlan) -> list[list[tuple[Tensor, Tensor]]]:
    return [layer.qkv, layer.o, layer.gate_up, layer.down]


def assert_same(ours: ModelPlan, theirs: ModelPlan) -> None:
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        for linear, twin in zip(segments_of(layer), segments_of(other), strict=True):
            for (planes, scale), (twin_planes, twin_scale) in zip(linear, twin, strict=True):
                assert torch.equal(planes, twin_planes)
                assert torch.equal(scale, twin_scale)
        assert torch.equal(layer.attn_gain, other.attn_gain)
        assert torch.equal(layer.ffn_gain, other.ffn_gain)
    assert torch.equal(ours.head_gain, theirs.head_gain)


@pytest.mark.parametrize("fmt", ["packed", "master", "llama"])
def test_a_sharded_checkpoint_gives_the_weights_of_a_single_file(
    request: pytest.FixtureRequest, tmp_path: Path, fmt: str
) -> None:
    sharded = write_checkpoint(tmp_path / "sharded", fmt, shards=3)
    assert len(list(sharded.glob("*.safetensors"))) == 3
    assert_same(stored(sharded)[1], stored(request.getfixturevalue(f"tiny_{fmt}"))[1])


def test_master_and_packed_of_one_seed_give_the_same_ternaries_and_scales(tiny_packed: Path, tiny_master: Path) -> None:
    assert_same(stored(tiny_master)[1], stored(tiny_packed)[1])


def test_fused_linears_keep_their_segments_apart(tiny_packed: Path) -> None:
    layer = stored(tiny_packed)[1].layers[0]
    assert [planes.shape for planes, _ in layer.qkv] == [(32, 128), (16, 128), (16, 128)]
    assert [planes.shape for planes, _ in layer.gate_up] == [(96, 128), (96, 128)]
    for (planes, scale), projection in zip(layer.qkv, "qkv", strict=True):
        name = f"model.layers.0.self_attn.{projection}_proj"
        assert torch.equal(unpack_rows(planes), random_ternary(0, name, 4 * planes.shape[0], 128))
        assert torch.equal(scale, random_scale(0, name).float().expand(4 * planes.shape[0]))


def test_a_dividing_scale_becomes_an_unrounded_reciprocal(tiny_llama: Path) -> None:
    _, scale = stored(tiny_llama)[1].layers[0].o[0]
    on_disk = (1.0 / random_scale(0, "model.layers.0.self_attn.o_proj").float()).bfloat16()
    assert scale.dtype == torch.float32
    assert torch.equal(scale, (1.0 / on_disk.float()).expand(128))


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_its_own_table(tiny_packed: Path, tiny_llama: Path) -> None:
    tied, plan = stored(tiny_packed)
    assert plan.head is plan.embedding
    assert [(embedding, dtype) for _, embedding, dtype in tied.tables] == [(True, "int8")]
    untied, plan = stored(tiny_llama)
    assert plan.head is not plan.embedding
    assert [(embedding, dtype) for _, embedding, dtype in untied.tables] == [(True, None), (False, "int8")]


def test_scales_and_gains_of_any_float_type_are_read(tiny_packed: Path, tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        tensors[Q + ".weight_scale"] = tensors[Q + ".weight_scale"].float().reshape(())
        tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].half()

    ops, plan = stored(with_tensors(tiny_packed, tmp_path, edit))
    assert plan.layers[0].qkv[0][1].dtype == torch.float32
    assert plan.head_gain.dtype == torch.float32
    assert ops.tables[0][0].dtype == torch.float32


def test_progress_counts_every_byte_once(tiny_packed: Path) -> None:
    heard: list[tuple[int, int]] = []
    load_model(tiny_packed, StoringOps(), head_dtype="int8", progress=lambda *both: heard.append(both))  # type: ignore[arg-type]
    total = heard[0][1]
    assert heard[-1] == (total, total)
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert 0 < (tiny_packed / "model.safetensors").stat().st_size - total < 10_000


def test_rope_tables_can_be_shorter_than_the_checkpoint_allows(tiny_packed: Path) -> None:
    ops = StoringOps()
    load_model(tiny_packed, ops, head_dtype="int8", max_positions=100)  # type: ignore[arg-type]
    assert ops.num_positions == 100
    assert stored(tiny_packed)[0].num_positions == 512
