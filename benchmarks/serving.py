"""How many tokens a second does a server give to N streaming clients, and how long does each wait?

    python -m benchmarks.serving [--model FOLDER | --url URL] [--clients 1 4 8 16] [--json FILE] [--plot FILE]
    python -m benchmarks.serving --shape 2b4t [--peers q6_K] [--shared-clients 4] [--threads 2] [--repeat 3]
                                 [--minutes M]

Each client sends one streamed /completion of ``--prompt`` random tokens and reads ``--generate`` tokens; end-of-text
tokens are forbidden by logit_bias, so every answer has the same length. All clients of a round start together. In the
shared case the ``--prompt`` tokens follow a prefix of ``--prefix`` tokens that one request, not timed, has shown to the
server just before: a system prompt. Prompts are new in every round.

With ``--shape``, random weights of that shape are served, by ours and by llama.cpp's llama-server (one for each type of
its head; benchmarks.peer_llama builds it), with the same threads, samplers and room for every client. In a round each
case is put to all servers one after the other, in turn first, while the others idle; printed are medians over the
rounds, so a drift of the machine hits every row alike; `--minutes` ends them earlier, after one at least. `first` is
the time to the first text of an answer, `gap` the time between two pieces of text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.limits import build_limits, measure_limits
from benchmarks.peer_gguf import HEADS
from benchmarks.peer_llama import Peer
from benchmarks.report import OtherLoad, bars, panels_of, percentile, write
from benchmarks.servers import llama_server, our_server
from benchmarks.shapes import CACHE, SHAPES, checkpoint
from benchmarks.timebox import TimeBox

DEMO = Path(__file__).parents[1] / "bitnet_model" / "demo"
OURS = "ours"
SAMPLERS = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
"""llama.cpp's defaults, asked for by name: the same work for every server."""
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Case:
    """So many clients at once, all distinct or with a common start of so many tokens."""

    clients: int
    prefix: int = 0

    def __str__(self) -> str:
        return f"{self.clients} clients" + (f", {self.prefix} shared" if self.prefix else "")


@dataclass(frozen=True, slots=True)
class Prompts:
    """What there is to ask for: random tokens below `vocab`, `generate` of them back, none of `forbidden`."""

    vocab: int
    forbidden: tuple[int, ...]
    prompt: int
    generate: int

    def bodies(self, case: Case, turn: int) -> tuple[list[int], list[dict[str, Any]]]:
        """The common start and one body a client, new for every turn."""
        source = random.Random(f"{turn}:{case}")
        prefix = self.tokens(source, case.prefix)
        own = [self.tokens(source, self.prompt) for _ in range(case.clients)]
        return prefix, [self.body(prefix + prompt, self.generate, seed) for seed, prompt in enumerate(own)]

    def tokens(self, source: random.Random, count: int) -> list[int]:
        return [source.randrange(self.vocab) for _ in range(count)]

    def body(self, prompt: list[int], generate: int, seed: int = 0) -> dict[str, Any]:
        forbid = [[token, False] for token in self.forbidden]
        return {
            "prompt": prompt,
            "n_predict": generate,
            "seed": seed,
            "stream": True,
            "logit_bias": forbid,
            **SAMPLERS,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """When text arrived and when the stream ended (seconds after the round began), and how many tokens it counted."""

    arrivals: list[float]
    ended: float
    num_tokens: int


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any], began: float) -> Answer:
    arrivals, num_tokens = [], 0
    async with client.stream("POST", f"{url}/completion", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now, event = time.perf_counter() - began, json.loads(line[6:])
            num_tokens = event.get("tokens_predicted", num_tokens)
            if event.get("content"):
                arrivals.append(now)
    if num_tokens != body["n_predict"]:
        raise SystemExit(f"{url} ended an answer after {num_tokens} of {body['n_predict']} tokens")
    return Answer(arrivals, time.perf_counter() - began, num_tokens)


async def burst(url: str, bodies: list[dict[str, Any]]) -> list[Answer]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        await client.get(f"{url}/health")
        began = time.perf_counter()
        return list(await asyncio.gather(*(ask(client, url, body, began) for body in bodies)))


def figures(answers: list[Answer]) -> Figures:
    """Generated tokens a second of the whole round; median and 99th percentile of first text (s) and gaps (ms)."""
    gaps = [b - a for answer in answers for a, b in zip(answer.arrivals, answer.arrivals[1:], strict=False)]
    gaps = gaps or [0.0]  # a small model may be through before its first text is sent
    firsts = [answer.arrivals[0] for answer in answers]
    return {
        "tok_s": sum(answer.num_tokens for answer in answers) / max(answer.ended for answer in answers),
        "first_s": statistics.median(firsts),
        "first_p99_s": percentile(firsts, 0.99),
        "gap_ms": 1000 * statistics.median(gaps),
        "gap_p99_ms": 1000 * percentile(gaps, 0.99),
    }


def measure(url: str, prompts: Prompts, case: Case, turn: int) -> Figures:
    """One case on one server."""
    prefix, bodies = prompts.bodies(case, turn)
    if prefix:
        asyncio.run(burst(url, [prompts.body(prefix, 1)]))
    return figures(asyncio.run(burst(url, bodies)))


def rounds(
    urls: Mapping[str, str], prompts: Prompts, cases: list[Case], turns: Iterable[int]
) -> dict[tuple[Case, str], list[Figures]]:
    """Every case on every server, round by round."""
    found: dict[tuple[Case, str], list[Figures]] = {(case, name): [] for case in cases for name in urls}
    names = list(urls)
    for name in names:
        measure(urls[name], prompts, Case(1), -1)  # warms up
    for turn in turns:
        for case in cases:
            for place in range(len(names)):
                name = names[(place + turn) % len(names)]
                found[case, name].append(measure(urls[name], prompts, case, turn))
    return found


def table_row(case: Case, name: str, turns: list[Figures], ours: list[Figures]) -> dict[str, Any]:
    """Medians of one server on one case, and how many times faster ours was in the same round."""
    rates = [turn["tok_s"] for turn in turns]
    return {
        "case": str(case),
        "server": name,
        "rounds": len(turns),
        **{key: statistics.median(turn[key] for turn in turns) for key in turns[0]},
        "spread": max(rates) / min(rates),
        "ours_is_x": statistics.median(own["tok_s"] / rate for own, rate in zip(ours, rates, strict=True)),
    }


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Tokens a second, time to first text and gaps of each case, servers side by side."""
    shown = {"tok_s": "generated tokens/s", "first_s": "first text, s", "gap_ms": "gap, ms", "gap_p99_ms": "p99, ms"}
    figure, axes = panels_of(len(shown))
    for axis, (key, unit) in zip(axes, shown.items(), strict=True):
        values: dict[str, dict[str, float]] = {}
        for row in rows:
            values.setdefault(row["server"], {})[row["case"]] = row[key]
        bars(axis, values, title="", unit=unit)
    figure.savefig(path)


def vocabulary(model: Path) -> tuple[int, tuple[int, ...]]:
    """Ids below the special ones, and the ids that would end an answer."""
    config = json.loads((model / "config.json").read_text())
    generation = json.loads((model / "generation_config.json").read_text())
    values = [source.get("eos_token_id") for source in (config, generation)]
    ends = {end for value in values for end in (value if isinstance(value, list) else [value]) if end is not None}
    return min(config["vocab_size"], *ends), tuple(sorted(ends))


def machine_limits(threads: int) -> str:
    """What the machine can do just now, for the record: the rate of a shared machine's memory comes and goes."""
    with tempfile.TemporaryDirectory() as folder:
        limits = measure_limits(build_limits(Path(folder)), threads)
    return f"{limits.gigabytes_per_s:.1f} GB/s, {limits.gigamacs_per_s:.0f} GMAC/s"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO, help="checkpoint folder (default: the demo model)")
    parser.add_argument("--url", help="a server that already runs --model")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights, with llama.cpp beside")
    parser.add_argument("--peers", choices=list(HEADS), nargs="*", default=["q6_K"], help="heads of llama.cpp")
    parser.add_argument("--threads", type=int, default=2, help="of every server started here")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--shared-clients", type=int, nargs="*", default=[4], help="clients that share a prefix")
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens")
    parser.add_argument("--prefix", type=int, default=512, help="tokens of the shared prefix")
    parser.add_argument("--generate", type=int, default=64, help="generated tokens")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--minutes", type=float, help="for everything: fewer rounds where they take longer")
    parser.add_argument("--peer-dir", type=Path, default=CACHE, help="checkpoints, GGUF files and the peer's build")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("server_arguments", nargs="*", help="after --: flags for our server")
    return parser.parse_args()


