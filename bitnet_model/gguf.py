"""The GGUF container, versions 2 and 3, as far as it holds BitNet's I2_S tensors.

Knows metadata, tensor places and the I2_S layout, no model. The file comes from a stranger: every count and length is
checked against the file's size before anything is allocated, and tensors are read, not mapped. Values of arrays are
skipped (they are the tokenizer, which is taken from elsewhere).

I2_S, as x86 builds and the published 2B-4T file have it: the tensor flattened row by row in blocks of 128 values of 32
bytes; byte p holds the values p, 32+p, 64+p, 96+p in bits 7:6, 5:4, 3:2, 1:0, code = ternary + 1; behind the codes one
fp32 that multiplies, padded to 32 bytes. ARM builds since 2025-11 write other layouts under the same type id; nothing
in the file tells them apart.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bitnet_model.keys import brief
from bitnet_model.tensor_file import MAX_TENSORS, TensorFileError

MAX_KEYS = 1 << 12
MAX_TEXT_BYTES = 1 << 20
MAX_ARRAY = 1 << 24
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16

F32, F16, BF16, I2_S = 0, 1, 30, 36
FLOAT_TYPES = {F32: ("F32", 4), F16: ("F16", 2), BF16: ("BF16", 2)}
TYPE_NAMES = {34: "TQ1_0", 35: "TQ2_0", 37: "I8_S", 38: "TL1", 39: "TL2 or MXFP4", 134: "IQ1_BN", 135: "IQ2_BN"}
I2S_BLOCK = 128
I2S_TAIL_BYTES = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9

Value: TypeAlias = int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor; `shape` has the rows first, as everywhere else here, `begin` is an offset in the file."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    begin: int

    @property
    def num_bytes(self) -> int:
        count = math.prod(self.shape)
        return count // 4 + I2S_TAIL_BYTES if self.type_id == I2_S else count * FLOAT_TYPES[self.type_id][1]


class GgufFile:
    """An open GGUF file with a checked header. `metadata`: scalars and texts, None for arrays."""

    def __init__(self, path: Path) -> None:
        """Raises TensorFileError with every problem of the tensors, or the first of the header."""
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise TensorFileError([f"cannot be read ({error.strerror})"]) from None
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """The tensor's bytes. Raises TensorFileError when the file has become shorter."""
        self._file.seek(tensor.begin)
        data = np.fromfile(self._file, np.uint8, tensor.num_bytes)
        if len(data) != tensor.num_bytes:
            raise TensorFileError([f"ended inside tensor {tensor.name}: it was changed while reading"])
        return data

    def read_scale(self, tensor: GgufTensor) -> float:
        """The multiplier behind the codes of an I2_S tensor. Raises TensorFileError as `read` does."""
        self._file.seek(tensor.begin + math.prod(tensor.shape) // 4)
        data = self._file.read(4)
        if len(data) != 4:
            raise TensorFileError([f"ended inside tensor {tensor.name}: it was changed while reading"])
        (scale,) = struct.unpack("<f", data)
        return float(scale)

    def _read_header(self) -> None:
        header = _Header(self._file)
        if header.take(4) != b"GGUF":
            raise TensorFileError(["does not begin with GGUF"])
        version = int(header.number("I"))
        if version not in (2, 3):
            raise TensorFileError([f"is GGUF version {version}; versions 2 and 3 are read"])
        num_tensors = header.count(MAX_TENSORS, "tensors")
        num_keys = header.count(MAX_KEYS, "metadata keys")
        self.metadata: dict[str, Value] = {}
        for _ in range(num_keys):
            key = header.text()
            self.metadata[key] = header.value(int(header.number("I")))
        places = [header.tensor() for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT:
            raise TensorFileError([f"has general.alignment {brief(alignment)}"])
        data_start = -(-header.position // alignment) * alignment
        problems: list[str] = []
        tensors = [_checked(place, data_start, header.size, problems) for place in places]
        self.tensors = {tensor.name: tensor for tensor in tensors}
        if len(self.tensors) != num_tensors:
            problems.append("names a tensor twice")
        if problems:
            raise TensorFileError(problems)


_Place: TypeAlias = tuple[str, int, tuple[int, ...], int]


class _Header:
    """Sequential reading with every length checked against what is left of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        self._advance(num_bytes)
        return self.file.read(num_bytes)

    def skip(self, num_bytes: int) -> None:
        self._advance(num_bytes)
        self.file.seek(num_bytes, os.SEEK_CUR)

    def _advance(self, num_bytes: int) -> None:
        if num_bytes > self.size - self.position:
            raise TensorFileError([f"is truncated: its header goes on behind its end at byte {self.size}"])
        self.position += num_bytes

    def number(self, code: str) -> int | float | bool:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        assert isinstance(value, int | float)
        return value

    def count(self, most: int, what: str) -> int:
        count = int(self.number("Q"))
        if count > most:
            raise TensorFileError([f"claims {count} {what}, more than {most}"])
        return count

    def text(self) -> str:
        return self.take(self.count(MAX_TEXT_BYTES, "bytes of one text")).decode("utf-8", "replace")

    def value(self, kind: int) -> Value:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            self._skip_array()
            return None
        return self.number(_scalar(kind))

    def _skip_array(self) -> None:
        kind = int(self.number("I"))
        count = self.count(MAX_ARRAY, "array elements")
        if kind == _TEXT:
            for _ in range(count):
                self.skip(self.count(MAX_TEXT_BYTES, "bytes of one text"))
        else:
            self.skip(count * struct.calcsize("<" + _scalar(kind)))

    def tensor(self) -> _Place:
        name = self.text()
        num_dims = int(self.number("I"))
        if not 1 <= num_dims <= MAX_DIMS:
            raise TensorFileError([f"tensor {brief(name)} has {num_dims} dimensions"])
        dims = tuple(int(self.number("Q")) for _ in range(num_dims))
        return name, int(self.number("I")), dims[::-1], int(self.number("Q"))


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise TensorFileError([f"has metadata of the unknown type {kind}"])
    return _SCALARS[kind]


def _checked(place: _Place, data_start: int, size: int, problems: list[str]) -> GgufTensor:
    """The tensor, or a stand-in where a problem was noted."""
    name, type_id, shape, offset = place
    stand_in = GgufTensor(name, F32, (0,), data_start)
    if type_id != I2_S and type_id not in FLOAT_TYPES:
        shown = TYPE_NAMES.get(type_id, f"type {type_id}")
        problems.append(f"tensor {brief(name)} is {shown}; read are I2_S, F32, F16 and BF16")
        return stand_in
    if type_id == I2_S and math.prod(shape) % I2S_BLOCK:
        problems.append(f"tensor {brief(name)} is I2_S and has {list(shape)}, no whole blocks of {I2S_BLOCK}")
        return stand_in
    tensor = GgufTensor(name, type_id, shape, data_start + offset)
    if tensor.begin + tensor.num_bytes > size:
        problems.append(f"tensor {brief(name)} ends at byte {tensor.begin + tensor.num_bytes}, the file at {size}")
    return tensor


def i2s_codes(data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of an I2_S tensor -> its codes (ternary + 1; 3 does not exist in a sound file) [N, K]."""
    blocks = data[: math.prod(shape) // 4].reshape(-1, 1, 32)
    shifts = np.array([6, 4, 2, 0], np.uint8).reshape(1, 4, 1)
    codes: NDArray[np.uint8] = (blocks >> shifts) & np.uint8(3)
    return codes.reshape(shape)
