"""`bitnet doctor`: what this machine offers, which backend is taken and why; the lines to put into a bug report."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.commands.exits import known_errors
from service.commands.machine import allowed_cores, human, memory_bytes, processor, versions
from service.commands.options import ConfigOption, JsonOption, SetOption, settings_of


def doctor(as_json: JsonOption = False, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Show processor, memory, GPU, instruction sets, versions, and the backend chosen here."""
    with known_errors():
        facts = gather(config, set_)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    console = Console(highlight=False)
    table = Table("", "", box=None, show_header=False, pad_edge=False)
    for name, value in _lines(facts):
        table.add_row(name, escape(value))
    console.print(table)


def gather(config: Any = None, given: list[str] | None = None) -> dict[str, Any]:
    """The facts as plain values. Raises ConfigError, BackendUnavailable."""
    from bitnet_model.ops import survey
    from service.compose import ops_for
    from service.logs import set_up_logs

    set_up_logs("text", "error")
    settings = settings_of(config=config, given=given)
    total, available = memory_bytes()
    ops = ops_for(settings)
    try:
        chosen = {"backend": ops.name, **ops.describe()}
    finally:
        ops.close()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": allowed_cores(),
        "memory_bytes": total,
        "available_bytes": available,
        "chosen": chosen,
        "backends": survey(),
        "versions": versions(),
    }


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    chosen = dict(facts["chosen"])
    shown = ", ".join(f"{name} {value}" for name, value in chosen.items() if name != "backend")
    backends = [(name, "runs here" if why is None else f"no: {why}") for name, why in facts["backends"].items()]
    return [
        ("system", facts["system"]),
        ("processor", f"{facts['processor']}, {facts['cores']} cores for this process"),
        ("memory", f"{human(facts['memory_bytes'])}, {human(facts['available_bytes'])} available"),
        ("chosen", f"{chosen['backend']}: {shown}"),
        *backends,
        ("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())),
    ]
