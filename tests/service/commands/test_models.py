"""`bitnet info`, `selfcheck`, `convert` and `doctor`, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from service.commands.selfcheck import check
from tests.bitnet_model.gguf_files import gguf_of
from tests.service.api.asgi import settings_of
from tests.service.commands.run import bitnet, refused
from tools.make_checkpoint import write_checkpoint

PUBLISHED_VOCABULARY = 128256


def test_info_says_what_a_checkpoint_holds_and_that_it_fits(tiny_packed: Path) -> None:
    done = bitnet("info", tiny_packed, "--json")
    facts = json.loads(done.stdout)
    assert facts["fits"] is True
    assert facts["family"] == "bitnet"
    assert facts["layers"] == 2
    assert 0.3 < facts["zeros"] < 0.5
    assert facts["kv_bytes_per_token"] == {"bf16": 512, "int8": 288}
    assert facts["needed_bytes"] > sum(facts["bytes"].values())
    table = bitnet("info", tiny_packed, "--no-zeros").stdout
    assert "not counted" in table
    assert "2 layers, hidden 128" in table


def test_info_says_that_a_cache_too_large_does_not_fit(tiny_packed: Path) -> None:
    done = bitnet("info", tiny_packed, "--no-zeros", "--set", "kv_tokens=1000000G")
    assert done.returncode == 0
    assert "does NOT fit" in done.stdout


def test_info_of_a_damaged_checkpoint_ends_with_status_3(tiny_packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_packed, tmp_path / "short"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "truncated" in refused(3, "info", folder)


@pytest.mark.parametrize("entry", ["n_ctx", "no_such=1", "n_ctx=many"])
def test_a_setting_that_is_none_ends_with_status_2(entry: str) -> None:
    assert entry.split("=")[0] in refused(2, "info", "--set", entry)


def test_selfcheck_passes_on_a_sound_machine_and_says_what_it_did_not_check(tiny_packed: Path) -> None:
    done = bitnet("selfcheck", tiny_packed)
    assert done.returncode == 0, done.stdout
    assert "no published logits" in done.stdout
    assert "FAILED" not in done.stdout


def test_selfcheck_on_torch_alone_has_no_second_wing_to_ask(tiny_packed: Path) -> None:
    report = json.loads(bitnet("selfcheck", tiny_packed, "--json", "--set", "cpu_isa=torch").stdout)
    assert report["passed"] is True
    assert report["is_published_shape"] is False
    assert all("torch" not in finding["name"] for finding in report["findings"])


def test_random_weights_in_the_place_of_the_published_ones_are_found_out(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "wide", "packed", "tiny", vocab=PUBLISHED_VOCABULARY)
    report = check(settings_of(model=str(folder), cpu_isa="torch"), lambda config: True)
    passed = {finding["name"]: finding["passed"] for finding in report["findings"]}
    assert report["is_published_shape"] is True
    assert passed.pop("published mean logits") is False
    assert passed.pop("published first logits") is False
    assert all(passed.values())


def test_convert_packs_masters_which_then_answer_as_before(tiny_master: Path, tmp_path: Path) -> None:
    done = bitnet("convert", tiny_master, tmp_path / "packed")
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    ask = ("-m", "Hello", "--max-tokens", 8, "--temperature", 0)
    before, after = bitnet("chat", tiny_master, *ask), bitnet("chat", tmp_path / "packed", *ask)
    assert after.returncode == 0
    assert after.stdout == before.stdout


def test_convert_reads_gguf_with_a_tokenizer_and_warns_of_its_layouts(tiny_packed: Path, tmp_path: Path) -> None:
    file = gguf_of(tiny_packed).write(tmp_path / "model.gguf")
    assert "--tokenizer" in refused(2, "convert", file, tmp_path / "out")
    done = bitnet("convert", file, tmp_path / "out", "--tokenizer", tiny_packed)
    assert done.returncode == 0, done.stderr
    assert "ARM" in done.stderr
    assert json.loads(bitnet("info", tmp_path / "out", "--json").stdout)["weights"] == "packed_multiply"


def test_convert_dry_run_writes_nothing(tiny_master: Path, tmp_path: Path) -> None:
    done = bitnet("convert", tiny_master, tmp_path / "packed", "--dry-run")
    assert done.returncode == 0
    assert "would write" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_convert_of_what_is_packed_or_unreadable_ends_with_status_3(tiny_packed: Path, tmp_path: Path) -> None:
    assert "packed already" in refused(3, "convert", tiny_packed, tmp_path / "out")
    (tmp_path / "noise.gguf").write_bytes(b"noise")
    arguments = ("convert", tmp_path / "noise.gguf", tmp_path / "out", "--tokenizer", tiny_packed)
    assert "GGUF" in refused(3, *arguments)


def test_doctor_names_the_machine_the_wing_and_why(tmp_path: Path) -> None:
    done = bitnet("doctor", "--json", "--set", "backend=cpu")
    facts = json.loads(done.stdout)
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > facts["available_bytes"] > 0
    assert facts["chosen"]["backend"] == "cpu"
    assert facts["chosen"]["why"]
    assert facts["backends"]["cpu torch"] is None
    assert {"triton", "cpu avx2", "cpu portable"} <= facts["backends"].keys()
    assert facts["versions"]["torch"] != "none"
    assert "runs here" in bitnet("doctor").stdout


def test_doctor_refuses_what_cannot_run_with_status_2() -> None:
    assert "cpu_isa" in refused(2, "doctor", "--set", "cpu_isa=sparc")
