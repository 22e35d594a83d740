"""Text files, .xz or plain, whose documents each end in a separator line."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

SEPARATOR = "<|endoftext|>"


def read_documents(path: Path) -> Iterator[str]:
    """Documents in order, without the white space around them."""
    lines: list[str] = []
    with _open(path) as file:
        for line in file:
            if line.rstrip("\n") == SEPARATOR:
                yield "".join(lines).strip()
                lines.clear()
            else:
                lines.append(line)
    if rest := "".join(lines).strip():
        yield rest


def _open(path: Path) -> TextIO:
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")
