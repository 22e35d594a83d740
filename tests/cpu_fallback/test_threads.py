"""Thread counts, the work pool, and the choice of a wing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cpu_fallback.threads import WorkPool, allowed_threads, scratch


@pytest.fixture
def pool() -> Iterator[WorkPool]:
    one = WorkPool(3)
    yield one
    one.close()


def affinity() -> int:
    return len(os.sched_getaffinity(0))


def machine(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A made-up /proc and /sys/fs/cgroup."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    return tmp_path / "proc", tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}),
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}),
        ("0::/a\n", {"cpu.max": "10000 100000\n"}),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
        ),
        ("4:cpu:/host/only\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}),
    ],
)
def test_a_cgroup_quota_limits_the_threads(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    assert allowed_threads(*machine(tmp_path, membership, files)) == 1


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}),
        ("0::/\n", {"cpu.max": "garbage"}),
        ("0::/\n", {}),
        ("", {}),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}),
        ("4:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}),
    ],
)
def test_without_a_quota_the_affinity_mask_decides(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    assert allowed_threads(*machine(tmp_path, membership, files)) == affinity()


def test_this_machine_allows_between_one_and_its_affinity(tmp_path: Path) -> None:
    assert 1 <= allowed_threads() <= affinity()
    assert allowed_threads(tmp_path / "nothing", tmp_path / "nothing") == affinity()


def test_every_piece_is_done_once_by_at_most_so_many_threads(pool: WorkPool) -> None:
    for num_tasks in (0, 1, 2, 3, 50):
        seen: list[tuple[int, int]] = []

        def task(index: int, seen: list[tuple[int, int]] = seen) -> None:
            time.sleep(0.0005)
            seen.append((index, threading.get_ident()))

        pool.run(num_tasks, task)
        assert sorted(index for index, _ in seen) == list(range(num_tasks))
        assert len({thread for _, thread in seen}) <= 3


def test_an_exception_in_a_piece_reaches_the_caller_and_the_pool_lives_on(pool: WorkPool) -> None:
    def task(index: int) -> None:
        if index == 7:
            raise ValueError("piece 7")

    with pytest.raises(ValueError, match="piece 7"):
        pool.run(20, task)
    done: list[int] = []
    pool.run(5, done.append)
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_the_number_of_threads_is_set_and_restored(pool: WorkPool) -> None:
    pool.set_threads(1)
    with pool.using(2):
        assert pool.num_threads == 2
    assert pool.num_threads == 1
    with pytest.raises(RuntimeError, match="inside"), pool.using(3):
        raise RuntimeError("inside")
    assert pool.num_threads == 1
    with pytest.raises(ValueError, match="at least 1, not 0"):
        pool.set_threads(0)


def test_torch_is_held_to_one_thread_and_gets_its_own_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pool = WorkPool(2)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        pool.set_threads(2)
        assert torch.get_num_threads() == 1
        workers: list[int] = []
        pool.run(8, lambda _: workers.append(torch.get_num_threads()))
        assert set(workers) == {1}
        pool.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_pieces_write_into_normal_and_inference_tensors(pool: WorkPool) -> None:
    for mode in (False, True, False):
        with torch.inference_mode(mode):
            out = torch.zeros(64, 4)

            def task(index: int, out: Tensor = out) -> None:
                out[index] = scratch("test", 4).fill_(index)

            pool.run(64, task)
            assert torch.equal(out, torch.arange(64.0)[:, None].expand(64, 4))


def test_scratch_is_reused_by_a_thread_and_its_own() -> None:
    first = scratch("test", 4, 8)
    assert scratch("test", 2, 3).data_ptr() == first.data_ptr()
    other: list[int] = []
    worker = threading.Thread(target=lambda: other.append(scratch("test", 4, 8).data_ptr()))
    worker.start()
    worker.join()
    assert other != [first.data_ptr()]
