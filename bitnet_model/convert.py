"""Other forms of a BitNet checkpoint -> packed safetensors in the form of 2B-4T: bf16 masters, and GGUF files of I2_S.

A `Conversion` is everything that will be written, known before a byte is: so a dry run is the same walk without the
writing. Values are checked as the loader checks them, and a bad one is a CheckpointError. Knows how tensors are named
on both sides; the containers are `tensor_file.py`, `gguf.py` and `tensor_writer.py`.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitnet_model.config import MAX_CONFIG_BYTES, ModelConfig
from bitnet_model.errors import CheckpointError
from bitnet_model.gguf import FLOAT_TYPES, I2_S, GgufFile, GgufTensor, i2s_codes
from bitnet_model.keys import brief
from bitnet_model.layout import EMBEDDING, FINAL_NORM, HEAD, expected_tensors, layer_names
from bitnet_model.shards import INDEX_FILE, SINGLE_FILE, TensorFolder
from bitnet_model.strict_json import JsonObject, read_object
from bitnet_model.tensor_file import DTYPES, TensorFileError
from bitnet_model.tensor_writer import NewTensor, new_folder, write_tensors
from bitnet_model.ternary import absmean, is_finite, ternarize

PACKED = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
COPIED = ("*.json", "*.jinja", "LICENSE*", "README.md")
NOT_COPIED = frozenset({"config.json", INDEX_FILE})
ARCHITECTURES = ("bitnet-b1.58", "bitnet-25")
GGUF_ROPE_THETA = 10000.0  # what GGUF readers take where the file is silent
GGUF_NORMS = ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")
GGUF_PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# A real model has 30 to 50 % zeros. Far from that, the codes are in another layout than the one read here, or noise.
LEAST_ZEROS, MOST_ZEROS = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class Conversion:
    """What will be written: config.json, tensors in file order, and files taken over as they are."""

    source: Path
    config: JsonObject
    tensors: tuple[NewTensor, ...]
    files: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def write(conversion: Conversion, target: Path, progress: Callable[[int, int], None]) -> None:
    """Write the whole folder, or nothing. `progress` hears (done, total) bytes. Raises CheckpointError."""
    total, done = conversion.num_bytes, 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(done, total)

    try:
        with new_folder(target, total) as folder:
            for file in conversion.files:
                shutil.copyfile(file, folder / file.name)
            (folder / "config.json").write_text(json.dumps(conversion.config, indent=2) + "\n")
            write_tensors(folder / SINGLE_FILE, conversion.tensors, count)
    except OSError as error:
        raise CheckpointError(target, [f"it cannot be written: {error.strerror} ({error.filename})"]) from error


def check(conversion: Conversion, progress: Callable[[int, int], None]) -> None:
    """Make every tensor and throw it away: all that `write` does but the writing."""
    total, done = conversion.num_bytes, 0
    for tensor in conversion.tensors:
        tensor.make()
        done += tensor.num_bytes
        progress(done, total)


@contextmanager
def from_masters(folder: Path) -> Iterator[Conversion]:
    """A folder of bf16 masters, ternarized exactly as the loader would. Raises CheckpointError."""
    config = ModelConfig.from_folder(folder)
    if config.weights != "master":
        raise CheckpointError(folder, ["its weights are packed already: there is nothing to convert"])
    raw = read_object(folder / "config.json", MAX_CONFIG_BYTES)
    raw["quantization_config"] = {**raw["quantization_config"], **PACKED}
    expected = expected_tensors(config)
    linears = {
        name + ".weight"
        for index in range(config.num_layers)
        for linear in layer_names(config, index).linears()
        for name, _ in linear.projections
    }
    with TensorFolder(folder, expected, None) as tensors:
        new: list[NewTensor] = []
        for name, wanted in expected.items():
            if name in linears:
                new += _ternarized(folder, name, wanted.shapes[0], tensors.take)
            else:
                new.append(_copied(folder, name, tensors.dtype_of(name), wanted.shapes[0], tensors.take))
        yield Conversion(folder, raw, tuple(new), companions(folder))


def _copied(source: Path, name: str, dtype: str, shape: tuple[int, ...], take: Callable[[str], Tensor]) -> NewTensor:
    def make() -> Tensor:
        tensor = take(name)
        if not is_finite(tensor):
            raise CheckpointError(source, [f"{name} holds NaN or infinity"])
        return tensor

    return NewTensor(name, dtype, shape, make)


def _ternarized(
    source: Path, name: str, shape: tuple[int, ...], take: Callable[[str], Tensor]
) -> tuple[NewTensor, NewTensor]:
    """The planes of one master and its scale, which is known once the planes are made."""
    scales: list[float] = []

    def planes() -> Tensor:
        master = take(name)
        mean = absmean(master)
        if not 0 < mean < math.inf:
            raise CheckpointError(source, [f"{name} has a mean magnitude of {mean:g}; it must be finite and above 0"])
        packed, scale = ternarize(master, mean)
        scales.append(scale)
        return packed

    def scale() -> Tensor:
        return torch.tensor(scales, dtype=torch.bfloat16)

    packed_shape = (shape[0] // 4, shape[1])
    return NewTensor(name, "U8", packed_shape, planes), NewTensor(name + "_scale", "BF16", (1,), scale)


def companions(folder: Path) -> tuple[Path, ...]:
    """The tokenizer, the template and the papers of a checkpoint: what a converted one takes over unchanged."""
    found = {path for pattern in COPIED for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(path for path in found if path.name not in NOT_COPIED))


@contextmanager
def from_gguf(path: Path, tokenizer: Path) -> Iterator[Conversion]:
    """A GGUF file of I2_S tensors, with the tokenizer of a folder. Raises CheckpointError."""
    if not (tokenizer / "tokenizer.json").is_file():
        raise CheckpointError(tokenizer, ["there is no tokenizer.json: give the folder of the model's tokenizer"])
    try:
        with GgufFile(path) as file:
            raw = _config_of(path, file)
            config = _checked_config(path, raw, tokenizer)
            yield Conversion(path, raw, tuple(_gguf_tensors(path, file, config)), companions(tokenizer))
    except TensorFileError as error:
        raise CheckpointError(path, error.problems) from error


def _config_of(path: Path, file: GgufFile) -> JsonObject:
    """config.json from the metadata of a file. What is missing becomes null, and a problem when the config is read."""
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        cure = "take the safetensors repository of the model"
        raise CheckpointError(path, [f"architecture {brief(architecture)}; read is {ARCHITECTURES[0]}: {cure}"])

    def key(name: str) -> object:
        return metadata.get(f"{architecture}.{name}")

    if key("rope.scaling.type") not in (None, "none"):
        raise CheckpointError(
            path, [f"rope.scaling.type is {brief(key('rope.scaling.type'))}; scaled RoPE is not served"]
        )
    if key("attention.layer_norm_rms_epsilon") is None:  # the other keys are missed when the config is read
        raise CheckpointError(path, [f"{architecture}.attention.layer_norm_rms_epsilon is missing"])
    embedding = file.tensors.get("token_embd.weight")
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": embedding.shape[0] if embedding is not None else None,
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"),
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "head_dim": key("rope.dimension_count"),
        "hidden_act": "relu2",
        "max_position_embeddings": key("context_length"),
        "rms_norm_eps": _shortest(key("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(key("rope.freq_base") or GGUF_ROPE_THETA),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "bfloat16",
        "quantization_config": PACKED,
    }


def _shortest(value: object) -> object:
    """The decimal that a float32 of the file was written as: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _checked_config(path: Path, raw: JsonObject, tokenizer: Path) -> ModelConfig:
    """What the loader will make of it, with the end tokens that the tokenizer's folder adds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(raw))
        generation = tokenizer / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        try:
            return ModelConfig.from_folder(folder)
        except CheckpointError as error:
            raise CheckpointError(path, error.problems) from None


def _gguf_names(config: ModelConfig) -> dict[str, str]:
    """Our name of each tensor -> the file's."""
    names = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight"}
    if not config.tie_word_embeddings:
        names[HEAD] = "output.weight"
    for index in range(config.num_layers):
        layer, block = layer_names(config, index), f"blk.{index}."
        norms = (layer.attn_norm, layer.attn_sub_norm, layer.ffn_norm, layer.ffn_sub_norm)
        projections = [name + ".weight" for linear in layer.linears() for name, _ in linear.projections]
        pairs = zip((*norms, *projections), (*GGUF_NORMS, *GGUF_PROJECTIONS), strict=True)
        names |= {mine: f"{block}{theirs}.weight" for mine, theirs in pairs if mine is not None}
    return names


