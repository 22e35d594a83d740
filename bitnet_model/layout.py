"""The tensors a checkpoint must hold, derived from its config: names, shapes and dtypes, and nothing else.

The names are those of transformers' BitNetForCausalLM and LlamaForCausalLM. Projections that share an input are fused,
so each linear is a list of names. Knows no files and no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitnet_model.config import ModelConfig

FLOATS = ("BF16", "F16", "F32")
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Expected:
    """What one tensor must be; `shapes` holds every acceptable shape, the usual one first."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinearNames:
    """One fused ternary linear: the projections whose outputs follow one another, with the size of each."""

    projections: tuple[tuple[str, int], ...]
    num_inputs: int


@dataclass(frozen=True, slots=True)
class LayerNames:
    """The names of one layer; a sub-norm is None where the family has none."""

    attn_norm: str
    qkv: LinearNames
    attn_sub_norm: str | None
    o: LinearNames
    ffn_norm: str
    gate_up: LinearNames
    ffn_sub_norm: str | None
    down: LinearNames

    def linears(self) -> tuple[LinearNames, ...]:
        return self.qkv, self.o, self.gate_up, self.down


def layer_names(config: ModelConfig, index: int) -> LayerNames:
    """The names of layer `index`."""
    attn, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.attention_size, config.kv_size
    return LayerNames(
        attn_norm=f"model.layers.{index}.input_layernorm.weight",
        qkv=LinearNames(((attn + "q_proj", q), (attn + "k_proj", kv), (attn + "v_proj", kv)), hidden),
        attn_sub_norm=attn + "attn_sub_norm.weight" if config.sub_norms else None,
        o=LinearNames(((attn + "o_proj", hidden),), q),
        ffn_norm=f"model.layers.{index}.post_attention_layernorm.weight",
        gate_up=LinearNames(((mlp + "gate_proj", inner), (mlp + "up_proj", inner)), hidden),
        ffn_sub_norm=mlp + "ffn_sub_norm.weight" if config.sub_norms else None,
        down=LinearNames(((mlp + "down_proj", hidden),), inner),
    )


def expected_tensors(config: ModelConfig) -> dict[str, Expected]:
    """Every tensor of the checkpoint by name."""
    hidden = config.hidden_size
    table = Expected(((config.vocab_size, hidden),), FLOATS)
    expected = {EMBEDDING: table, FINAL_NORM: _gain(hidden)}
    if not config.tie_word_embeddings:
        expected[HEAD] = table
    for index in range(config.num_layers):
        names = layer_names(config, index)
        expected[names.attn_norm] = expected[names.ffn_norm] = _gain(hidden)
        if names.attn_sub_norm is not None:
            expected[names.attn_sub_norm] = _gain(hidden)
        if names.ffn_sub_norm is not None:
            expected[names.ffn_sub_norm] = _gain(config.intermediate_size)
        for linear in names.linears():
            for projection, num_outputs in linear.projections:
                expected |= _projection(config, projection, num_outputs, linear.num_inputs)
    return expected


def _gain(size: int) -> Expected:
    return Expected(((size,),), FLOATS)


def _projection(config: ModelConfig, name: str, num_outputs: int, num_inputs: int) -> dict[str, Expected]:
    if config.weights == "master":
        return {name + ".weight": Expected(((num_outputs, num_inputs),), FLOATS)}
    return {
        name + ".weight": Expected(((num_outputs // 4, num_inputs),), ("U8",)),
        name + ".weight_scale": Expected(((1,), ()), FLOATS),
    }
