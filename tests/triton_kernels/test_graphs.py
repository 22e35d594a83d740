from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from bitnet_model.batch import ForwardBatch
from tests.triton_kernels.fake_capture import FakeCapture
from triton_kernels.device import open_device
from triton_kernels.graphs import BUCKETS, DecodeGraphs, DecodeInputs, Inputs, table_width, tensors
from triton_kernels.mixed import ROWS, TOKENS, MixedGraphs, MixedInputs
from triton_kernels.query_blocks import cut, query_blocks

BLOCK_TOKENS = 4
"""Query tokens of a block."""


class Seen:
    """Stands in for the model: remembers what it ran on, and returns a number per row made of all its inputs."""

    def __init__(self) -> None:
        self.inputs: list[DecodeInputs] = []

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        self.inputs.append(DecodeInputs(*(tensor.clone() for tensor in tensors(inputs))))
        return meaning(inputs)


def meaning(inputs: DecodeInputs) -> Tensor:
    return torch.stack(
        [
            inputs.token_ids + 1000 * inputs.positions + 7 * inputs.slots,
            inputs.lengths + 100 * inputs.block_tables.sum(-1),
        ],
        dim=1,
    ).float()


def inputs_of(num_rows: int, max_blocks: int, seed: int = 0) -> DecodeInputs:
    rng = torch.Generator().manual_seed(seed)
    return DecodeInputs(
        torch.randint(0, 500, (num_rows,), generator=rng),
        torch.randint(0, 90, (num_rows,), generator=rng),
        torch.randint(0, 64, (num_rows,), generator=rng),
        torch.randint(0, 9, (num_rows, max_blocks), generator=rng, dtype=torch.int32),
        torch.randint(1, 99, (num_rows,), generator=rng, dtype=torch.int32),
    )


def graphs() -> tuple[DecodeGraphs, Seen, FakeCapture]:
    seen, capture = Seen(), FakeCapture()
    return DecodeGraphs(seen, capture, torch.device("cpu"), buckets=(1, 4, 2)), seen, capture


def test_every_row_gets_its_own_result_whatever_was_there_before() -> None:
    captured, _, _ = graphs()
    for seed, (num_rows, width) in enumerate([(4, 3), (1, 3), (3, 1), (2, 16), (4, 2)]):
        inputs = inputs_of(num_rows, width, seed)
        wanted = meaning(inputs)
        got = captured.step(inputs)
        assert torch.equal(got, wanted)


def test_padding_rows_write_nothing_and_attend_to_nothing() -> None:
    captured, seen, _ = graphs()
    captured.step(inputs_of(4, 2, 1))
    captured.step(inputs_of(3, 2, 2))
    last = seen.inputs[-1]
    assert last.slots.tolist()[3:] == [-1]
    assert last.lengths.tolist()[3:] == [0]


def test_a_capture_runs_on_padding_rows_only() -> None:
    captured, seen, capture = graphs()
    assert list(captured.prepare(9, 5)) == [2, 1, 0]
    assert capture.num_captures == 3
    assert capture.num_replays == 0
    assert [len(inputs.slots) for inputs in seen.inputs] == [4, 2, 1]
    for inputs in seen.inputs:
        assert set(inputs.slots.tolist()) == {-1}
        assert set(inputs.lengths.tolist()) == {0}


def test_each_bucket_and_table_width_is_captured_once() -> None:
    captured, _, capture = graphs()
    list(captured.prepare(4, 40))
    for num_rows in (1, 2, 3, 4, 3):
        captured.step(inputs_of(num_rows, 40))
        captured.step(inputs_of(num_rows, 2))
    assert (capture.num_captures, capture.num_replays) == (3, 10)
    captured.step(inputs_of(3, 65))
    captured.step(inputs_of(3, 100))
    assert capture.num_captures == 4


def test_buckets_cover_every_number_of_rows_and_refuse_more() -> None:
    captured, _, _ = graphs()
    assert [captured.bucket(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 4]
    with pytest.raises(ValueError, match="5 rows are more than the largest bucket of 4"):
        captured.bucket(5)
    assert tuple(sorted(BUCKETS)) == BUCKETS
    assert BUCKETS[0] == 1


def test_only_the_buckets_that_steps_may_need_are_captured() -> None:
    captured, seen, _ = graphs()
    assert captured.buckets_for(3) == (1, 2, 4)
    assert captured.buckets_for(2) == (1, 2)
    assert captured.buckets_for(99) == (1, 2, 4)
    assert list(captured.prepare(2, 5)) == [1, 0]
    assert [len(inputs.slots) for inputs in seen.inputs] == [2, 1]


def test_all_inputs_are_one_run_of_bytes_where_16_byte_loads_may_begin() -> None:
    for num_rows, max_blocks in ((1, 16), (3, 16), (48, 128)):
        inputs = Inputs(num_rows, max_blocks, torch.device("cpu"))
        assert [tuple(tensor.shape) for tensor in tensors(inputs.rows)] == [
            *[(num_rows,)] * 3,
            (num_rows, max_blocks),
            (num_rows,),
        ]
        for tensor in tensors(inputs.rows):
            assert (tensor.data_ptr() - inputs.bytes.data_ptr()) % 16 == 0
            tensor.fill_(7)
        assert all((tensor == 7).all() for tensor in tensors(inputs.rows))


def test_table_widths_are_few() -> None:
    assert [table_width(n) for n in (1, 16, 17, 128, 129)] == [16, 16, 32, 128, 256]


def batch_of(counts: list[int], width: int, seed: int) -> ForwardBatch:
    rng = torch.Generator().manual_seed(seed)
    total = sum(counts)
    before = torch.randint(0, 9, (len(counts),), generator=rng)
    return ForwardBatch(
        torch.randint(1, 500, (total,), generator=rng),
        torch.randint(0, 90, (total,), generator=rng),
        torch.randint(0, 64, (total,), generator=rng),
        torch.randint(1, 9, (len(counts), width), generator=rng, dtype=torch.int32),
        (before + torch.tensor(counts)).int(),
        torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32),
        torch.arange(total),
    )


