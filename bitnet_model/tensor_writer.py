"""Writing a checkpoint: one safetensors file streamed tensor by tensor, in a folder that appears whole or not at all.

The folder is built beside its place under a hidden name and renamed when everything in it is on the disk, so whatever
ends the process (a full disk, kill -9, the power) leaves no folder that looks like a checkpoint. What a killed run left
behind is cleared by the next one. Knows no model.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitnet_model.errors import CheckpointError
from bitnet_model.tensor_file import DTYPES

WRITE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written; `make` builds it when its turn comes, so that one is in memory at a time."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_tensors(path: Path, tensors: Sequence[NewTensor], on_bytes: Callable[[int], None]) -> None:
    """Write one safetensors file; `on_bytes` hears how many bytes each write added."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in tensors:
            made = tensor.make().contiguous()
            assert made.dtype == DTYPES[tensor.dtype], tensor.name
            assert tuple(made.shape) == tensor.shape, tensor.name
            data = made.view(-1).view(torch.uint8).numpy().data
            for start in range(0, len(data), WRITE_BYTES):
                piece = data[start : start + WRITE_BYTES]
                file.write(piece)
                on_bytes(len(piece))


@contextmanager
def new_folder(target: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends well, and goes away when it does not.

    Raises CheckpointError when `target` holds something, another process is writing it, or the disk is too small.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(target, ["it exists already: give a new name, or remove it first"])
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if num_bytes > free:
        raise CheckpointError(target, [f"{num_bytes} bytes are to be written and the disk has {free} free"])
    partial = target.parent / f".{target.name}.partial"
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            raise CheckpointError(target, ["another process is writing it"])
        try:
            _clear(partial)
            yield partial
            for path in (*partial.iterdir(), partial):
                _sync(path)
            partial.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock is ours now; the system gives it back when the process ends, however it ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(folder: Path) -> None:
    for left in folder.iterdir():
        left.unlink()


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
