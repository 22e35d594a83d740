"""The whole step in one call: the bits of the verbs, on every instruction set, and of nothing but the request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitnet_model.batch import ForwardBatch
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model
from bitnet_model.plan import Cache
from tests.cpu_fallback.native_support import every_isa, open_wing

BLOCK_TOKENS = 8


class VerbsOnly:
    """A wing whose step is not compiled: the model then walks its plan verb by verb."""

    def __init__(self, wing: object) -> None:
        self._wing = wing

    def __getattr__(self, name: str) -> object:
        return getattr(self._wing, name)

    def compile(self, plan: object) -> None:
        """Declines."""
        del plan


def verb_by_verb(model: Model) -> Model:
    return Model(model.config, VerbsOnly(model.ops), model.plan)  # type: ignore[arg-type]


def batch_of(rows: list[tuple[Tensor, int, list[int]]]) -> ForwardBatch:
    """Rows of (ids of this step, tokens computed before, block ids); the logits of every token are wanted."""
    positions = [torch.arange(start, start + len(ids)) for ids, start, _ in rows]
    slots = [
        torch.tensor(blocks)[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS
        for p, (_, _, blocks) in zip(positions, rows, strict=True)
    ]
    widest = max(len(blocks) for _, _, blocks in rows)
    counts = torch.tensor([len(ids) for ids, _, _ in rows])
    return ForwardBatch(
        token_ids=torch.cat([ids for ids, _, _ in rows]),
        positions=torch.cat(positions),
        slots=torch.cat(slots),
        block_tables=torch.tensor([b + [0] * (widest - len(b)) for _, _, b in rows], dtype=torch.int32),
        lengths=torch.tensor([start + len(ids) for ids, start, _ in rows], dtype=torch.int32),
        starts=torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))).to(torch.int32),
        logit_rows=torch.arange(int(counts.sum())),
    )


def random_ids(seed: int, count: int) -> Tensor:
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(seed))


def cache_of(model: Model, dtype: str = "bf16") -> Cache:
    return model.new_cache(12, BLOCK_TOKENS, dtype)  # type: ignore[arg-type]


@pytest.fixture(params=["packed", "llama"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A tiny checkpoint with sub-norms and relu2, and one without and with silu."""
    path: Path = request.getfixturevalue(f"tiny_{request.param}")
    return path


@every_isa
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_one_call_gives_the_bits_of_the_verbs(isa: str, dtype: str, folder: Path) -> None:
    wing = open_wing(isa)
    model = load_model(folder, wing, head_dtype="int8")
    verbs = verb_by_verb(model)
    first, second = random_ids(1, 20), random_ids(2, 11)
    steps = [
        [(first[:9], 0, [3, 0, 7])],
        [(first[9:10], 9, [3, 0, 7]), (second, 0, [5, 2])],
        [(first[10:], 10, [3, 0, 7])],
    ]
    expected = [verbs.forward(batch_of(step), cache) for cache in [cache_of(verbs, dtype)] for step in steps]
    for threads in (1, 2):
        wing.set_threads(threads)
        cache = cache_of(model, dtype)
        for step, hidden in zip(steps, expected, strict=True):
            assert torch.equal(model.forward(batch_of(step), cache), hidden)


def test_every_instruction_set_gives_the_same_bits(folder: Path) -> None:
    isas = [isa for isa in ("avx512_vnni", "avx2_vnni", "avx2", "neon_dot") if not refused(isa)]
    ids = random_ids(3, 30)
    portable = logits_of(folder, "portable", ids)
    for isa in isas:
        assert torch.equal(logits_of(folder, isa, ids), portable), isa


def refused(isa: str) -> bool:
    return open_wing("portable")._library.refusal(isa) is not None


def logits_of(folder: Path, isa: str, ids: Tensor) -> Tensor:
    model = load_model(folder, open_wing(isa, threads=2), head_dtype="int8")
    return model.logits(model.forward(batch_of([(ids, 0, [1, 2, 3, 4])]), cache_of(model)))


