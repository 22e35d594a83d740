"""Rows for a step, and what each of their tokens may look at."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .data import Rows

# Share of rows by set before and after `chat_from`.  A little chat from the start costs nothing and teaches the format.
FIRST_MIX = {"story": 0.45, "tale": 0.08, "book": 0.27, "chat": 0.2}
SECOND_MIX = {"story": 0.12, "tale": 0.03, "book": 0.25, "chat": 0.6}


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


def piece_mask(token_ids: Tensor, begin_id: int) -> Tensor:
    """Causal attention inside a piece: bool [B, 1, T, T] of token_ids [B, T]."""
    piece = (token_ids == begin_id).cumsum(-1)
    return ((piece[:, :, None] == piece[:, None, :]).tril())[:, None]
