"""quantization_config of a config.json: how the projections of a checkpoint lie on disk.

Follows transformers' BitNetQuantConfig and refuses every value that would change the model in a way not served here.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from bitnet_model.keys import Keys, brief

WeightFormat: TypeAlias = Literal["packed_multiply", "packed_divide", "master"]

QUANTIZATION_KEYS = frozenset(
    {"quant_method", "linear_class", "quantization_mode", "modules_to_not_convert", "use_rms_norm", "rms_norm_eps"}
)
UNCONVERTED_MODULES = frozenset({"lm_head", "embed_tokens", "model.embed_tokens", "norm", "model.norm"})
MAX_NAMED = 8


def weight_format(config: Keys) -> WeightFormat:
    """The storage of the projections; anything not understood becomes a problem of `config`.

    Multiply or divide is decided by linear_class alone, never by the magnitude of a scale.
    """
    if config.raw.get("quantization_config") is None:
        config.problems.append("config.json: quantization_config is missing; without it the weights are not BitNet's")
        return "packed_multiply"
    keys = Keys(config.section("quantization_config"), "quantization_config", config.problems)
    if keys.raw.get("quant_method") != "bitnet":
        keys.refuse("quant_method", keys.raw.get("quant_method"), "bitnet")
        return "packed_multiply"
    linear_class = keys.choice("linear_class", ("bitlinear", "autobitlinear"), "bitlinear")
    mode = keys.choice("quantization_mode", ("offline", "online"), "offline")
    if keys.flag("use_rms_norm", False):
        keys.problems.append("quantization_config: use_rms_norm is true; norms inside projections are not served")
    for name in sorted(keys.raw.keys() - QUANTIZATION_KEYS)[:MAX_NAMED]:
        keys.problems.append(f"quantization_config: {brief(name)} is not a key of the bitnet method")
    keys.problems.extend(_conversion_problems(keys.raw.get("modules_to_not_convert")))
    if linear_class == "autobitlinear":
        return "master" if mode == "online" else "packed_multiply"
    if mode == "online":
        keys.problems.append("quantization_config: quantization_mode online needs linear_class autobitlinear")
    return "packed_divide"


def _conversion_problems(modules: Any) -> list[str]:
    """Served is one arrangement: every projection ternary, the head not.

    Upstream the entries are patterns; a stranger's pattern is never run here, so only plain names are understood.
    """
    if modules is None:
        return []
    if not isinstance(modules, list):
        return [f"quantization_config: modules_to_not_convert is {brief(modules)}, wanted a list"]
    odd = [name for name in modules if not isinstance(name, str) or name not in UNCONVERTED_MODULES]
    problems = [
        f"quantization_config: modules_to_not_convert names {brief(name)}; every projection must be ternary"
        for name in odd[:MAX_NAMED]
    ]
    if "lm_head" not in modules:
        problems.append("quantization_config: modules_to_not_convert leaves out lm_head; a ternary head is not served")
    return problems
