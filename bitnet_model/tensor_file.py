"""One safetensors file: its header checked before anything is allocated, its tensors read into memory of our own.

The safetensors library maps the file; a file that is truncated or replaced while we serve would then kill the process
with SIGBUS, and mapped pages count against our memory. Here the header is checked completely (what that library lets
through too: floods of empty tensors, duplicate names), the file stays open while loading, and each tensor is read once.
Knows the container format only: https://huggingface.co/docs/safetensors. Knows no model.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from bitnet_model.keys import brief, is_integer
from bitnet_model.strict_json import JsonError, parse_object

MAX_HEADER_BYTES = 8 << 20  # that of the 542 tensors of 2B-4T has 60 KB
MAX_TENSORS = 1 << 16
READ_BYTES = 8 << 20
READERS = 2
"""Copying a cached file into new pages takes a core 0.7 s per GB, most of it for clearing the pages; two readers halve
that (2 Zen 4 cores, 2026-11)."""
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "U8": torch.uint8}
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `begin` and `end` are offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


class TensorFileError(Exception):
    """A file that is refused; `problems` are sentences without the file name."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class TensorFile:
    """An open safetensors file with a checked header; `entries` maps names to places. Close it after loading."""

    def __init__(self, path: Path) -> None:
        """Open and check. Raises TensorFileError with every problem of the header."""
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)
        except OSError as error:
            raise TensorFileError([f"cannot be read ({error.strerror})"]) from None
        try:
            self.entries = _read_entries(self._file)
        except BaseException:
            self._file.close()
            raise
        self._readers = ThreadPoolExecutor(READERS, "read")

    def close(self) -> None:
        self._readers.shutdown()
        self._file.close()

    def read(self, entry: TensorEntry, on_bytes: Callable[[int], None]) -> Tensor:
        """The tensor in its own memory; `on_bytes` hears how many bytes each read brought.

        An anonymous mapping per tensor goes back to the system when the tensor is freed. From malloc, whose mmap
        threshold grows with what is freed, loading 107 MB peaked at 162 MB instead of 110 (2 Zen 3 cores, 2026-11).
        Raises TensorFileError when the file has become shorter than its header says.
        """
        memory = mmap.mmap(-1, max(1, entry.num_bytes))
        target = memoryview(memory)[: entry.num_bytes]
        pieces = range(0, entry.num_bytes, READ_BYTES)
        for count in self._readers.map(lambda at: self._fill(target[at : at + READ_BYTES], entry.begin + at), pieces):
            if not count:
                raise TensorFileError([f"ended inside tensor {entry.name}: it was changed while loading"])
            on_bytes(count)
        flat = torch.frombuffer(memory, dtype=torch.uint8)[: entry.num_bytes]
        return flat.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def _fill(self, target: memoryview, offset: int) -> int:
        """Read from `offset` until the target is full. Returns its length, or 0 where the file ends before."""
        done = 0
        while done < len(target):
            count = os.preadv(self._file.fileno(), [target[done:]], offset + done)
            if not count:
                return 0
            done += count
        return done


def _read_entries(file: BinaryIO) -> dict[str, TensorEntry]:
    """The tensors of a file whose sizes add up, in order of their offsets."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if start.startswith(PICKLE_STARTS):
        raise TensorFileError(["is a pickle or zip archive, not safetensors; unpickling runs code and is refused"])
    if len(start) < 8:
        raise TensorFileError([f"has {size} bytes, too short for a safetensors file"])
    (header_bytes,) = struct.unpack("<Q", start)
    if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        limit = min(MAX_HEADER_BYTES, size - 8)
        raise TensorFileError([f"claims a header of {header_bytes} bytes, at most {limit} can be: not safetensors"])
    try:
        header = parse_object(file.read(header_bytes))
    except JsonError as error:
        raise TensorFileError([f"has a header that {error}"]) from None
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise TensorFileError([f"names {len(header)} tensors, more than {MAX_TENSORS}"])
    problems: list[str] = []
    entries = [_entry(name, fields, 8 + header_bytes, problems) for name, fields in header.items()]
    if not problems:
        entries.sort(key=lambda entry: (entry.begin, entry.end))
        problems = _cover_problems(entries, 8 + header_bytes, size)
    if problems:
        raise TensorFileError(problems)
    return {entry.name: entry for entry in entries}


def _entry(name: str, fields: object, data_start: int, problems: list[str]) -> TensorEntry:
    """One line of the header; a stand-in where a problem was noted."""
    entry = TensorEntry(name, "U8", (), data_start, data_start)
    where = f"tensor {brief(name)}"
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        problems.append(f"{where} is not described by dtype, shape and data_offsets")
        return entry
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        problems.append(f"{where} has shape {brief(shape)} and data_offsets {brief(offsets)}")
        return entry
    if not isinstance(dtype, str) or dtype not in DTYPES:
        problems.append(f"{where} has dtype {brief(dtype)}, served are {', '.join(DTYPES)}")
        return entry
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != wanted:
        problems.append(f"{where} {dtype} {brief(shape)} needs {wanted} bytes and has {offsets[1] - offsets[0]}")
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(is_integer(one) and 0 <= one < 1 << 62 for one in value)


def _cover_problems(entries: list[TensorEntry], data_start: int, size: int) -> list[str]:
    """Sorted entries must cover the data without overlap, hole or remainder."""
    problems = []
    position = data_start
    for entry in entries:
        if entry.begin != position:
            kind = "overlaps the one before it" if entry.begin < position else "leaves a hole before it"
            problems.append(
                f"tensor {brief(entry.name)} {kind} ({position - data_start} to {entry.begin - data_start})"
            )
        position = max(position, entry.end)
    if position > size:
        problems.append(f"is truncated: its tensors end at byte {position}, the file at {size}")
    elif position < size:
        problems.append(f"has {size - position} bytes behind its last tensor")
    return problems
