"""`bitnet selfcheck`: is this checkpoint computed here as it should be?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from service.commands.exits import EXIT_FAILED, known_errors
from service.commands.options import ConfigOption, JsonOption, ModelArgument, SetOption, settings_of
from service.config import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from bitnet_model.config import ModelConfig
    from bitnet_model.model import Model
    from bitnet_model.selfcheck import Finding

NOT_PUBLISHED = (
    "this is not the shape of microsoft/bitnet-b1.58-2B-4T, so there are no published logits to compare with; "
    "checked is that this machine computes this model exactly and as a second implementation does"
)
PUBLISHED = (
    "this has the shape of microsoft/bitnet-b1.58-2B-4T: its logits are compared with the published ones, which "
    "random weights of that shape must fail"
)


def selfcheck(
    model: ModelArgument = None, as_json: JsonOption = False, config: ConfigOption = None, set_: SetOption = None
) -> None:
    """Check MODEL on this machine: the published logits of the real 2B-4T, exactness, and a second wing."""
    with known_errors():
        from bitnet_model.selfcheck import has_published_shape
        from service.logs import set_up_logs

        set_up_logs("text", "error")
        report = check(settings_of(model, config, set_), has_published_shape)
    passed = all(finding["passed"] for finding in report["findings"])
    if as_json:
        sys.stdout.write(json.dumps({**report, "passed": passed}, indent=2) + "\n")
    else:
        _show(report)
    if not passed:
        raise typer.Exit(EXIT_FAILED)


def check(settings: Settings, is_published: Callable[[ModelConfig], bool]) -> dict[str, Any]:
    """Load, compute, compare. `is_published`: whether the published logits are this model's.

    Raises ConfigError, CheckpointError, BackendUnavailable.
    """
    from bitnet_model.ops import load_ops
    from bitnet_model.selfcheck import compare_wings, logits_of
    from service.compose import head_dtype_for, locate, ops_for

    folder, model_id = locate(settings)
    ops = ops_for(settings)
    wing = ops.describe()
    try:
        model = _load(folder, ops, head_dtype_for(ops, settings))
        was_published = is_published(model.config)
        findings, ids, logits = _examine(model, int(wing["threads"]), was_published)
        del model  # one wing's weights at a time
    finally:
        ops.close()
    if wing.get("isa") != "torch":
        second = load_ops("cpu", isa="torch", threads=settings.n_threads)
        try:
            findings.append(compare_wings(logits, logits_of(_load(folder, second, second.head_dtypes[0]), ids)))
        finally:
            second.close()
    return {
        "model": model_id,
        "wing": wing,
        "is_published_shape": was_published,
        "findings": [asdict(finding) for finding in findings],
    }


def _examine(model: Model, num_threads: int, was_published: bool) -> tuple[list[Finding], tuple[int, ...], Tensor]:
    """What one wing shows by itself, and the ids and logits to compare the second one with."""
    from bitnet_model.selfcheck import PUBLISHED_IDS, check_exact, check_published, logits_of, sample_ids

    findings = [*check_exact(model, num_threads), _tokens(model, num_threads)]
    if was_published:
        findings += check_published(logits_of(model, PUBLISHED_IDS))
    ids = sample_ids(model.config)
    return findings, ids, logits_of(model, ids)


def _tokens(model: Model, num_threads: int) -> Finding:
    """Whether what the wing runs in one call, draws and rounds included, gives the tokens and logprobs of its verbs."""
    from bitnet_model.selfcheck import Finding
    from service.engine.blocks import BLOCK_TOKENS
    from service.engine.proof import MOST_BLOCKS, Trial, prove
    from service.engine.runner import ModelRunner

    config = model.config
    runner = ModelRunner(model, model.ops, num_blocks=MOST_BLOCKS, block_tokens=BLOCK_TOKENS, kv_dtype="bf16")
    trial = Trial(config.vocab_size, config.max_position_embeddings, MOST_BLOCKS, BLOCK_TOKENS, num_threads)
    doubts = prove(model, lambda: trial.run(runner))
    detail = "; ".join(f"{doubt.shortcut}: {doubt.why}" for doubt in doubts)
    return Finding("steps, draws and rounds = verb by verb", not doubts, detail or "the same tokens and logprobs")


def _load(folder: Path, ops: Any, head_dtype: str) -> Model:
    from bitnet_model.checkpoint import load_model
    from service.compose import loading_bar

    with loading_bar(folder.name) as progress:
        return load_model(folder, ops, head_dtype=head_dtype, progress=progress)


def _show(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    wing = ", ".join(f"{name} {value}" for name, value in report["wing"].items())
    console.print(f"{report['model']} on {wing}", markup=False)
    console.print(PUBLISHED if report["is_published_shape"] else NOT_PUBLISHED, markup=False)
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    for finding in report["findings"]:
        table.add_row("ok" if finding["passed"] else "FAILED", finding["name"], finding["detail"])
    console.print(table)
