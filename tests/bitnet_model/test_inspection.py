"""What `bitnet info` says of a checkpoint, against what its tensors hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from bitnet_model.inspection import inspect
from tools.checkpoint_weights import unpack_rows


def test_bytes_parameters_and_zeros_are_those_of_the_tensors(tiny_packed: Path) -> None:
    tensors = load_file(tiny_packed / "model.safetensors")
    ternary = [unpack_rows(tensor) for name, tensor in tensors.items() if name.endswith("_proj.weight")]
    found = inspect(tiny_packed, count_zeros=True)
    assert found.disk_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert found.embedding_bytes == tensors["model.embed_tokens.weight"].nbytes
    assert found.ternary_params == sum(weight.numel() for weight in ternary)
    assert found.zeros == sum(int((weight == 0).sum()) for weight in ternary) / found.ternary_params


def test_masters_have_the_zeros_of_their_packed_twin_and_load_to_its_size(tiny_packed: Path, tiny_master: Path) -> None:
    packed, master = inspect(tiny_packed, count_zeros=True), inspect(tiny_master, count_zeros=True)
    assert master.zeros == packed.zeros
    assert master.disk_bytes > packed.disk_bytes
    assert master.loaded_bytes == pytest.approx(packed.loaded_bytes, rel=0.05)


def test_a_head_of_its_own_is_counted(tiny_llama: Path) -> None:
    found = inspect(tiny_llama, count_zeros=False)
    assert found.zeros is None
    assert found.head_bytes == found.embedding_bytes
    assert found.float_params == 2 * 512 * 128


def test_a_token_of_cache_has_a_key_and_a_value_in_each_layer(tiny_packed: Path) -> None:
    found = inspect(tiny_packed, count_zeros=False)
    assert found.kv_bytes("bf16") == 2 * 2 * 2 * 32 * 2
    assert found.kv_bytes("int8") == 2 * 2 * 2 * (32 + 4)
