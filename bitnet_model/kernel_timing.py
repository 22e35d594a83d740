"""How long the linears and the head of a model's shape take on a wing, by tokens in a step.

Weights are random codes in the model's shapes. As in the model, a call finds other weights than the one before it: as
many copies take turns as the model has layers, up to COPIES_BYTES. Knows nothing of files.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bitnet_model.config import ModelConfig
from bitnet_model.layout import LinearNames, layer_names
from bitnet_model.ops import Ops

COPIES_BYTES = 64 << 20
ROUND_S = 0.05
NUM_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """One kernel at one size: the median of some rounds, in seconds a call, and the least of them.

    weight_bytes: two bits a ternary weight, one byte a weight of the head; operations: multiplications and additions.
    """

    name: str
    tokens: int
    median_s: float
    least_s: float
    weight_bytes: int
    operations: int


def time_kernels(config: ModelConfig, ops: Ops, tokens: Sequence[int]) -> Iterator[Timing]:
    """Every linear of a layer and the head, at each number of tokens."""
    names = ("q|k|v", "output", "gate|up", "down")
    for name, linear in zip(names, layer_names(config, 0).linears(), strict=True):
        yield from _time_linear(name, linear, config.num_layers, ops, tokens)
    yield from _time_head(config, ops, tokens)


def _time_linear(name: str, linear: LinearNames, num_layers: int, ops: Ops, tokens: Sequence[int]) -> Iterator[Timing]:
    num_inputs = linear.num_inputs
    num_outputs = sum(rows for _, rows in linear.projections)
    weight_bytes = num_outputs * num_inputs // 4
    generator = torch.Generator().manual_seed(0)

    def planes(rows: int) -> torch.Tensor:
        codes = torch.randint(0, 3, (4, rows // 4, num_inputs), generator=generator, dtype=torch.uint8)
        return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6

    copies = [
        ops.pack([(planes(rows), torch.ones(rows)) for _, rows in linear.projections])
        for _ in range(max(1, min(num_layers, COPIES_BYTES // weight_bytes)))
    ]
    for count in tokens:
        q = ops.quantize(torch.randn(count, num_inputs, generator=generator))
        runs = [lambda w=weights, q=q: ops.ternary_linear(q, w) for weights in copies]
        yield Timing(name, count, *_seconds(runs), weight_bytes, 2 * count * num_outputs * num_inputs)


def _time_head(config: ModelConfig, ops: Ops, tokens: Sequence[int]) -> Iterator[Timing]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.empty(config.vocab_size, config.hidden_size, dtype=torch.bfloat16).normal_(generator=generator)
    head_dtype = "int8" if "int8" in ops.head_dtypes else ops.head_dtypes[0]
    table = ops.pack_table(weight, embedding=False, head_dtype=head_dtype)
    del weight
    gain = torch.ones(config.hidden_size)
    size = config.vocab_size * config.hidden_size
    for count in tokens:
        x = torch.randn(count, config.hidden_size, generator=generator)
        none = torch.full((count, 0), -1, dtype=torch.int64)
        run = [lambda x=x, none=none: ops.head_topk(x, gain, 1e-5, table, 40, none)]
        yield Timing(f"head {head_dtype}, top 40", count, *_seconds(run), size, 2 * count * size)


def _seconds(runs: Sequence[Callable[[], object]]) -> tuple[float, float]:
    """(median, least) of NUM_ROUNDS rounds, in seconds a call; a round takes all of `runs` in turn, over and over."""
    with torch.inference_mode():
        began = time.perf_counter()
        for run in runs:
            run()
        once_s = max(1e-9, time.perf_counter() - began)
        turns = max(1, round(ROUND_S / once_s))
        found = []
        for _ in range(NUM_ROUNDS):
            began = time.perf_counter()
            for _ in range(turns):
                for run in runs:
                    run()
            found.append((time.perf_counter() - began) / (turns * len(runs)))
    return statistics.median(found), min(found)
