"""MODEL is a folder or a hub id; what is neither is refused with the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_model.errors import CheckpointError
from bitnet_model.hub import Download, resolve_model


def hub(answer: str | Exception, calls: list[dict[str, Any]]) -> Callable[[], Download]:
    """A stand-in for huggingface_hub that records what it is asked."""

    def download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        if isinstance(answer, Exception):
            raise answer
        return answer

    return lambda: download


def no_hub() -> Download:
    raise AssertionError("the hub must not be asked")


def test_a_folder_is_taken_as_it_is_and_the_hub_is_not_asked(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path), None, False, no_hub) == tmp_path


def test_a_hub_id_is_downloaded_at_its_revision_without_code_or_pickles(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    assert resolve_model("owner/name", "abc123", False, hub(str(tmp_path), calls)) == tmp_path
    assert calls == [
        {
            "repo_id": "owner/name",
            "revision": "abc123",
            "allow_patterns": ["*.safetensors", "*.json", "*.jinja"],
            "local_files_only": False,
        }
    ]


def test_offline_only_looks_into_the_cache(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    resolve_model("owner/name", None, True, hub(str(tmp_path), calls))
    assert calls[0]["local_files_only"] is True


@pytest.mark.parametrize(("offline", "cure"), [(True, "run once without --offline"), (False, "check the name")])
def test_a_hub_id_that_cannot_be_had_names_the_cure_and_the_cause(offline: bool, cure: str) -> None:
    with pytest.raises(CheckpointError, match=cure) as caught:
        resolve_model("owner/name", None, offline, hub(OSError("no route to host"), []))
    assert "no route to host" in str(caught.value)


@pytest.mark.parametrize(
    "model", ["./nowhere", "/no/such/folder", "a/b/c", "name", "", "owner/../name", "owner/na me", "~nobody-here"]
)
def test_what_is_neither_folder_nor_hub_id_is_refused(model: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model(model, None, False, no_hub)


def test_a_file_is_refused_in_favour_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="pass the folder"):
        resolve_model(str(tmp_path / "model.safetensors"), None, False, no_hub)


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to a hub id"):
        resolve_model(str(tmp_path), "main", False, no_hub)


def test_the_real_hub_client_is_asked_in_a_way_it_understands() -> None:
    with pytest.raises(CheckpointError, match="not in the local cache"):
        resolve_model("no-such-owner-here/no-such-model", None, True)
