"""Command line: `python -m train_demo prepare | train | export | evaluate | sample | plot` (run in `tools/`)."""

import argparse
import os
import signal
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from . import data
from .evaluate import (
    Forward,
    Sampling,
    answer,
    first_documents,
    forward_of_checkpoint,
    forward_of_folder,
    held_out_loss,
)
from .export import export
from .model import DemoConfig
from .plot import plot_loss
from .train import Run, TrainSettings, train


def _prepare(args: argparse.Namespace) -> None:
    sizes = data.prepare(
        args.corpus, args.data, vocab_size=args.vocab_size, row_length=args.row_length + 1, min_ease=args.min_ease
    )
    print(" ".join(f"{name}: {size} tokens" for name, size in sizes.items()))


def _train(args: argparse.Namespace) -> None:
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer.json"))
    sets = {name: data.Rows.load(args.data / f"{name}.npz") for name in data.SET_NAMES}
    config = DemoConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=args.hidden,
        num_layers=args.layers,
        num_heads=args.heads,
        num_kv_heads=args.kv_heads,
        ffn_size=args.ffn,
    )
    settings = TrainSettings(
        out=args.out,
        deadline=args.deadline or time.time() + 60 * args.minutes,
        rows_per_step=args.rows_per_step,
        rows_per_pass=args.rows_per_pass,
        num_workers=args.workers,
        device=args.device,
        max_steps=args.max_steps,
        pause_file=args.pause_file,
    )
    run = Run(config, sets, settings, data.special_id(tokenizer, data.BEGIN))
    run.load()
    signal.signal(signal.SIGTERM, lambda *_: setattr(run, "stop_requested", True))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not os.isatty(1)) as progress:
        task = progress.add_task("train", total=1.0)
        train(
            run,
            lambda run, loss: progress.update(
                task, completed=run.progress(), description=f"step {run.step} loss {loss:.3f}"
            ),
        )


def _export(args: argparse.Namespace) -> None:
    size = export(args.checkpoint, args.data / "tokenizer.json", args.out)
    print(f"{args.out}: model.safetensors has {size / 1e6:.2f} MB")


def _forward(args: argparse.Namespace) -> tuple[Forward, Tokenizer]:
    if args.model.is_dir():
        return forward_of_folder(args.model), Tokenizer.from_file(str(args.model / "tokenizer.json"))
    return forward_of_checkpoint(args.model), Tokenizer.from_file(str(args.tokenizer))


def _evaluate(args: argparse.Namespace) -> None:
    forward, tokenizer = _forward(args)
    texts = first_documents(args.heldout, args.max_bytes, args.max_document_bytes)
    print(held_out_loss(forward, tokenizer, texts, args.window))


def _sample(args: argparse.Namespace) -> None:
    forward, tokenizer = _forward(args)
    for prompt in args.prompts:
        text, ended = answer(forward, tokenizer, [{"role": "user", "content": prompt}], Sampling(), args.seed)
        print(f"> {prompt}\n{text}{'' if ended else ' [cut]'}\n")


def _plot(args: argparse.Namespace) -> None:
    plot_loss(args.log, args.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train_demo", description=__doc__)
    commands = parser.add_subparsers(required=True)
    prepare = commands.add_parser("prepare", help="make the tokenizer and the training rows")
    prepare.add_argument("corpus", type=Path, help="folder with pretrain.txt.xz, pretrain.index.tsv.xz, chat.jsonl.xz")
    prepare.add_argument("--data", type=Path, required=True)
    prepare.add_argument("--vocab-size", type=int, default=4096)
    prepare.add_argument("--row-length", type=int, default=512)
    prepare.add_argument("--min-ease", type=float, default=55.0, help="books below this simplicity score are left out")
    prepare.set_defaults(run=_prepare)

    training = commands.add_parser("train", help="train until the deadline, or go on from the last checkpoint")
    training.add_argument("--data", type=Path, required=True)
    training.add_argument("--out", type=Path, required=True, help="checkpoint.pt and log.jsonl go here")
    training.add_argument("--minutes", type=float, default=90.0)
    training.add_argument("--deadline", type=float, help="Unix time; goes before --minutes")
    training.add_argument("--hidden", type=int, default=256)
    training.add_argument("--layers", type=int, default=6)
    training.add_argument("--heads", type=int, default=4)
    training.add_argument("--kv-heads", type=int, default=2)
    training.add_argument("--ffn", type=int, default=768)
    training.add_argument("--rows-per-step", type=int, default=8)
    training.add_argument("--rows-per-pass", type=int, default=2)
    training.add_argument(
        "--workers",
        type=int,
        default=1 if torch.cuda.is_available() else 2,
        help="threads that run passes side by side",
    )
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    training.add_argument("--max-steps", type=int, default=0)
    training.add_argument("--pause-file", type=Path, help="the run sleeps while this file exists")
    training.set_defaults(run=_train)

    exporting = commands.add_parser("export", help="write a checkpoint as a packed model folder")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("--data", type=Path, required=True, help="folder of `prepare`, for the tokenizer")
    exporting.add_argument("--out", type=Path, required=True)
    exporting.set_defaults(run=_export)

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("model", type=Path, help="an exported folder (run by transformers) or a checkpoint.pt")
    model.add_argument("--tokenizer", type=Path, help="tokenizer.json, for a checkpoint.pt")
    evaluating = commands.add_parser("evaluate", parents=[model], help="loss per token and per byte on held-out text")
    evaluating.add_argument("heldout", type=Path, help="heldout.txt.xz")
    evaluating.add_argument("--max-bytes", type=int, default=0, help="stop after the document that reaches this size")
    evaluating.add_argument("--max-document-bytes", type=int, default=0, help="leave out longer documents (0: none)")
    evaluating.add_argument("--window", type=int, default=512)
    evaluating.set_defaults(run=_evaluate)

    sampling = commands.add_parser("sample", parents=[model], help="answer prompts at the default sampling")
    sampling.add_argument("prompts", nargs="+")
    sampling.add_argument("--seed", type=int, default=1)
    sampling.set_defaults(run=_sample)

    plotting = commands.add_parser("plot", help="draw the loss curve (needs matplotlib)")
    plotting.add_argument("log", type=Path, help="log.jsonl of a run")
    plotting.add_argument("out", type=Path, help="picture to write")
    plotting.set_defaults(run=_plot)
    return parser


def main() -> None:
    args = _parser().parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
