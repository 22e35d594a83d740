from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tools.tune_gpu import tune
from tools.tuner import Tuner
from tools.tuning_candidates import (
    attention_candidates,
    choose,
    gated_candidates,
    gated_dense_candidates,
    linear_candidates,
)
from tools.tuning_compiler import AttentionJob, Compilers, Job
from tools.tuning_linears import gates
from triton_kernels.device import INTERPRETER, open_device
from triton_kernels.pack import padded
from triton_kernels.tuning import (
    AttentionTile,
    LinearTile,
    Regime,
    dense_key,
    linear_key,
    linear_tile,
    read_table,
)

CPU = open_device(torch.device("cpu"))
A, B, C = (LinearTile(packed, 16, 128, 1, 4, 3) for packed in (16, 32, 64))


def timer(*times: float) -> Callable[[Callable[[], Tensor]], float]:
    """Runs the first work it is given, and says these times in turn, the last one for ever."""
    left: Iterator[float] = itertools.chain(times, itertools.repeat(times[-1]))
    first = [True]

    def time_of(work: Callable[[], Tensor]) -> float:
        if first.pop() if first else False:
            work()
        return next(left)

    return time_of


def tuner(*times: float, again: bool = False) -> Tuner:
    return Tuner(CPU, "tiny", timer(*times), time.monotonic() + 100, again, buckets=(4,))


def test_the_fastest_tile_wins_and_the_heuristic_keeps_what_is_not_clearly_faster() -> None:
    times = {A: 10.0, B: 9.0, C: 9.9}
    winner = choose(A, iter([A, B, C]), times.__getitem__)
    assert winner is not None
    assert (winner.tile, winner.seconds, winner.heuristic_seconds) == (B, 9.0, 10.0)
    winner = choose(A, iter([C]), times.__getitem__)
    assert winner is not None
    assert (winner.tile, winner.seconds) == (A, 10.0)


def test_what_does_not_run_here_is_passed_over() -> None:
    winner = choose(A, iter([B, C]), lambda tile: None if tile != C else 3.0)
    assert winner is not None
    assert winner.tile == C
    assert choose(A, iter([B]), lambda tile: None) is None


def test_every_candidate_fits_its_shape_and_there_are_a_dozen_or_so() -> None:
    for device in (CPU, replace(CPU, num_processors=132, wgmma=True, dp4a=True)):
        for k in map(padded, (1536, 2560, 5460, 6912, 23040)):
            for form, bucket in (
                *((Regime.GEMV, 1), (Regime.SMALL, 4), (Regime.SMALL, 16), (Regime.SMALL, 64)),
                *((Regime.PREFILL, 128), (Regime.PREFILL, 2048)),
            ):
                tiles = list(linear_candidates(form, bucket, 640, k, device))
                assert len(set(tiles)) == len(tiles)
                assert 1 <= len(tiles) <= 20
                assert form is Regime.GEMV or all(k % (tile.depth * tile.split_k) == 0 for tile in tiles)
                assert all(tile.split_k == 1 for tile in gated_candidates(form, bucket, 3456, k, device))
                assert all(tile.rows >= 128 for tile in gated_dense_candidates(bucket, device))
    assert all(
        tile.split % tile.keys == 0 and tile.rows >= 16
        for tile in attention_candidates(AttentionTile(32, 32, 128, 4, 3))
    )


def test_the_better_of_packed_and_int8_weights_gets_the_row_and_the_other_none(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    keys = linear_key(Regime.SMALL, 16, 64, 128), dense_key(16, 256, 128)

    def by_kind(packed: float, dense: float) -> Callable[[Callable[[], Tensor]], float]:
        return lambda work: dense if is_dense(work) else packed

    for packed, dense, winner in ((2.0, 1.0, 1), (1.0, 2.0, 0)):
        held = Tuner(CPU, "tiny", by_kind(packed, dense), time.monotonic() + 100, again=True, buckets=(16,))
        tune(held, ["linear"], path)
        assert [key in read_table(path)[INTERPRETER] for key in keys] == [winner == 0, winner == 1]


def is_dense(work: Callable[[], Tensor]) -> bool:
    """Whether the work was given a device with a row for int8 weights."""
    cells = [cell.cell_contents for cell in work.__closure__ or ()]
    return any(key.startswith("dense") for cell in cells for key in getattr(cell, "tuned", ()))


def test_a_job_that_fails_says_why_and_the_others_go_on() -> None:
    key = linear_key(Regime.SMALL, 4, 16, 128)
    fits, fails = (Job(key, replace(A, split_k=parts), 4, 64, 128) for parts in (1, 3))
    attends = AttentionJob(AttentionTile(16, 32, 64, 4, 1), 2, 1, 16, 8)
    for workers, said in ((0, ""), (1, "ValueError: K = 128 cannot be cut into 3 parts of whole tiles of 128")):
        compilers = Compilers(CPU, workers)
        for job in (fails, fits, attends):
            compilers.add(job)
        assert [compilers.failure(job, 60.0) for job in (fails, fits, attends)] == [said, "", ""]
        compilers.close()


def test_winners_are_written_as_the_wing_reads_them_and_a_second_call_goes_on_where_the_first_ended(
    tmp_path: Path,
) -> None:
    path = tmp_path / "tuning.json"
    tune(tuner(2.0, 1.0, 3.0), ["linear"], path)
    rows = read_table(path)[INTERPRETER]
    key = linear_key(Regime.SMALL, 4, 64, 128)
    assert set(rows) >= {key, linear_key(Regime.SMALL, 4, 32, 384)}
    found = linear_tile(4, 64, 128, open_device(torch.device("cpu"), tuned=rows))
    assert rows[key] == {name: getattr(found, name) for name in rows[key]}
    before = path.read_text()
    tune(tuner(5.0, 0.1), ["linear"], path)
    assert path.read_text() == before
    tune(tuner(1.0, 5.0, again=True), ["linear"], path)
    assert path.read_text() != before


def test_the_gate_gets_a_row_only_where_it_pays_and_attention_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    tune(tuner(1.0), ["gated"], path)
    assert not path.exists() or read_table(path) == {INTERPRETER: {}}
    (item,) = gates(tuner(1.0))
    tune(tuner(*[1.0 for _ in item.tiles], 2.0), ["gated", "attention"], path)
    assert [key.split()[0] for key in read_table(path)[INTERPRETER]] == ["attention", "gated"]


def test_a_tile_that_raises_is_no_winner() -> None:
    def fails(work: Callable[[], Tensor]) -> float:
        raise RuntimeError("out of resource: shared memory")

    broken = Tuner(CPU, "tiny", fails, time.monotonic() + 100, again=False)
    assert broken.seconds(lambda: torch.zeros(1)) is None
