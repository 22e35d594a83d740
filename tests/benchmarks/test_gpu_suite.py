"""The parts of the GPU suite that need no kernel: isolation, time limits, packages, the table and the drawing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import gpu_suite
from benchmarks.gpu import wheels
from benchmarks.gpu.bench import Figure, Options
from benchmarks.gpu.plot import draw, lines
from benchmarks.gpu.sections import SECTIONS, Outcome, in_its_own_process, read, written

OPTIONS = Options(Path("/nowhere"), "cpu", (1, 2), context=8, prompt=4, repeat=1, streams=(1,))
ROW = Figure("batch 2", 10.0, "tok/s", 40.0).row()


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def outcome(code: str, limit_s: float = 30) -> Outcome:
    return in_its_own_process("steps", OPTIONS, {}, limit_s, child(code))


def test_what_was_measured_before_a_crash_is_kept() -> None:
    found = outcome(f"print({json.dumps(ROW)!r}, flush=True); print('noise'); raise MemoryError('out of it')")
    assert found.rows == [ROW]
    assert found.failure == "MemoryError: out of it"
    assert not found.ok


def test_a_section_that_hangs_is_stopped_at_its_limit() -> None:
    began = time.monotonic()
    found = outcome(f"import time; print({json.dumps(ROW)!r}, flush=True); time.sleep(60)", limit_s=2)
    assert time.monotonic() - began < 30
    assert found.rows == [ROW]
    assert found.failure == "stopped at its limit of 2 s"


def test_what_a_stopped_section_had_started_is_stopped_with_it(tmp_path: Path) -> None:
    left = tmp_path / "still_here"
    grandchild = f"import time; time.sleep(5); open({str(left)!r}, 'w')"
    found = outcome(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])", limit_s=2)
    assert found.failure.startswith("stopped")
    time.sleep(4)
    assert not left.exists()


def test_the_limits_of_all_sections_together_are_below_ten_minutes() -> None:
    assert sum(section.limit_s for section in SECTIONS.values()) <= gpu_suite.LIMIT_S < 600


def test_a_section_gets_no_process_when_no_time_is_left() -> None:
    found = gpu_suite.within("steps", OPTIONS, time.monotonic(), {})
    assert (found.failure, found.rows) == ("no time left", [])


def test_a_section_measures_in_a_process_of_its_own() -> None:
    found = in_its_own_process("limits", OPTIONS, os.environ, 100)
    assert found.failure == ""
    assert [row["case"] for row in found.rows] == ["copy", "int8 products", "bf16 products"]
    assert all(row["value"] > 0 for row in found.rows)


def test_the_child_gets_the_same_options() -> None:
    assert read(written(OPTIONS)) == OPTIONS


def test_a_failed_section_does_not_lose_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = Figure("sums: wrong", 3, "outputs", ok=False).row()
    found = {
        "checks": Outcome("checks", 1.0, [wrong]),
        "steps": Outcome("steps", 2.0, [ROW], "stopped at its limit of 2 s"),
        "torch": Outcome("torch", 3.0, [ROW | {"ok": True}]),
    }
    assert not gpu_suite.run(list(found), OPTIONS, lambda name, _: found[name], tmp_path, "toy")
    said = capsys.readouterr().out
    assert "FAILED checks: sums: wrong" in said
    assert "FAILED steps: stopped at its limit" in said
    assert "FAILED torch" not in said
    (result,) = tmp_path.glob("gpu-toy-20*.json")
    kept = json.loads(result.read_text())
    assert [row["section"] for row in kept["rows"]] == ["checks", "steps", "torch"]
    assert kept["sections"]["steps"]["failure"]
    assert kept["machine"]["torch"]
    assert "| steps | batch 2 | 10 | tok/s | 0.25 |" in result.with_suffix(".md").read_text()
    ElementTree.parse(result.with_suffix(".svg"))


def test_the_drawing_has_a_line_for_each_series_and_a_dashed_one_for_its_floor() -> None:
    rows = [
        {"section": section, **Figure(f"{what}batch {batch}", 100.0 * batch, "tok/s", 300.0 * batch).row()}
        for section, what in (("steps", "bf16 cache, "), ("steps", "int8 cache, "), ("torch", ""))
        for batch in (1, 8, 256)
    ]
    series = lines({"rows": [*rows, {"section": "checks", **Figure("a", 1, "outputs").row()}]})
    assert [name for name, _, _ in series] == [
        "steps bf16 cache",
        "steps bf16 cache: floor",
        "steps int8 cache",
        "steps int8 cache: floor",
        "torch",
    ]
    assert series[1][1] == [(1.0, 300.0), (8.0, 2400.0), (256.0, 76800.0)]
    drawing = ElementTree.fromstring(draw("a <title>", series))
    circles = [element for element in drawing.iter() if element.tag.endswith("circle")]
    assert len(circles) == 15
    assert all(
        80 <= float(circle.attrib["cx"]) <= 610 and 40 <= float(circle.attrib["cy"]) <= 430 for circle in circles
    )


def test_times_and_rates_are_both_set_against_their_bound() -> None:
    assert Figure("a rate", 50.0, "tok/s", 100.0).fraction == 0.5
    assert Figure("a time", 10.0, "ms", 5.0).fraction == 0.5
    assert Figure("no bound", 10.0, "ms").fraction is None


def test_without_a_gpu_the_suite_says_so_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_suite"], cwd=gpu_suite.RESULTS.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no GPU here" in done.stderr


def test_missing_packages_come_from_a_folder_and_replace_nothing(tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "lamplight-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    about = "lamplight-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("lamplight.py", "LIT = True\n")
        file.writestr("json.py", "raise ImportError('this must not be found before what is there')\n")
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: lamplight\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    assert wheels.missing({"json": "json", "lamplight": "lamplight"}) == ["lamplight"]
    target = tmp_path / "packages"
    assert wheels.install(["lamplight"], wheel.parent, target) == ""
    code = "import json, lamplight, sys; sys.exit(not lamplight.LIT)"
    assert subprocess.run(child(code), env=wheels.environment(target), check=False).returncode == 0
    assert "darklight" in wheels.install(["darklight"], wheel.parent, target)
