"""The tensors of a checkpoint folder: one file or several with an index, all checked before the first is read.

No pickle is ever opened, no name from an index leaves the folder, and the set of tensors must be exactly what the
config asks for. Knows files and names, not what the tensors mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from torch import Tensor

from bitnet_model.errors import CheckpointError
from bitnet_model.keys import brief
from bitnet_model.layout import Expected
from bitnet_model.strict_json import JsonError, read_object
from bitnet_model.tensor_file import TensorEntry, TensorFile, TensorFileError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 16 << 20
MAX_SHARDS = 1000
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors", re.ASCII)
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


class TensorFolder:
    """The open, checked tensors of a folder. A context manager; `take` hands out every tensor exactly once."""

    def __init__(
        self, folder: Path, expected: dict[str, Expected], progress: Callable[[int, int], None] | None
    ) -> None:
        """Open and check everything. Raises CheckpointError with all problems found; nothing is read before that."""
        self._folder = folder
        self._progress = progress
        self._done_bytes = 0
        self._places: dict[str, tuple[TensorFile, TensorEntry]] = {}
        with ExitStack() as stack:
            problems = self._open(stack)
            problems = problems or _set_problems({name: place[1] for name, place in self._places.items()}, expected)
            if problems:
                raise CheckpointError(folder, problems)
            self._files = stack.pop_all()
        self._total_bytes = sum(entry.num_bytes for _, entry in self._places.values())

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def names_left(self) -> frozenset[str]:
        """Tensors nobody has taken yet."""
        return frozenset(self._places)

    def dtype_of(self, name: str) -> str:
        """The dtype, in safetensors' words, of a tensor nobody has taken yet."""
        return self._places[name][1].dtype

    def bytes_of(self, name: str) -> int:
        """The size of a tensor nobody has taken yet."""
        return self._places[name][1].num_bytes

    def take(self, name: str) -> Tensor:
        """Read one tensor into memory of its own; a name can be taken once. Raises CheckpointError on a short file."""
        file, entry = self._places.pop(name)
        try:
            return file.read(entry, self._count)
        except (TensorFileError, OSError) as error:
            raise CheckpointError(self._folder, [f"{name}: {error}"]) from error

    def _count(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)

    def _open(self, stack: ExitStack) -> list[str]:
        """Fill `_places` from every file; problems of one file do not hide those of the next."""
        weight_map, problems = _weight_map(self._folder)
        for shard in sorted(set(weight_map.values())) if weight_map else [] if problems else [SINGLE_FILE]:
            problem = _escape_problem(self._folder, shard)
            if problem:
                problems.append(f"{shard}: {problem}")
                continue
            try:
                file = TensorFile(self._folder / shard)
            except TensorFileError as error:
                problems += [f"{shard}: {one}" for one in error.problems]
                continue
            stack.callback(file.close)
            problems += self._add(shard, file, weight_map)
        return problems

    def _add(self, shard: str, file: TensorFile, weight_map: dict[str, str]) -> list[str]:
        problems = []
        for name, entry in file.entries.items():
            if weight_map and weight_map.get(name) != shard:
                elsewhere = weight_map.get(name, "no file")
                problems.append(f"{shard}: holds {brief(name)}, which the index says is in {elsewhere}")
            self._places.setdefault(name, (file, entry))
        lacking = sorted(name for name, home in weight_map.items() if home == shard and name not in file.entries)
        return problems + [f"{shard}: lacks {brief(name)}, which the index says is there" for name in lacking]


def _weight_map(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Tensor name -> shard from the index; empty for a single file."""
    if (folder / SINGLE_FILE).is_file():
        return {}, []
    if not (folder / INDEX_FILE).is_file():
        return {}, [_nothing_to_load(folder)]
    try:
        raw = read_object(folder / INDEX_FILE, MAX_INDEX_BYTES).get("weight_map")
    except JsonError as error:
        return {}, [f"{INDEX_FILE} {error}"]
    if not isinstance(raw, dict) or not raw:
        return {}, [f"{INDEX_FILE}: weight_map is {brief(raw)}, wanted an object of tensor names and file names"]
    shards = {one if isinstance(one, str) else None for one in raw.values()}
    problems = [
        f"{INDEX_FILE}: names the file {brief(one)}, not a plain *.safetensors" for one in shards if _is_odd(one)
    ]
    if len(shards) > MAX_SHARDS:
        problems.append(f"{INDEX_FILE}: names {len(shards)} files, more than {MAX_SHARDS}")
    return ({}, problems) if problems else (raw, [])


def _is_odd(shard: str | None) -> bool:
    """Anything but a plain base name: a path, a parent, a hidden or a foreign file."""
    return shard is None or SHARD_NAME.fullmatch(shard) is None


def _nothing_to_load(folder: Path) -> str:
    suffixes = {path.suffix for path in folder.iterdir()}
    if suffixes & PICKLE_SUFFIXES:
        return "holds pickled weights only, and unpickling runs code: convert them to safetensors"
    if ".gguf" in suffixes:
        return "holds GGUF files only, which are not read: take the safetensors repository of the model"
    return f"holds neither {SINGLE_FILE} nor {INDEX_FILE}"


def _escape_problem(folder: Path, name: str) -> str | None:
    """Links may lead within the folder, or to the blobs of the hub cache that the folder is a snapshot of."""
    path = folder / name
    if not path.is_file():
        return "is missing or not a file"
    home, target = folder.resolve(), path.resolve().parent
    allowed = {home}
    if home.parent.name == "snapshots":
        allowed.add(home.parent.parent / "blobs")
    return None if target in allowed else "is a link out of the folder; pass the folder it leads to, or copy the file"


def _set_problems(found: dict[str, TensorEntry], expected: dict[str, Expected]) -> list[str]:
    """Missing, extra, wrongly shaped and wrongly typed tensors, all of them."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [
        f"{brief(name)} is there, and no part of this model" for name in sorted(found.keys() - expected.keys())
    ]
    for name in sorted(expected.keys() & found.keys()):
        entry, wanted = found[name], expected[name]
        if entry.shape not in wanted.shapes:
            problems.append(f"{name} has shape {brief(list(entry.shape))}, wanted {list(wanted.shapes[0])}")
        if entry.dtype not in wanted.dtypes:
            problems.append(f"{name} has dtype {entry.dtype}, wanted {' or '.join(wanted.dtypes)}")
    return problems
