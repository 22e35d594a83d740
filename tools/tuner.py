"""What every part of the tuning of one card shares: the clock, the rows that were found, and weights to time on.

Each row says on standard output what the heuristic's tile took and what the winner's did. Knows no kernel.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tools.make_checkpoint import PRESETS
from tools.tuning_candidates import Tile, Winner
from triton_kernels.device import Device
from triton_kernels.pack import Weights, padded, unpacked
from triton_kernels.tuning import PREFILL_BUCKETS

BUCKETS = (32, 256, 2048, 1, 64, 128, 8, 16, *PREFILL_BUCKETS[2:3], 4, 2)
"""Numbers of tokens, those that targets are set for first."""
L2_BYTES = 200e6
"""Packed weights in turn: several times the L2 cache of any card."""
Rows = dict[str, dict[str, int]]


@dataclass(slots=True)
class Tuner:
    """What is measured for one card. `time_of` runs work a few times and gives the seconds of one."""

    device: Device
    preset: str
    time_of: Callable[[Callable[[], Tensor]], float]
    until: float
    again: bool
    buckets: tuple[int, ...] = BUCKETS
    workers: int = 0
    rows: Rows = field(default_factory=dict)
    held: dict[tuple[int, int], list[Weights]] = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def wants(self, *keys: str) -> bool:
        return (self.again or not any(key in self.rows for key in keys)) and self.left_s > 0

    def take(self, key: str, winner: Winner | None, *others: str) -> None:
        """Keep the winner's row; rows of `others`, which it beat, go."""
        if winner is None:
            print(f"{key}: nothing runs here", flush=True)
            return
        for other in others:
            self.rows.pop(other, None)
        self.rows[key] = dataclasses.asdict(winner.tile)
        times = f"{winner.heuristic_seconds * 1e6:.2f} us, now {winner.seconds * 1e6:.2f} us"
        print(f"{key}: {times} with {winner.tile}", flush=True)

    def seconds(self, work: Callable[[], Tensor]) -> float | None:
        """None where the work does not compile or fit, or no time is left: another tile's turn."""
        if self.left_s <= 0:
            return None
        try:
            return self.time_of(work)
        except Exception as error:  # Triton raises many kinds, and each means that this tile is not for this card
            passed_over(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
            return None

    def with_row(self, key: str, tile: Tile) -> Device:
        """The device as it would be with this row in its table."""
        return dataclasses.replace(self.device, tuned={key: dataclasses.asdict(tile)})

    def weights(self, n: int, k: int) -> list[Weights]:
        """Matrices of a shape, made once."""
        if (n, k) not in self.held:
            self.held[n, k] = weights(n, k, self.device.torch_device)
        return self.held[n, k]


def passed_over(why: str) -> None:
    print(f"  passed over: {why}", file=sys.stderr, flush=True)


def shapes(preset: str) -> dict[str, tuple[int, int]]:
    """(N, K) of each fused linear, the largest first."""
    shape = PRESETS[preset]
    width = shape.heads * shape.head_size
    kv_width = shape.kv_heads * shape.head_size
    return {
        "gate_up": (2 * shape.inter, shape.hidden),
        "down": (shape.hidden, shape.inter),
        "qkv": (width + 2 * kv_width, shape.hidden),
        "o": (shape.hidden, width),
    }


def weights(n: int, k: int, device: torch.device) -> list[Weights]:
    """As many matrices as do not fit the L2 cache, with random planes."""
    count = max(1, int(L2_BYTES // (n * k // 4))) if device.type == "cuda" else 1
    rows = torch.arange(n // 4, dtype=torch.int32, device=device)
    made = [
        Weights(
            torch.randint(-128, 128, (n // 4, padded(k)), dtype=torch.int8, device=device),
            torch.ones(4, n // 4, device=device),
            rows,
            torch.full_like(rows, n // 4),
            k,
        )
        for _ in range(count)
    ]
    return [dataclasses.replace(w, dense=unpacked(w)) for w in made]
