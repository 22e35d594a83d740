"""The honest metric: our logits and those of transformers, each against a float64 evaluation of the same checkpoint.

Agreement with transformers is not asked for: in bf16 it is as far from the truth as anyone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triton_kernels
from benchmarks.gpu.bench import BLOCK_TOKENS, Figure, Options, batch_of
from bitnet_model.checkpoint import load_model
from tools.make_checkpoint import write_checkpoint
from tools.reference import Comparison, compare, load_reference, reference_logits

MAX_ERROR_RATIO = 1.1


def logits(options: Options) -> Iterator[Figure]:
    """Random checkpoints of both families, small enough for float64 on the host."""
    presets = ("small", "medium") if options.on_gpu else ("tiny",)
    num_tokens = 64 if options.on_gpu else 5
    for preset in presets:
        for family in ("packed", "llama"):
            shape = {} if options.on_gpu else {"layers": 1, "hidden": 64, "inter": 96, "heads": 2, "kv_heads": 1}
            with tempfile.TemporaryDirectory() as folder:
                path = write_checkpoint(Path(folder), family, preset, **shape)
                yield from errors(f"{preset} {family}", path, num_tokens, options)


def errors(name: str, folder: Path, num_tokens: int, options: Options) -> Iterator[Figure]:
    reference = load_reference(folder)
    rng = torch.Generator().manual_seed(11)
    # the tokenizer's special tokens come last and have nothing to say here
    token_ids = torch.randint(0, reference.config["vocab_size"] // 2, (num_tokens,), generator=rng)
    truth = reference_logits(reference, token_ids.tolist())
    theirs = compare(of_transformers(folder, token_ids, options), truth)
    for head_dtype in ("bf16", "int8"):
        ours = compare(ours_of(folder, token_ids, options, head_dtype), truth)
        yield figure(f"{name}, {head_dtype} head: error / that of transformers", ours, theirs)


def figure(case: str, ours: Comparison, theirs: Comparison) -> Figure:
    ratio = ours.rms_error / theirs.rms_error
    ok = ratio <= MAX_ERROR_RATIO and ours.clear_agreement == 1.0
    return Figure(case, ratio, "", least=MAX_ERROR_RATIO, ok=ok)


def ours_of(folder: Path, token_ids: Tensor, options: Options, head_dtype: str) -> Tensor:
    model = load_model(folder, triton_kernels.load(options.device), head_dtype=head_dtype)
    blocks = -(-len(token_ids) // BLOCK_TOKENS)
    cache = model.new_cache(blocks, BLOCK_TOKENS, "bf16")
    return model.logits(model.forward(batch_of([(token_ids, 0)], blocks), cache)).cpu()


def of_transformers(folder: Path, token_ids: Tensor, options: Options) -> Tensor:
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # read where transformers decorates its quantizers: at import
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=options.device)
    with torch.inference_mode():
        found: Tensor = loaded(token_ids[None].to(options.device)).logits[0].cpu()
    return found
