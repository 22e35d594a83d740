"""MODEL as the user gives it -> a folder on this disk: a folder itself, or a Hugging Face hub id.

Downloads only what is read here (safetensors, JSON, the chat template), never code or pickles. Knows no content.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bitnet_model.errors import CheckpointError

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
ALLOW_PATTERNS = ("*.safetensors", "*.json", "*.jinja")


class Download(Protocol):
    """The part of `huggingface_hub.snapshot_download` used here."""

    def __call__(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str: ...


def resolve_model(
    model: str, revision: str | None, offline: bool, load_download: Callable[[], Download] | None = None
) -> Path:
    """The folder of a model; a hub id is downloaded at `revision`, or taken from the cache when `offline`.

    Raises CheckpointError naming the cure when it is neither a folder nor a hub id that can be had. `load_download`
    stands in for huggingface_hub, which is imported only when a hub id was given.
    """
    folder = Path(os.path.expanduser(model))  # noqa: PTH111  # pathlib's raises for a user that does not exist
    if model and folder.is_dir():  # the empty path would be the current folder
        if revision is not None:
            raise CheckpointError(
                model, [f"revision {revision!r} belongs to a hub id, and this is a folder: leave it out"]
            )
        return folder
    if folder.is_file():
        raise CheckpointError(model, ["it is a file: pass the folder that holds config.json and the safetensors"])
    if not HUB_ID.fullmatch(model):
        raise CheckpointError(model, ["there is no such folder, and it is no hub id (owner/name)"])
    return _from_hub(model, revision, offline, (load_download or _hub_download)())


def _from_hub(model: str, revision: str | None, offline: bool, download: Download) -> Path:
    logger.info("%s is no folder here: asking the hub (revision %s, offline %s)", model, revision or "main", offline)
    try:
        folder = download(model, revision=revision, allow_patterns=list(ALLOW_PATTERNS), local_files_only=offline)
    except Exception as error:  # the hub's and its transport's errors share no base; the cure is the same for all
        cure = (
            "offline, and not in the local cache: run once without --offline, or pass a folder"
            if offline
            else "there is no such folder, and the hub did not give it: check the name, the revision, the network and "
            "the access token (HF_TOKEN), or pass a folder"
        )
        raise CheckpointError(model, [f"{cure} ({type(error).__name__}: {_first_line(error)})"]) from error
    logger.info("%s is at %s", model, folder)
    return Path(folder)


def _hub_download() -> Download:
    from huggingface_hub import snapshot_download

    return snapshot_download


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
