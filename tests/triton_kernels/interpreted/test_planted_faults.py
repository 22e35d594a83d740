"""The proofs must fail when a mask, a scale or a tile is broken: each fault is planted in a copy of the wing, one line
at a time, and the test that is to find it is run on that copy. A proof that still passes proves nothing.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from triton_kernels.tuning import DenseTile

ROOT = Path(__file__).parents[3]
PROOFS = "tests.triton_kernels.interpreted"
KEPT: list[ModuleType] = []
"""Modules of earlier faults: the interpreter knows modules by their address, which must not be used twice."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`right` becomes `wrong` in one file; `proof` (module, test, arguments) must then fail."""

    file: str
    right: str
    wrong: str
    proof: tuple[str, str, tuple[Any, ...]]


SEGMENTS = ("test_linear", "test_every_segment_comes_out_in_canonical_order_bit_for_bit", ([40, 12, 8], 100, 17))
FORMS = ("test_linear", "test_every_form_and_tile_gives_the_same_bits", ())
GATED = ("test_linear", "test_a_gate_in_the_epilogue_gives_the_bits_of_a_gate_afterwards", ("relu2",))
UNPACKED = ("test_dense", "test_unpacked_weights_are_the_ternary_ones_in_canonical_order", ())
DENSE = (
    "test_dense",
    "test_every_tile_gives_the_bits_of_the_packed_form",
    (DenseTile(64, 16, 128, 3, num_warps=4, num_stages=1, fetch=2),),
)
DENSE_GATED = ("test_dense", "test_gate_and_up_multiplied_have_the_bits_of_a_gate_afterwards", ("relu2",))
ROWS = ("test_attention", "test_ragged_rows_attend_like_the_oracle", (4, 1, 16, "bf16"))
INT8_ROWS = ("test_attention", "test_ragged_rows_attend_like_the_oracle", (4, 1, 16, "int8"))
SPLITS = ("test_attention", "test_splits_over_programs_change_no_bit", ("bf16",))
INT8_SPLITS = ("test_attention", "test_splits_over_programs_change_no_bit", ("int8",))
POISON = ("test_attention", "test_poisoned_free_slots_change_nothing", ())
ROPE = ("test_attention", "test_rope_turns_q_and_writes_roped_k_and_plain_v_to_their_slots", (16, "bf16"))
INT8_ROPE = ("test_attention", "test_rope_turns_q_and_writes_roped_k_and_plain_v_to_their_slots", (16, "int8"))
PLAIN = ("test_pointwise", "test_plain_quantization_equals_its_definition_bit_for_bit", (3, 31))
NORM = ("test_pointwise", "test_norm_then_quantization_is_the_definition_to_fp32_rounding", (3, 100))
GATE = ("test_pointwise", "test_gate_then_norm_then_quantization_is_the_definition", ("silu", True))
BF16_HEAD = ("test_head", "test_bf16_logits_are_the_products_of_bf16_operands", (3, 257, 200))
INT8_HEAD = ("test_head", "test_int8_logits_are_exact_sums_of_codes", ())
TIES = ("test_head", "test_ties_go_to_the_lower_id_and_extras_follow", ())
SELECTED = ("test_head", "test_the_best_of_any_logits_are_those_of_a_full_sort", ())
RESCORED = ("test_head", "test_rescored_candidates_have_the_ids_and_bits_of_the_bf16_head", ())

