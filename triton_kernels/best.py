"""The best tokens of each row, from hidden states on the device to ids and logits on the host: one replay, one copy.

Choosing the best takes two dozen small kernels behind the head, as many launches as a few layers of a decode step, so
they are captured with it. What varies from step to step is rounded up: rows to the buckets of a decode step, the number
of tokens and of extra ids to powers of two. A row's result depends on neither its company nor the rounding: the k best
are the first k of the more than k best. Knows neither head nor model: it is given the function that ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from triton_kernels.graphs import BUCKETS, Capture, bucket_of
from triton_kernels.tuning import power_of_two

FEWEST = 64
"""Steps that want fewer tokens, or fewer extra ids but some, share one capture."""
NO_ID = -1

Rank = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]]
"""(hidden f32 [R, H], k, extra ids int64 [R, E]) -> (ids int64, logits f32), both [R, min(k, V) + E], best first."""


class BestTokens:
    """Calls of one `rank` on the device. `capture` None runs them as they are. Not for use from two threads."""

    def __init__(
        self, rank: Rank, capture: Capture | None, device: torch.device, buckets: Sequence[int] = BUCKETS
    ) -> None:
        self._rank = rank
        self._capture = capture
        self._device = device
        self._buckets = tuple(sorted(buckets))
        self._captured: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor, Callable[[], None]]] = {}

    def __call__(self, x: Tensor, k: int, extra_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The result of `rank`, on the host."""
        num_rows, num_extra = extra_ids.shape
        if self._capture is None or not 0 < num_rows <= self._buckets[-1]:
            return apart(together(*self._rank(x, k, extra_ids.to(self._device))).cpu())
        most, room = 1 if k == 1 else rounded(k), rounded(num_extra)  # one token alone needs no sorting
        hidden, extra, result, replay = self._ready((bucket_of(num_rows, self._buckets), most, room), x.shape[1])
        hidden[:num_rows].copy_(x)
        extra[:num_rows].copy_(widened(extra_ids, room), non_blocking=True)
        replay()
        ids, logits = apart(result[:, :num_rows].cpu())
        found = ids.shape[1] - room
        wanted = torch.cat([torch.arange(min(k, found)), torch.arange(found, found + num_extra)])
        return ids[:, wanted], logits[:, wanted]

    def _ready(self, key: tuple[int, int, int], width: int) -> tuple[Tensor, Tensor, Tensor, Callable[[], None]]:
        if key not in self._captured:
            assert self._capture is not None
            num_rows, k, num_extra = key
            hidden = torch.zeros(num_rows, width, device=self._device)
            extra = torch.full((num_rows, num_extra), NO_ID, dtype=torch.int64, device=self._device)
            result, replay = self._capture(lambda: together(*self._rank(hidden, k, extra)))
            self._captured[key] = (hidden, extra, result, replay)
        return self._captured[key]


def rounded(count: int) -> int:
    """0, or a power of two from FEWEST."""
    return power_of_two(max(count, FEWEST)) if count else 0


def widened(ids: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=NO_ID)


def together(ids: Tensor, logits: Tensor) -> Tensor:
    """Both as int32 [2, R, C], for one copy."""
    return torch.stack([ids.to(torch.int32), logits.view(torch.int32)])


def apart(both: Tensor) -> tuple[Tensor, Tensor]:
    return both[0].to(torch.int64), both[1].view(torch.float32)
