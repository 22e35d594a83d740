"""How many tokens a second does a server give to N streaming clients, and how long does each wait?

    python -m benchmarks.serving [--model FOLDER | --url URL] [--clients 1 4 8 16] [--json FILE]

Each client sends one streamed /completion of ``--prompt`` random tokens and reads ``--generate`` tokens; end-of-text
tokens are forbidden by logit_bias, so every answer has the same length. All clients of a round start together. The
rounds are repeated ``--repeat`` times in turn, and medians are printed, so a drift of the machine hits every row alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.report import write

DEMO = Path(__file__).parents[1] / "bitnet_model" / "demo"


@dataclass(frozen=True, slots=True)
class Answer:
    """When the pieces of one stream arrived (seconds after the round began) and how many tokens it counted."""

    arrivals: list[float]
    num_tokens: int


@contextmanager
def server(model: Path | None, arguments: list[str]) -> Iterator[tuple[str, int]]:
    """Run ``bitnet serve`` on a free port; give its URL and process id once it is ready."""
    command = [sys.executable, "-m", "service", "serve", *([str(model)] if model else []), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "http://" in line and "ready" in line.lower():
                break
        else:
            raise SystemExit(f"the server ended with status {process.wait()}")
        url = next(word for word in line.split() if word.startswith("http://")).rstrip(".,")
        os.set_blocking(process.stderr.fileno(), False)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)
        if process.stderr is not None:
            process.stderr.close()


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any], began: float) -> Answer:
    arrivals, num_tokens = [], 0
    async with client.stream("POST", f"{url}/completion", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                arrivals.append(time.perf_counter() - began)
                num_tokens = json.loads(line[6:]).get("tokens_predicted", num_tokens)
    return Answer(arrivals, num_tokens)


async def burst(url: str, bodies: list[dict[str, Any]]) -> list[Answer]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        await client.get(f"{url}/health")
        began = time.perf_counter()
        return list(await asyncio.gather(*(ask(client, url, body, began) for body in bodies)))


def figures(answers: list[Answer]) -> dict[str, float]:
    """Generated tokens a second of the whole round, median time to first token (s), median gap (ms)."""
    gaps = [b - a for answer in answers for a, b in zip(answer.arrivals[:-2], answer.arrivals[1:-1], strict=True)]
    return {
        "tok_s": sum(answer.num_tokens for answer in answers) / max(answer.arrivals[-1] for answer in answers),
        "first_s": statistics.median(answer.arrivals[0] for answer in answers),
        "gap_ms": 1000 * statistics.median(gaps),
    }


def bodies(args: argparse.Namespace, clients: int, vocab: int, eos: list[int], turn: int) -> list[dict[str, Any]]:
    """Prompts of random tokens, new in every round so that no prefix is found in the cache."""
    source = random.Random(f"{turn}:{clients}")
    forbid = [[token, False] for token in eos]
    return [
        {
            "prompt": [source.randrange(vocab) for _ in range(args.prompt)],
            "n_predict": args.generate,
            "seed": number,
            "stream": True,
            "logit_bias": forbid,
        }
        for number in range(clients)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO, help="checkpoint folder (default: the demo model)")
    parser.add_argument("--url", help="a server that already runs --model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens")
    parser.add_argument("--generate", type=int, default=64, help="generated tokens")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("server_arguments", nargs="*", help="after --: flags for the server")
    args = parser.parse_args()

    config = json.loads((args.model / "config.json").read_text())
    generation = json.loads((args.model / "generation_config.json").read_text())
    ends = [value for source in (config, generation) for value in _list(source.get("eos_token_id"))]
    vocab, eos = min(config["vocab_size"], *ends), sorted(set(ends))

    def rounds(url: str) -> dict[int, list[dict[str, float]]]:
        asyncio.run(burst(url, bodies(args, 1, vocab, eos, -1)))  # warm up
        found: dict[int, list[dict[str, float]]] = {clients: [] for clients in args.clients}
        for turn in range(args.repeat):
            for clients in args.clients:
                found[clients].append(figures(asyncio.run(burst(url, bodies(args, clients, vocab, eos, turn)))))
        return found

    if args.url:
        found = rounds(args.url)
    else:
        with server(args.model, args.server_arguments) as (url, _):
            found = rounds(url)
    rows: list[dict[str, Any]] = []
    for clients, turns in found.items():
        median = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        spread = max(turn["tok_s"] for turn in turns) / min(turn["tok_s"] for turn in turns)
        one = statistics.median(turn["tok_s"] for turn in found[args.clients[0]])
        rows.append(
            {"clients": clients, **median, "spread": spread, f"x {args.clients[0]} client": median["tok_s"] / one}
        )
    question = f"{args.model.name}: {args.prompt} prompt + {args.generate} generated tokens, medians of {args.repeat}"
    write(args.json, question, rows)


def _list(value: object) -> list[int]:
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]


if __name__ == "__main__":
    main()