@every_isa
def test_a_request_has_the_same_logits_alone_in_company_and_in_any_chunks(isa: str, tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing(isa, threads=2), head_dtype="int8")
    ids, company = random_ids(4, 25), random_ids(5, 25)
    alone = model.forward(batch_of([(ids, 0, [3, 0, 7, 1])]), cache_of(model))
    for cuts in ((1, 2, 3, 25), (7, 14, 21, 25), (24, 25)):
        cache, start, parts = cache_of(model), 0, []
        for cut in cuts:
            rows = [(company[start:cut], start, [4, 5, 6, 8]), (ids[start:cut], start, [9, 2, 10, 11])]
            parts.append(model.forward(batch_of(rows), cache)[cut - start :])
            start = cut
        assert torch.equal(torch.cat(parts), alone)


@every_isa
def test_a_row_gone_bad_does_not_touch_the_others(isa: str, tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing(isa), head_dtype="int8")
    ids = random_ids(6, 10)
    rows = [(ids[:4], 0, [3]), (ids[4:], 0, [5])]
    clean = model.forward(batch_of(rows), cache_of(model))
    # The first request's earlier keys are NaN: its continuation goes bad beside a healthy row.
    cache = cache_of(model)
    heads, kv_heads, head_dim = model.plan.num_heads, model.plan.num_kv_heads, model.plan.head_dim
    qkv = torch.full((1, (heads + 2 * kv_heads) * head_dim), torch.nan)
    zero = torch.zeros(1, dtype=torch.int64)
    model.ops.rope_write_kv(qkv, zero, model.plan.rope, cache, 0, torch.tensor([3 * BLOCK_TOKENS]))
    out = model.forward(batch_of([(ids[1:4], 1, [3]), rows[1]]), cache)
    assert out[:3].isnan().all()
    assert torch.equal(out[3:], clean[4:])


def test_only_the_wanted_rows_come_back_in_the_order_asked(tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing("portable"), head_dtype="int8")
    batch = batch_of([(random_ids(7, 6), 0, [1])])
    everything = model.forward(batch, cache_of(model))
    some = ForwardBatch(
        batch.token_ids, batch.positions, batch.slots, batch.block_tables, batch.lengths, batch.starts,
        torch.tensor([5, 0, 5]),
    )  # fmt: skip
    assert torch.equal(model.forward(some, cache_of(model)), everything[[5, 0, 5]])


def test_a_step_with_indices_outside_its_tables_is_refused_before_anything_is_written(tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing("portable"), head_dtype="int8")
    cache, good = cache_of(model), batch_of([(random_ids(8, 3), 0, [1])])
    names = ("token_ids", "positions", "slots", "block_tables", "lengths", "starts", "logit_rows")
    for name, value, words in (
        ("token_ids", torch.tensor([0, 512, 1]), "token id 512"),
        ("positions", torch.tensor([0, 1, 1 << 20]), "position 1048576"),
        ("slots", torch.tensor([0, 96, 1]), "slot 96"),
        ("block_tables", torch.tensor([[12]], dtype=torch.int32), "block id"),
        ("lengths", torch.tensor([9], dtype=torch.int32), "block table"),
        ("starts", torch.tensor([0, 2], dtype=torch.int32), "starts"),
        ("logit_rows", torch.tensor([3]), "logit row 3"),
        ("slots", torch.tensor([8, 9]), "slots must be"),
    ):
        tensors = {key: getattr(good, key) for key in names} | {name: value}
        with pytest.raises(ValueError, match=words):
            model.forward(ForwardBatch(**tensors), cache)
    assert not any(bytes(cache.memory.bytes_view()))


def test_a_cache_of_another_model_is_refused(tiny_packed: Path) -> None:
    model = load_model(tiny_packed, open_wing("portable"), head_dtype="int8")
    with pytest.raises(ValueError, match="a cache of 1 heads of 4"):
        model.forward(batch_of([(random_ids(9, 3), 0, [1])]), model.ops.new_cache(2, 12, BLOCK_TOKENS, 1, 4, "bf16"))
