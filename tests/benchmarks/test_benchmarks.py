"""The benchmarks at toy size: that they measure what they say, not how fast this machine is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import speculation
from benchmarks.cpu_model import Sample, cost_of, measure, table_row
from benchmarks.limits import Limits
from benchmarks.model_steps import Case, OurSteps
from benchmarks.report import percentile
from benchmarks.screening import DTYPES, Heads, synthetic_states
from benchmarks.serving import Answer, Prompts, figures
from benchmarks.serving import Case as Clients
from benchmarks.shapes import SHAPES, checkpoint, step_cost, ternary_weights
from benchmarks.timebox import TimeBox
from bitnet_model.ops import load_ops
from cpu_fallback.native_wing import NativeCpuWing

SIZES = {"rows": 2, "context": 33, "prompt": 40}


class FixedSteps:
    """An engine whose every run takes as long."""

    weight_bits = 2.0
    head_bits = 8.0

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.asked: list[tuple[Case, int]] = []

    def times_s(self, case: Case, threads: int, seconds: float) -> list[float]:
        self.asked.append((case, threads))
        return [self.seconds]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurSteps]:
    folder = checkpoint("toy", tmp_path_factory.mktemp("cache"))
    steps = OurSteps(folder, isa="auto", head_dtype=None, **SIZES)
    yield steps
    steps.close()


@pytest.mark.parametrize("case", [Case("prefill", 40), Case("decode", 1), Case("decode", 2)], ids=str)
def test_our_model_runs_each_case_at_least_once(ours: OurSteps, case: Case) -> None:
    assert len(ours.times_s(case, threads=1, seconds=0.0)) == 1


def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    folder = checkpoint("toy", tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoint("toy", tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_2b4t_shape_has_two_billion_and_84_million_ternary_weights() -> None:
    assert ternary_weights(SHAPES["2b4t"]) == 2_084_044_800


def test_a_step_reads_each_weight_once_and_multiplies_it_for_every_token() -> None:
    shape = SHAPES["toy"]
    one = step_cost(shape, tokens=1, keys=0, logits=1, weight_bits=2.0, head_bits=8.0)
    four = step_cost(shape, tokens=4, keys=0, logits=4, weight_bits=2.0, head_bits=8.0)
    assert one.num_bytes == four.num_bytes == ternary_weights(shape) / 4 + shape.vocab * shape.hidden
    assert four.macs == 4 * one.macs == 4 * (ternary_weights(shape) + shape.vocab * shape.hidden)


def test_a_decode_step_reads_the_cache_of_every_row() -> None:
    one = cost_of("toy", Case("decode", 1), FixedSteps("ours", 1.0), context=9)
    two = cost_of("toy", Case("decode", 2), FixedSteps("ours", 1.0), context=9)
    shape = SHAPES["toy"]
    assert two.num_bytes - one.num_bytes == 10 * shape.layers * 2 * shape.kv_heads * shape.head_size * 2


def test_engines_take_turns_at_being_first() -> None:
    order: list[str] = []

    class Recorded(FixedSteps):
        def times_s(self, case: Case, threads: int, seconds: float) -> list[float]:
            order.append(self.name)
            return super().times_s(case, threads, seconds)

    engines = [Recorded("ours", 1.0), Recorded("peer", 2.0)]
    limits = Limits(1.0, 1.0, 1.0, "none")
    found = measure(engines, [Case("decode", 1)], 2, lambda threads: limits, range(2), 0.0)
    assert order == ["ours", "peer", "peer", "ours"]
    assert found[Case("decode", 1), "peer"] == [Sample(2.0, limits), Sample(2.0, limits)]


def test_a_run_is_set_against_the_higher_of_the_limits_before_and_after_it() -> None:
    rates = iter([3.0, 1.0, 2.0])
    engines = [FixedSteps("ours", 1.0), FixedSteps("peer", 1.0)]
    found = measure(
        engines, [Case("decode", 1)], 2, lambda threads: Limits(next(rates), 1.0, 1.0, "none"), range(1), 0.0
    )
    assert [sample.limits.gigabytes_per_s for samples in found.values() for sample in samples] == [3.0, 2.0]


def test_a_row_is_set_against_the_limits_of_its_own_round() -> None:
    cost = step_cost(SHAPES["toy"], tokens=8, keys=0, logits=8, weight_bits=2.0, head_bits=8.0)
    fast = Limits(cost.num_bytes / 1e9, cost.macs / 1e9, 1.0, "none")  # either floor is one second
    slow = Limits(fast.gigabytes_per_s / 2, fast.gigamacs_per_s / 2, 1.0, "none")
    ours, peer = [Sample(2.0, fast), Sample(4.0, slow)], [Sample(6.0, fast), Sample(12.0, slow)]
    row = table_row(Case("decode", 8), 2, cost, peer, ours)
    assert row["of_floor"] == pytest.approx(1 / 6)
    assert row["ours_is_x"] == pytest.approx(3.0)
    assert row["tok_s"] == pytest.approx((8 / 6 + 8 / 12) / 2)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 201)]
    assert percentile(values, 0.99) == 198.0
    assert percentile([3.0], 0.99) == 3.0


def test_serving_figures_count_tokens_until_the_last_stream_ends() -> None:
    answers = [Answer([1.0, 1.5, 2.0], 2.0, 3), Answer([2.0, 3.0], 4.0, 3)]
    found = figures(answers)
    assert found["tok_s"] == 6 / 4.0
    assert found["first_s"] == 1.5
    assert found["gap_ms"] == 500.0
    assert found["gap_p99_ms"] == 1000.0


def test_prompts_share_the_prefix_and_nothing_else_and_are_new_in_each_round() -> None:
    prompts = Prompts(vocab=10_000, forbidden=(10_001,), prompt=8, generate=4)
    prefix, bodies = prompts.bodies(Clients(3, prefix=16), turn=0)
    assert len(prefix) == 16
    assert all(body["prompt"][:16] == prefix and len(body["prompt"]) == 24 for body in bodies)
    assert len({tuple(body["prompt"][16:]) for body in bodies}) == 3
    assert prompts.bodies(Clients(3, prefix=16), turn=1)[0] != prefix
    assert prompts.bodies(Clients(3, prefix=16), turn=0) == (prefix, bodies)


def clocked(box_minutes: float | None, round_s: list[float]) -> list[int]:
    """How many rounds each part gets, of three at most, when its rounds take so long."""
    now = [0.0]
    box = TimeBox(box_minutes, len(round_s), clock=lambda: now[0])
    counts = []
    for seconds in round_s:
        count = 0
        for _ in box.rounds(3):
            now[0] += seconds
            count += 1
        counts.append(count)
    return counts


def test_a_time_box_gives_each_part_the_rounds_that_fit_and_passes_on_what_is_left() -> None:
    assert clocked(1.0, [10.0, 15.0]) == [3, 2]
    assert clocked(1.0, [5.0, 15.0]) == [3, 3]


def test_a_time_box_gives_each_part_one_round_however_long_it_takes() -> None:
    assert clocked(1.0, [100.0, 100.0]) == [1, 1]


def test_without_minutes_every_round_is_run() -> None:
    assert clocked(None, [1000.0]) == [3]


def test_of_two_measurements_the_higher_of_each_limit_counts() -> None:
    assert Limits(1.0, 4.0, 5.0, "dot").best(Limits(2.0, 3.0, 6.0, "dot")) == Limits(2.0, 4.0, 6.0, "dot")


def test_heads_that_differ_are_found_to_differ_and_equal_ones_are_not() -> None:
    wing = load_ops("cpu", isa="auto", threads=1)
    if not isinstance(wing, NativeCpuWing):
        pytest.skip("the native library is not built here")
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2600, 64, generator=generator)
    whole, halves = (wing.pack_table(weight, embedding=False, head_dtype=dtype) for dtype in DTYPES)
    other = wing.pack_table(weight.flip(0), embedding=False, head_dtype=DTYPES[1])
    for tables, differing in (((whole, halves), 0), ((whole, other), 64)):
        heads = Heads(wing, tables, torch.ones(64), 1e-5)
        found = heads.compare(synthetic_states(weight, generator), 64)
        assert (found["positions"], found["differing"]) == (64, differing)


def test_guesses_are_measured_on_the_same_tokens(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    speculation.main(["--prompt", "20", "--generate", "24", "--repeat", "2", "--threads", "1", "--json", str(result)])
    rows = json.loads(result.read_text())["rows"]
    assert [(row["answer"], row["wrong"]) for row in rows] == [
        ("free", None),
        *(("predicted", share) for share in speculation.WRONG),
        ("schema", None),
    ]
    assert all(row["accepted"] <= row["drafted"] for row in rows)
    assert all(row["ratio"] > 0 for row in rows)


def test_a_share_of_a_prediction_is_wrong() -> None:
    token_ids = list(range(1000))
    same = [
        sum(a == b for a, b in zip(token_ids, speculation.changed(token_ids, share, 4096, 1), strict=True))
        for share in (0.0, 0.2, 1.0)
    ]
    assert same[0] == 1000
    assert 750 < same[1] < 850
    assert same[2] < 10
