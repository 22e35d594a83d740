"""`bitnet bench`: rows, files and the plot; and the pure parts by themselves."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from service.commands.bench import rounds
from service.commands.machine import human, memory_bytes
from service.commands.plot import Series, line_chart, nice_step
from tests.server.live import Live
from tests.service.commands.run import bitnet, refused


def test_serve_measures_a_server_of_its_own(tiny_packed: Path, tmp_path: Path) -> None:
    kept, plot = tmp_path / "rows.json", tmp_path / "rows.svg"
    arguments = ("--clients", 1, "--clients", 2, "--prompt", 8, "--generate", 4, "--repeat", 1)
    done = bitnet("bench", "serve", tiny_packed, *arguments, "--json", kept, "--plot", plot, "--set", "n_threads=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(kept.read_text())
    assert [row["clients"] for row in result["rows"]] == [1, 2]
    assert all(row["tok/s"] > 0 and row["slowest first ms"] >= row["first token ms"] > 0 for row in result["rows"])
    assert result["machine"]["torch"] != "none"
    assert "tok/s" in done.stdout
    ET.fromstring(plot.read_text())


def test_kernels_are_timed_in_the_shapes_of_the_model(tiny_packed: Path, tmp_path: Path) -> None:
    kept = tmp_path / "rows.json"
    done = bitnet("bench", "kernels", tiny_packed, "--tokens", 1, "--tokens", 3, "--json", kept)
    assert done.returncode == 0, done.stderr
    rows = json.loads(kept.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [1, 3] * 5
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    assert kernels == ["q|k|v", "output", "gate|up", "down", "head int8, top 40"]
    assert all(row["us"] >= row["least us"] > 0 for row in rows)


def test_latency_measures_a_server_that_runs(slow: Live) -> None:
    done = bitnet("bench", "latency", "--url", slow.url, "--prompt", 8, "--prompt", 16, "--generate", 4, "--repeat", 2)
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split() for line in done.stdout.splitlines()[1:4]]
    assert header[:2] == ["prompt", "tokens"]
    assert [row[0] for row in rows] == ["8", "16"]
    slow.at_rest()


def test_what_cannot_be_measured_ends_with_the_right_status(tiny_packed: Path, slow: Live) -> None:
    assert "n_ctx" in refused(2, "bench", "serve", tiny_packed, "--set", "n_ctx=4096")
    assert "--url" in refused(2, "bench", "serve", tiny_packed, "--url", slow.url)
    assert "exceeds" in refused(1, "bench", "serve", "--url", slow.url, "--prompt", 5000, "--clients", 1)


def test_rounds_alternate_and_show_medians() -> None:
    calls: list[tuple[int, int]] = []

    def measure(size: int, turn: int) -> dict[str, float]:
        calls.append((size, turn))
        return {"speed": float(size * (turn + 1))}

    rows = rounds(measure, [1, 10], 3, "size")
    assert calls == [(1, -1), (1, 0), (10, 0), (1, 1), (10, 1), (1, 2), (10, 2)]
    assert rows == [{"size": 1, "speed": 2.0, "spread": 3.0}, {"size": 10, "speed": 20.0, "spread": 3.0}]


def test_a_plot_has_a_place_for_every_point_and_escapes_its_words() -> None:
    points = ((1.0, 10.0), (4.0, 40.0), (16.0, 30.0))
    text = line_chart("a < b", "clients", "tok/s", [Series("one", points), Series("two", points)])
    root = ET.fromstring(text)
    circles = [item for item in root.iter() if item.tag.endswith("circle")]
    assert len(circles) == 6
    across = [float(item.attrib["cx"]) for item in circles[:3]]
    down = [float(item.attrib["cy"]) for item in circles[:3]]
    assert across == sorted(across)
    assert down[0] > down[2] > down[1]
    assert "a < b" in [item.text for item in root.iter()]


@pytest.mark.parametrize(("largest", "step"), [(1, 0.2), (100, 20), (101, 25), (9, 2), (12, 2.5), (0, 2e-10)])
def test_ticks_are_round_numbers_that_reach_the_largest_value(largest: float, step: float) -> None:
    assert nice_step(largest) == pytest.approx(step)
    assert 5 * nice_step(largest) >= largest


def test_bytes_for_people() -> None:
    assert [human(n) for n in (0, 999, 1000, 123_456, 1_178_624_212)] == ["0 B", "999 B", "1 kB", "123 kB", "1.18 GB"]


def test_memory_is_cut_to_what_the_cgroup_grants(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemAvailable: 6000 kB\n")
    assert memory_bytes(tmp_path, tmp_path) == (8000 << 10, 6000 << 10)
    (tmp_path / "memory.max").write_text("4096000\n")
    (tmp_path / "memory.current").write_text("96000\n")
    assert memory_bytes(tmp_path, tmp_path) == (4096000, 4000000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path, tmp_path) == (8000 << 10, 6000 << 10)
