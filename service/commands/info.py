"""`bitnet info`: what a checkpoint is, what it holds, and whether it fits this machine."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.commands.exits import known_errors
from service.commands.machine import human, memory_bytes
from service.commands.options import ConfigOption, JsonOption, ModelArgument, SetOption, settings_of

# The interpreter with torch and the web stack: 250 MB once imported (x86-64, torch 2.13 CPU, 2026-11), and some room.
PROGRAM_BYTES = 300_000_000


def info(
    model: ModelArgument = None,
    zeros: Annotated[bool, typer.Option("--zeros/--no-zeros", help="read the weights and count their zeros")] = True,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Show shapes, bytes, the share of zeros, the KV cache per token, and whether MODEL fits here."""
    with known_errors():
        facts = gather(model, zeros, config, set_)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    table = Table("", "", box=None, show_header=False, pad_edge=False)
    for name, value in _lines(facts):
        table.add_row(name, escape(value))
    Console(highlight=False).print(table)


def gather(model: str | None, zeros: bool, config: Any, given: list[str] | None) -> dict[str, Any]:
    """The facts as plain values. Raises ConfigError, CheckpointError."""
    from bitnet_model.inspection import inspect
    from service.compose import loading_bar, locate
    from service.sizes import settle_sizes

    settings = settings_of(model, config, given)
    folder, model_id = locate(settings)
    with loading_bar(model_id, "reading") as progress:
        found = inspect(folder, count_zeros=zeros, progress=progress)
    shape = found.config
    sizes = settle_sizes(settings, shape.max_position_embeddings)
    per_token = {dtype: found.kv_bytes(dtype) for dtype in ("bf16", "int8")}
    cache_bytes = per_token[settings.kv_cache_dtype] * sizes.kv_tokens
    needed = found.loaded_bytes + cache_bytes + PROGRAM_BYTES
    _, available = memory_bytes()
    return {
        "model": model_id,
        "folder": str(folder),
        "family": shape.family,
        "weights": shape.weights,
        "layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "heads": shape.num_heads,
        "kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "context": shape.max_position_embeddings,
        "activation": shape.act,
        "tied_head": shape.tie_word_embeddings,
        "ternary_params": found.ternary_params,
        "table_params": found.float_params,
        "zeros": found.zeros,
        "bytes": {"embedding": found.embedding_bytes, "layers": found.layer_bytes, "head": found.head_bytes},
        "kv_bytes_per_token": per_token,
        "kv_tokens": sizes.kv_tokens,
        "needed_bytes": needed,
        "available_bytes": available,
        "fits": needed <= available,
    }


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    sizes, cache = facts["bytes"], facts["kv_bytes_per_token"]
    head = "tied" if facts["tied_head"] else human(sizes["head"])
    verdict = "fits" if facts["fits"] else "does NOT fit: lower kv_tokens, or take a smaller model"
    kinds = {
        "master": "bf16 masters, ternarized while loading (`bitnet convert` packs them)",
        "packed_multiply": "packed, scale multiplies",
        "packed_divide": "packed, scale divides",
    }
    return [
        ("model", facts["model"]),
        ("folder", facts["folder"]),
        ("family", f"{facts['family']}, {facts['activation']}, weights {kinds[facts['weights']]}"),
        (
            "shape",
            f"{facts['layers']} layers, hidden {facts['hidden_size']}, feed-forward {facts['intermediate_size']}",
        ),
        ("heads", f"{facts['heads']} of {facts['head_dim']}, {facts['kv_heads']} for keys and values"),
        ("vocabulary", f"{facts['vocab_size']}, context {facts['context']}"),
        ("parameters", f"{facts['ternary_params'] / 1e6:.1f} M ternary, {facts['table_params'] / 1e6:.1f} M in tables"),
        ("zeros", "not counted" if facts["zeros"] is None else f"{facts['zeros']:.1%} of the ternary weights"),
        ("on disk", f"embedding {human(sizes['embedding'])}, layers {human(sizes['layers'])}, head {head}"),
        ("KV cache", f"{human(cache['bf16'])} a token in bf16, {human(cache['int8'])} in int8"),
        (
            "memory",
            f"about {human(facts['needed_bytes'])} with {facts['kv_tokens']} tokens of cache in use, "
            f"{human(facts['available_bytes'])} available: {verdict}",
        ),
    ]
