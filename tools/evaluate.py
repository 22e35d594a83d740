"""The quality of a checkpoint folder, as Markdown: held-out loss on several paths, answers to fixed prompts.

    python -m tools.evaluate bitnet_model/demo CORPUS/heldout.txt.xz --max-bytes 100000 --max-document-bytes 1500
    python -m tools.evaluate bitnet_model/demo --answers --seeds 1 2 3
    python -m tools.evaluate bitnet_model/demo --stories

Without --paths the loss is taken on the native path; `--paths native torch transformers` takes it on all three, which
must agree to about a thousandth.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitnet_model.config import ModelConfig
from service.compose import load_tokenizer
from tools.answers import (
    KEPT_TIMES,
    LOOP_TIMES,
    LOOP_WORDS,
    PROMPTS,
    STORY_TOKENS,
    Answer,
    answer_all,
    ask_for_stories,
    figures,
    load_engine,
    num_naming,
)
from tools.held_out import PATHS, HeldOutLoss, first_documents, forward_of, held_out_loss


def loss_table(losses: dict[str, HeldOutLoss]) -> str:
    """One row per path."""
    rows = [
        f"| {name} | {loss.num_tokens:,} | {loss.num_bytes:,} | {loss.per_token:.4f} | {loss.perplexity:.2f} "
        f"| {loss.bits_per_byte:.4f} |"
        for name, loss in losses.items()
    ]
    header = "| path | tokens | bytes | nats/token | perplexity | bits/byte |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([header, *rows])


def figures_table(answers: Sequence[Answer]) -> str:
    """What the answers have in common."""
    of = figures(answers)
    distinct = " / ".join(f"{value:.3f}" for value in of.distinct)
    return (
        "| answers | words | ended by themselves | distinct-1 / 2 / 3 | "
        f"with {LOOP_WORDS} words in a row {LOOP_TIMES} times |\n| --- | --- | --- | --- | --- |\n"
        f"| {of.num_answers} | {of.num_words:,} | {of.ended:.1%} | {distinct} | {of.loops:.1%} |"
    )


def stories_table(stories: Sequence[tuple[str, Answer]]) -> str:
    """Whether stories are about what was asked for."""
    ended = sum(answer.ended for _, answer in stories)
    return (
        f"| stories | naming what was asked for | {KEPT_TIMES} times or more | ended within {STORY_TOKENS} tokens |\n"
        "| --- | --- | --- | --- |\n"
        f"| {len(stories)} | {num_naming(stories, 1)} | {num_naming(stories, KEPT_TIMES)} | {ended} |"
    )


def answer_list(answers: Sequence[Answer]) -> Iterator[str]:
    """Prompts and answers as quotations."""
    for answer in answers:
        quoted = "\n> ".join(line for line in [*answer.text.splitlines(), "" if answer.ended else "[cut]"] if line)
        yield f"> **{answer.prompt}**\n>\n> {quoted}".replace("\n> ", "\n>\n> ").replace("\n>\n>\n>", "\n>\n>")


def evaluate(args: argparse.Namespace) -> Iterator[str]:
    """The parts of the report, as they are ready."""
    if args.heldout:
        tokenizer = load_tokenizer(args.folder, ModelConfig.from_folder(args.folder))
        texts = first_documents(args.heldout, args.max_bytes, args.max_document_bytes)
        yield loss_table(
            {
                name: held_out_loss(forward_of(name, args.folder, args.window), tokenizer, texts, args.window)
                for name in args.paths
            }
        )
    if args.stories:
        yield stories_table(ask_for_stories(load_engine(args.folder, STORY_TOKENS)))
    if args.answers:
        answers = answer_all(load_engine(args.folder, args.max_tokens), PROMPTS, args.seeds, args.max_tokens)
        yield figures_table(answers)
        yield from answer_list([answer for answer in answers if answer.seed == args.seeds[0]])


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(prog="tools.evaluate", description=__doc__)
    described.add_argument("folder", type=Path, help="checkpoint folder")
    described.add_argument("heldout", type=Path, nargs="?", help="text whose documents end in <|endoftext|> lines")
    described.add_argument("--paths", nargs="+", choices=PATHS, default=["native"])
    described.add_argument("--window", type=int, default=512)
    described.add_argument("--max-bytes", type=int, default=0, help="stop after the document that reaches this size")
    described.add_argument("--max-document-bytes", type=int, default=0, help="leave out longer documents (0: none)")
    described.add_argument("--answers", action="store_true", help="answer the fixed prompts at the default sampling")
    described.add_argument("--stories", action="store_true", help="ask for stories and see what they are about")
    described.add_argument("--seeds", type=int, nargs="+", default=[1], help="the answers of the first are printed")
    described.add_argument("--max-tokens", type=int, default=400)
    return described


def main() -> None:
    for part in evaluate(parser().parse_args()):
        print(part, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
