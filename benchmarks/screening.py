"""A head in halves against the same head whole: do they ever give other tokens or logits, and how long do they take?

    python -m benchmarks.screening [--positions 1000000] [--sizes 128256x2560:100000 32768x640] [--text FILE] [--json P]

Synthetic heads have normally distributed rows; of their hidden states half are noise, for which the likeliest lie
closest together, and half lean towards a few tokens, as those of a trained model do. With --text the hidden states are
those of a model (--model, by default the one that ships) over the documents of a text file. Every position asks for the
40 likeliest tokens and 64 tokens more, as a request with penalties does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import write
from benchmarks.serving import DEMO
from bitnet_model.checkpoint import load_model
from bitnet_model.model import Model
from bitnet_model.ops import load_ops
from cpu_fallback.native_handles import Table
from cpu_fallback.native_wing import NativeCpuWing
from service.engine.blocks import BLOCK_TOKENS
from service.engine.tokenizer import Tokenizer
from tools.documents import read_documents
from tools.held_out import one_row

DTYPES = ("int8", "int4-rescore")
ROWS, TOP_K, EXTRA = 32, 40, 64
WINDOW = 512


def synthetic_states(weight: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Hidden states [ROWS, H] without end."""
    vocab, width = weight.shape
    strengths = torch.linspace(0.12, 0.02, 20)
    while True:
        x = torch.randn(ROWS, width, generator=generator)
        for row in x[ROWS // 2 :]:
            row += strengths @ weight[torch.randint(vocab, (20,), generator=generator)]
        yield x


@torch.inference_mode()
def model_states(model: Model, tokenizer: Tokenizer, text: Path) -> Iterator[Tensor]:
    """Hidden states [ROWS or fewer, H] of a model over a text, from its start again when it ends."""
    cache = model.new_cache(WINDOW // BLOCK_TOKENS, BLOCK_TOKENS, "bf16")
    while True:
        for document in read_documents(text):
            ids = tokenizer.encode_text(document)
            for first in range(0, len(ids), WINDOW):
                yield from model.forward(one_row(ids[first : first + WINDOW]), cache).split(ROWS)


@dataclass(frozen=True, slots=True)
class Heads:
    """The same head whole and in halves."""

    wing: NativeCpuWing
    tables: Sequence[Table]
    gain: Tensor
    eps: float

    def compare(self, states: Iterator[Tensor], positions: int) -> dict[str, object]:
        """Both on the same hidden states, in turn."""
        generator = torch.Generator().manual_seed(1)
        done = differing = 0
        seconds = [0.0, 0.0]
        while done < positions:
            x = next(states)
            extra = torch.randint(self.tables[0].native.rows, (len(x), EXTRA), generator=generator)
            found = []
            for place, table in enumerate(self.tables):
                began = time.perf_counter()
                found.append(self.wing.head_topk(x, self.gain, self.eps, table, TOP_K, extra))
                seconds[place] += time.perf_counter() - began
            same = (found[0][0] == found[1][0]).all(1) & (found[0][1] == found[1][1]).all(1)
            differing += int((~same).sum())
            done += len(x)
        return {"positions": done, "differing": differing, "whole_s": seconds[0], "halves_s": seconds[1]}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1_000_000)
    parser.add_argument("--sizes", nargs="*", default=["32768x640"], help="VxH, or VxH:POSITIONS")
    parser.add_argument("--text", type=Path, help="documents for the hidden states of a model")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    wing = load_ops("cpu", isa="auto", threads=args.threads)
    if not isinstance(wing, NativeCpuWing):
        raise SystemExit("the native CPU wing is not built here")
    rows: list[dict[str, object]] = []
    for size in args.sizes:
        extents, _, positions = size.partition(":")
        vocab, width = map(int, extents.split("x"))
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(vocab, width, generator=generator)
        states = synthetic_states(weight, generator)
        tables = [wing.pack_table(weight, embedding=False, head_dtype=dtype) for dtype in DTYPES]
        found = Heads(wing, tables, torch.ones(width), 1e-5).compare(states, int(positions or args.positions))
        rows.append({"head": extents, "states": "synthetic", **found})
    if args.text:
        models = [load_model(args.model, wing, head_dtype=dtype, max_positions=WINDOW) for dtype in DTYPES]
        plan = models[0].plan
        heads = Heads(wing, [model.plan.head for model in models], plan.head_gain, plan.eps)
        states = model_states(models[0], Tokenizer.from_folder(args.model), args.text)
        found = heads.compare(states, args.positions)
        extents = f"{heads.tables[0].native.rows}x{plan.hidden_size}"
        rows.append({"head": extents, "states": f"{args.model.name} over {args.text.name}", **found})
    write(args.json, "Heads in halves and whole: positions at which tokens or logits differ", rows, wing.describe())


if __name__ == "__main__":
    main()
