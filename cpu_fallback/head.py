"""Embedding lookup and output head of the CPU wing.

The head keeps int8 weights with a scale per row and quantizes the normed hidden state to int8, so its sums are exact
integers and its logits the same in every batch. Knows no sampling beyond "the k largest".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cpu_fallback.linear import Quantized, linear
from cpu_fallback.pack import MAX_CODE
from cpu_fallback.threads import WorkPool

ROW_VALUES = 1 << 22
"""Logits held at a time by top_k and weights quantized at a time by pack_table (16 MB in fp32)."""
TASK_LOGITS = 1 << 18
"""Logits searched by one task; a row of 128256 takes 0.4 ms."""


@dataclass(frozen=True, slots=True)
class Table:
    """embedding [V, H] as given (bf16 or f32) or None; codes int8 [V, H] and row_scale f32 [V] of the head, or None."""

    embedding: Tensor | None
    codes: Tensor | None
    row_scale: Tensor | None


def pack_table(weight: Tensor, *, embedding: bool, head_dtype: str | None) -> Table:
    """Copy a [V, H] bf16 or f32 table for lookup, as a head, or both.

    Raises ValueError for another head dtype than int8, for other shapes and dtypes, and where a head row is not finite.
    """
    if head_dtype not in (None, "int8"):
        raise ValueError(f"the CPU wing has the head dtype int8, not {head_dtype!r}")
    if weight.ndim != 2 or weight.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"a table must be bf16 or f32 [V, H], got {weight.dtype} {list(weight.shape)}")
    codes, row_scale = (None, None) if head_dtype is None else _quantize_rows(weight)
    return Table(weight.clone(memory_format=torch.contiguous_format) if embedding else None, codes, row_scale)


def _quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """code = rint(w * (127 / absmax of its row)), scale = absmax / 127; a row of zeros has scale 0."""
    V, H = weight.shape
    codes, row_scale = torch.empty(V, H, dtype=torch.int8), torch.empty(V)
    rows = max(1, ROW_VALUES // H)
    for start in range(0, V, rows):
        block = weight[start : start + rows].float()
        absmax = block.abs().amax(-1, keepdim=True)
        bad = torch.nonzero(~absmax.isfinite()[:, 0])
        if len(bad):
            raise ValueError(f"row {start + int(bad[0])} of the output head is not finite")
        row_scale[start : start + rows] = (absmax / 127.0)[:, 0]
        absmax[absmax == 0.0] = 1.0
        codes[start : start + rows] = (block * torch.full_like(absmax, 127.0).div_(absmax)).round_().to(torch.int8)
    return codes, row_scale


def embed(table: Table, token_ids: Tensor) -> Tensor:
    """ids int64 [T] -> f32 [T, H]."""
    if table.embedding is None:
        raise ValueError("this table was packed without an embedding")
    return table.embedding.index_select(0, token_ids).float()


def logits(q: Quantized, table: Table, pool: WorkPool) -> Tensor:
    """Quantized hidden states [R, H] -> f32 [R, V]."""
    if table.codes is None or table.row_scale is None:
        raise ValueError("this table was packed without a head")
    return linear(q, table.codes, table.row_scale, None, MAX_CODE, pool)


def top_k(q: Quantized, table: Table, k: int, extra_ids: Tensor, pool: WorkPool) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row by (logit descending, id ascending), then those of extra_ids int64 [R, E].

    Returns (ids int64, logits f32), both [R, min(k, V) + E]; an extra id of -1 has the logit -inf.
    """
    if table.codes is None:
        raise ValueError("this table was packed without a head")
    (R, E), V = extra_ids.shape, len(table.codes)
    if len(q.codes) != R or k < 0:
        raise ValueError(f"{len(q.codes)} rows do not fit extra ids of {R} rows, or k = {k} is negative")
    k = min(k, V)
    ids, values = torch.empty(R, k + E, dtype=torch.int64), torch.empty(R, k + E)
    rows = max(1, ROW_VALUES // V)
    for start in range(0, R, rows):
        span = slice(start, start + rows)
        block = logits(Quantized(q.codes[span], q.scale[span]), table, pool)
        extra = extra_ids[span]
        ids[span, :k], values[span, :k] = _largest(block, k, pool)
        ids[span, k:] = extra
        values[span, k:] = block.gather(1, extra.clamp_min(0)).masked_fill_(extra < 0, -torch.inf)
    return ids, values


def _largest(block: Tensor, k: int, pool: WorkPool) -> tuple[Tensor, Tensor]:
    """The k largest of each row of [R, V], ties to the lower id. torch.topk promises nothing about ties."""
    R, V = block.shape
    if k == 0:
        return torch.empty(R, 0, dtype=torch.int64), torch.empty(R, 0)
    # One more than asked for shows whether the last place is contested.
    wide = min(k + 1, V)
    values, ids = torch.empty(R, wide), torch.empty(R, wide, dtype=torch.int64)
    rows = max(1, TASK_LOGITS // V)

    def part(index: int) -> None:
        span = slice(index * rows, (index + 1) * rows)
        torch.topk(block[span], wide, out=(values[span], ids[span]))

    pool.run(-(-R // rows), part)
    contested = (values[:, k - 1] == values[:, wide - 1]).nonzero()[:, 0].tolist() if wide > k else []
    ids, by_id = ids[:, :k].sort(dim=1)
    values, by_value = values[:, :k].gather(1, by_id).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, by_value)
    for row in contested:
        in_order = block[row].sort(descending=True, stable=True)
        values[row], ids[row] = in_order.values[:k], in_order.indices[:k]
    return ids, values
