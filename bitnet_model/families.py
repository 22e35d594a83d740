"""The one table of model families: what a config.json is recognised as, and whether it can be served.

Served are models of ternary weights and 8-bit activations per token in the graphs of `bitnet` and `llama`. What is
recognised and not served is refused with the reason, so that nobody gets a model that loads and is wrong. Rows are
tried in order; the first whose `matches` holds decides. Knows config keys only, no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bitnet_model.keys import brief
from bitnet_model.strict_json import JsonObject


@dataclass(frozen=True, slots=True)
class Defaults:
    """What transformers assumes where a config.json of the family is silent."""

    family: Literal["bitnet", "llama"]
    sub_norms: bool
    act: Literal["relu2", "silu"]
    rms_norm_eps: float
    rope_theta: float


@dataclass(frozen=True, slots=True)
class Family:
    """One row: served if `defaults` is set, else refused with `refusal`."""

    title: str
    matches: Callable[[JsonObject], bool]
    defaults: Defaults | None = None
    refusal: str = ""


def _type_is(*names: str) -> Callable[[JsonObject], bool]:
    return lambda raw: raw.get("model_type") in names


def _quant_method(raw: JsonObject) -> object:
    quantization = raw.get("quantization_config")
    return quantization.get("quant_method") if isinstance(quantization, dict) else None


def _architecture_is(*names: str) -> Callable[[JsonObject], bool]:
    def matches(raw: JsonObject) -> bool:
        architectures = raw.get("architectures")
        return isinstance(architectures, list) and any(name in architectures for name in names)

    return matches


def _is_four_bit(raw: JsonObject) -> bool:
    return raw.get("input_bits") == 4


def _is_first_release(raw: JsonObject) -> bool:
    return _architecture_is("BitnetForCausalLM")(raw) or raw.get("weight_bits") == 1


def _is_plain_llama(raw: JsonObject) -> bool:
    return raw.get("model_type") == "llama" and raw.get("quantization_config") is None


def _is_ternary_qwen(raw: JsonObject) -> bool:
    return raw.get("model_type") == "qwen3" and _quant_method(raw) != "bitnet"


FAMILIES: tuple[Family, ...] = (
    Family(
        "BitNet a4.8 / v2",
        _is_four_bit,
        refusal="it needs 4-bit activations (BitNet a4.8, v2); only 8-bit activations are served",
    ),
    Family(
        "1bitLLM bitnet_b1_58",
        _is_first_release,
        refusal="it is of the 1bitLLM/bitnet_b1_58 kind (float masters under other tensor names, a tokenizer class of "
        "its own), which this version does not read; loading it as a Llama would be silently wrong",
    ),
    Family(
        "bitnet",
        _type_is("bitnet"),
        Defaults("bitnet", sub_norms=True, act="relu2", rms_norm_eps=1e-5, rope_theta=500000.0),
    ),
    Family(
        "plain llama",
        _is_plain_llama,
        refusal="it is a Llama without quantization_config, so its weights are not BitNet's: an ordinary float model "
        "(Falcon-E's 'bfloat16' revision is one) or a TriLM (ternary weights, but 16-bit activations). Ternarizing it "
        "at load would change the model. Of Falcon-E take the main revision, not 'prequantized' or 'bfloat16'",
    ),
    Family(
        "llama",
        _type_is("llama"),
        Defaults("llama", sub_norms=False, act="silu", rms_norm_eps=1e-6, rope_theta=10000.0),
    ),
    Family(
        "Ternary Bonsai",
        _is_ternary_qwen,
        refusal="it is a Qwen3 without BitNet linears: an ordinary model, or a Ternary-Bonsai (a scale per 128 "
        "weights, 16-bit activations), which needs another kernel",
    ),
    Family(
        "BitNet embedding",
        _type_is("qwen3", "gemma3_text"),
        refusal="it is a BitNet embedding model (norms inside each projection, last-token pooling); this server "
        "generates text and has no embeddings",
    ),
    Family("MMfreeLM", _type_is("hgrn_bit"), refusal="it is an MMfreeLM: a recurrent model without attention"),
)


def recognise(raw: JsonObject) -> Family:
    """The family of a parsed config.json; an unknown one comes back as a refused family that says so."""
    for family in FAMILIES:
        if family.matches(raw):
            return family
    kind = brief(raw.get("model_type"))
    return Family(
        "unknown", lambda _: True, refusal=f"model_type {kind} is not a BitNet family (served: bitnet, llama)"
    )
