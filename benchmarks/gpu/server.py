"""The server over loopback: tokens a second and waits at each number of concurrent streams."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.gpu.bench import Figure, Options


def server(options: Options) -> Iterator[Figure]:
    """Streamed completions of random prompts, all of a round at once; prompts are new in every round."""
    from benchmarks.servers import our_server
    from benchmarks.serving import Case, Prompts, measure, vocabulary

    prompt, generate = (128, 64) if options.on_gpu else (8, 16)
    prompts = Prompts(*vocabulary(options.folder), prompt=prompt, generate=generate)
    backend = "triton" if options.on_gpu else "cpu"
    most = max(options.streams)
    room = most * (prompt + generate + 32)
    arguments = ["--backend", backend, "--max-running", str(most), "--max-queue", str(2 * most)]
    with our_server(options.folder, [*arguments, "--n-ctx", "512", "--kv-tokens", str(max(room, 4096))]) as url:
        measure(url, prompts, Case(most), -1)  # warms up
        for streams in options.streams:
            turns = [measure(url, prompts, Case(streams), turn) for turn in range(min(3, options.repeat))]
            median = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
            case = f"{streams} streams of {prompt} + {generate} tokens"
            yield Figure(case, median["tok_s"], "tok/s")
            yield Figure(f"{case}: first token", median["first_s"] * 1e3, "ms")
            yield Figure(f"{case}: from token to token", median["gap_ms"], "ms")
