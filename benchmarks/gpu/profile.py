"""Where the time of a step goes: every kernel of a decode step and of a prompt, as the device's own clock has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Figure, Options, seconds
from benchmarks.gpu.steps import decode_work, prompt_work

REPLAYS = 3
SHOWN = 14
"""Kernels of a step that get a line of their own, the costliest first."""


def kernels_of_steps(options: Options) -> Iterator[Figure]:
    """Microseconds a step of each kernel and how often it was launched.

    One kernel at a time: where launches overlap, a kernel's time has in it that it waits for the one before.
    """
    model = options.load(pdl=False)
    for num_rows in options.batches:
        yield from shares(f"batch {num_rows}", decode_work(model, options, "bf16", num_rows), options)
    yield from shares(f"prompt of {options.prompt}", prompt_work(model, options), options)


def shares(case: str, work: Callable[[], object], options: Options) -> Iterator[Figure]:
    """The costliest kernels of some work, in microseconds a run, all of them together, and the work by the clock."""
    taken = seconds(work, options)
    activity = ProfilerActivity.CUDA if options.on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as recorded:
        for _ in range(REPLAYS):
            work()
    spent: dict[str, list[float]] = defaultdict(list)
    for event in recorded.events():
        spent[event.name].append(event.device_time if options.on_gpu else event.cpu_time)
    totals = {name: sum(times) / REPLAYS for name, times in spent.items()}
    for name in sorted(totals, key=lambda name: -totals[name])[:SHOWN]:
        yield Figure(f"{case}: {name[:60]}, {len(spent[name]) / REPLAYS:g} times", totals[name], "us")
    yield Figure(f"{case}: all kernels", sum(totals.values()), "us")
    yield Figure(f"{case}: the step, unwatched", taken * 1e6, "us")
