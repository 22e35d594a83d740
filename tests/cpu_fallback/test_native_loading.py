"""Choosing an instruction set: by name, by speed, and never one that gives other bytes than the portable path."""

from __future__ import annotations

import ctypes
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cpu_fallback import native_library
from cpu_fallback.native_library import ABI_VERSION, NativeContext, NativeLibrary, NativeMemory
from cpu_fallback.native_loading import ISAS, available, load, probe, self_check
from tests.cpu_fallback.native_support import ROOT, every_isa, library, open_wing


@every_isa
def test_every_path_of_this_machine_passes_the_self_check(isa: str) -> None:
    open_wing(isa)
    assert self_check(library(), isa) is None


def test_auto_takes_the_fastest_that_runs_and_says_so() -> None:
    wing = load("auto", 2, library())
    fastest = next(isa for isa in ISAS if library().refusal(isa) is None)
    assert wing.describe() == {
        "wing": "cpu (native)",
        "isa": fastest,
        "threads": "2",
        "why": "the fastest this processor runs",
    }
    assert available("auto", library()) is None


def test_an_instruction_set_asked_for_by_name_is_taken_or_refused_with_the_reason() -> None:
    assert load("portable", 1, library()).describe()["isa"] == "portable"
    absent = next(isa for isa in ISAS if library().refusal(isa))
    reason = available(absent, library())
    assert reason
    with pytest.raises(RuntimeError, match=f"{absent}: {re.escape(reason)}"):
        load(absent, 1, library())
    assert available("sse9", library()) == "the native library knows no such instruction set"


class Miscompiled(NativeLibrary):
    """A library that says it has the first instruction set and hands out one whose sums are wrong."""

    def refusal(self, isa: str) -> str | None:
        return None if isa in (ISAS[0], "portable") else "not here"


def test_a_path_that_differs_from_the_portable_one_is_refused_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    broken = Miscompiled(library().path)
    differing = "avx512_vnni: the self-check failed: ternary_linear differs from the portable path"

    def check_fails(_: NativeLibrary, isa: str) -> str | None:
        return None if isa == "portable" else differing.split(": ", 1)[1]

    with caplog.at_level(logging.WARNING):
        assert load("auto", 1, broken, check_fails).describe()["isa"] == "portable"
    assert differing in caplog.text
    with pytest.raises(RuntimeError, match="ternary_linear differs"):
        load(ISAS[0], 1, broken, check_fails)


def test_the_self_check_covers_every_verb_with_kernels() -> None:
    verbs = {verb for verb, _ in probe(open_wing("portable"))}
    assert verbs == {
        "norm_quantize",
        "ternary_linear",
        "head",
        "head in halves",
        "head_topk in halves",
        "gate_norm_quantize",
        "paged_attention",
    }


def test_python_mirrors_the_structs_of_the_header() -> None:
    header = (ROOT / "cpu_fallback" / "native" / "abi.h").read_text()
    assert f"#define BN_ABI_VERSION {ABI_VERSION}\n" in header
    bodies = dict(re.findall(r"typedef struct \{((?:[^}])*)\} bn_(\w+);", header))
    structs = {name: body for body, name in bodies.items()}
    assert set(structs) == {
        *("weights", "segment", "quantized", "table", "cache", "rope", "batch", "layer", "plan"),
        *("decoding", "draw", "draws"),
    }
    for name, body in structs.items():
        mirror = getattr(native_library, f"Native{name.capitalize()}")
        plain = re.sub(r"//[^\n]*", "", body)
        fields = [
            word.strip(" *")
            for line in plain.split(";")
            for word in re.sub(r"^(const )?\w+\*? ", "", line.strip()).split(",")
            if word.strip()
        ]
        assert [field for field, *_ in mirror._fields_] == fields, name


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "old.c"
    source.write_text("int bn_abi_version(void) { return 0; }\n")
    path = tmp_path / "libold.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    with pytest.raises(OSError, match=f"ABI version 0, not {ABI_VERSION}"):
        NativeLibrary(path)


def test_memory_comes_zeroed_and_large_pieces_start_on_huge_pages() -> None:
    small, large = NativeMemory(library(), 100, huge=False), NativeMemory(library(), 5 << 20, huge=True)
    assert bytes(small.bytes_view()) == bytes(100)
    assert large.address % (2 << 20) == 0
    ctypes.memset(large.address, 1, large.num_bytes)


def test_threads_come_and_go_without_changing_results() -> None:
    wing = open_wing("portable")
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
    expected = wing.quantize(x)
    for threads in (2, 7, 1, 3, 1):
        wing.set_threads(threads)
        for _ in range(50):
            assert torch.equal(wing.quantize(x).codes, expected.codes)
    with pytest.raises(ValueError, match="at least 1"):
        wing.set_threads(0)


def test_torch_is_held_to_one_thread_until_the_wing_is_closed() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wing = load("auto", 2, library())
        assert torch.get_num_threads() == 1
        wing.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_context_on_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(RuntimeError, match="sse9: the native library knows no such"):
        NativeContext(library(), "sse9", 1)
