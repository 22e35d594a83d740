"""Our logits and those of transformers in bf16, each against the float64 evaluation of the same quantized model.

Teacher-forced on random ids, eager (compiled code keeps other roundings). Greedy equality with transformers is not
asked for: it disagrees with itself between prefill and decode by as much as with the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitnet_model.checkpoint import load_model
from bitnet_model.ops import CacheDtype, Ops
from tests.bitnet_model.traffic import Traffic
from tools.reference import Comparison, compare, load_reference, reference_logits

NUM_SEQUENCES, NUM_TOKENS = 4, 48
SPECIAL = 256
MAX_ERROR_RATIO = 1.1

Case = tuple[str, str]
CASES = [(preset, fmt) for preset in ("tiny", "small") for fmt in ("packed", "master", "llama")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def folder(request: pytest.FixtureRequest) -> Path:
    preset, fmt = request.param
    checkpoint: Path = request.getfixturevalue(f"{preset}_{fmt}")
    return checkpoint


@pytest.fixture(scope="module")
def sequences(folder: Path) -> list[list[int]]:
    model = load_reference(folder)
    generator = torch.Generator().manual_seed(11)
    size = (NUM_SEQUENCES, NUM_TOKENS)
    token_ids: list[list[int]] = torch.randint(model.config["vocab_size"] - SPECIAL, size, generator=generator).tolist()
    return token_ids


@pytest.fixture(scope="module")
def truth(folder: Path, sequences: list[list[int]]) -> Tensor:
    """float64 [sequences * tokens, V]."""
    model = load_reference(folder)
    return torch.cat([reference_logits(model, token_ids) for token_ids in sequences])


@pytest.fixture(scope="module")
def transformers_error(folder: Path, sequences: list[list[int]], truth: Tensor) -> Comparison:
    with pytest.MonkeyPatch.context() as environment, torch.inference_mode():
        environment.setenv("TORCHDYNAMO_DISABLE", "1")  # read where transformers decorates its quantizers: at import
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
        model, info = loaded
        assert not any(info.values()), "transformers must find every tensor of our checkpoints in its place"
        logits = [model(torch.tensor([token_ids])).logits[0] for token_ids in sequences]
    return compare(torch.cat(logits), truth)


@pytest.fixture(scope="module")
def our_error(ops: Ops, folder: Path, sequences: list[list[int]], truth: Tensor) -> Callable[[CacheDtype], Comparison]:
    model = load_model(folder, ops, head_dtype="int8")

    def measure(dtype: CacheDtype) -> Comparison:
        traffic = Traffic(model, dtype)
        rows = [traffic.admit(token_ids) for token_ids in sequences]
        traffic.run(rows, [NUM_TOKENS, 16, 1, 7])
        return compare(model.logits(torch.cat([hidden for row in rows for hidden in row.hidden])), truth)

    return measure


def test_our_error_is_at_most_1_1_times_that_of_transformers(
    our_error: Callable[[CacheDtype], Comparison], transformers_error: Comparison
) -> None:
    ours = our_error("bf16")
    print(f"ours: {ours}", f"transformers: {transformers_error}", sep="\n")
    assert ours.rms_error <= MAX_ERROR_RATIO * transformers_error.rms_error
    assert ours.kl <= transformers_error.kl
    assert ours.num_clear > NUM_SEQUENCES * NUM_TOKENS / 3
    assert ours.clear_agreement == 1.0


def test_an_int8_cache_agrees_wherever_the_choice_is_clear(our_error: Callable[[CacheDtype], Comparison]) -> None:
    ours = our_error("int8")
    assert ours.num_clear > NUM_SEQUENCES * NUM_TOKENS / 3
    assert ours.clear_agreement == 1.0