class Attends:
    """Stands in for the model: a number per token made of its own inputs and those of the row its query block names."""

    def __init__(self) -> None:
        self.inputs: list[MixedInputs] = []

    def __call__(self, inputs: MixedInputs) -> Tensor:
        self.inputs.append(inputs)
        own = inputs.token_ids + 1000 * inputs.positions + 7 * inputs.slots
        of_row = torch.zeros_like(own)
        for row, first in zip(inputs.block_row.tolist(), inputs.block_first.tolist(), strict=True):
            start, end = inputs.starts[row : row + 2].tolist()
            assert first < end - start or row == len(inputs.lengths) - 1
            place = slice(start + first, min(start + first + BLOCK_TOKENS, end))
            assert not of_row[place].any(), "two query blocks for one token"
            of_row[place] = int(inputs.lengths[row]) + 100 * int(inputs.block_tables[row].sum()) or -1
        assert of_row.all(), "a token in no query block"
        return torch.stack([own, of_row], dim=1)


def wanted_of(batch: ForwardBatch) -> Tensor:
    own = batch.token_ids + 1000 * batch.positions + 7 * batch.slots
    of_row = (batch.lengths + 100 * batch.block_tables.sum(1)).repeat_interleave(batch.starts.diff())
    return torch.stack([own, of_row], dim=1)


def mixed() -> tuple[MixedGraphs, Attends, FakeCapture]:
    run, capture = Attends(), FakeCapture()
    blocks = partial(cut, tokens=BLOCK_TOKENS)
    graphs = MixedGraphs(run, capture, torch.device("cpu"), blocks, BLOCK_TOKENS, tokens=(8, 16, 32), rows=(3, 6))
    return graphs, run, capture


def test_every_token_of_a_mixed_step_gets_its_own_result_whatever_was_there_before() -> None:
    graphs, _, _ = mixed()
    steps = [[5, 1, 1, 9, 1], [8], [1, 1], [7, 1], [1] * 5, [31, 1], [2, 3], [32]]
    for seed, counts in enumerate(steps):
        batch = batch_of(counts, 1 + seed % 3, seed)
        got = graphs.step(batch)
        assert torch.equal(got, wanted_of(batch)), counts


def test_padding_tokens_are_in_a_row_without_keys_and_written_nowhere() -> None:
    graphs, run, _ = mixed()
    for counts, rows in (([3, 8, 4, 1, 1], 6), ([3, 2], 3)):
        graphs.step(batch_of(counts, 2, 1))
        last, used = run.inputs[-1], sum(counts)
        assert last.starts[len(counts) :].tolist() == [used] * (rows - len(counts)) + [len(last.slots)]
        assert set(last.slots[used:].tolist()) == {-1}
        assert set(last.lengths[len(counts) :].tolist()) == {0}


def test_a_mixed_capture_runs_on_padding_only_and_once_for_each_size() -> None:
    graphs, run, capture = mixed()
    assert graphs.sizes(16, 2) == [(16, 3), (8, 3)]
    assert graphs.sizes(99, 99) == [(32, 6), (32, 3), (16, 6), (16, 3), (8, 6), (8, 3)]
    assert list(graphs.prepare(99, 99, 40)) == [5, 4, 3, 2, 1, 0]
    for inputs in run.inputs:
        assert set(inputs.slots.tolist()) == {-1}
        assert not inputs.lengths.any()
        assert not inputs.starts[:-1].any()
    for counts in ([5, 1], [2, 6, 8], [32]):
        graphs.step(batch_of(counts, 2, 3))
    assert (capture.num_captures, capture.num_replays) == (6, 3)


def test_steps_past_the_largest_size_do_not_fit() -> None:
    graphs, _, _ = mixed()
    assert graphs.fits(32, 5)
    assert not graphs.fits(33, 1)
    assert not graphs.fits(32, 6)
    assert not graphs.fits(0, 0)
    assert tuple(sorted(TOKENS)) == TOKENS
    assert all(size % 16 == 0 for size in TOKENS)
    assert ROWS[-1] == BUCKETS[-1] + 1


@pytest.mark.parametrize("block_tokens", [1, 3, 4])
def test_query_blocks_of_any_rows_fit_their_buffer(block_tokens: int) -> None:
    rng = torch.Generator().manual_seed(4)
    for _ in range(60):
        num_rows = int(torch.randint(1, 6, (1,), generator=rng))
        counts = torch.randint(1, 8, (num_rows,), generator=rng).tolist()
        batch = batch_of(counts, 1, 5)
        blocks = cut(batch.starts.tolist(), block_tokens)
        assert blocks.shape[1] <= sum(counts) // block_tokens + num_rows


@pytest.mark.parametrize(
    ("starts", "single"), [([0, 1, 2, 3], True), ([0, 1], True), ([0, 2, 3], False), ([0, 0, 1, 2], False), ([0], True)]
)
def test_blocks_know_whether_all_of_them_are_single_tokens(starts: list[int], single: bool) -> None:
    assert query_blocks(starts, 4, 1, 64, open_device(torch.device("cpu"))).single == single
