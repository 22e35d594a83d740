"""Which query tokens each program of attention takes: rows cut into blocks, on the host. Knows no kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from triton_kernels.device import Device
from triton_kernels.tuning import attention_tile


@dataclass(frozen=True, slots=True)
class QueryBlocks:
    """Which query tokens each program takes: row[i] int32 and, inside that row, the tokens from first[i] int32.

    arrived int32 [programs, Hkv] counts the programs that share a query block and its splits; zeros, and zeros again
    when the work queued on it is done. single: every block is one token.
    """

    row: Tensor
    first: Tensor
    arrived: Tensor
    single: bool


def query_tokens(num_heads: int, num_kv_heads: int, head_dim: int, device: Device) -> int:
    """How many tokens of one row a query block takes."""
    group = num_heads // num_kv_heads
    return attention_tile(head_dim, group, device).rows // group


def cut(starts: Sequence[int], tokens: int) -> Tensor:
    """Cut the rows at `starts` into query blocks of `tokens`: int32 [2, N] on the host, row and first token of each.

    Last tokens first: they see the most keys, and a processor that begins with them is not left alone at the end.
    """
    found = [
        (row, first)
        for row, (start, end) in enumerate(pairwise(starts))
        for first in reversed(range(0, end - start, tokens))
    ]
    return torch.tensor(found, dtype=torch.int32).view(-1, 2).T


def query_blocks(
    starts: Sequence[int], num_heads: int, num_kv_heads: int, head_dim: int, device: Device
) -> QueryBlocks:
    """The query blocks of the rows at `starts` (on the host), one program each and KV head."""
    blocks = cut(starts, query_tokens(num_heads, num_kv_heads, head_dim, device))
    count = blocks.shape[1]
    # both begin where 16-byte loads may, or a kernel would be compiled anew for some numbers of programs
    table = torch.nn.functional.pad(blocks, (0, -count % 4))
    row, first = table.contiguous().to(device.torch_device)[:, :count]
    arrived = device.zeros(count, num_kv_heads, dtype=torch.int32)
    return QueryBlocks(row, first, arrived, single=count == starts[-1] == len(starts) - 1)
