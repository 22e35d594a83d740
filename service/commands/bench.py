"""`bitnet bench`: how fast is it here? Requests, clients or kernels; a table, JSON, and a plot.

For `latency` and `serve` the server runs in a process of its own (or is somebody else's, --url), so that the clients'
work is not counted. Prompts are random tokens, new in every round, so that no prefix is found in a cache. Rounds of all
rows alternate and medians are shown, so that a drift of the machine meets every row alike.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.commands.client import Endpoint, ServerError
from service.commands.exits import EXIT_CONFIG, fail, known_errors
from service.commands.machine import allowed_cores, processor, versions
from service.commands.options import ModelArgument, settings_of
from service.commands.plot import Series, line_chart

app = typer.Typer(no_args_is_help=True, help="Measure speed: one request alone, many clients at once, or the kernels.")

UrlOption: TypeAlias = Annotated[str | None, typer.Option("--url", help="a running server, instead of MODEL")]
KeyOption: TypeAlias = Annotated[str | None, typer.Option("--api-key", help="key of that server")]
JsonFile: TypeAlias = Annotated[Path | None, typer.Option("--json", help="file for the rows and the machine")]
PlotFile: TypeAlias = Annotated[Path | None, typer.Option("--plot", help="SVG file for a plot")]
Generate: TypeAlias = Annotated[int, typer.Option(min=2, help="tokens to generate")]
Repeat: TypeAlias = Annotated[int, typer.Option(min=1, help="rounds; medians are shown")]
ServerFlags: TypeAlias = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="server setting")]

Row: TypeAlias = dict[str, float]
Cells: TypeAlias = Sequence[Mapping[str, float | str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One stream: when its pieces came (seconds after the round began), and what the server says of it."""

    arrivals: tuple[float, ...]
    num_tokens: int
    prompt_per_s: float
    decode_per_s: float


@dataclass(frozen=True, slots=True)
class Target:
    """A server, the ids that prompts are made of, and those that would end an answer early, where they are known."""

    endpoint: Endpoint
    model_id: str
    vocab_size: int
    end_ids: tuple[int, ...]

    def body(self, num_prompt: int, num_generate: int, salt: str) -> dict[str, Any]:
        source = random.Random(salt)
        return {
            "prompt": [source.randrange(self.vocab_size) for _ in range(num_prompt)],
            "n_predict": num_generate,
            "seed": source.randrange(1 << 32),
            "logit_bias": [[token_id, False] for token_id in self.end_ids],
        }


@app.command()
def latency(
    model: ModelArgument = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    prompt: Annotated[list[int] | None, typer.Option(min=1, help="prompt tokens; repeatable")] = None,
    generate: Generate = 64,
    repeat: Repeat = 3,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    set_: ServerFlags = None,
) -> None:
    """One request alone: prompt and generation speed and the time to the first token, by prompt length."""
    lengths = prompt or [16, 128, 512]

    def measure(target: Target, length: int, turn: int) -> Row:
        (answer,) = burst(target, [target.body(length, generate, f"{turn}:{length}")])
        return {
            "prompt tok/s": answer.prompt_per_s,
            "generation tok/s": answer.decode_per_s,
            "first token ms": 1000 * answer.arrivals[0],
        }

    with known_errors(), _target(model, url, api_key, set_) as target:
        rows = rounds(lambda length, turn: measure(target, length, turn), lengths, repeat, "prompt tokens")
    title = f"{target.model_id}: one request, {generate} generated tokens, medians of {repeat}"
    report(title, rows, json_file)
    plot(title, rows, plot_file, "prompt tokens", ("prompt tok/s", "generation tok/s"))


@app.command()
def serve(
    model: ModelArgument = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    clients: Annotated[list[int] | None, typer.Option(min=1, max=512, help="clients at once; repeatable")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="prompt tokens")] = 128,
    generate: Generate = 64,
    repeat: Repeat = 3,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    set_: ServerFlags = None,
) -> None:
    """N streaming clients at once: total speed, the time to the first token, and the gap between two pieces of text."""

    def measure(target: Target, count: int, turn: int) -> Row:
        salts = [f"{turn}:{count}:{number}" for number in range(count)]
        answers = burst(target, [target.body(prompt, generate, salt) for salt in salts])
        gaps = [b - a for answer in answers for a, b in zip(answer.arrivals[:-2], answer.arrivals[1:-1], strict=True)]
        firsts = sorted(answer.arrivals[0] for answer in answers)
        return {
            "tok/s": sum(answer.num_tokens for answer in answers) / max(answer.arrivals[-1] for answer in answers),
            "first token ms": 1000 * statistics.median(firsts),
            "slowest first ms": 1000 * firsts[-1],
            "gap ms": 1000 * statistics.median(gaps) if gaps else 0.0,
        }

    with known_errors(), _target(model, url, api_key, set_) as target:
        rows = rounds(lambda count, turn: measure(target, count, turn), clients or [1, 4, 8, 16], repeat, "clients")
    title = f"{target.model_id}: {prompt} prompt + {generate} generated tokens, medians of {repeat}"
    report(title, rows, json_file)
    plot(title, rows, plot_file, "clients", ("tok/s",))


