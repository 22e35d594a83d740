"""The server over loopback: tokens a second and waits at each number of concurrent streams."""

from __future__ import annotations

import asyncio
import json
import statistics
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.bench import Figure, Options

PROMPT, GENERATE = 128, 64


def server(options: Options) -> Iterator[Figure]:
    """Streamed completions of random prompts, all of a round at once; prompts are new in every round."""
    from benchmarks.serving import bodies, burst, figures
    from benchmarks.serving import server as running

    config = json.loads((options.folder / "config.json").read_text())
    generation = json.loads((options.folder / "generation_config.json").read_text())
    ends = sorted({end for source in (config, generation) for end in listed(source.get("eos_token_id"))})
    lengths = Namespace(prompt=PROMPT, generate=GENERATE) if options.on_gpu else Namespace(prompt=8, generate=16)
    vocab = min(config["vocab_size"], *ends)
    backend = "triton" if options.on_gpu else "cpu"
    most = max(options.streams)
    room = most * (lengths.prompt + lengths.generate + 32)
    arguments = ["--backend", backend, "--max-running", str(most), "--max-queue", str(2 * most)]
    with running(options.folder, [*arguments, "--n-ctx", "512", "--kv-tokens", str(max(room, 4096))]) as (url, _):
        asyncio.run(burst(url, bodies(lengths, most, vocab, ends, -1)))
        for streams in options.streams:
            turns = [
                figures(asyncio.run(burst(url, bodies(lengths, streams, vocab, ends, turn))))
                for turn in range(min(3, options.repeat))
            ]
            median = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
            case = f"{streams} streams of {lengths.prompt} + {lengths.generate} tokens"
            yield Figure(case, median["tok_s"], "tok/s")
            yield Figure(f"{case}: first token", median["first_s"] * 1e3, "ms")
            yield Figure(f"{case}: from token to token", median["gap_ms"], "ms")


def listed(value: Any) -> list[int]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