FAULTS = {
    # masks
    "plane 1 also takes plane 0": Fault("sums.py", "w & 0x0C, x", "w & 0x0F, x", SEGMENTS),
    "plane 3 without its sign": Fault("sums.py", "w & -64, x", "w & 0x40, x", SEGMENTS),
    "plane 2 of a word lacks a bit": Fault("gemv.py", "w & 0x30303030", "w & 0x30303010", FORMS),
    "a query does not see itself": Fault("splits.py", "<= position[:, None]", "< position[:, None]", ROWS),
    "a query sees the future": Fault("splits.py", "n[None, :] <= position", "n[None, :] <= 1 + position", ROWS),
    "a slot past the end is read": Fault("splits.py", "here = n < end", "here = n <= end", POISON),
    "a negative slot is written": Fault("cache.py", "if (slot >= 0) &", "if (slot >= -1) &", ROPE),
    "ids of another row are scored": Fault("rescore.py", "tl.load(ids + t * C + rc", "tl.load(ids + rc", RESCORED),
    "a tie goes to the higher id": Fault("selection.py", "(V - 1 - i)", "i", TIES),
    "a group is found too late": Fault("selection.py", "(groups - 1 - g)", "g", SELECTED),
    "too many are kept": Fault("selection.py", "while count > ROOM:", "while count > 2 * ROOM:", SELECTED),
    "the bound leaves out the last": Fault("selection.py", "order == K - 1", "order == K - 2", SELECTED),
    # scales
    "a token's scale is forgotten": Fault("sums.py", "(token_scale * row_scale)", "(row_scale * 1.0)", SEGMENTS),
    "the scale of plane 0 for all": Fault("linear.py", "row_scale + plane * P + rp", "row_scale + rp", SEGMENTS),
    "the code sum stays in": Fault("sums.py", "(2 * PLANE)) - code_sum", "(2 * PLANE))", SEGMENTS),
    "a code sum of one too much": Fault("pointwise.py", "tl.sum(code.to(tl.int32), axis=0)", "1", PLAIN),
    "scales by 128": Fault(
        "pointwise.py", "scale + t, tl.math.div_rn(largest, 127.0)", "scale + t, largest / 128", PLAIN
    ),
    "the mean over a padded row": Fault("pointwise.py", "axis=0), WIDTH * 1.0)", "axis=0), WIDTH + 28.0)", NORM),
    "the sigmoid of -gate": Fault("pointwise.py", "tl.exp(-gate)", "tl.exp(gate)", GATE),
    "values by the scale of keys": Fault("splits.py", "p *= tl.load(value_scale", "p *= tl.load(key_scale", INT8_ROWS),
    "an int8 slot by 128": Fault("cache.py", "tl.math.div_rn(largest, 127.0)[", "(largest / 128)[", INT8_ROPE),
    "RoPE turns back": Fault("cache.py", "turned_y = y * c + x * s", "turned_y = y * c - x * s", ROPE),
    "up by the scale of gate": Fault("dense_gated.py", "row_scale + F + rf", "row_scale + rf", DENSE_GATED),
    "logits without a row's scale": Fault(
        "head.py", "logits *= token * tl.load", "logits *= token + 0 * tl.load", INT8_HEAD
    ),
    # tiles
    "the last tile of K is left out": Fault("sums.py", "K // PARTS // BLOCK_K", "K // PARTS // BLOCK_K - 1", FORMS),
    "parts of K overlap": Fault("linear.py", "part * (K // SPLIT_K)", "part * 32", FORMS),
    "the last words are left out": Fault("gemv.py", "(WORDS + BLOCK_W - 1) // BLOCK_W", "(WORDS // BLOCK_W)", FORMS),
    "planes are unpacked backwards": Fault(
        "pack.py", "(stored >> (2 * plane))", "(stored >> (6 - 2 * plane))", UNPACKED
    ),
    "parts of K overlap in int8": Fault("dense.py", "(tl.program_id(2) * turns + i)", "(0 * turns + i)", DENSE),
    "the last but one rescales": Fault("dense.py", "== SPLIT_K - 1", "== SPLIT_K - 2", DENSE),
    "sums are left for the next": Fault(
        "dense.py", "tl.zeros([BLOCK_T, BLOCK_N]", "1 + tl.zeros([BLOCK_T, BLOCK_N]", DENSE
    ),
    "gate and up change places": Fault("gated.py", "(i % 2) * Q", "(1 - i % 2) * Q", GATED),
    "the last split is left out": Fault(
        "attention.py", "num_splits = (end + SPLIT - 1) // SPLIT", "num_splits = end // SPLIT", ROWS
    ),
    "splits are not put in one scale": Fault("splits.py", "keep = tl.exp2(most - origin)", "keep = 1.0", SPLITS),
    "a merge from the second split on": Fault(
        "attention.py", "range(0, num_splits, AT_ONCE)", "range(1, num_splits, AT_ONCE)", SPLITS
    ),
    "the last but one merges": Fault("attention.py", "last=programs - 1", "last=programs - 2", SPLITS),
    "even and odd change places": Fault("pairs.py", "even, odd = (wide", "odd, even = (wide", INT8_ROWS),
    "odd keys meet even queries": Fault("splits.py", "product(q[2], odd", "product(q[0], odd", INT8_ROWS),
    "parts come apart otherwise than they were put": Fault("attention.py", "2 * d - D + 1", "2 * d - D", INT8_SPLITS),
    "tiles are not put in one scale": Fault("splits.py", "shrink = tl.exp2(most - origin)", "shrink = 1.0", SPLITS),
    "blocks of one head": Fault("cache.py", "(slot // BLOCK_TOKENS) * HKV", "(slot // BLOCK_TOKENS)", ROPE),
    "the last tile of the head is left out": Fault(
        "head.py", "range(K // BLOCK_K)", "range(K // BLOCK_K - 1)", BF16_HEAD
    ),
}


class Finder(MetaPathFinder):
    """Finds the wing in a folder, before the one that is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        *parents, _ = fullname.split(".")
        if fullname.split(".")[0] != "triton_kernels":
            return None
        return PathFinder.find_spec(fullname, [str(self.folder.joinpath(*parents))])


@contextmanager
def planted(fault: Fault, folder: Path) -> Iterator[None]:
    """A copy of the wing with the fault is what `import triton_kernels` finds."""
    copy = folder / "triton_kernels"
    shutil.copytree(ROOT / "triton_kernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / fault.file).read_text()
    assert fault.right in source, f"{fault.file} no longer has {fault.right!r}: plant this fault elsewhere"
    (copy / fault.file).write_text(source.replace(fault.right, fault.wrong))
    held = forget()
    finder = Finder(folder)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        KEPT.extend(forget().values())
        sys.modules.update(held)


def forget() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] == "triton_kernels" or name.startswith(PROOFS + ".")]
    return {name: sys.modules.pop(name) for name in names}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", FAULTS)
def test_the_proof_finds(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    module, test, arguments = fault.proof
    with planted(fault, tmp_path):
        proof = getattr(importlib.import_module(f"{PROOFS}.{module}"), test)
        with pytest.raises(AssertionError):
            proof(*arguments)
