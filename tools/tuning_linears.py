"""The tiles of the ternary linears: compiled side by side beforehand, timed one by one, the most important first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tools.tuner import Tuner, passed_over, shapes
from tools.tuning_candidates import (
    choose,
    gated_candidates,
    gated_dense_candidates,
    linear_candidates,
)
from tools.tuning_compiler import Compilers, Job
from triton_kernels.dense_gated import dense_gated
from triton_kernels.device import Device
from triton_kernels.gated import gated_linear
from triton_kernels.linear import ternary_linear
from triton_kernels.pack import Weights, padded
from triton_kernels.pointwise import gate_quantize, quantize
from triton_kernels.tuning import (
    GATED_DENSE_FROM,
    DenseTile,
    LinearTile,
    dense_gated_key,
    dense_key,
    dense_tile,
    gated_key,
    linear_key,
    linear_tile,
    regime,
)


@dataclass(frozen=True, slots=True)
class Linear:
    """One shape at one number of tokens: the tiles to try, the one of the heuristic first, and the key of each kind."""

    tokens: int
    num_outputs: int
    num_inputs: int
    tiles: tuple[LinearTile | DenseTile, ...]
    keys: dict[type, str]
    gated: bool = False

    def jobs(self) -> list[Job]:
        shape = (self.tokens, self.num_outputs, self.num_inputs)
        return [Job(self.keys[type(tile)], tile, *shape, self.gated) for tile in self.tiles]


def linears(tuner: Tuner) -> list[Linear]:
    """What is missing, the most important first."""
    found = []
    for bucket in tuner.buckets:
        for n, k in dict.fromkeys(shapes(tuner.preset).values()):
            form, packed_k, device = regime(bucket, tuner.device.dp4a), padded(k), tuner.device
            keys = {LinearTile: linear_key(form, bucket, n // 4, packed_k), DenseTile: dense_key(bucket, n, packed_k)}
            untuned = dataclasses.replace(device, tuned={})
            heuristic = dense_tile(bucket, n, packed_k, untuned) or linear_tile(bucket, n // 4, packed_k, untuned)
            tiles = dict.fromkeys((heuristic, *linear_candidates(form, bucket, n // 4, packed_k, device)))
            if tuner.wants(*keys.values()):
                found.append(Linear(bucket, n, k, tuple(tiles), keys))
    return found


def gates(tuner: Tuner) -> list[Linear]:
    """Gate and up multiplied in the epilogue, on packed weights for few tokens and on int8 ones for many."""
    n, k = shapes(tuner.preset)["gate_up"]
    found = []
    for bucket in tuner.buckets:
        form = regime(bucket, tuner.device.dp4a)
        keys = {LinearTile: gated_key(bucket, n // 4, padded(k)), DenseTile: dense_gated_key(bucket, n, padded(k))}
        packed = gated_candidates(form, bucket, n // 4, padded(k), tuner.device)
        tiles = [*gated_dense_candidates(bucket, tuner.device)] if bucket >= 16 else [*packed]
        if tiles and tuner.wants(*keys.values()):
            found.append(Linear(bucket, n, k, tuple(dict.fromkeys(tiles)), keys, gated=True))
    return found


def tune_linears(tuner: Tuner) -> Iterator[str]:
    """Each shape at each number of tokens; yields a key when its row is settled."""
    yield from settled(tuner, linears(tuner), timed_linear)


def tune_gated(tuner: Tuner) -> Iterator[str]:
    """The product in one; where it does not beat the linear and the gate after it, no row says so (few tokens)."""
    yield from settled(tuner, gates(tuner), timed_gate)


def settled(tuner: Tuner, items: list[Linear], timed: Callable[[Tuner, Linear, Job], float | None]) -> Iterator[str]:
    compilers = Compilers(tuner.device, tuner.workers)
    try:
        for item in items:
            for job in item.jobs():
                compilers.add(job)
        for item in items:
            if tuner.left_s <= 0:
                return
            times: dict[Any, float | None] = {}
            for job in item.jobs():
                why = compilers.failure(job, tuner.left_s)
                times[job.tile] = passed_over(why) if why else timed(tuner, item, job)
            if tuner.left_s <= 0:  # the rest of the candidates was not timed: the next call does it
                return
            winner = choose(item.tiles[0], item.tiles, lambda tile, times=times: times[tile])  # type: ignore[misc]
            if item.gated and item.tokens < GATED_DENSE_FROM and winner is not None:
                now = apart(tuner, item)
                winner = None if now is None or winner.seconds > 0.98 * now else winner
                if winner is None:
                    continue
            key = next(iter(item.keys.values())) if winner is None else item.keys[type(winner.tile)]
            tuner.take(key, winner, *item.keys.values())
            yield key
    finally:
        compilers.close()


def timed_linear(tuner: Tuner, item: Linear, job: Job) -> float | None:
    device, held = tuner.with_row(job.key, job.tile), tuner.weights(item.num_outputs, item.num_inputs)
    q, scratch = codes(item.tokens, item.num_inputs, device), scratch_for(item, device)
    return tuner.seconds(lambda: last(ternary_linear(q, w, None, device, scratch) for w in held))


def timed_gate(tuner: Tuner, item: Linear, job: Job) -> float | None:
    device, held, tile = tuner.device, tuner.weights(item.num_outputs, item.num_inputs), job.tile
    q, gain = codes(item.tokens, item.num_inputs, device), torch.ones(item.num_outputs // 2, device=device.torch_device)

    def product(w: Weights) -> Tensor:
        if isinstance(tile, LinearTile) or w.dense is None:
            return gated_linear(q, w, "relu2", tile, device)  # type: ignore[arg-type]
        out = device.empty(item.tokens, item.num_outputs // 2, dtype=torch.float32)
        dense_gated(out, q, w.dense, "relu2", tile, device)
        return out

    return tuner.seconds(lambda: last(quantize(product(w), gain, 1e-5, device).codes for w in held))


def apart(tuner: Tuner, item: Linear) -> float | None:
    """The linear as it is tuned, and the gate after it."""
    device, held = dataclasses.replace(tuner.device, tuned=tuner.rows), tuner.weights(item.num_outputs, item.num_inputs)
    q, gain = codes(item.tokens, item.num_inputs, device), torch.ones(item.num_outputs // 2, device=device.torch_device)
    scratch = scratch_for(item, device)
    products = lambda: (ternary_linear(q, w, None, device, scratch) for w in held)  # noqa: E731
    return tuner.seconds(lambda: last(gate_quantize(x, gain, 1e-5, "relu2", device).codes for x in products()))


def scratch_for(item: Linear, device: Device) -> Tensor:
    return device.zeros((min(256, item.tokens) + 16) * item.num_outputs, dtype=torch.int32)


def codes(num_tokens: int, k: int, device: Device) -> Any:
    return quantize(torch.randn(num_tokens, k, device=device.torch_device), None, 0.0, device)


def last(results: Iterator[Tensor]) -> Tensor:
    *_, result = results
    return result
