"""Command line: `python -m tools.train_demo prepare | train | export | plot | all`."""

import argparse
import math
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from . import data
from .export import export
from .model import DemoModel
from .plot import plot_loss
from .recipes import RECIPES
from .start import load_start
from .train import CHECKPOINT, LOG, Run, TrainSettings, train, trained_s
from .vocabulary import BEGIN, special_id

MIB = 1 << 20
TOKENIZER = "tokenizer.json"


def _prepare(args: argparse.Namespace) -> None:
    recipe = RECIPES[args.recipe]
    sizes = data.prepare(
        args.corpus,
        args.data,
        vocab_size=recipe.config.vocab_size,
        row_length=recipe.row_tokens + 1,
        min_ease=recipe.min_ease,
    )
    print(" ".join(f"{name}: {size} tokens" for name, size in sizes.items()))


def _settings(args: argparse.Namespace) -> TrainSettings:
    recipe = RECIPES[args.recipe]
    now, minutes = time.time(), args.minutes or recipe.minutes
    return TrainSettings(
        out=args.out,
        deadline=args.deadline or now + 60 * minutes - trained_s(args.out),
        stop_at=now + 60 * args.call_minutes,
        first_mix=recipe.first_mix,
        second_mix=recipe.second_mix,
        rows_per_step=recipe.rows_per_step,
        rows_per_pass=recipe.rows_per_pass,
        num_workers=recipe.num_workers,
        muon_lr=args.muon_lr or recipe.muon_lr,
        adam_lr=args.adam_lr or recipe.adam_lr,
        decay_from=args.decay_from,
        chat_from=args.chat_from,
        device=args.device,
        max_steps=args.max_steps,
        compile=args.compile,
    )


def _train(args: argparse.Namespace) -> None:
    tokenizer = Tokenizer.from_file(str(args.data / TOKENIZER))
    sets = {name: data.Rows.load(args.data / f"{name}.npz") for name in data.SET_NAMES}
    torch.manual_seed(1)
    model = load_start(args.start) if args.start else DemoModel(RECIPES[args.recipe].config)
    held_out = args.data / f"{data.HELD_OUT}.npz"
    watched = data.Rows.load(held_out) if held_out.exists() else None
    run = Run(model, sets, _settings(args), special_id(tokenizer, BEGIN), watched)
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
                task, completed=run.progress, description=f"step {run.step} loss {loss:.3f}"
            ),
        )
    passes = ", ".join(f"{name} {epochs:.2f}" for name, epochs in run.sampler.epochs.items())
    print(f"{run.step} steps, {run.tokens} tokens, {run.trained_s:.0f} s, {run.progress:.1%} of the run; over {passes}")


def _export(args: argparse.Namespace) -> None:
    size = export(args.checkpoint, args.data / TOKENIZER, args.out, args.max_part_mib * MIB)
    print(f"{args.out}: {size / 1e6:.2f} MB of weights")


def _plot(args: argparse.Namespace) -> None:
    plot_loss(args.log, args.out)


def _all(args: argparse.Namespace) -> None:
    """What a borrowed machine is told in one line; as often as the run takes calls."""
    args.data, args.out, folder = args.work / "data", args.work / "run", args.out
    if not (args.data / "chat.npz").exists():
        if args.start and args.start.is_dir():  # its ids mean what its tokenizer says
            args.data.mkdir(parents=True, exist_ok=True)
            shutil.copy(args.start / TOKENIZER, args.data)
        _prepare(args)
    _train(args)
    args.checkpoint, args.out = args.out / CHECKPOINT, folder
    _export(args)
    (folder / LOG).write_bytes((args.work / "run" / LOG).read_bytes())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train_demo", description=__doc__)
    commands = parser.add_subparsers(required=True)
    sized, corpus = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    sized.add_argument("--recipe", choices=RECIPES, default="gpu" if torch.cuda.is_available() else "cpu")
    corpus.add_argument("corpus", type=Path, help="folder with pretrain.txt.xz, pretrain.index.tsv.xz, chat.jsonl.xz")
    training, exporting = _training_options(), argparse.ArgumentParser(add_help=False)
    exporting.add_argument("--max-part-mib", type=int, default=1 << 20, help="split the weights into files below this")
    data_folder = argparse.ArgumentParser(add_help=False)
    data_folder.add_argument("--data", type=Path, required=True, help="folder of the tokenizer and the rows")

    prepare = commands.add_parser("prepare", parents=[sized, corpus, data_folder], help="make tokenizer and rows")
    prepare.set_defaults(run=_prepare)

    train_help = "train until the deadline, or go on from the last checkpoint"
    train_ = commands.add_parser("train", parents=[sized, training, data_folder], help=train_help)
    train_.add_argument("--out", type=Path, required=True, help=f"{CHECKPOINT} and {LOG} go here")
    train_.set_defaults(run=_train)

    export_ = commands.add_parser(
        "export", parents=[exporting, data_folder], help="write a checkpoint as a packed model folder"
    )
    export_.add_argument("checkpoint", type=Path)
    export_.add_argument("--out", type=Path, required=True)
    export_.set_defaults(run=_export)

    plotting = commands.add_parser("plot", help="draw the loss curve (needs matplotlib)")
    plotting.add_argument("log", type=Path, help=f"{LOG} of a run")
    plotting.add_argument("out", type=Path, help="picture to write")
    plotting.set_defaults(run=_plot)

    all_ = commands.add_parser("all", parents=[sized, corpus, training, exporting], help="prepare, train, export")
    all_.add_argument("--work", type=Path, required=True, help="rows and checkpoint are kept here between calls")
    all_.add_argument("--out", type=Path, required=True, help="model folder, with the log of the run")
    all_.set_defaults(run=_all)
    return parser


def _training_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--minutes", type=float, help="of the whole run, over all calls (default: the recipe's)")
    options.add_argument("--deadline", type=float, help="Unix time; goes before --minutes")
    options.add_argument("--call-minutes", type=float, default=math.inf, help="stop, to be called again, after these")
    options.add_argument("--start", type=Path, help=f"{CHECKPOINT} or exported folder to begin with")
    options.add_argument("--muon-lr", type=float)
    options.add_argument("--adam-lr", type=float)
    options.add_argument("--decay-from", type=float, default=0.35, help="where in the run the rates begin to fall")
    options.add_argument("--chat-from", type=float, default=0.55, help="where in the run the second mix begins")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--max-steps", type=int, default=0)
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
