"""Every kernel of a 2B-4T step compiled for sm_80 and sm_90: the instructions meant, no spill, a budget each.

What is compiled is what the wing launches, with its own tiles. A budget is what Triton 3.6.0 needs, rounded up: another
compiler may need a new number, and a change that costs registers has to say so here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget

from tests.triton_kernels.offline import Built, Launch, Recorder, amd, build, cuda
from triton_kernels.advance import advance
from triton_kernels.attention import paged_attention
from triton_kernels.cache import RopeTables, new_cache, rope_write_kv
from triton_kernels.dense_gated import dense_gated
from triton_kernels.draw import Draws, choose, edit
from triton_kernels.gated import gated_linear
from triton_kernels.head import Table, head
from triton_kernels.linear import ternary_linear
from triton_kernels.pack import Dense, Weights, padded
from triton_kernels.pairs import BYTES_TO_BF16
from triton_kernels.pointwise import embed, gate_quantize, new_quantized, quantize
from triton_kernels.query_blocks import QueryBlocks
from triton_kernels.ranking import sort_keys
from triton_kernels.rescore import exact_logits
from triton_kernels.rounds import Room, draw_parts
from triton_kernels.selection import in_order, select
from triton_kernels.tuning import dense_gated_tile, linear_tile

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2560, 6912, 20, 5, 128, 128256
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def weights(n: int, k: int) -> Weights:
    return Weights(
        planes=meta(n // 4, padded(k), dtype=torch.int8),
        row_scale=meta(4, n // 4),
        first=meta(n // 4, dtype=torch.int32),
        step=meta(n // 4, dtype=torch.int32),
        num_inputs=k,
    )


def linear(device: Recorder, num_tokens: int, n: int, k: int) -> None:
    residual = meta(num_tokens, n) if n == HIDDEN else None
    ternary_linear(new_quantized(num_tokens, k, device), weights(n, k), residual, device)


def dense(device: Recorder, num_tokens: int, n: int, k: int) -> None:
    residual = meta(num_tokens, n) if n == HIDDEN else None
    held = replace(weights(n, k), dense=dense_weights(n, k))
    ternary_linear(new_quantized(num_tokens, k, device), held, residual, device)


def dense_weights(n: int, k: int) -> Dense:
    return Dense(meta(n, padded(k), dtype=torch.int8), meta(n))


def dense_gate_and_up(device: Recorder, num_tokens: int) -> None:
    tile = dense_gated_tile(num_tokens, 2 * FFN, HIDDEN, device)
    assert tile is not None
    held = dense_weights(2 * FFN, HIDDEN)
    dense_gated(meta(num_tokens, FFN), new_quantized(num_tokens, HIDDEN, device), held, "relu2", tile, device)


def gate_and_up(device: Recorder, num_tokens: int) -> None:
    tile = linear_tile(num_tokens, FFN // 2, HIDDEN, device)
    gated_linear(new_quantized(num_tokens, HIDDEN, device), weights(2 * FFN, HIDDEN), "relu2", tile, device)


def attention(
    device: Recorder,
    num_rows: int,
    dtype: str,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    head_dim: int = HEAD_DIM,
    *,
    single: bool = False,
) -> None:
    cache = new_cache(1, 4096, 32, kv_heads, head_dim, dtype, device)
    row = meta(num_rows, dtype=torch.int32)
    tables = meta(num_rows, 128, dtype=torch.int32)
    starts = meta(num_rows + 1, dtype=torch.int32)
    q = meta(num_rows, heads, head_dim)
    blocks = QueryBlocks(row, row, meta(num_rows, kv_heads, dtype=torch.int32), single)
    paged_attention(q, cache, 0, tables, row, starts, blocks, device)


def rope(device: Recorder, dtype: str) -> None:
    cache = new_cache(1, 4096, 32, KV_HEADS, HEAD_DIM, dtype, device)
    tables = RopeTables(meta(4096, HEAD_DIM // 2), meta(4096, HEAD_DIM // 2))
    ids = meta(4, dtype=torch.int64)
    rope_write_kv(meta(4, QKV), ids, tables, cache, 0, ids, device)


def output(device: Recorder, dtype: torch.dtype) -> None:
    rows = meta(VOCAB, HIDDEN, dtype=dtype)
    table = (
        Table(None, None, rows, meta(VOCAB), HIDDEN) if dtype == torch.int8 else Table(None, rows, None, None, HIDDEN)
    )
    head(meta(4, HIDDEN), meta(HIDDEN), 1e-5, table, device)


def rescored(device: Recorder) -> None:
    table = Table(None, meta(VOCAB, HIDDEN, dtype=torch.bfloat16), None, None, HIDDEN)
    exact_logits(meta(4, HIDDEN), meta(HIDDEN), 1e-5, table, meta(4, 104, dtype=torch.int64), device)


def draw(device: Recorder) -> None:
    room = Room(candidates=64, window=64, biases=16, rounds=8)
    draws = Draws(*(meta(*shape, dtype=dtype) for shape, dtype in draw_parts(4, room)))
    drawn, ids = meta(8, 4, dtype=torch.int64), meta(4, dtype=torch.int64)
    edit(meta(4, VOCAB), draws, drawn, device)
    choose(meta(4, 64, dtype=torch.int64), meta(4, 64), draws, drawn, device)
    counts, tables = meta(4, dtype=torch.int32), meta(4, 32, dtype=torch.int32)
    advance(ids, ids, ids, counts, tables, draws.turn, drawn, 32, device)


def best(device: Recorder, k: int) -> None:
    select(meta(4, VOCAB), k, meta(4, 64, dtype=torch.int64), device)


@dataclass(frozen=True)
class Case:
    """One launch of `run`: which kernel, at most how many registers a thread and KiB of shared memory a program, at
    least how many of which instructions."""

    run: Callable[[Recorder], None]
    kernel: str
    registers: int
    shared_kib: int
    sm_80: dict[str, int]
    sm_90: dict[str, int]
    never: tuple[str, ...] = field(default=())


CASES = {
    "GEMV of qkv": Case(
        lambda device: linear(device, 1, QKV, HIDDEN),
        "gemv_kernel",
        72,
        1,
        {"IDP": 80, "LDG.E.EF.128": 5, "LDG.E.EL.128": 5},
        {"IDP": 80, "LDG.E.EF.128": 5, "LDG.E.EL.128": 5},
        ("PRMT",),
    ),
    "GEMV of down": Case(
        lambda device: linear(device, 1, HIDDEN, FFN),
        "gemv_kernel",
        144,
        1,
        {"IDP": 224, "LDG.E.EF.128": 14},
        {"IDP": 224, "LDG.E.EF.128": 14},
        ("PRMT",),
    ),
    "16 tokens of qkv": Case(
        lambda device: linear(device, 16, QKV, HIDDEN),
        "dot_kernel",
        104,
        16,
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 8},
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 8},
        ("PRMT",),
    ),
    "16 tokens of down, K split": Case(
        lambda device: linear(device, 16, HIDDEN, FFN),
        "dot_kernel",
        104,
        16,
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 8, "RED": 4},
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 8, "RED": 4},
        ("PRMT",),
    ),
    "2 tokens of qkv": Case(
        lambda device: linear(device, 2, QKV, HIDDEN),
        "gemv_kernel",
        64,
        1,
        {"IDP": 80, "LDG.E.EF.128": 5, "LDG.E.EL.128": 5},
        {"IDP": 80, "LDG.E.EF.128": 5, "LDG.E.EL.128": 5},
        ("PRMT",),
    ),
    "64 tokens of down, K split": Case(
        lambda device: linear(device, 64, HIDDEN, FFN),
        "dot_kernel",
        128,
        40,
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 30, "RED": 4},
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 30, "RED": 4},
        ("PRMT",),
    ),
    "the end of a split K": Case(lambda device: linear(device, 16, HIDDEN, FFN), "finish_kernel", 40, 0, {}, {}),
    "2048 tokens of gate and up": Case(
        lambda device: linear(device, 2048, 2 * FFN, HIDDEN),
        "dot_kernel",
        248,
        48,
        {"IMMA": 128, "LDGSTS.E.BYPASS.128": 12},
        {"IGMMA": 16, "LDGSTS.E.BYPASS.128": 12},
        ("PRMT",),
    ),
    "2048 tokens of gate and up, multiplied": Case(
        lambda device: gate_and_up(device, 2048),
        "gated_kernel",
        248,
        48,
        {"IMMA": 128, "LDGSTS.E.BYPASS.128": 12},
        {"IGMMA": 16, "LDGSTS.E.BYPASS.128": 12},
        ("PRMT",),
    ),
    "16 tokens of qkv as int8, K split": Case(
        lambda device: dense(device, 16, QKV, HIDDEN),
        "dense_kernel",
        56,
        61,
        {"IMMA": 8, "LDGSTS.E.BYPASS.128": 30, "RED": 8},
        {"IGMMA": 4, "UTMALDG": 12, "RED": 8},
    ),
    "32 tokens of gate and up as int8": Case(
        lambda device: dense(device, 32, 2 * FFN, HIDDEN),
        "dense_kernel",
        64,
        73,
        {"IMMA": 16, "LDGSTS.E.BYPASS.128": 36},
        {"IGMMA": 4, "UTMALDG": 12},
    ),
    "64 tokens of down as int8, K split": Case(
        lambda device: dense(device, 64, HIDDEN, FFN),
        "dense_kernel",
        128,
        97,
        {"IMMA": 32, "LDGSTS.E.BYPASS.128": 48, "RED": 32},
        {"IGMMA": 4, "UTMALDG": 12, "RED": 32},
    ),
    "256 tokens of gate and up as int8": Case(
        lambda device: dense(device, 256, 2 * FFN, HIDDEN),
        "dense_kernel",
        176,
        97,
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 24},
        {"IGMMA": 4, "UTMALDG": 6},
    ),
    "2048 tokens of down as int8": Case(
        lambda device: dense(device, 2048, HIDDEN, FFN),
        "dense_kernel",
        216,
        145,
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 24},
        {"IGMMA": 8, "UTMALDG": 6},
    ),
    "2048 tokens of gate and up as int8, multiplied": Case(
        lambda device: dense_gate_and_up(device, 2048),
        "dense_gated_kernel",
        136,
        129,
        {"IMMA": 64, "LDGSTS.E.BYPASS.128": 24},
        {"IGMMA": 8, "UTMALDG": 12},
    ),
    "norm and quantize": Case(
        lambda device: quantize(meta(4, HIDDEN), meta(HIDDEN), 1e-5, device),
        "quantize_kernel",
        64,
        1,
        {"LDG.E.128": 8, "STG.E.128": 1},
        {"LDG.E.128": 8, "STG.E.128": 1},
    ),
    "norm and quantize, row after row": Case(
        lambda device: quantize(meta(2048, FFN), meta(FFN), 1e-5, device),
        "quantize_kernel",
        64,
        65,
        {"LDGSTS.E.BYPASS.128": 16, "STG.E.128": 1},
        {"LDGSTS.E.BYPASS.128": 16, "STG.E.128": 1},
    ),
    "gate, norm and quantize": Case(
        lambda device: gate_quantize(meta(4, 2 * FFN), meta(FFN), 1e-5, "relu2", device),
        "gate_kernel",
        64,
        1,
        {"LDG.E.128": 12, "STG.E.128": 1},
        {"LDG.E.128": 12, "STG.E.128": 1},
    ),
    "embedding": Case(
        lambda device: embed(meta(VOCAB, HIDDEN, dtype=torch.bfloat16), meta(4, dtype=torch.int64), HIDDEN, device),
        "embed_kernel",
        32,
        2,
        {"LDG.E.128": 1, "STG.E.128": 1},
        {"LDG.E.128": 1, "STG.E.128": 1},
    ),
    "RoPE and cache write": Case(lambda device: rope(device, "bf16"), "rope_kernel", 40, 0, {}, {}),
    "RoPE and int8 cache write": Case(lambda device: rope(device, "int8"), "rope_kernel", 48, 1, {}, {}),
    "attention": Case(
        lambda device: attention(device, 256, "bf16"),
        "attention_kernel",
        184,
        53,
        # one tile of keys and values is eight of them: two before the loop and the next one in it
        {"HMMA": 64, "LDGSTS.E.BYPASS.128": 24},
        {"HMMA": 64, "LDGSTS.E.BYPASS.128": 24},
    ),
    "attention over int8 keys": Case(
        lambda device: attention(device, 256, "int8"),
        "attention_kernel",
        168,
        37,
        # pairs of bytes go to the products by the instruction for matrices, none by itself
        {"HMMA": 64, "LDSM.16": 44, "HFMA2.BF16": 32},
        {"HMMA": 64, "LDSM.16": 44, "HADD2.BF16": 32},
        never=("LDS.U8", "I2F"),
    ),
    "attention over int8 keys in parts": Case(
        lambda device: attention(device, 8, "int8"),
        "attention_kernel",
        168,
        37,
        {"HMMA": 64, "LDSM.16": 44},
        {"HMMA": 64, "LDSM.16": 44},
        never=("LDS.U8", "I2F"),
    ),
    "attention over int8 keys of heads of 64": Case(
        lambda device: attention(device, 256, "int8", 20, 5, 64),
        "attention_kernel",
        176,
        17,
        {"HMMA": 64},
        {"HMMA": 64},
        never=("LDS.U8", "I2F"),
    ),
    "attention in parts": Case(
        lambda device: attention(device, 8, "bf16"), "attention_kernel", 176, 57, {"HMMA": 64}, {"HMMA": 64}
    ),
    "attention of single tokens": Case(
        lambda device: attention(device, 256, "bf16", single=True),
        "attention_kernel",
        152,
        49,
        {"HMMA": 32, "LDGSTS.E.BYPASS.128": 24},
        {"HMMA": 32, "LDGSTS.E.BYPASS.128": 24},
    ),
    "attention of single tokens over int8 keys": Case(
        lambda device: attention(device, 256, "int8", single=True),
        "attention_kernel",
        128,
        33,
        {"HMMA": 32},
        {"HMMA": 32},
        never=("LDS.U8", "I2F"),
    ),
    "attention of single tokens in parts": Case(
        lambda device: attention(device, 8, "bf16", single=True),
        "attention_kernel",
        128,
        57,
        {"HMMA": 32},
        {"HMMA": 32},
    ),
    "attention of single tokens in parts, one head each": Case(
        lambda device: attention(device, 8, "int8", 32, 32, single=True),
        "attention_kernel",
        128,
        37,
        {"HMMA": 32},
        {"HMMA": 32},
    ),
    "attention with heads of 256": Case(
        lambda device: attention(device, 256, "bf16", 12, 4, 256),
        "attention_kernel",
        248,
        83,
        {"HMMA": 64},
        {"HMMA": 64},
    ),
    "final norm": Case(
        lambda device: output(device, torch.bfloat16), "norm_kernel", 64, 1, {"LDG.E.128": 8}, {"LDG.E.128": 8}
    ),
    "bf16 head": Case(
        lambda device: output(device, torch.bfloat16),
        "head_kernel",
        168,
        72,
        {"HMMA": 32, "LDGSTS.E.BYPASS.128": 16},
        {"HGMMA": 4, "LDGSTS.E.BYPASS.128": 16},
    ),
    "candidates of the int8 head in bf16": Case(
        lambda device: rescored(device),
        "rescore_kernel",
        168,
        72,
        {"HMMA": 32, "LDGSTS.E.BYPASS.128": 8},
        {"HGMMA": 4, "LDGSTS.E.BYPASS.128": 8},
    ),
    "biases and penalties": Case(draw, "edit_kernel", 216, 2, {"RED": 1, "LDG": 6}, {"RED": 1, "LDG": 6}),
    "a draw": Case(draw, "choose_kernel", 128, 1, {"DFMA": 8, "SHFL": 8}, {"DFMA": 8, "SHFL": 8}),
    "the next round": Case(draw, "advance_kernel", 40, 1, {"STG": 4}, {"STG": 4}),
    "logits and ids as one number": Case(
        lambda device: sort_keys(meta(4, VOCAB), device),
        "key_kernel",
        40,
        4,
        {"LDG.E.128": 2, "STG.E.128": 4},
        {"LDG.E.128": 2, "STG.E.128": 4},
    ),
    "maxima of groups of logits": Case(
        lambda device: best(device, 104), "maxima_kernel", 40, 1, *2 * ({"LDG.E.128": 4},)
    ),
    "the best of the best groups": Case(lambda device: best(device, 64), "select_kernel", 128, 9, {}, {}),
    "the one best token": Case(lambda device: best(device, 1), "select_kernel", 48, 1, {}, {}),
    "candidates in order": Case(
        lambda device: in_order(meta(4, 168 + 64, dtype=torch.int64), meta(4, 168 + 64), 104, 64, VOCAB, device),
        "order_kernel",
        64,
        4,
        {},
        {},
    ),
    "int8 head": Case(
        lambda device: output(device, torch.int8),
        "head_kernel",
        96,
        54,
        {"IMMA": 16, "LDGSTS.E.BYPASS.128": 4},
        {"IGMMA": 4, "LDGSTS.E.BYPASS.128": 4},
    ),
}


def launch_of(case: Case, *, wgmma: bool, dp4a: bool = True, pdl: bool = False) -> Launch:
    device = Recorder(dp4a=dp4a, wgmma=wgmma, pdl=pdl)
    case.run(device)
    found: Launch = next(launch for launch in device.launches if launch.name == case.kernel)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", CASES)
def test_the_machine_code_is_what_was_meant(name: str, capability: int) -> None:
    case = CASES[name]
    check(case, cuda(launch_of(case, wgmma=capability == 90), capability), capability)


def check(case: Case, built: Built, capability: int) -> None:
    assert built.stack_bytes == 0, f"{built.stack_bytes} bytes of registers spilled"
    assert built.count("STL") == built.count("LDL") == 0
    assert built.registers <= case.registers, f"{built.registers} registers"
    assert built.shared_bytes <= 1024 * case.shared_kib, f"{built.shared_bytes} bytes of shared memory"
    for opcode, least in (case.sm_80 if capability == 80 else case.sm_90).items():
        assert built.count(opcode) >= least, f"{opcode}: {built.count(opcode)}"
    for opcode in case.never:
        # a byte permutation or two in the epilogue; decoding weights by shifts takes hundreds
        assert built.count(opcode) <= 2, f"{opcode}: {built.count(opcode)}"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("gated", [False, True])
def test_a_row_is_summed_in_one_order_whether_it_comes_alone_or_after_another(gated: bool, capability: int) -> None:
    orders = set()
    for num_tokens in (4, 2048):
        device = Recorder()
        if gated:
            gate_quantize(meta(num_tokens, 2 * FFN), meta(FFN), 1e-5, "relu2", device)
        else:
            quantize(meta(num_tokens, HIDDEN), meta(HIDDEN), 1e-5, device)
        (launch,) = device.launches  # type: ignore[attr-defined]
        orders.add(order_of_sums(build(launch, GPUTarget("cuda", capability, 32)).asm["ttgir"]))
    assert len(orders) == 1
    assert len(orders.pop()) == 3  # squares, magnitudes and codes


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("num_rows", [8, 256])
def test_a_token_is_computed_alike_by_itself_and_among_others(dtype: str, capability: int, num_rows: int) -> None:
    """Tiles of 16 and of 32 rows: the same instruction for each 16, and sums over keys that lie alike."""
    seen = {}
    for single in (True, False):
        device = Recorder(wgmma=capability == 90)
        attention(device, num_rows, dtype, single=single)
        (launch,) = device.launches  # type: ignore[attr-defined]
        code = build(launch, GPUTarget("cuda", capability, 32)).asm["ttgir"]
        products = re.findall(r"^#\w+ = (#ttg\.nvidia_mma<.*>)$", code, re.MULTILINE)
        reduced = set(re.findall(r"\}\) : \(tensor<\d+x(\w+), #mma>\) -> ", code))
        seen[launch.arguments["ROWS"]] = products, reduced
    assert len(seen) == 2
    assert seen[16] == seen[32]
    assert "instrShape = [16, 8]" in seen[16][0][0]
    assert seen[16][1] == {"32xf32"}


def order_of_sums(code: str) -> tuple[str, ...]:
    """What decides the order of each sum of a kernel in Triton's GPU dialect: where its operands lie."""
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", code, re.MULTILINE))
    operands = re.findall(r"\}\) : \(tensor<(\d+)x\w+, (#\w+)>\) -> ", code)
    return tuple(f"{length} {layouts[name]}" for length, name in operands)


