"""Rows for a step, from several sets by their share."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .data import Rows


class Sampler:
    """Draws rows without repetition inside an epoch of each set, sets by their share."""

    def __init__(self, sets: dict[str, Rows], seed: int) -> None:
        self.sets = sets
        self.rng = np.random.default_rng(seed)
        self._orders: dict[str, Iterator[int]] = {name: self._order(name) for name in sets}
        self.epochs = dict.fromkeys(sets, 0.0)

    def _order(self, name: str) -> Iterator[int]:
        while True:
            yield from self.rng.permutation(len(self.sets[name].token_ids)).tolist()

    def draw(self, num_rows: int, mix: dict[str, float]) -> tuple[Tensor, Tensor]:
        """token_ids [B, L] int64 and loss [B, L] bool."""
        names = self.rng.choice(list(mix), size=num_rows, p=list(mix.values()))
        ids, loss = [], []
        for name in names.tolist():
            row = next(self._orders[name])
            self.epochs[name] += 1 / len(self.sets[name].token_ids)
            ids.append(self.sets[name].token_ids[row].astype(np.int64))
            loss.append(self.sets[name].loss[row])
        return torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(loss))
