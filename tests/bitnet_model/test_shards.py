"""What is refused of a checkpoint folder before a single weight is read."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet_model.layout import Expected
from bitnet_model.shards import TensorFolder
from bitnet_model.tensor_file import MAX_HEADER_BYTES, TensorFile, TensorFileError
from tests.bitnet_model.folders import Header, Tensors, copy_of, refusal, with_header, with_tensors
from tools.make_checkpoint import write_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


def raw_file(folder: Path, data: bytes) -> Path:
    (folder / "model.safetensors").write_bytes(data)
    return folder


def test_a_truncated_file_is_refused(tiny_packed: Path, tmp_path: Path) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    os.truncate(copy / "model.safetensors", (copy / "model.safetensors").stat().st_size - 1)
    assert "is truncated" in refusal(copy)


def test_an_extended_file_is_refused(tiny_packed: Path, tmp_path: Path) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    data = (copy / "model.safetensors").read_bytes()
    assert "has 1 bytes behind its last tensor" in refusal(raw_file(copy, data + b"\0"))


@pytest.mark.parametrize("claimed", [MAX_HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_the_file_or_the_cap_is_refused_unread(
    tiny_packed: Path, tmp_path: Path, claimed: int
) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    assert f"claims a header of {claimed} bytes" in refusal(raw_file(copy, struct.pack("<Q", claimed) + b"{}" * 100))


@pytest.mark.parametrize("data", [b"", b"\0\0\0"])
def test_a_file_too_short_for_a_header_is_refused(tiny_packed: Path, tmp_path: Path, data: bytes) -> None:
    assert "too short" in refusal(raw_file(copy_of(tiny_packed, tmp_path), data))


def test_a_flood_of_empty_tensors_is_refused(tiny_packed: Path, tmp_path: Path) -> None:
    flood = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(70_000)}
    assert "names 70000 tensors" in refusal(with_header(tiny_packed, tmp_path, lambda header: flood))


def test_overlapping_tensors_are_refused(tiny_packed: Path, tmp_path: Path) -> None:
    def edit(header: Header) -> None:
        header[NORM]["data_offsets"] = header["model.layers.0.input_layernorm.weight"]["data_offsets"]

    assert "overlaps" in refusal(with_header(tiny_packed, tmp_path, edit))


def test_a_hole_between_tensors_is_refused(tiny_packed: Path, tmp_path: Path) -> None:
    def edit(header: Header) -> None:
        del header["model.layers.0.input_layernorm.weight"]

    assert "leaves a hole" in refusal(with_header(tiny_packed, tmp_path, edit))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": [1 << 61, 8]}, "needs"),
        ({"shape": [-128]}, "has shape [-128]"),
        ({"shape": [128.0]}, "has shape [128.0]"),
        ({"shape": [True]}, "has shape [True]"),
        ({"shape": "128"}, "has shape '128'"),
        ({"data_offsets": [0]}, "data_offsets [0]"),
        ({"data_offsets": [10, 0]}, "data_offsets [10, 0]"),
        ({"dtype": "F64"}, "has dtype 'F64'"),
        ({"dtype": ["BF16"]}, "has dtype ['BF16']"),
        ({"extra": 1}, "is not described by"),
    ],
)
def test_a_header_entry_that_lies_is_refused(
    tiny_packed: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(with_header(tiny_packed, tmp_path, lambda header: header[NORM].update(change)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "holds a JSON list"),
        ("not json", "is not valid JSON"),
        ('{"a":' * 50_000, "nested too deeply"),
        ('{"a": {}, "a": {}}', "twice"),
        ('{"a": {"dtype": "U8", "dtype": "F32"}}', "twice"),
    ],
)
def test_a_header_that_is_no_sane_json_is_refused(tiny_packed: Path, tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(with_header(tiny_packed, tmp_path, lambda header: text))


def test_every_wrong_tensor_is_listed_in_one_error(tiny_packed: Path, tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        del tensors["model.layers.1.mlp.ffn_sub_norm.weight"]
        del tensors["model.layers.1.mlp.up_proj.weight_scale"]
        tensors["model.layers.7.input_layernorm.weight"] = torch.ones(128)
        tensors["lm_head.weight"] = torch.zeros(4)
        tensors[NORM] = torch.ones(127, dtype=torch.bfloat16)
        tensors[Q] = torch.zeros(128, 128, dtype=torch.bfloat16)

    found = refusal(with_tensors(tiny_packed, tmp_path, edit)).splitlines()
    assert found == [
        "model.layers.1.mlp.ffn_sub_norm.weight is missing",
        "model.layers.1.mlp.up_proj.weight_scale is missing",
        "'lm_head.weight' is there, and no part of this model",
        "'model.layers.7.input_layernorm.weight' is there, and no part of this model",
        f"{Q} has shape [128, 128], wanted [32, 128]",
        f"{Q} has dtype BF16, wanted U8",
        f"{NORM} has shape [127], wanted [128]",
    ]


def test_a_pickle_in_disguise_is_refused_unopened(tiny_packed: Path, tmp_path: Path) -> None:
    copy = raw_file(copy_of(tiny_packed, tmp_path), pickle.dumps({"weight": [1.0] * 100}))
    assert "is a pickle" in refusal(copy)


def test_pickled_weights_are_not_looked_at(tiny_packed: Path, tmp_path: Path) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "unpickling runs code" in refusal(copy)


def test_a_folder_without_weights_names_what_it_lacks(tiny_packed: Path, tmp_path: Path) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    (copy / "model.safetensors").unlink()
    assert "holds neither model.safetensors nor" in refusal(copy)
    (copy / "model.gguf").touch()
    assert "GGUF" in refusal(copy)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".safetensors",
        "x.bin",
        "a\0.safetensors",
        "a\nb.safetensors",
        5,
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: Any) -> None:
    folder = write_checkpoint(tmp_path / "sharded", "packed", shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][NORM] = name
    (folder / INDEX).write_text(json.dumps(index))
    assert "not a plain *.safetensors" in refusal(folder)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "sharded", "packed", shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lost.weight"] = index["weight_map"][NORM]
    index["weight_map"][Q] = index["weight_map"]["model.embed_tokens.weight"]
    del index["weight_map"]["model.layers.0.input_layernorm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    found = refusal(folder)
    assert "lacks 'lost.weight'" in found
    assert "which the index says is in no file" in found
    assert "which the index says is in model-00001-of-00002.safetensors" in found


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "sharded", "packed", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: is missing or not a file" in refusal(folder)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[1]", "{"])
def test_an_index_without_a_map_is_refused(tiny_packed: Path, tmp_path: Path, text: str) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    (copy / "model.safetensors").unlink()
    (copy / INDEX).write_text(text)
    assert INDEX in refusal(copy)


def test_a_link_out_of_the_folder_is_refused(tiny_packed: Path, tmp_path: Path) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(tiny_packed / "model.safetensors")
    assert "is a link out of the folder" in refusal(copy)


def test_the_links_of_the_hub_cache_are_followed(tiny_packed: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot, blob = repository / "snapshots" / "0123", repository / "blobs" / "abcd"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes((tiny_packed / "model.safetensors").read_bytes())
    (snapshot / "model.safetensors").symlink_to("../../blobs/abcd")
    file = TensorFile(tiny_packed / "model.safetensors")
    file.close()
    expected = {name: Expected((entry.shape,), (entry.dtype,)) for name, entry in file.entries.items()}
    with TensorFolder(snapshot, expected, None) as tensors:
        assert tensors.take(NORM).shape == (128,)


def test_a_file_cut_while_loading_is_an_error_and_not_a_crash(tiny_packed: Path, tmp_path: Path) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    file = TensorFile(copy / "model.safetensors")
    os.truncate(copy / "model.safetensors", 5000)
    with pytest.raises(TensorFileError, match="changed while loading"):
        file.read(file.entries[NORM], lambda count: None)
    file.close()


def test_a_tensor_survives_the_end_of_its_file(tiny_packed: Path, tmp_path: Path) -> None:
    copy = copy_of(tiny_packed, tmp_path)
    file = TensorFile(copy / "model.safetensors")
    tensor = file.read(file.entries[NORM], lambda count: None)
    before = tensor.clone()
    os.truncate(copy / "model.safetensors", 0)
    assert torch.equal(tensor, before)
    file.close()


def test_random_damage_to_a_header_is_a_refusal_or_harmless(tiny_packed: Path, tmp_path: Path) -> None:
    whole = (tiny_packed / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    draw = random.Random(7)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(8 + size)] = draw.choice(b'0123456789[]{},:"\\-.eE\x00\xff')
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            TensorFile(tmp_path / "damaged").close()
        except TensorFileError:
            refused += 1
    assert refused > 200
