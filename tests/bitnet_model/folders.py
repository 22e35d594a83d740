"""Damaged copies of a checkpoint folder: one edit of its tensors, its header or its bytes at a time."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitnet_model.checkpoint import load_model
from bitnet_model.errors import CheckpointError
from tests.bitnet_model.fakes import StoringOps

Tensors = dict[str, Tensor]
Header = dict[str, Any]


def copy_of(folder: Path, target: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(folder, target / "copy"))


def with_tensors(folder: Path, target: Path, edit: Callable[[Tensors], None]) -> Path:
    """A copy whose tensors went through `edit`."""
    copy = copy_of(folder, target)
    tensors = load_file(copy / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, copy / "model.safetensors")
    return copy


def with_header(folder: Path, target: Path, edit: Callable[[Header], Header | str | None]) -> Path:
    """A copy whose header went through `edit` (in place, or replaced by what it returns); the data stay."""
    copy = copy_of(folder, target)
    file = copy / "model.safetensors"
    raw = file.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    edited = edit(header)
    text = (edited if isinstance(edited, str) else json.dumps(header if edited is None else edited)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    return copy


def refusal(folder: Path) -> str:
    """The problems for which the loader refuses a folder, one per line; nothing may have been packed."""
    ops = StoringOps()
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, ops, head_dtype="int8")  # type: ignore[arg-type]  # it stores, and has no arithmetic
    return "\n".join(caught.value.problems)
