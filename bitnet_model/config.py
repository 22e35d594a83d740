"""config.json and generation_config.json of a checkpoint folder, as a frozen ModelConfig.

Refuses what cannot be honoured, and reports every problem of a folder at once. Reads both spellings of transformers
(rope_theta / rope_parameters, torch_dtype / dtype), ignores auto_map (no remote code), and takes no number on trust:
each has a range, so that a hostile file cannot size an allocation. Stdlib only, so config errors need no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitnet_model.errors import CheckpointError
from bitnet_model.families import Defaults, recognise
from bitnet_model.keys import Keys, brief, is_integer
from bitnet_model.quantization import WeightFormat, weight_format
from bitnet_model.strict_json import JsonError, JsonObject, read_object

MAX_CONFIG_BYTES = 1 << 20
MAX_VOCAB = 1 << 22
MAX_LAYERS = 1024
MAX_HEADS = 1024
MAX_HEAD_DIM = 1024
MAX_POSITIONS = 1 << 20
MAX_TOKEN_IDS = 1024
# The integer sum of one output is at most 127 * K and must stay below 2^24 to be exact in fp32.
MAX_INPUTS = (1 << 24) // 127

FLOAT_DTYPES = ("bfloat16", "float16", "float32")
ROPE_KEYS = frozenset({"rope_theta", "rope_type", "type", "partial_rotary_factor"})


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the loader, the model and the engine need to know of a checkpoint.

    `weights` says how projections lie on disk: packed with a scale that multiplies (2B-4T) or divides (Falcon,
    Llama3-8B), or bf16 masters to be ternarized at load. `rope_scaling` is always None: scaled RoPE is refused.
    """

    family: Literal["bitnet", "llama"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    act: Literal["relu2", "silu"]
    sub_norms: bool
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: None
    max_position_embeddings: int
    tie_word_embeddings: bool
    weights: WeightFormat
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def attention_size(self) -> int:
        """Hq * D, the outputs of q_proj."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Hkv * D, the outputs of k_proj and of v_proj."""
        return self.num_kv_heads * self.head_dim

    @classmethod
    def from_folder(cls, path: Path) -> ModelConfig:
        """Read and check a folder's config files. Raises CheckpointError with every problem found."""
        try:
            raw = read_object(path / "config.json", MAX_CONFIG_BYTES)
        except JsonError as error:
            raise CheckpointError(path, [f"config.json {error}"]) from None
        family = recognise(raw)
        if family.defaults is None:
            raise CheckpointError(path, [f"config.json: {family.refusal}"])
        problems: list[str] = []
        keys = Keys(raw, "config.json", problems)
        config = _build(keys, _generation_config(path, problems), family.defaults)
        if not problems:
            problems.extend(_contradictions(config))
        if problems:
            raise CheckpointError(path, problems)
        return config


def _generation_config(path: Path, problems: list[str]) -> Keys:
    """The optional generation_config.json."""
    file = path / "generation_config.json"
    raw: JsonObject = {}
    if file.exists():
        try:
            raw = read_object(file, MAX_CONFIG_BYTES)
        except JsonError as error:
            problems.append(f"generation_config.json {error}")
    return Keys(raw, "generation_config.json", problems)


def _build(keys: Keys, generation: Keys, family: Defaults) -> ModelConfig:
    """Every key in one pass. Where problems were noted, the returned value holds stand-ins."""
    _refuse_biases(keys)
    num_heads = keys.integer("num_attention_heads", 1, MAX_HEADS)
    hidden_size = keys.integer("hidden_size", 4, MAX_INPUTS)
    vocab_size = keys.integer("vocab_size", 1, MAX_VOCAB)
    act = keys.choice("hidden_act", ("relu2", "silu"), family.act)
    bos_ids = _token_ids(keys, "bos_token_id", vocab_size) + _token_ids(generation, "bos_token_id", vocab_size)
    eos_ids = _token_ids(keys, "eos_token_id", vocab_size) + _token_ids(generation, "eos_token_id", vocab_size)
    return ModelConfig(
        family=family.family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size", 4, MAX_INPUTS),
        num_layers=keys.integer("num_hidden_layers", 1, MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=keys.integer("num_key_value_heads", 1, MAX_HEADS, num_heads),
        head_dim=keys.integer("head_dim", 2, MAX_HEAD_DIM, hidden_size // num_heads),
        act="relu2" if act == "relu2" else "silu",
        sub_norms=family.sub_norms,
        rms_norm_eps=keys.number("rms_norm_eps", 0.0, 1.0, family.rms_norm_eps),
        rope_theta=_rope_theta(keys, family.rope_theta),
        rope_scaling=None,
        max_position_embeddings=keys.integer("max_position_embeddings", 1, MAX_POSITIONS),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        weights=weight_format(keys),
        bos_token_id=bos_ids[0] if bos_ids else None,
        eos_token_ids=tuple(sorted(set(eos_ids))),
    )


def _refuse_biases(keys: Keys) -> None:
    """What changes the graph and is not served, and the dtype, which only has to be one we know."""
    for name in ("attention_bias", "mlp_bias"):
        if keys.flag(name, False):
            keys.problems.append(f"config.json: {name} is true; projections with a bias are not served")
    for name in ("dtype", "torch_dtype"):
        keys.choice(name, FLOAT_DTYPES, "bfloat16")


def _rope_theta(keys: Keys, default: float) -> float:
    """theta from whichever spelling holds it; scaled and partial RoPE are problems."""
    thetas = set()
    places = [keys, *(Keys(keys.section(name), name, keys.problems) for name in ("rope_parameters", "rope_scaling"))]
    for place in places:
        if place.raw.get("rope_theta") is not None:
            thetas.add(place.number("rope_theta", 1.0, 1e12, default))
        if place.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
            place.refuse("partial_rotary_factor", place.raw["partial_rotary_factor"], "1: RoPE over the whole head")
    for place in places[1:]:
        kind = place.raw.get("rope_type", place.raw.get("type", "default"))
        odd = sorted(place.raw.keys() - ROPE_KEYS)
        if kind != "default":
            place.refuse("rope_type", kind, "default: scaled RoPE is not served")
        elif odd:
            keys.problems.append(f"{place.where}: holds {brief(odd)}; scaled RoPE is not served")
    if len(thetas) > 1:
        keys.problems.append(f"config.json: rope_theta is given as {' and as '.join(f'{t:g}' for t in sorted(thetas))}")
    return next(iter(thetas), default)


def _token_ids(keys: Keys, name: str, vocab_size: int) -> list[int]:
    """An id of the vocabulary or a list of them; absent and null are none."""
    value: Any = keys.raw.get(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if len(values) > MAX_TOKEN_IDS or not all(is_integer(one) and 0 <= one < vocab_size for one in values):
        keys.refuse(name, value, f"ids of 0 to {vocab_size - 1}")
        return []
    return list(values)


def _contradictions(config: ModelConfig) -> list[str]:
    """Values that are fine one by one and impossible together."""
    heads = f"{config.num_heads} heads of {config.head_dim}"
    problems = []
    if config.num_heads % config.num_kv_heads:
        problems.append(f"{heads} are no multiple of {config.num_kv_heads} key-value heads")
    if config.head_dim % 2:
        problems.append(f"head_dim {config.head_dim} is odd, RoPE needs halves")
    if config.sub_norms and config.attention_size != config.hidden_size:
        problems.append(f"{heads} are not hidden_size {config.hidden_size}, which attn_sub_norm needs")
    if config.attention_size > MAX_INPUTS:
        problems.append(f"{heads} are more than {MAX_INPUTS} channels")
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention heads * head_dim": config.attention_size,
        "key-value heads * head_dim": config.kv_size,
    }
    problems += [f"{name} is {size}, no multiple of 4" for name, size in sizes.items() if size % 4]
    return [f"config.json: {problem}" for problem in problems]
