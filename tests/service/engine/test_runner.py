from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bitnet_model.batch import DecodeBatch, DrawBatch, ForwardBatch
from service.engine.penalties import NO_ID
from service.engine.plan import RowResult, ScheduledRow, StepPlan
from service.engine.request import Limits, Report, Request, SamplingParams
from service.engine.runner import SCORED_AT_A_TIME, ModelRunner, make_batch
from service.engine.sampler import ALL_BANNED, NOT_FINITE
from tests.service.engine.sampling_reference import LogitTable

BLOCK_TOKENS = 4


class RecordingModel(LogitTable):
    """Its hidden state at a position is the token there; its logits count upwards from token to token."""

    def __init__(self) -> None:
        super().__init__(np.eye(50, k=1))
        self.batches: list[ForwardBatch] = []
        self.caches: list[object] = []

    def new_cache(self, num_blocks: int, block_tokens: int, dtype: str) -> object:
        return (num_blocks, block_tokens, dtype)

    def forward(self, batch: ForwardBatch, cache: object) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.batches.append(batch)
        self.caches.append(cache)
        return batch.token_ids[batch.logit_rows].float()[:, None]

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(torch.nan_to_num(x))


class RecordingOps:
    def __init__(self) -> None:
        self.calls: list[object] = []

    def set_threads(self, n: int) -> None:
        self.calls.append(n)

    def zero_blocks(self, cache: object, block_ids: Sequence[int]) -> None:
        self.calls.append((cache, list(block_ids)))


def request_with(tokens: Sequence[int], block_ids: list[int]) -> Request:
    params = SamplingParams(seed=0, temperature=0.0, repeat_penalty=1.0)
    request = Request("r", tuple(tokens), params, Limits(n_ctx=100, n_batch=8))
    request.block_ids = block_ids
    return request


def runner_of(model: RecordingModel, ops: RecordingOps) -> ModelRunner:
    return ModelRunner(model, ops, num_blocks=9, block_tokens=BLOCK_TOKENS, kv_dtype="bf16")


def test_a_batch_lays_out_chunks_and_decode_rows_one_after_the_other() -> None:
    prompt = request_with(range(10, 19), [7, 2, 5])  # 9 tokens, 3..8 to compute
    decoding = request_with(range(30, 35), [1, 8])  # its 5th token
    short = request_with([40, 41, 42], [3])
    batch = make_batch(
        [
            ScheduledRow(prompt, 3, 6, sample=True),
            ScheduledRow(decoding, 4, 1, sample=True),
            ScheduledRow(short, 0, 2, sample=False),
        ],
        BLOCK_TOKENS,
    )
    assert batch.token_ids.tolist() == [13, 14, 15, 16, 17, 18, 34, 40, 41]
    assert batch.positions.tolist() == [3, 4, 5, 6, 7, 8, 4, 0, 1]
    assert batch.slots.tolist() == [31, 8, 9, 10, 11, 20, 32, 12, 13]
    assert batch.block_tables.tolist() == [[7, 2, 5], [1, 8, 0], [3, 0, 0]]
    assert batch.lengths.tolist() == [9, 5, 2]
    assert batch.starts.tolist() == [0, 6, 7, 9]
    assert batch.logit_rows.tolist() == [5, 6]


def test_the_tensors_of_a_batch_have_the_agreed_types() -> None:
    batch = make_batch([ScheduledRow(request_with([1, 2], [0]), 0, 2, sample=True)], BLOCK_TOKENS)
    for name in ("token_ids", "positions", "slots", "logit_rows"):
        assert getattr(batch, name).dtype == torch.int64
        assert getattr(batch, name).is_contiguous()
    for name in ("block_tables", "lengths", "starts"):
        assert getattr(batch, name).dtype == torch.int32