def main() -> None:
    """Start the servers, measure, print, and write what was asked for."""
    args = parse()
    box = TimeBox(args.minutes, parts=1)
    model = checkpoint(args.shape, args.peer_dir) if args.shape else args.model
    prompts = Prompts(*vocabulary(model), args.prompt, args.generate)
    shared = [Case(clients, args.prefix) for clients in args.shared_clients] if args.prefix else []
    cases = [*map(Case, args.clients), *shared]
    slots, longest = max(case.clients for case in cases), max(case.prefix for case in cases)
    slot_tokens = -(-(longest + args.prompt + args.generate + 1) // 256) * 256
    peer, peers = Peer(args.peer_dir), args.peers if args.shape else []
    versions = {"limits_before": machine_limits(args.threads)} | ({"peer": peer.describe()} if peers else {})
    others = OtherLoad()
    with contextlib.ExitStack() as stack:
        sizes = {"--n-threads": args.threads, "--max-running": slots, "--kv-tokens": (slots + 1) * slot_tokens}
        flags = [str(word) for pair in sizes.items() for word in pair] + args.server_arguments
        urls = {OURS: args.url or stack.enter_context(our_server(model, flags))}
        for head in peers:
            peer.require(peer.server)
            slot = {"threads": args.threads, "slots": slots, "slot_tokens": slot_tokens}
            urls[f"llama.cpp {head}"] = stack.enter_context(llama_server(peer, peer.gguf(args.shape, head), **slot))
        found = rounds(urls, prompts, cases, box.rounds(args.repeat))
    versions |= {"others_cores": f"{others.cores():.2f}", "limits_after": machine_limits(args.threads)}
    rows = [table_row(case, name, turns, found[case, OURS]) for (case, name), turns in found.items()]
    question = f"{model.name}: {args.prompt} prompt + {args.generate} generated tokens, {args.threads} threads"
    write(args.json, f"{question}, medians of up to {args.repeat} rounds", rows, versions)
    if args.plot:
        plot(args.plot, rows)


if __name__ == "__main__":
    main()
