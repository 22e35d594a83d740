from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.triton_kernels.fake_capture import FakeCapture
from triton_kernels.graphs import BUCKETS, DecodeGraphs, DecodeInputs, Inputs, table_width, tensors


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
