"""Packages that a machine without a network lacks, installed beside the suite from a folder of wheels.

Nothing that is there is replaced, torch and triton least of all: only what cannot be imported is installed, into a
folder of its own that the suite's processes put last on their path.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# by the name they are imported under; what they need comes from the same folder
WANTED = {
    "accelerate": "accelerate",
    "fastapi": "fastapi",
    "h11": "h11",
    "httpx": "httpx",
    "jinja2": "jinja2",
    "llguidance": "llguidance",
    "prometheus_client": "prometheus-client",
    "pydantic_settings": "pydantic-settings",
    "rich": "rich",
    "safetensors": "safetensors",
    "sse_starlette": "sse-starlette",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
    "typer": "typer",
    "uvicorn": "uvicorn",
}


def missing(wanted: Mapping[str, str] = WANTED) -> list[str]:
    """What pip calls the packages that cannot be imported."""
    return [name for module, name in wanted.items() if importlib.util.find_spec(module) is None]


def install(names: list[str], wheels: Path, target: Path) -> str:
    """Install from the folder `wheels` into `target`; pip's last words where it could not, else nothing."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    done = subprocess.run(
        [*command, "--find-links", wheels, "--target", target, *names], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def environment(target: Path) -> dict[str, str]:
    """This process's environment, with `target` last on the path of what it starts.

    PYTHONPATH comes before what is installed, so a dependency in `target` would replace it; this does not.
    """
    start = target / "at_start"
    start.mkdir(parents=True, exist_ok=True)
    (start / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(target)!r})\n")
    paths = [str(start), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
