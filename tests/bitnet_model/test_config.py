"""config.json -> ModelConfig: what is served, what is refused and with which reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitnet_model.config import ModelConfig
from bitnet_model.errors import CheckpointError
from bitnet_model.quantization import QUANTIZATION_KEYS

BITNET: dict[str, Any] = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "auto_map": {"AutoConfig": "configuration_bitnet.BitNetConfig"},
    "vocab_size": 128256,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 30,
    "num_attention_heads": 20,
    "num_key_value_heads": 5,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    },
}
FALCON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 131072,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000042,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "eos_token_id": 11,
    "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]},
}


def read(folder: Path, raw: Any, generation: Any = None) -> ModelConfig:
    (folder / "config.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_folder(folder)


def problems_of(folder: Path, raw: Any, generation: Any = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder, raw, generation)
    return "\n".join(caught.value.problems)


def quantized(**changes: Any) -> dict[str, Any]:
    return FALCON | {"quantization_config": FALCON["quantization_config"] | changes}


def test_the_published_2b4t_config_is_read_with_both_of_its_end_tokens(tmp_path: Path) -> None:
    config = read(tmp_path, BITNET, {"bos_token_id": 128000, "eos_token_id": [128001, 128009]})
    assert config.family == "bitnet"
    assert config.weights == "packed_multiply"
    assert config.sub_norms
    assert config.act == "relu2"
    assert config.head_dim == 128
    assert config.tie_word_embeddings
    assert config.bos_token_id == 128000
    assert config.eos_token_ids == (128001, 128009)


def test_a_falcon_config_divides_by_its_scales_and_keeps_its_own_head_size(tmp_path: Path) -> None:
    config = read(tmp_path, FALCON)
    assert config.family == "llama"
    assert config.weights == "packed_divide"
    assert not config.sub_norms
    assert (config.head_dim, config.attention_size, config.kv_size) == (256, 2048, 1024)
    assert config.bos_token_id is None
    assert config.eos_token_ids == (11,)


def test_the_online_mode_means_masters(tmp_path: Path) -> None:
    quantization = BITNET["quantization_config"] | {"quantization_mode": "online"}
    assert read(tmp_path, BITNET | {"quantization_config": quantization}).weights == "master"


def test_the_linear_class_alone_decides_between_multiply_and_divide(tmp_path: Path) -> None:
    assert read(tmp_path, quantized(linear_class="autobitlinear")).weights == "packed_multiply"
    assert read(tmp_path, quantized(linear_class="bitlinear")).weights == "packed_divide"


def test_rope_theta_is_read_in_the_spelling_of_transformers_5(tmp_path: Path) -> None:
    raw = {key: value for key, value in BITNET.items() if key not in ("rope_theta", "torch_dtype")}
    raw |= {"rope_parameters": {"rope_theta": 250000.0, "rope_type": "default"}, "dtype": "bfloat16"}
    assert read(tmp_path, raw).rope_theta == 250000.0


def test_a_silent_config_gets_the_defaults_of_its_family(tmp_path: Path) -> None:
    silent = {key: value for key, value in FALCON.items() if key not in ("rope_theta", "hidden_act", "rms_norm_eps")}
    config = read(tmp_path, silent | {"num_key_value_heads": None})
    assert (config.rope_theta, config.act, config.rms_norm_eps, config.num_kv_heads) == (10000.0, "silu", 1e-6, 8)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({k: v for k, v in FALCON.items() if k != "quantization_config"}, "TriLM"),
        ({k: v for k, v in BITNET.items() if k != "quantization_config"}, "quantization_config is missing"),
        ({"model_type": "qwen3"}, "Bonsai"),
        ({"model_type": "qwen3", "quantization_config": {"quant_method": "bitnet"}}, "embedding model"),
        ({"model_type": "gemma3_text"}, "embedding model"),
        ({"model_type": "hgrn_bit"}, "MMfreeLM"),
        (FALCON | {"architectures": ["BitnetForCausalLM"], "weight_bits": 1, "input_bits": 8}, "1bitLLM"),
        (BITNET | {"input_bits": 4}, "4-bit activations"),
        ({"model_type": "mistral"}, "'mistral' is not a BitNet family"),
        ({}, "model_type None"),
    ],
)
def test_families_that_are_not_served_are_refused_with_the_reason(
    tmp_path: Path, raw: dict[str, Any], reason: str
) -> None:
    assert reason in problems_of(tmp_path, raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (quantized(quant_method="gptq"), "quant_method is 'gptq'"),
        (quantized(linear_class="linear"), "linear_class is 'linear'"),
        (quantized(quantization_mode="sometimes"), "quantization_mode is 'sometimes'"),
        (quantized(quantization_mode="online"), "needs linear_class autobitlinear"),
        (quantized(use_rms_norm=True), "use_rms_norm is true"),
        (quantized(bits=2), "'bits' is not a key"),
        (quantized(modules_to_not_convert=[]), "leaves out lm_head"),
        (quantized(modules_to_not_convert=["lm_head", "mlp.*"]), "names 'mlp.*'"),
        (quantized(modules_to_not_convert="lm_head"), "wanted a list"),
        (FALCON | {"quantization_config": [1]}, "wanted an object"),
        (FALCON | {"attention_bias": True}, "attention_bias is true"),
        (FALCON | {"mlp_bias": True}, "mlp_bias is true"),
        (FALCON | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "scaled RoPE is not served"),
        (FALCON | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled RoPE is not served"),
        (FALCON | {"rope_parameters": {"factor": 2.0}}, "scaled RoPE is not served"),
        (FALCON | {"rope_parameters": {"rope_theta": 10000.0}}, "given as 10000 and as"),
        (FALCON | {"partial_rotary_factor": 0.5}, "RoPE over the whole head"),
        (FALCON | {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (FALCON | {"torch_dtype": "int8"}, "torch_dtype is 'int8'"),
        (FALCON | {"num_key_value_heads": 3}, "no multiple of 3"),
        (FALCON | {"intermediate_size": 8191}, "no multiple of 4"),
        (FALCON | {"head_dim": 7}, "is odd"),
        (FALCON | {"eos_token_id": 131072}, "eos_token_id is 131072"),
        (FALCON | {"eos_token_id": [11, True]}, "eos_token_id is [11, True]"),
        (BITNET | {"head_dim": 64}, "which attn_sub_norm needs"),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused(tmp_path: Path, raw: dict[str, Any], reason: str) -> None:
    assert reason in problems_of(tmp_path, raw)


@pytest.mark.parametrize("value", ["2560", 2560.0, 1e30, True, -4, 0, 1 << 40, 10**4000, [2560], {"a": 1}, None])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_size_of_the_wrong_type_or_range_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    assert f"{name} is " in problems_of(tmp_path, BITNET | {name: value})


@pytest.mark.parametrize("value", ["1", True, -1.0, 0, 1e300, [], 10**400])
@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
def test_a_number_of_the_wrong_type_or_range_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    assert f"{name} is " in problems_of(tmp_path, BITNET | {name: value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        '{"model_type": "bitnet", "model_type": "llama"}',
        '{"rms_norm_eps": NaN}',
        '{"rms_norm_eps": Infinity}',
        '{"hidden_size": ' + "9" * 5000 + "}",
        '{"a":' * 100_000,
        "[" * 100_000,
        '{"a": "' + "x" * (1 << 20) + '"}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_a_file_that_is_no_sane_json_object_is_refused(tmp_path: Path, text: str) -> None:
    assert "config.json" in problems_of(tmp_path, text)


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        ModelConfig.from_folder(tmp_path)


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    raw = BITNET | {"hidden_size": -1, "rope_theta": "x", "attention_bias": True, "quantization_config": {"a": 1}}
    found = problems_of(tmp_path, raw, {"eos_token_id": -5})
    for name in ("hidden_size", "rope_theta", "attention_bias", "quant_method", "generation_config.json: eos_token_id"):
        assert name in found


def test_a_flood_of_problems_is_counted_and_not_printed() -> None:
    error = CheckpointError("folder", [f"problem {index}" for index in range(1000)])
    assert len(error.problems) == 1000
    assert "and 960 more" in str(error)
    assert len(str(error)) < 2000


def test_no_value_of_any_key_gets_past_a_refusal_as_another_error(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    values = [None, True, -1, 0, 10**300, 1e308, -0.5, "", "x" * 10_000, "\ud800", [], [[]], {}, {"a": {}}, deep]
    served = 0
    for base in (BITNET, FALCON):
        quantization = base["quantization_config"]
        names = {*base, "rope_parameters", "rope_scaling", "head_dim", "dtype", "input_bits", "weight_bits"}
        for value in values:
            edited = [base | {name: value} for name in sorted(names)]
            edited += [base | {"quantization_config": quantization | {name: value}} for name in QUANTIZATION_KEYS]
            edited += [base | {"rope_parameters": {name: value}} for name in ("rope_theta", "rope_type", "factor")]
            for raw in edited:
                try:
                    read(tmp_path, raw, {"eos_token_id": value})
                    served += 1
                except CheckpointError as error:
                    str(error).encode()
    assert served
