"""The KV cache of either wing takes memory as it is used, not when the server starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_model.ops import CacheDtype, Ops

MIB = 1 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_new_cache_is_not_resident(ops: Ops, dtype: CacheDtype) -> None:
    before = resident_bytes()
    cache = ops.new_cache(8, 1024, 32, 2, 128, dtype)
    grown = resident_bytes() - before
    assert ops.memory_bytes(cache) > 120 * MIB
    assert grown < 16 * MIB
