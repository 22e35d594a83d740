"""Flags that several commands share, and the settings they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from service.config import ConfigError, Settings, load_settings

ModelArgument: TypeAlias = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="checkpoint folder or hub id; without one the demo model")
]
ConfigOption: TypeAlias = Annotated[Path | None, typer.Option("--config", help="TOML file with settings, see configs/")]
SetOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="any setting of `bitnet serve`; repeatable")
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def settings_of(
    model: str | None = None, config: Path | None = None, given: list[str] | None = None, **flags: Any
) -> Settings:
    """The settings of a command that runs a model in this process. Raises ConfigError."""
    named = {name: value for name, value in flags.items() if value is not None}
    for entry in given or ():
        name, equals, value = entry.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ConfigError(f"--set {entry}: write NAME=VALUE")
        if name not in Settings.model_fields:
            raise ConfigError(f"--set {entry}: there is no setting {name}; `bitnet serve --help` lists them")
        named[name] = value
    if model is not None:
        named["model"] = model
    return load_settings(named, config).settings