def _gguf_tensors(path: Path, file: GgufFile, config: ModelConfig) -> Iterator[NewTensor]:
    """Every tensor, after the set and the shapes were found to be exactly what the config asks for."""
    names, expected = _gguf_names(config), expected_tensors(config)
    problems = [f"{name} is missing" for name in names.values() if name not in file.tensors]
    problems += [f"{brief(name)} is no part of this model" for name in sorted(file.tensors.keys() - names.values())]
    problems += [
        problem
        for mine, theirs in names.items()
        if theirs in file.tensors
        for problem in _misfits(file.tensors[theirs], expected[mine].shapes[0], mine + "_scale" in expected)
    ]
    if problems:
        raise CheckpointError(path, problems)
    for mine, theirs in names.items():
        tensor = file.tensors[theirs]
        if tensor.type_id == I2_S:
            yield from _repacked(path, file, mine, tensor)
        else:
            yield _float(path, file, mine, tensor)


def _misfits(tensor: GgufTensor, packed: tuple[int, ...], is_ternary: bool) -> Iterator[str]:
    """`packed`: the shape it will have, in which a ternary tensor has a quarter of the rows."""
    wanted = (4 * packed[0], packed[1]) if is_ternary else packed
    if tensor.shape != wanted:
        yield f"{tensor.name} has shape {list(tensor.shape)}, wanted {list(wanted)}"
    if is_ternary != (tensor.type_id == I2_S):
        found, wanted_kind = ("floats", "I2_S") if is_ternary else ("I2_S", "floats")
        yield f"{tensor.name} holds {found}, wanted {wanted_kind}"


