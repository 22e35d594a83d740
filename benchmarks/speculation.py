"""What do guesses of the next tokens save, by how many of them are right?

    python -m benchmarks.speculation [--model FOLDER | --shape 2b4t] [--repeat 5] [--json FILE]

One request at a time, on an engine that guesses and on one that does not, in turn, on the same model; the tokens must
be the same. `predicted` sends what the answer will be, with a share of its tokens replaced (wrong); `schema` is an
answer to a JSON schema, whose keys are guessed; `free` has nothing to be guessed from. Sampled at the default settings,
since random weights repeat themselves where they are greedy. Rates are medians, of decoding alone: tokens after the
first, divided by the time since the first.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import write
from benchmarks.serving import DEMO
from benchmarks.shapes import CACHE, SHAPES, checkpoint
from bitnet_model.checkpoint import load_model
from bitnet_model.config import ModelConfig
from bitnet_model.model import Model
from bitnet_model.ops import Ops, load_ops
from service.compose import load_tokenizer
from service.engine.blocks import BLOCK_TOKENS, BlockPool
from service.engine.engine import Engine
from service.engine.grammar import Grammar
from service.engine.grammar_compiler import GrammarCompiler
from service.engine.request import Delta, Limits, Request, SamplingParams
from service.engine.runner import ModelRunner
from service.engine.scheduler import MAX_ROUNDS, SchedulerLimits
from service.engine.tokenizer import Tokenizer

WRONG = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 12}, "zip_code": {"type": "integer"}},
            "required": ["street", "zip_code"],
            "additionalProperties": False,
        },
        "occupation": {"enum": ["engineer", "doctor", "teacher"]},
    },
    "required": ["name", "address", "occupation"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its seed, what its client predicts, and whether it obeys SCHEMA; else only its limit ends it."""

    seed: int
    prediction: tuple[int, ...] = ()
    has_schema: bool = False


class Side:
    """An engine that guesses up to `draft_max` tokens, with a cache of its own."""

    def __init__(self, model: Model, ops: Ops, tokenizer: Tokenizer, draft_max: int, args: argparse.Namespace) -> None:
        pool = BlockPool(-(-(args.prompt + args.generate) // BLOCK_TOKENS) + 2)
        runner = ModelRunner(model, ops, num_blocks=pool.num_blocks, block_tokens=BLOCK_TOKENS, kv_dtype="bf16")
        limits = SchedulerLimits(1, 512, args.threads, None, MAX_ROUNDS, draft_max)
        self._engine = Engine(runner, tokenizer, pool, limits)
        self._end_ids = tuple(tokenizer.eos_ids)
        self._grammars = GrammarCompiler(tokenizer)
        self._prompt = tuple(random.Random(0).choices(range(tokenizer.vocab_size // 2), k=args.prompt))
        self._generate: int = args.generate

    def run(self, asked: Asked) -> Delta:
        """Everything the request came to."""
        grammar = Grammar("json_schema", json.dumps(SCHEMA), "json_schema")
        min_tokens = 0 if asked.has_schema else self._generate
        n_ctx = len(self._prompt) + self._generate
        request = Request(
            "r",
            self._prompt,
            SamplingParams(seed=asked.seed),
            Limits(n_ctx=n_ctx, n_batch=512, min_tokens=min_tokens, end_ids=self._end_ids),
            matcher=self._grammars.matcher(grammar) if asked.has_schema else None,
            prediction=asked.prediction,
        )
        self._engine.add(request)
        whole = Delta()
        while self._engine.has_work:
            for _, delta in self._engine.step():
                whole = whole.then(delta)
        return whole


def tokens_s(answer: Delta) -> float:
    return (answer.num_generated - 1) / answer.predicted_ms * 1e3


def compare(name: str, wrong: float | None, asked: Sequence[Asked], sides: Sequence[Side]) -> dict[str, object]:
    """One row: every request on both sides. Raises RuntimeError where their tokens differ."""
    rates: list[tuple[float, float]] = []
    drafted = accepted = 0
    for one in asked:
        without, guessing = (side.run(one) for side in sides)
        if without.token_ids != guessing.token_ids:
            raise RuntimeError(f"{name}, seed {one.seed}: guesses changed the tokens")
        rates.append((tokens_s(without), tokens_s(guessing)))
        drafted, accepted = drafted + guessing.num_drafted, accepted + guessing.num_accepted
    return {
        "answer": name,
        "wrong": wrong,
        "without_tok_s": statistics.median(rate for rate, _ in rates),
        "guessing_tok_s": statistics.median(rate for _, rate in rates),
        "ratio": statistics.median(guessing / without for without, guessing in rates),
        "drafted": drafted,
        "accepted": accepted,
    }


def changed(token_ids: Sequence[int], share: float, vocab_size: int, seed: int) -> tuple[int, ...]:
    """The tokens with a share of them replaced, each one by itself."""
    rng = random.Random(seed)
    return tuple(rng.randrange(vocab_size) if rng.random() < share else token_id for token_id in token_ids)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO, help="checkpoint folder (default: the demo model)")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights of this shape instead")
    parser.add_argument("--prompt", type=int, default=100, help="prompt tokens")
    parser.add_argument("--generate", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--draft-max", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    folder = checkpoint(args.shape, CACHE) if args.shape else args.model
    ops = load_ops("cpu", threads=args.threads)
    model = load_model(folder, ops, head_dtype=ops.head_dtypes[0])
    tokenizer = load_tokenizer(folder, ModelConfig.from_folder(folder))
    sides = [Side(model, ops, tokenizer, draft_max, args) for draft_max in (0, args.draft_max)]
    answers = [sides[0].run(Asked(seed)).token_ids for seed in range(args.repeat)]
    rows = [compare("free", None, [Asked(seed) for seed in range(args.repeat)], sides)]
    for share in WRONG:
        predictions = [changed(ids, share, tokenizer.vocab_size, seed) for seed, ids in enumerate(answers)]
        rows.append(compare("predicted", share, [Asked(seed, ids) for seed, ids in enumerate(predictions)], sides))
    rows.append(compare("schema", None, [Asked(seed, has_schema=True) for seed in range(args.repeat)], sides))
    write(args.json, f"What do guesses save one stream ({folder.name}, {args.threads} threads)?", rows, ops.describe())


if __name__ == "__main__":
    main()
