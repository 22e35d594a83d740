from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.triton_kernels.offline import Recorder
from triton_kernels.device import Device, open_device
from triton_kernels.pack import padded
from triton_kernels.tuning import (
    COPY_ENGINE,
    DENSE_FROM,
    OWN_ADDRESSES,
    TABLE,
    AttentionTile,
    DenseTile,
    LinearTile,
    Regime,
    attention_rows,
    attention_tile,
    dense_gated_key,
    dense_gated_tile,
    dense_key,
    dense_tile,
    gated_key,
    gated_tile,
    linear_key,
    linear_tile,
    overlaps_launches,
    read_table,
    regime,
    table,
    token_bucket,
)

# every K of the families served, in features
WIDTHS = (1536, 2048, 2560, 3072, 3200, 4096, 5460, 6912, 8192, 8640, 9216, 14336, 23040, 64, 100)


def test_the_form_follows_the_number_of_tokens() -> None:
    assert [regime(n, dp4a=True) for n in (1, 2, 3, 64, 65)] == [
        Regime.GEMV,
        Regime.GEMV,
        Regime.SMALL,
        Regime.SMALL,
        Regime.PREFILL,
    ]
    assert regime(1, dp4a=False) is Regime.SMALL


@pytest.mark.parametrize("wgmma", [True, False])
def test_every_shape_has_a_tile_that_fits_it(wgmma: bool) -> None:
    device = Recorder(wgmma=wgmma)
    for width in WIDTHS:
        k = padded(width)
        for num_packed in (16, 160, 640, 3456, 11520):
            for num_tokens in (3, 16, 17, 64, 65, 4096):
                tile = linear_tile(num_tokens, num_packed, k, device)
                assert k % (tile.depth * tile.split_k) == 0, (k, tile)
                # 64 rows of partial sums are what the wing keeps for a split K
                assert tile.split_k == 1 or num_tokens <= 64
                assert tile.depth >= 32
                assert tile.tokens >= 16


@pytest.mark.parametrize("wgmma", [True, False])
def test_every_shape_has_a_tile_of_int8_weights_that_fits_it(wgmma: bool) -> None:
    device = Recorder(wgmma=wgmma)
    for k in map(padded, WIDTHS):
        for num_outputs in (64, 640, 2560, 13824, 46080):
            for num_tokens in (DENSE_FROM, 17, 64, 200, 4096):
                tile = dense_tile(num_tokens, num_outputs, k, device)
                assert tile is not None
                assert k % (tile.depth * tile.split_k) == 0, (k, tile)
                assert (tile.rows + tile.tokens) * tile.depth * tile.num_stages <= 227 << 10
                assert tile.fetch == (COPY_ENGINE if wgmma else OWN_ADDRESSES)


def test_int8_weights_are_for_many_tokens_unless_a_row_says_otherwise() -> None:
    plain = Recorder()
    assert [dense_tile(n, 2560, 2560, plain) is not None for n in (1, 2, 3, 8, 9, 16)] == [False] * 4 + [True] * 2
    assert [dense_gated_tile(n, 13824, 2560, plain) is not None for n in (1, 64, 128)] == [False, False, True]
    tile = DenseTile(64, 16, 256, 2, 4, 3, OWN_ADDRESSES)
    tuned = {
        dense_key(4, 2560, 2560): asdict(tile),
        dense_gated_key(32, 13824, 2560): asdict(tile),
        linear_key(Regime.SMALL, 32, 640, 2560): asdict(LinearTile(32, 16, 128, 2, 2, 4)),
    }
    device = replace(open_device(torch.device("cpu")), dp4a=True, tuned=tuned)
    assert dense_tile(3, 2560, 2560, device) == dense_gated_tile(20, 13824, 2560, device) == tile
    assert dense_tile(20, 2560, 2560, device) is None  # measured: packed
    assert dense_tile(40, 2560, 2560, device) is not None


def test_one_attention_shape_serves_every_batch_of_a_model() -> None:
    device = Recorder()
    for head_dim, group in ((128, 4), (256, 3), (100, 1), (96, 1), (64, 48)):
        tile = attention_tile(head_dim, group, device)
        assert tile.rows >= group
        assert tile.split % tile.keys == 0


def test_a_measured_row_is_read_back_and_a_malformed_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    key = linear_key(Regime.SMALL, 16, 640, 2560)
    row = asdict(LinearTile(16, 16, 256, 1, 4, 3))
    path.write_text(
        json.dumps({"NVIDIA H100": {key: row, "attention D128 G4": asdict(AttentionTile(32, 32, 128, 4, 3))}})
    )
    assert read_table(path)["NVIDIA H100"][key] == row
    for broken in ({**row, "packed": 0}, {**row, "extra": 1}, {"packed": 16}, {**row, "depth": "256"}):
        path.write_text(json.dumps({"NVIDIA H100": {key: broken}}))
        with pytest.raises(ValueError, match=r"tuning.json: NVIDIA H100: linear small T16 P640 K2560: needs positive"):
            read_table(path)
    path.write_text(json.dumps({"NVIDIA H100": {"linaer T1": row}}))
    with pytest.raises(
        ValueError, match="linaer T1: must begin with linear, gated, dense, densegated, attention, launch"
    ):
        read_table(path)


def test_the_tables_that_are_checked_in_can_be_read() -> None:
    assert table() == (read_table(TABLE) if TABLE.exists() else {})


def test_measured_rows_decide_where_there_are_any() -> None:
    tuned = {
        linear_key(Regime.SMALL, 16, 640, 2560): asdict(LinearTile(32, 16, 128, 2, 2, 4)),
        gated_key(512, 3456, 2560): asdict(LinearTile(64, 64, 128, 1, 8, 4)),
        "launch": {"in_flight": 2},
    }
    bare = Recorder()
    device = Device(bare.torch_device, 132, dp4a=True, wgmma=True, bf16=True, name="a test", tuned=tuned)
    assert linear_tile(9, 640, 2560, device) == LinearTile(32, 16, 128, 2, 2, 4) != linear_tile(9, 640, 2560, bare)
    assert linear_tile(17, 640, 2560, device) == linear_tile(17, 640, 2560, bare)
    assert gated_tile(300, 3456, 2560, device) == LinearTile(64, 64, 128, 1, 8, 4)
    assert gated_tile(100, 3456, 2560, device) is None
    assert gated_tile(300, 3456, 2560, bare) is None
    assert overlaps_launches(tuned)
    assert not overlaps_launches({})
    assert not overlaps_launches({"launch": {"in_flight": 1}})


def test_token_buckets_are_few_and_cover_every_number_of_tokens() -> None:
    assert [token_bucket(n) for n in (1, 3, 64, 65, 128, 129, 300, 2048, 9999)] == [
        *(1, 4, 64, 128, 128, 256, 512, 2048, 2048)
    ]


def test_single_tokens_get_fewer_rows_only_where_that_moves_no_bit() -> None:
    tile = AttentionTile(rows=32, keys=32, split=128, num_warps=4, num_stages=5)
    nvidia, amd = Recorder(), Recorder(dp4a=False, wgmma=False)
    assert attention_rows(tile, 4, True, nvidia) == 16
    assert attention_rows(tile, 4, False, nvidia) == 32
    assert attention_rows(tile, 4, True, amd) == 32
    assert attention_rows(tile, 24, True, nvidia) == 32
    assert attention_rows(replace(tile, rows=16), 4, True, nvidia) == 16
    assert attention_rows(replace(tile, rows=64), 4, True, nvidia) == 64  # products of warp groups
