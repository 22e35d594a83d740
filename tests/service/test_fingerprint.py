from __future__ import annotations

import shutil
from pathlib import Path

from service.fingerprint import EDGE_BYTES, fingerprint

CHOICES = ["cpu", "int8", "bf16"]


def test_the_same_checkpoint_run_the_same_way_has_the_same_fingerprint_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(3 * EDGE_BYTES))
        (tmp_path / name / "README.md").write_text(name)
    made = fingerprint(tmp_path / "a", CHOICES)
    assert made == fingerprint(tmp_path / "b", CHOICES)
    assert made.startswith("fp_")
    assert len(made) == 15


def test_another_file_another_length_and_another_choice_each_have_another_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(3 * EDGE_BYTES))
    made = [fingerprint(folder, CHOICES), fingerprint(folder, ["cpu", "int8", "int8"])]
    for change in ("start", "end", "length", "name"):
        other = tmp_path / change
        shutil.copytree(folder, other)
        file = other / "model.safetensors"
        data = bytearray(file.read_bytes())
        if change == "length":
            data += b"\0"
        elif change != "name":
            data[0 if change == "start" else -1] = 1
        file.write_bytes(data)
        if change == "name":
            file.rename(other / "weights.safetensors")
        made.append(fingerprint(other, CHOICES))
    assert len(set(made)) == 6