def test_random_batches_put_every_token_at_its_place() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows, expected_slots = [], []
        for _ in range(rng.integers(1, 8)):
            total = int(rng.integers(1, 30))
            blocks = rng.permutation(100)[: -(-total // BLOCK_TOKENS) + rng.integers(0, 2)].tolist()
            start = int(rng.integers(0, total))
            count = int(rng.integers(1, total - start + 1))
            request = request_with(rng.integers(0, 50, size=total).tolist(), blocks)
            rows.append(ScheduledRow(request, start, count, sample=start + count == total))
            places = range(start, start + count)
            expected_slots += [blocks[i // BLOCK_TOKENS] * BLOCK_TOKENS + i % BLOCK_TOKENS for i in places]
        batch = make_batch(rows, BLOCK_TOKENS)
        assert batch.slots.tolist() == expected_slots
        assert batch.positions.tolist() == [i for row in rows for i in range(row.start, row.start + row.count)]
        assert len(batch.logit_rows) == sum(row.sample for row in rows)


def test_each_sampled_row_gets_its_token_in_row_order() -> None:
    model = RecordingModel()
    rows = (
        ScheduledRow(request_with([5, 6, 7], [0]), 2, 1, sample=True),
        ScheduledRow(request_with([20, 21, 22], [1]), 0, 2, sample=False),
        ScheduledRow(request_with([9], [2]), 0, 1, sample=True),
    )
    results = runner_of(model, RecordingOps()).launch(StepPlan(rows, num_threads=1)).tokens()
    assert [(result.token_id, result.error) for result in results] == [(8, None), (10, None)]
    assert model.caches == [(9, BLOCK_TOKENS, "bf16")]


def test_a_step_that_samples_nothing_gives_nothing() -> None:
    row = ScheduledRow(request_with([5, 6, 7], [0]), 0, 2, sample=False)
    assert list(runner_of(RecordingModel(), RecordingOps()).launch(StepPlan((row,), 1)).tokens()) == []


def test_threads_are_set_when_they_change() -> None:
    ops = RecordingOps()
    runner = runner_of(RecordingModel(), ops)
    row = ScheduledRow(request_with([5], [0]), 0, 1, sample=True)
    for num_threads in (2, 2, 1, 1, 2):
        runner.launch(StepPlan((row,), num_threads))
    assert ops.calls == [2, 1, 2]


def test_blocks_are_zeroed_in_the_runners_cache() -> None:
    ops = RecordingOps()
    runner_of(RecordingModel(), ops).zero_blocks([3, 1])
    assert ops.calls == [((9, BLOCK_TOKENS, "bf16"), [3, 1])]


def test_a_row_that_is_not_finite_fails_alone() -> None:
    class Poisoned(RecordingModel):
        def forward(self, batch: ForwardBatch, cache: object) -> Tensor:
            hidden = super().forward(batch, cache)
            hidden[1] = torch.nan
            return hidden

    rows = tuple(ScheduledRow(request_with([token], [token]), 0, 1, sample=True) for token in range(3))
    results = runner_of(Poisoned(), RecordingOps()).launch(StepPlan(rows, 1)).tokens()
    assert [result.error for result in results] == [None, NOT_FINITE, None]
    assert [results[0].token_id, results[2].token_id] == [1, 3]


def test_a_forward_that_raises_is_raised() -> None:
    class Broken(RecordingModel):
        def forward(self, batch: ForwardBatch, cache: object) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        runner_of(Broken(), RecordingOps()).launch(
            StepPlan((ScheduledRow(request_with([5], [0]), 0, 1, sample=True),), 1)
        )


def test_a_warm_up_is_of_the_runners_cache_in_blocks() -> None:
    asked, seen = [], []

    class WarmModel(RecordingModel):
        def warm_up(self, *sizes: object) -> Iterator[tuple[int, int]]:
            assert torch.is_inference_mode_enabled()
            asked.append(sizes)
            yield from ((1, 2), (2, 2))

    runner_of(WarmModel(), RecordingOps()).warm_up(16, 9, 512, lambda *progress: seen.append(progress))
    assert asked == [((9, BLOCK_TOKENS, "bf16"), 16, 3, 512)]
    assert seen == [(1, 2), (2, 2)]


def told_row(tokens: Sequence[int], start: int, count: int, report: Report, *, sample: bool) -> ScheduledRow:
    params = SamplingParams(seed=0, temperature=0.0, repeat_penalty=1.0)
    request = Request("r", tuple(tokens), params, Limits(n_ctx=100, n_batch=99), report=report)
    request.block_ids = list(range(9))
    return ScheduledRow(request, start, count, sample=sample)


def test_rows_that_are_scored_ask_for_the_logits_of_more_than_their_last_token() -> None:
    rows = [
        told_row([1, 2, 3, 4, 5], 0, 5, Report(prompt_logprobs=2), sample=True),
        told_row([6, 7, 8], 0, 3, Report(logprobs=1), sample=True),
        told_row([9, 10, 11, 12], 1, 2, Report(prompt_logprobs=0), sample=False),
        told_row([13, 14], 0, 1, Report(), sample=False),
    ]
    assert make_batch(rows, BLOCK_TOKENS).logit_rows.tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    results = runner_of(RecordingModel(), RecordingOps()).launch(StepPlan(tuple(rows), 1)).tokens()
    assert [result.token_id for result in results[:2]] == [6, 9]  # the token after the last one
    assert [[one.token_id for one in result.prompt_logprobs] for result in results] == [[2, 3, 4, 5], [], [11, 12]]
    assert [result.logprobs is not None for result in results] == [False, True, False]
    likely = np.log(np.e / (np.e + 49))
    for one in (*results[0].prompt_logprobs, *results[2].prompt_logprobs, results[1].logprobs):
        assert one is not None
        assert (one.rank, one.logprob) == (1, pytest.approx(likely))
    assert [[token_id for token_id, _ in one.top] for one in results[0].prompt_logprobs] == [
        [i, 0] for i in (2, 3, 4, 5)
    ]


def test_a_long_prompt_is_scored_without_all_its_logits_at_once() -> None:
    class Counting(RecordingModel):
        most = 0

        def logits(self, x: Tensor) -> Tensor:
            self.most = max(self.most, len(x))
            return super().logits(x)

    model = Counting()
    row = told_row([i % 50 for i in range(90)], 0, 90, Report(prompt_logprobs=0), sample=False)
    row.request.block_ids = list(range(23))
    (result,) = runner_of(model, RecordingOps()).launch(StepPlan((row,), 1)).tokens()
    assert len(result.prompt_logprobs) == 89
    assert 0 < model.most <= SCORED_AT_A_TIME < 89


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_with_a_bad_score_fails_alone(bad: float) -> None:
    class Poisoned(RecordingModel):
        def logits(self, x: Tensor) -> Tensor:
            logits = super().logits(x)
            logits[x[:, 0] == 2, 7] = bad
            return logits

    rows = [
        told_row([1, 2, 3], 0, 3, Report(prompt_logprobs=0), sample=True),
        told_row([4, 5, 6], 0, 3, Report(prompt_logprobs=0), sample=True),
        told_row([2], 0, 1, Report(logprobs=0), sample=True),
    ]
    results = runner_of(Poisoned(), RecordingOps()).launch(StepPlan(tuple(rows), 1)).tokens()
    assert [result.error for result in results] == [NOT_FINITE, None, NOT_FINITE]


class RepeatingModel(RecordingModel):
    """Its wing repeats decoding by itself: round r of a row at token t gives t + 1 + r, and nothing at all for 0."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[tuple[DecodeBatch, DrawBatch]] = []
        self.decode = self.count_up

    def count_up(self, rows: DecodeBatch, draws: DrawBatch, cache: object) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.decoded.append((rows, draws))
        self.caches.append(cache)
        ids = rows.token_ids + 1 + torch.arange(len(draws.randoms))[:, None]
        return torch.where(rows.token_ids == 0, -1, torch.where(ids > 45, -2, ids))


def decoding_rows(*tokens: int, rounds: int = 1) -> list[ScheduledRow]:
    """Rows at these tokens, each the 6th of its request."""
    requests = [request_with([9, 9, 9, 9, 9, token], [1, 8, 3]) for token in tokens]
    return [ScheduledRow(request, 5, rounds, sample=True) for request in requests]


def test_rows_that_only_decode_are_left_to_a_wing_that_repeats_it() -> None:
    model = RepeatingModel()
    rows = decoding_rows(10, 20, rounds=3)
    assert runner_of(model, RecordingOps()).launch(StepPlan(tuple(rows), 1, 3)).tokens() == (
        RowResult(11, later_ids=(12, 13)),
        RowResult(21, later_ids=(22, 23)),
    )
    assert model.batches == []
    ((batch, draws),) = model.decoded
    assert batch.token_ids.tolist() == [10, 20]
    assert batch.lengths.tolist() == [6, 6]
    assert batch.block_tables.tolist() == [[1, 8], [1, 8]]
    assert (batch.lengths.dtype, batch.block_tables.dtype) == (torch.int32, torch.int32)
    assert draws.randoms.shape == (3, 2)


def test_blocks_for_every_round_are_in_the_table() -> None:
    model = RepeatingModel()
    runner_of(model, RecordingOps()).launch(StepPlan(tuple(decoding_rows(10, rounds=4)), 1, 4))
    assert model.decoded[0][0].block_tables.tolist() == [[1, 8, 3]]


def test_a_row_that_goes_bad_on_the_way_keeps_what_it_has_and_one_that_is_bad_at_once_fails() -> None:
    results = runner_of(RepeatingModel(), RecordingOps()).launch(
        StepPlan(tuple(decoding_rows(0, 43, 45, rounds=4)), 1, 4)
    )
    assert results.tokens() == (
        RowResult(NO_ID, NOT_FINITE),
        RowResult(44, later_ids=(45,)),
        RowResult(NO_ID, ALL_BANNED),
    )


def test_a_step_with_a_prompt_or_a_row_of_which_something_is_told_goes_verb_by_verb() -> None:
    model = RepeatingModel()
    runner = runner_of(model, RecordingOps())
    prompt = ScheduledRow(request_with([1, 2, 3], [0]), 0, 3, sample=True)
    runner.launch(StepPlan((prompt, *decoding_rows(10)), 1))
    (row,) = decoding_rows(10)
    row.request.report = Report(logprobs=1)
    runner.launch(StepPlan((row,), 1))
    assert (len(model.batches), model.decoded) == (2, [])


def test_a_wing_that_cannot_repeat_rounds_is_led_from_one_to_the_next() -> None:
    model = RecordingModel()
    rows = decoding_rows(10, 20, rounds=4)
    results = runner_of(model, RecordingOps()).launch(StepPlan(tuple(rows), 1, 4)).tokens()
    assert results == (RowResult(11, later_ids=(12, 13, 14)), RowResult(21, later_ids=(22, 23, 24)))
    assert [row.request.total for row in rows] == [6, 6]  # the engine has not been told yet
    for ahead, batch in enumerate(model.batches):
        requests = [request_with([9, 9, 9, 9, 9, *range(token, token + ahead + 1)], [1, 8, 3]) for token in (10, 20)]
        alone = make_batch([ScheduledRow(request, 5 + ahead, 1, sample=True) for request in requests], BLOCK_TOKENS)
        for name in ("token_ids", "positions", "slots", "lengths", "starts", "logit_rows"):
            ours, theirs = getattr(batch, name), getattr(alone, name)
            assert (ours.tolist(), ours.dtype) == (theirs.tolist(), theirs.dtype), name
        assert batch.block_tables.tolist() == [[1, 8, 3]] * 2
        assert batch.block_tables.dtype == torch.int32


@pytest.mark.parametrize(("tokens", "num_told"), [((10, 43), 3), ((43, 10, 42), 3), ((45, 10), 1)])
def test_a_round_in_which_a_row_goes_bad_is_the_last(tokens: tuple[int, ...], num_told: int) -> None:
    class Poisoned(RecordingModel):
        def forward(self, batch: ForwardBatch, cache: object) -> Tensor:
            hidden = super().forward(batch, cache)
            return torch.where(hidden == 45, torch.nan, hidden)

    model = Poisoned()
    rows = decoding_rows(*tokens, rounds=7)
    results = runner_of(model, RecordingOps()).launch(StepPlan(tuple(rows), 1, 7)).tokens()
    assert len(model.batches) == num_told
    for token, result in zip(tokens, results, strict=True):
        if token == 45:
            assert result == RowResult(NO_ID, NOT_FINITE)
        else:
            last = min(token + num_told, 45)
            assert (result.token_id, *result.later_ids) == tuple(range(token + 1, last + 1))


def test_a_round_that_raises_leaves_the_requests_as_they_were() -> None:
    class Broken(RecordingModel):
        def forward(self, batch: ForwardBatch, cache: object) -> Tensor:
            if len(self.batches) == 2:
                raise RuntimeError("no")
            return super().forward(batch, cache)

    (row,) = decoding_rows(10, rounds=4)
    with pytest.raises(RuntimeError, match="no"):
        runner_of(Broken(), RecordingOps()).launch(StepPlan((row,), 1, 4))
    assert row.request.token_ids == [9, 9, 9, 9, 9, 10]


def guessed_row(token: int, *drafts: int) -> ScheduledRow:
    """A row at this token, the 6th of its request, with these guesses of what comes next."""
    (row,) = decoding_rows(token)
    return replace(row, count=1 + len(drafts), drafts=drafts)


def test_guesses_are_laid_out_behind_the_newest_token_and_all_of_them_are_judged() -> None:
    prompt = ScheduledRow(request_with([1, 2, 3], [0]), 0, 3, sample=False)
    batch = make_batch([guessed_row(10, 11, 12), prompt, *decoding_rows(20)], BLOCK_TOKENS)
    assert batch.token_ids.tolist() == [10, 11, 12, 1, 2, 3, 20]
    assert batch.positions.tolist() == [5, 6, 7, 0, 1, 2, 5]
    assert batch.slots.tolist() == [33, 34, 35, 0, 1, 2, 33]
    assert (batch.lengths.tolist(), batch.starts.tolist()) == ([8, 3, 6], [0, 3, 6, 7])
    assert batch.logit_rows.tolist() == [0, 1, 2, 6]


@pytest.mark.parametrize(
    ("drafts", "later"),
    [
        ((), ()),
        ((11, 12, 13), (12, 13, 14)),
        ((11, 12, 9), (12, 13)),
        ((11, 9, 10), (12,)),
        ((9, 10, 11), ()),
    ],
)
def test_guesses_are_taken_up_to_the_first_that_is_wrong(drafts: tuple[int, ...], later: tuple[int, ...]) -> None:
    model = RepeatingModel()
    rows = (guessed_row(10, *drafts), guessed_row(20, 21))
    results = runner_of(model, RecordingOps()).launch(StepPlan(rows, 1)).tokens()
    assert results == (RowResult(11, later_ids=later), RowResult(21, later_ids=(22,)))
    assert (len(model.batches), model.decoded) == (1, [])
    assert [row.request.token_ids for row in rows] == [[9] * 5 + [10], [9] * 5 + [20]]


def test_each_guess_is_judged_as_if_those_before_it_had_been_said() -> None:
    row = guessed_row(10, 11, 12, 13)
    row.request.params = replace(row.request.params, frequency_penalty=0.9, logit_bias=((12, 1.5),))
    rows = StepPlan((row, *decoding_rows(20)), 1)
    results = runner_of(RecordingModel(), RecordingOps()).launch(rows).tokens()
    alone = []
    for count in range(4):
        request = row.request.supposing(row.drafts[:count])
        step = StepPlan((ScheduledRow(request, 5 + count, 1, sample=True),), 1)
        alone.append(runner_of(RecordingModel(), RecordingOps()).launch(step).tokens()[0].token_id)
    assert alone[0] == 12  # the bias moves it
    assert results[0] == RowResult(alone[0])


def test_what_goes_bad_behind_a_right_guess_is_left_to_its_own_step() -> None:
    class Poisoned(RecordingModel):
        def forward(self, batch: ForwardBatch, cache: object) -> Tensor:
            hidden = super().forward(batch, cache)
            return torch.where(hidden == 12, torch.nan, hidden)

    row = guessed_row(10, 11, 12, 13)
    assert runner_of(Poisoned(), RecordingOps()).launch(StepPlan((row,), 1)).tokens() == (
        RowResult(11, later_ids=(12,)),
    )
    bad = guessed_row(12, 13)
    assert runner_of(Poisoned(), RecordingOps()).launch(StepPlan((bad,), 1)).tokens() == (RowResult(NO_ID, NOT_FINITE),)


def test_a_row_of_which_something_is_told_may_run_beside_guesses() -> None:
    (told,) = decoding_rows(20)
    told.request.report = Report(logprobs=1)
    results = runner_of(RecordingModel(), RecordingOps()).launch(StepPlan((guessed_row(10, 11), told), 1)).tokens()
    assert results[0] == RowResult(11, later_ids=(12,))
    assert results[1].logprobs is not None
    assert results[1].logprobs.token_id == 21