FAULTS = {
    "a tile that spills": ("2048 tokens of gate and up", {"BLOCK_T": 128}, 90, "registers spilled"),
    "an epilogue in one piece": ("2048 tokens of down as int8", {"HALVES": False}, 90, "registers spilled"),
    "a stage more than there is room for": ("int8 head", {"BLOCK_K": 256}, 90, "bytes of shared memory"),
    "a tile too flat for warp groups": ("2048 tokens of gate and up", {"BLOCK_P": 32}, 90, "IGMMA: 0"),
    "words too few for 16-byte loads": ("GEMV of qkv", {"BLOCK_W": 32}, 80, "LDG.E.EF.128: 0"),
    "no dp4a": ("GEMV of qkv", {"DP4A": False}, 80, "IDP: 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_check_of_the_machine_code_finds(name: str) -> None:
    case_name, changes, capability, said = FAULTS[name]
    case = CASES[case_name]
    launch = launch_of(case, wgmma=capability == 90)
    broken = replace(launch, arguments={**launch.arguments, **changes})
    with pytest.raises(AssertionError, match=said):
        check(replace(case, registers=255), cuda(broken, capability), capability)


CHAINED = {CASES[name].kernel: name for name in reversed(CASES)}


@pytest.mark.parametrize("name", CHAINED.values(), ids=CHAINED.keys())
def test_a_chained_kernel_waits_before_it_reads_what_another_wrote(name: str) -> None:
    built = cuda(launch_of(CASES[name], wgmma=True, pdl=True), 90)
    opcodes = list(built.opcodes)
    assert built.stack_bytes == 0
    assert built.count("ACQBULK") >= 1
    assert built.count("PREEXIT") >= 1
    before = opcodes[: opcodes.index("ACQBULK")]
    # a GEMV reads weights, which no kernel writes, and what lies around attention which rows and positions there are,
    # which came before the predecessor
    allowed = {
        "gemv_kernel": {"LDG.E.EF.128"},
        "attention_kernel": {"LDG.E"},
        "rope_kernel": {"LDG.E", "LDG.E.64", "LDG.E.128"},
    }
    touched = {opcode for opcode in before if opcode.startswith(("LDG", "ST", "RED", "ATOM"))}
    assert touched <= allowed.get(CASES[name].kernel, set())
    assert bool(touched) == (CASES[name].kernel in allowed)


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("GEMV of qkv", True),
        ("16 tokens of qkv", True),
        ("32 tokens of gate and up as int8", True),
        ("256 tokens of gate and up as int8", False),
        ("attention in parts", True),
        ("attention", False),
    ],
)
def test_what_few_tokens_will_read_is_asked_for_before_a_chained_kernel_waits(name: str, asks: bool) -> None:
    opcodes = list(cuda(launch_of(CASES[name], wgmma=True, pdl=True), 90).opcodes)
    before = opcodes[: opcodes.index("ACQBULK")]
    assert any(opcode.startswith("CCTL") for opcode in before) == asks
    plain = cuda(launch_of(CASES[name], wgmma=True), 90)
    assert plain.count("CCTL.E.PF2") == 0


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("16 tokens of qkv", "v_mfma_i32_16x16x"),
        ("2048 tokens of gate and up, multiplied", "v_mfma_i32_"),
        ("32 tokens of gate and up as int8", "v_mfma_i32_"),
        ("attention", "v_mfma_f32_"),
        ("attention over int8 keys", "v_mfma_f32_"),
        ("int8 head", "v_mfma_i32_"),
    ],
)
def test_matrix_products_compile_for_amd_matrix_cores(name: str, product: str) -> None:
    assert product in amd(launch_of(CASES[name], wgmma=False, dp4a=False), "gfx942")


def test_every_byte_becomes_the_bf16_number_that_it_is() -> None:
    """What the assembly does to a lower byte, by its own constants; to an upper one it does the same, shifted."""
    found = re.findall(r"0x(\w{4})\1, 0x(\w{4})\2, 0xEA", BYTES_TO_BF16.value)
    assert found[:2] == found[2:]
    (low_mask, low_bits), (top_mask, top_bits) = ((int(mask, 16), int(bits, 16)) for mask, bits in found[:2])
    stored = torch.arange(-128, 128, dtype=torch.int8)
    code = stored.to(torch.int32) & 0xFF
    low, top = (
        ((code & mask | bits) << 16).view(torch.float32) for mask, bits in ((low_mask, low_bits), (top_mask, top_bits))
    )
    assert torch.equal((low + top).to(torch.bfloat16).to(torch.int8), stored)
