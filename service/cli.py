"""The command line: ``bitnet serve [MODEL] [--config FILE] [--<setting> VALUE] ...`` and the other commands.

Every setting of service/config.py is a flag of the same name; the flags are made from the settings, so the two
cannot drift apart. Nothing heavy is imported here: ``--help`` and a wrong setting answer at once.
Exit codes: service/commands/exits.py. The commands beside `serve` are in service/commands/.
"""

from __future__ import annotations

import gc
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.commands import bench
from service.commands.chat import chat
from service.commands.convert import convert
from service.commands.doctor import doctor
from service.commands.exits import EXIT_CONFIG, fail
from service.commands.info import info
from service.commands.options import ModelArgument
from service.commands.selfcheck import selfcheck
from service.config import ConfigError, Resolved, Settings, load_settings

app = typer.Typer(name="bitnet", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)


@app.callback()
def bitnet() -> None:
    """Serve BitNet b1.58 (ternary) language models on CPUs and GPUs, behind an OpenAI-compatible API."""


def serve(model: str | None, config: Path | None, print_config: bool, **flags: str | bool | None) -> None:
    """Serve MODEL (a checkpoint folder or a hub id; without one the demo model) over HTTP."""
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    if model is not None:
        given["model"] = model
    try:
        resolved = load_settings(given, config)
    except ConfigError as error:
        fail(str(error), EXIT_CONFIG)
    if print_config:
        show_config(resolved)
        return
    gc.disable()  # until compose.settle_memory: what is imported and loaded stays, and looking for garbage takes 0.3 s
    from service.compose import serve as run  # torch and the web stack are loaded only when there is a server to run

    raise typer.Exit(run(resolved.settings))


def show_config(resolved: Resolved) -> None:
    """Print each setting, its value and where the value came from."""
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for row in resolved.table():
        table.add_row(*map(escape, row))
    Console(soft_wrap=True).print(table)


def _serve_signature() -> inspect.Signature:
    """The parameters of ``serve`` with one flag per setting, in the order of the settings."""
    kind = inspect.Parameter.KEYWORD_ONLY

    def parameter(name: str, annotation: object, default: object = None) -> inspect.Parameter:
        return inspect.Parameter(name, kind, default=default, annotation=annotation)

    parameters = [
        parameter("model", ModelArgument),
        parameter("config", Annotated[Path | None, typer.Option(help="TOML file with settings, see configs/")]),
        parameter(
            "print_config",
            Annotated[bool, typer.Option("--print-config", help="print every setting and where it came from")],
            False,
        ),
    ]
    for name, field in Settings.model_fields.items():
        if name == "model":
            continue
        flag = "--" + name.replace("_", "-")
        # In brackets it would be taken for markup, and not be seen.
        shown = "" if field.default in (None, ()) else f" (default: {field.default})"
        if field.annotation is bool:
            option: Any = Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=field.description)]
        else:
            option = Annotated[str | None, typer.Option(flag, help=f"{field.description}{shown}", metavar="VALUE")]
        parameters.append(parameter(name, option))
    return inspect.Signature(parameters)


serve.__signature__ = _serve_signature()  # type: ignore[attr-defined]
for command in (serve, chat, convert, info, selfcheck, doctor):
    app.command()(command)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """The console script ``bitnet``."""
    # The engine thread shares the interpreter lock with HTTP; at the default interval of 5 ms a busy
    # event loop would hold each of its many short steps up for that long.
    sys.setswitchinterval(1e-4)
    app()
