"""A short name for everything beside the request that decides what a seeded request says (OpenAI's system_fingerprint).

Two servers with the same name answer a greedy or seeded request alike. Knows no checkpoint's insides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from service.version import own_version

EDGE_BYTES = 1 << 20
"""Read of each end of a file: enough to tell checkpoints apart, and no second reading of gigabytes at start."""


def fingerprint(folder: Path, choices: Sequence[str]) -> str:
    """Of this version, the checkpoint in `folder`, and what was chosen to run it."""
    digest = hashlib.blake2b(repr([own_version(), *choices]).encode(), digest_size=6)
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE_BYTES))
            file.seek(max(0, path.stat().st_size - EDGE_BYTES))
            digest.update(file.read(EDGE_BYTES))
    return "fp_" + digest.hexdigest()