def _float(path: Path, file: GgufFile, name: str, tensor: GgufTensor) -> NewTensor:
    dtype, _ = FLOAT_TYPES[tensor.type_id]

    def take(_: str) -> Tensor:
        return torch.from_numpy(file.read(tensor)).view(DTYPES[dtype]).reshape(tensor.shape)

    return _copied(path, name, dtype, tensor.shape, take)


def _repacked(path: Path, file: GgufFile, name: str, tensor: GgufTensor) -> tuple[NewTensor, NewTensor]:
    """The planes of one I2_S tensor and its scale, bf16 where that holds it exactly."""
    scale = file.read_scale(tensor)
    if not 0 < scale < math.inf:
        raise CheckpointError(path, [f"{tensor.name} has the scale {scale:g}; it must be finite and above 0"])
    stored = torch.tensor([scale], dtype=torch.bfloat16)
    is_exact = float(stored) == scale
    rows, columns = tensor.shape

    def planes() -> Tensor:
        codes = i2s_codes(file.read(tensor), tensor.shape)
        problem = _implausible(codes)
        if problem is not None:
            raise CheckpointError(path, [f"{tensor.name} {problem}"])
        quarters = codes.reshape(4, rows // 4, columns)
        return torch.from_numpy(quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6)

    def scales() -> Tensor:
        return stored if is_exact else torch.tensor([scale], dtype=torch.float32)

    return (
        NewTensor(name, "U8", (rows // 4, columns), planes),
        NewTensor(name + "_scale", "BF16" if is_exact else "F32", (1,), scales),
    )


def _implausible(codes: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str | None:
    """Why these are no ternary weights in the layout that is read here, or None."""
    if (codes == 3).any():
        return "holds the unused code 3: it is no ternary tensor in the x86 layout of I2_S, or damaged"
    zeros = float((codes == 1).mean())
    if not LEAST_ZEROS <= zeros <= MOST_ZEROS:
        return f"has {zeros:.1%} zeros; a BitNet tensor has between {LEAST_ZEROS:.0%} and {MOST_ZEROS:.0%}"
    return None
