"""`bitnet convert`: bf16 masters or a GGUF file of I2_S into the packed safetensors that are served fastest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from service.commands.exits import EXIT_CONFIG, fail, known_errors
from service.commands.machine import human

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bitnet_model.convert import Conversion

I2S_NOTE = (
    "note: I2_S is read in its x86 layout, that of the published file. Builds for ARM since 2025-11 write other "
    "layouts under the same name, and nothing in a file tells: try the result before you trust it"
)


def convert(
    source: Annotated[str, typer.Argument(help="folder or hub id of bf16 masters, or a GGUF file of I2_S tensors")],
    target: Annotated[Path, typer.Argument(help="folder to write; must not hold anything yet")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder with the model's tokenizer.json; needed for GGUF")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read and check everything, write nothing")] = False,
    revision: Annotated[str | None, typer.Option(help="revision of a hub model")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="never ask the hub")] = False,
) -> None:
    """Convert SOURCE into a packed checkpoint at TARGET, which appears whole or not at all."""
    console = Console(stderr=True, highlight=False)
    with known_errors():
        from bitnet_model.convert import check, write
        from service.compose import loading_bar

        is_gguf = Path(source).expanduser().is_file()
        with (
            _open(source, tokenizer, revision, offline) as conversion,
            loading_bar(target.name, "converting") as progress,
        ):
            if dry_run:
                check(conversion, progress)
            else:
                write(conversion, target.expanduser(), progress)
            size, count, files = conversion.num_bytes, len(conversion.tensors), conversion.files
    done = "would write" if dry_run else "wrote"
    sys.stdout.write(f"{done} {target}: {count} tensors, {human(size)}, and {len(files) + 1} other files\n")
    if is_gguf:
        console.print(I2S_NOTE, style="dim")


def _open(
    source: str, tokenizer: Path | None, revision: str | None, offline: bool
) -> AbstractContextManager[Conversion]:
    """Raises CheckpointError."""
    from bitnet_model.convert import from_gguf, from_masters
    from bitnet_model.hub import resolve_model

    path = Path(source).expanduser()
    if path.is_file():
        if tokenizer is None:
            fail("a GGUF file needs --tokenizer FOLDER: the folder with the model's tokenizer.json", EXIT_CONFIG)
        return from_gguf(path, tokenizer.expanduser())
    if tokenizer is not None:
        fail("--tokenizer is for GGUF files; a folder of masters has its own", EXIT_CONFIG)
    return from_masters(resolve_model(source, revision, offline))