@app.command()
def kernels(
    model: ModelArgument = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, max=4096, help="tokens in a step; repeatable")] = None,
    json_file: JsonFile = None,
    set_: ServerFlags = None,
) -> None:
    """The ternary linears and the head in the shapes of MODEL, with random weights, on the backend chosen here."""
    with known_errors():
        from bitnet_model.config import ModelConfig
        from bitnet_model.kernel_timing import time_kernels
        from service.compose import locate, ops_for

        settings = settings_of(model, given=set_)
        folder, model_id = locate(settings)
        config = ModelConfig.from_folder(folder)
        ops = ops_for(settings)
        wing = ops.describe()
        try:
            timings = list(time_kernels(config, ops, tokens or [1, 8, 64]))
        finally:
            ops.close()
    rows: list[dict[str, float | str]] = [
        {
            "kernel": timing.name,
            "tokens": timing.tokens,
            "us": 1e6 * timing.median_s,
            "least us": 1e6 * timing.least_s,
            "weights GB/s": timing.weight_bytes / timing.median_s / 1e9,
            "GOP/s": timing.operations / timing.median_s / 1e9,
        }
        for timing in timings
    ]
    report(f"{model_id}: kernels on {', '.join(f'{name} {value}' for name, value in wing.items())}", rows, json_file)


@contextmanager
def _target(model: str | None, url: str | None, api_key: str | None, given: list[str] | None) -> Iterator[Target]:
    if url is not None:
        if model is not None or given:
            fail("--url measures a server that runs: MODEL and --set are for one of its own", EXIT_CONFIG)
        yield _describe(Endpoint(url, api_key), ())
        return
    from bitnet_model.config import ModelConfig
    from service.commands.local_server import beside
    from service.compose import load_tokenizer, locate

    settings = settings_of(model, given=given)
    folder, _ = locate(settings)
    config = ModelConfig.from_folder(folder)
    ends = tuple(sorted(load_tokenizer(folder, config).eos_ids))
    flags = [part for entry in given or () for part in _flag(entry)]
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    with beside([str(folder), *flags], key) as endpoint:
        yield _describe(endpoint, ends)


def _flag(entry: str) -> list[str]:
    """NAME=VALUE as `bitnet serve` takes it; a switch is one word."""
    name, _, value = entry.partition("=")
    name = name.strip().replace("_", "-")
    if value.lower() in ("true", "false"):
        return [f"--{name}" if value.lower() == "true" else f"--no-{name}"]
    return [f"--{name}", value]


def _describe(endpoint: Endpoint, end_ids: tuple[int, ...]) -> Target:
    served = endpoint.get("/v1/models")["data"][0]
    return Target(endpoint, served["id"], min(served["meta"]["vocab_size"], *end_ids, 1 << 30), end_ids)


def burst(target: Target, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """All at once, a thread each; the first failure ends it. Raises ServerError."""
    start = threading.Barrier(len(bodies) + 1)
    answers: list[Answer | None] = [None] * len(bodies)
    errors: list[ServerError] = []
    began: list[float] = []

    def ask(number: int) -> None:
        start.wait()
        try:
            answers[number] = _listen(target.endpoint.stream("/completion", bodies[number]), began[0])
        except ServerError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    began.append(time.perf_counter())
    start.wait()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [answer for answer in answers if answer is not None]


def _listen(events: Iterator[dict[str, Any]], began: float) -> Answer:
    arrivals = []
    last: dict[str, Any] = {}
    for event in events:
        arrivals.append(time.perf_counter() - began)
        last = event
    timings = last["timings"]
    return Answer(
        tuple(arrivals),
        int(timings["predicted_n"]),
        float(timings["prompt_per_second"]),
        float(timings["predicted_per_second"]),
    )


def rounds(measure: Callable[[int, int], Row], sizes: Sequence[int], repeat: int, name: str) -> list[Row]:
    """Every size in each of `repeat` rounds, after one that warms up; medians, and the spread of the first column."""
    measure(sizes[0], -1)
    found: dict[int, list[Row]] = {size: [] for size in sizes}
    for turn in range(repeat):
        for size in sizes:
            found[size].append(measure(size, turn))
    rows = []
    for size, turns in found.items():
        medians = {column: statistics.median(turn[column] for turn in turns) for column in turns[0]}
        first = next(iter(medians))
        least = min(turn[first] for turn in turns)
        rows.append({name: size, **medians, "spread": max(turn[first] for turn in turns) / least if least else 0.0})
    return rows


def report(title: str, rows: Cells, json_file: Path | None) -> None:
    """Print the table and the machine; write both where JSON was asked for."""
    machine = {"processor": processor(), "cores": str(allowed_cores()), "date": time.strftime("%Y-%m-%d"), **versions()}
    table = Table(*rows[0], title=escape(title), title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    console = Console(highlight=False)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), style="dim", markup=False)
    if json_file is not None:
        result = {"question": title, "machine": machine, "rows": list(rows)}
        _write(json_file, json.dumps(result, indent=2) + "\n")


def plot(title: str, rows: Sequence[Row], plot_file: Path | None, x: str, lines: Sequence[str]) -> None:
    """Draw columns over the column `x`, where a plot was asked for."""
    if plot_file is not None:
        series = [Series(name, tuple((row[x], row[name]) for row in rows)) for name in lines]
        _write(plot_file, line_chart(title, x, "tokens per second", series))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}", EXIT_CONFIG)
