"""Threads of the CPU wing: how many are allowed, and one pool that shares out a verb's independent pieces.

torch itself is held to one thread: its fork-join regions wait for every thread, and a worker preempted by another
process then stalls each of the many small operations of a step (one conversion loop over 18 million weights went from
3 ms to over 1 s with two torch threads on a busy 2-core EPYC, 2025-11). Here a verb is cut into pieces that the
threads claim one by one, so a stalled thread delays one piece. It also makes the promise of the wing plain: each piece
is computed by one thread in one order, whatever the number of threads. torch's inter-op threads are not used by eager
operations and are left alone.

Knows no tensor shape and no verb. The idea (rows claimed in small chunks from a shared counter) is that of the ggml
and ik_llama.cpp thread pools.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

Task = Callable[[int], None]


def allowed_threads(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: its affinity mask, cut to the CPU quota of its cgroup (v1 or v2); at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroup_folders(proc, cgroups) if (quota := _quota(folder)) is not None]
    return max(1, min([cpus, *(int(quota) for quota in quotas)]))


def _cgroup_folders(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The process's CPU cgroup and all its parents, any of which may carry a quota."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mounts = [cgroups] if not controllers else [cgroups / controllers, cgroups / "cpu"]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in mounts:
            folder = mount / path.lstrip("/")
            yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(mount))


def _quota(folder: Path) -> float | None:
    """CPUs granted by one cgroup folder, None where it sets no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # "max" and unreadable files: no limit known
        return None


class _Job:
    """The pieces 0 .. num_tasks - 1 of one run. `next` of an itertools.count is atomic under the GIL."""

    def __init__(self, num_tasks: int, task: Task) -> None:
        self.num_tasks = num_tasks
        self.task = task
        self.claims = itertools.count()
        self.finished = itertools.count(1)
        self.done = threading.Semaphore(0)
        self.errors: list[BaseException] = []

    def work(self) -> None:
        """Claim pieces until none is left; whoever finishes the last one says so."""
        while (index := next(self.claims)) < self.num_tasks:
            try:
                self.task(index)
            except BaseException as error:  # handed to the caller of run, whichever thread it happened in
                self.errors.append(error)
            if next(self.finished) == self.num_tasks:
                self.done.release()


class WorkPool:
    """The wing's threads: the caller of `run` and num_threads - 1 workers, which park between runs.

    Holds torch to one thread in the thread that calls `set_threads` (torch's count is per thread); `close` restores.
    """

    def __init__(self, num_threads: int) -> None:
        self._torch_threads = torch.get_num_threads()
        self._workers: list[tuple[threading.Thread, queue.SimpleQueue[_Job | None]]] = []
        self._one_run = threading.Lock()
        self.num_threads = 1
        self.set_threads(num_threads)

    def set_threads(self, num_threads: int) -> None:
        """Use this many threads from the next run on. Raises ValueError below 1. Cheap when nothing changes."""
        if num_threads < 1:
            raise ValueError(f"the number of threads must be at least 1, not {num_threads}")
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        while len(self._workers) < num_threads - 1:
            self._start_worker()
        self.num_threads = num_threads

    @contextmanager
    def using(self, num_threads: int) -> Iterator[None]:
        """Use this many threads inside the block, then as many as before."""
        before = self.num_threads
        self.set_threads(num_threads)
        try:
            yield
        finally:
            self.set_threads(before)

    def run(self, num_tasks: int, task: Task) -> None:
        """Call task(0) .. task(num_tasks - 1), each once, in any order and thread; returns when all are done.

        Tasks must be independent and must not call `run`. An exception in a task is raised here, once the others ended.
        """
        if self.num_threads == 1 or num_tasks <= 1:
            for index in range(num_tasks):
                task(index)
            return
        with self._one_run:
            job = _Job(num_tasks, task)
            for _, inbox in self._workers[: min(self.num_threads, num_tasks) - 1]:
                inbox.put(job)
            job.work()
            job.done.acquire()
        if job.errors:
            raise job.errors[0]

    def close(self) -> None:
        """End the workers and give torch its former number of threads back."""
        for worker, inbox in self._workers:
            inbox.put(None)
            worker.join()
        self._workers.clear()
        self.num_threads = 1
        torch.set_num_threads(self._torch_threads)

    def _start_worker(self) -> None:
        inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        name = f"cpu-wing-{len(self._workers) + 1}"
        worker = threading.Thread(target=_serve, args=(inbox,), name=name, daemon=True)
        worker.start()
        self._workers.append((worker, inbox))


def _serve(inbox: queue.SimpleQueue[_Job | None]) -> None:
    """A worker's life. Inference mode, because it is per thread and tasks write into the caller's tensors."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        while (job := inbox.get()) is not None:
            job.work()
            del job  # or its tensors would live until the next run


_local = threading.local()


def scratch(name: str, *shape: int) -> torch.Tensor:
    """An f32 tensor of this shape with unknown contents, valid until this thread asks for `name` again.

    The memory is kept and reused, so that a block of weights or keys is widened into a cache that is already warm.
    """
    size = 1
    for extent in shape:
        size *= extent
    buffers: dict[str, torch.Tensor] = _local.__dict__
    buffer = buffers.get(name)
    if buffer is None or buffer.numel() < size:
        # A tensor born in inference mode could not be written outside it later.
        with torch.inference_mode(False):
            buffer = buffers[name] = torch.empty(size)
    return buffer[:size].view(shape)
