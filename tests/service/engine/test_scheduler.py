from __future__ import annotations

from typing import Any

import pytest

from service.engine.blocks import BlockPool
from service.engine.errors import InvalidParameter
from service.engine.plan import StepPlan
from service.engine.request import NOTHING, Limits, Report, Request, SamplingParams
from service.engine.scheduler import PrefillRate, Scheduler, SchedulerLimits

BLOCK = 4


def scheduler(
    num_blocks: int = 100,
    max_running: int = 4,
    n_batch: int = 32,
    n_threads: int = 8,
    step_ms: float | None = None,
    max_rounds: int = 1,
    draft_max: int = 0,
) -> Scheduler:
    limits = SchedulerLimits(max_running, n_batch, n_threads, step_ms, max_rounds, draft_max)
    return Scheduler(BlockPool(num_blocks, BLOCK), limits)


def request(
    id: str,
    num_prompt: int,
    *,
    first: int = 0,
    max_tokens: int = 50,
    n_batch: int = 32,
    n_threads: int | None = None,
    salt: bytes = b"",
    cache_prompt: bool = True,
    report: Report = NOTHING,
) -> Request:
    prompt_ids = tuple(range(first, first + num_prompt))
    limits = Limits(400, n_batch, n_threads, max_tokens, cache_prompt=cache_prompt)
    return Request(id, prompt_ids, SamplingParams(seed=1), limits, salt=salt, report=report)


def carry_out(made: Scheduler, plan: StepPlan) -> dict[str, tuple[int, int]]:
    """Pretend the plan ran, each sampled token being 7; (start, count) of each row."""
    for row in plan.rows:
        made.commit(row.request, plan.num_known(row))
        assert set(row.drafts) <= {7}, "a wrong guess would end the row before its last token"
        for place in range(plan.rounds + len(row.drafts) if row.sample else 0):
            if place:
                made.commit(row.request, 1)
            row.request.append(7)
        if row.request.gap == 0 or row.request.is_full:
            made.remove(row.request)
    made.check_integrity()
    return {row.request.id: (row.start, row.count) for row in plan.rows}


def turn(made: Scheduler) -> dict[str, tuple[int, int]]:
    return carry_out(made, made.plan())


def counts(made: Scheduler) -> dict[str, int]:
    return {id: count for id, (_, count) in turn(made).items()}


def test_nothing_to_do_is_a_plan_without_rows() -> None:
    assert scheduler().plan().rows == ()


def test_a_long_prompt_is_computed_in_chunks_and_sampled_at_its_end() -> None:
    made = scheduler()
    made.add(request("a", 70))
    samples = []
    for _ in range(4):
        plan = made.plan()
        samples += [(row.start, row.count, row.sample) for row in plan.rows]
        carry_out(made, plan)
    assert samples == [(0, 32, False), (32, 32, False), (64, 6, True), (70, 1, True)]


def test_a_prompt_is_chunked_while_others_decode_in_the_same_steps() -> None:
    made = scheduler()
    made.add(request("a", 3))
    turn(made)
    made.add(request("b", 60, first=100))
    assert [counts(made) for _ in range(3)] == [{"a": 1, "b": 32}, {"a": 1, "b": 28}, {"a": 1, "b": 1}]


def test_a_request_takes_no_more_prompt_tokens_in_a_step_than_its_own_n_batch() -> None:
    made = scheduler()
    made.add(request("a", 10, n_batch=4))
    assert [counts(made)["a"] for _ in range(4)] == [4, 4, 2, 1]


def test_short_prompts_of_a_burst_pass_and_long_ones_finish_in_order_of_arrival() -> None:
    made = scheduler(n_batch=16)
    made.add(request("long", 60))
    made.add(request("longer", 60, first=100))
    made.add(request("short", 3, first=200))
    made.add(request("tiny", 1, first=300))
    assert counts(made) == {"long": 13, "short": 3, "tiny": 1}
    assert counts(made) == {"long": 16, "short": 1, "tiny": 1}


def test_the_oldest_long_prompt_gets_its_share_whatever_keeps_arriving() -> None:
    made = scheduler(max_running=4, n_batch=16)
    made.add(request("old", 80))
    for i in range(20):
        for j in range(3):
            made.add(request(f"{i}.{j}", 4, first=1000 + 10 * (3 * i + j), max_tokens=1))
        count = counts(made)["old"]
        assert count >= 4
        if made.running and made.running[0].num_generated:
            return
    raise AssertionError("a prompt of 80 tokens was not finished in 20 steps of 16")


def test_rows_that_lack_one_token_always_get_it_even_beyond_a_small_budget() -> None:
    made = scheduler(max_running=4, n_batch=1)
    for i in range(4):
        made.add(request(str(i), 1, first=i))
    assert counts(made) == {"0": 1, "1": 1, "2": 1, "3": 1}


def test_with_nothing_decoding_the_time_limit_does_not_apply() -> None:
    made = scheduler(step_ms=10.0)
    made.observe(StepPlan((), 1), 5.0)
    made.add(request("a", 64))
    assert counts(made) == {"a": 32}


def test_once_a_row_decodes_a_step_is_as_many_whole_blocks_as_fit_in_the_time_limit() -> None:
    made = scheduler(step_ms=10.0)
    made.add(request("a", 20))
    plan = made.plan()
    made.observe(plan, 20.0)  # one token per millisecond
    carry_out(made, plan)
    made.add(request("b", 60, first=100))
    assert counts(made) == {"a": 1, "b": 2 * BLOCK - 1}


def test_a_slow_machine_still_computes_a_block_a_step() -> None:
    made = scheduler(step_ms=10.0)
    made.add(request("a", 20))
    plan = made.plan()
    made.observe(plan, 1e6)
    carry_out(made, plan)
    made.add(request("b", 60, first=100))
    assert counts(made) == {"a": 1, "b": BLOCK - 1}


@pytest.mark.parametrize(("num_decoding", "count"), [(1, 3), (2, 2), (3, 5), (4, 4)])
def test_beside_any_number_of_decoding_rows_half_a_block_or_more_is_computed(num_decoding: int, count: int) -> None:
    made = scheduler(step_ms=10.0, max_running=9)
    for i in range(num_decoding):
        made.add(request(str(i), 3, first=10 * i))
    plan = made.plan()
    made.observe(plan, 1e6)
    carry_out(made, plan)
    made.add(request("long", 60, first=100))
    assert counts(made)["long"] == count


def test_an_unmeasured_machine_starts_with_a_block_a_step() -> None:
    made = scheduler(step_ms=10.0)
    made.add(request("a", 1))
    turn(made)
    made.add(request("b", 60, first=100))
    assert counts(made) == {"a": 1, "b": BLOCK - 1}


def test_the_rate_follows_what_is_measured() -> None:
    rate = PrefillRate()
    assert rate.tokens_in(100.0) == 0
    rate.observe(100, 50.0)
    assert rate.tokens_in(100.0) == 200
    for _ in range(20):
        rate.observe(100, 100.0)
    assert rate.tokens_in(100.0) == 100
    rate.observe(100, 0.0)


def test_requests_run_in_order_of_arrival_and_at_most_max_running() -> None:
    made = scheduler(max_running=2)
    for i in range(5):
        made.add(request(str(i), 2, first=10 * i, max_tokens=i + 1))
    order = []
    while made.running or made.waiting:
        order += [id for id in turn(made) if id not in order]
        assert len(made.running) <= 2
    assert order == ["0", "1", "2", "3", "4"]


def test_a_big_request_at_the_head_is_not_overtaken_by_small_ones() -> None:
    made = scheduler(num_blocks=12)
    made.add(request("a", 20, max_tokens=4))
    turn(made)
    made.add(request("big", 40, first=100, max_tokens=4))
    made.add(request("small", 1, first=200, max_tokens=4))
    while made.running:
        assert set(turn(made)) == {"a"}
    assert "big" in turn(made)


def test_a_common_prefix_is_shared_and_one_token_is_left_to_compute() -> None:
    made = scheduler()
    made.add(request("a", 12, max_tokens=1))
    turn(made)
    made.add(request("b", 12))
    assert turn(made) == {"b": (8, 4)}
    made.add(request("c", 13))
    assert turn(made)["c"] == (12, 1)
    assert [one.num_cached for one in made.running] == [8, 12]


def test_requests_of_different_salts_share_nothing() -> None:
    made = scheduler()
    made.add(request("a", 12, max_tokens=1))
    turn(made)
    made.add(request("b", 12, salt=b"other"))
    assert turn(made) == {"b": (0, 12)}


def test_blocks_that_a_neighbour_finishes_meanwhile_are_adopted_not_recomputed() -> None:
    made = scheduler(n_batch=16)
    made.add(request("a", 40))
    made.add(request("b", 40))
    turns = [turn(made) for _ in range(4)]
    assert turns == [{"a": (0, 16)}, {"a": (16, 16)}, {"a": (32, 8)}, {"a": (40, 1), "b": (36, 4)}]
    assert made.running[1].num_cached == 36


def test_of_several_choices_one_computes_the_prompt_and_the_others_wait_for_its_blocks() -> None:
    made = scheduler(max_running=8)
    for i in range(8):
        made.add(request(str(i), 18))
    made.add(request("other", 10, first=100))
    assert turn(made) == {"0": (0, 18)}
    assert turn(made) == {"0": (18, 1), **{str(i): (16, 2) for i in range(1, 8)}}


def test_nobody_waits_for_a_request_that_asked_to_be_computed_in_smaller_pieces() -> None:
    made = scheduler()
    made.add(request("slow", 40, n_batch=4))
    made.add(request("fast", 40, n_batch=16))
    assert turn(made) == {"slow": (0, 4), "fast": (0, 16)}


def test_whoever_waited_computes_by_itself_when_the_other_is_gone() -> None:
    made = scheduler(n_batch=8)
    made.add(request("a", 40))
    made.add(request("b", 40))
    assert turn(made) == {"a": (0, 8)}
    made.remove(made.running[0])
    assert turn(made) == {"b": (8, 8)}


@pytest.mark.parametrize(
    "unshared", [{"cache_prompt": False}, {"report": Report(prompt_logprobs=0)}], ids=["cache_prompt", "report"]
)
def test_a_request_that_is_to_compute_its_prompt_adopts_nothing_and_waits_for_nobody(unshared: dict[str, Any]) -> None:
    made = scheduler(n_batch=64)
    made.add(request("a", 20))
    turn(made)
    made.add(request("b", 20, n_batch=64, **unshared))
    made.add(request("c", 20, n_batch=64, **unshared))
    assert turn(made) == {"a": (20, 1), "b": (0, 20), "c": (0, 20)}
    made.add(request("d", 20))
    assert turn(made)["d"] == (16, 4)


def test_a_computed_partial_block_is_never_shared() -> None:
    made = scheduler()
    made.add(request("a", 6))
    turn(made)
    made.add(request("b", 6))
    assert turn(made)["b"] == (4, 2)
    blocks = [set(one.block_ids) for one in made.running]
    assert len(blocks[0] & blocks[1]) == 1


def test_without_a_free_block_the_youngest_is_preempted_and_comes_back_at_the_head() -> None:
    made = scheduler(num_blocks=7)
    made.add(request("old", 8, max_tokens=20))
    made.add(request("young", 7, first=100, max_tokens=20))
    turn(made)
    made.add(request("next", 2, first=200, max_tokens=20))
    while not made.num_preemptions:
        turn(made)
    assert [one.id for one in made.running] == ["old"]
    assert [one.id for one in made.waiting] == ["young", "next"]
    assert made.waiting[0].num_generated > 0
    assert made.waiting[0].num_computed == 0


@pytest.mark.parametrize("num_blocks", [16, 17, 20, 25])
def test_preemption_always_lets_somebody_finish(num_blocks: int) -> None:
    made = scheduler(num_blocks=num_blocks, max_running=8)
    for i in range(8):
        made.add(request(str(i), 10, first=100 * i, max_tokens=54))
    num_steps = 0
    while made.running or made.waiting:
        assert turn(made)
        num_steps += 1
    assert made.num_preemptions > 0
    assert num_steps <= 8 * (54 + 10)
    assert made.pool.num_free == num_blocks


def test_a_preempted_request_does_not_return_before_there_is_room_to_grow() -> None:
    made = scheduler(num_blocks=17, max_running=4)
    for i in range(4):
        made.add(request(str(i), 8, first=100 * i, max_tokens=54))
    num_steps = 0
    while made.running or made.waiting:
        turn(made)
        num_steps += 1
    assert made.num_preemptions <= num_steps // 8


def test_a_request_that_could_outgrow_the_pool_is_refused() -> None:
    made = scheduler(num_blocks=10)
    with pytest.raises(InvalidParameter, match=r"41 tokens.* 40"):
        made.add(request("a", 1, max_tokens=40))
    made.add(request("b", 1, max_tokens=39))


def test_threads_are_the_largest_wish_of_the_step_within_the_servers() -> None:
    made = scheduler(n_threads=8)
    made.add(request("a", 2, n_threads=2))
    assert made.plan().num_threads == 2
    made.add(request("b", 2, first=10, n_threads=3))
    assert made.plan().num_threads == 3
    made.add(request("c", 2, first=20, n_threads=100))
    assert made.plan().num_threads == 8
    made.remove(made.running[2])
    made.add(request("d", 2, first=30))
    assert made.plan().num_threads == 8


def test_removing_gives_blocks_back_waiting_or_running() -> None:
    made = scheduler(max_running=1)
    first, second = request("a", 9), request("b", 9, first=50)
    made.add(first)
    made.add(second)
    turn(made)
    made.remove(second)
    made.remove(first)
    assert made.pool.num_free == made.pool.num_blocks
    assert made.plan().rows == ()


def decoding(made: Scheduler, *requests: Request, round_ms: float = 1.0) -> Scheduler:
    """The scheduler with these requests decoding, a round of which took so long."""
    for one in requests:
        made.add(one)
    while any(not one.is_decoding for one in requests):
        turn(made)
    plan = made.plan()
    carry_out(made, plan)
    made.observe(plan, round_ms * plan.rounds)
    return made


def test_when_all_decode_a_step_is_as_many_rounds_as_end_in_time() -> None:
    for round_ms, rounds in ((0.01, 6), (1.0, 6), (2.0, 4), (3.9, 2), (5.0, 1), (100.0, 1)):
        made = decoding(scheduler(max_rounds=6), request("a", 3), request("b", 9, first=20), round_ms=round_ms)
        plan = made.plan()
        assert (plan.rounds, {row.count for row in plan.rows}) == (rounds, {rounds})
        carry_out(made, plan)


def test_rounds_are_one_as_long_as_nothing_was_measured_or_no_more_are_allowed() -> None:
    made = scheduler(max_rounds=6)
    made.add(request("a", 3))
    turn(made)
    assert made.plan().rounds == 1
    assert decoding(scheduler(), request("a", 3)).plan().rounds == 1


def test_no_request_gets_more_rounds_than_tokens_it_may_still_generate() -> None:
    made = decoding(scheduler(max_rounds=8), request("a", 3, max_tokens=7), request("b", 9, first=20))
    assert [turn(made) for _ in range(3)] == [{"a": (4, 5), "b": (10, 5)}, {"b": (15, 8)}, {"b": (23, 8)}]


def test_a_request_of_which_something_is_told_keeps_all_to_one_round() -> None:
    told = request("told", 9, first=20, report=Report(logprobs=0), max_tokens=4)
    made = decoding(scheduler(max_rounds=8), request("a", 3), told)
    assert [made.plan().rounds, *[len(turn(made)) for _ in range(2)], made.plan().rounds] == [1, 2, 2, 8]


def test_a_prompt_keeps_all_to_one_round_until_it_is_computed() -> None:
    made = decoding(scheduler(max_rounds=8), request("a", 3))
    made.add(request("b", 40, first=20))
    assert [counts(made) for _ in range(4)] == [{"a": 1, "b": 32}, {"a": 1, "b": 8}, {"a": 8, "b": 8}, {"a": 8, "b": 8}]


def test_nobody_is_preempted_for_rounds_ahead() -> None:
    requests = [request(id, 7, first=20 * place, max_tokens=15) for place, id in enumerate("ab")]
    made = decoding(scheduler(num_blocks=6, max_rounds=8), *requests)
    rounds = []
    while not made.num_preemptions:
        plan = made.plan()
        rounds.append((plan.rounds, len(plan.rows)))
        carry_out(made, plan)
    assert rounds == [(1, 2)] * 4 + [(1, 1)]


def guessing(made: Scheduler, *requests: Request, plain_ms: float = 20.0) -> Scheduler:
    """The scheduler with these requests decoding, each in a run of sevens that it will be taken to go on with."""
    decoding(made, *requests, round_ms=plain_ms)
    while any(one.num_generated < 5 for one in requests):
        guess(made, plain_ms)
    return made


def guess(made: Scheduler, plain_ms: float = 20.0, each_ms: float = 1.0) -> dict[str, int]:
    """One step, and the guesses of each of its rows."""
    plan = made.plan()
    drafts = {row.request.id: len(row.drafts) for row in plan.rows}
    carry_out(made, plan)
    made.observe(plan, plain_ms + each_ms * sum(drafts.values()))
    return drafts


def test_what_a_request_repeats_is_guessed_the_longer_the_oftener_it_was_right() -> None:
    made = guessing(scheduler(draft_max=16), request("a", 3, max_tokens=200))
    lengths = [guess(made)["a"] for _ in range(8)]
    assert lengths == sorted(lengths)
    assert 0 < lengths[0] < lengths[-1] == 16


def test_a_row_of_guesses_is_one_token_and_they() -> None:
    made = guessing(scheduler(draft_max=3), request("a", 3))
    plan = made.plan()
    (row,) = plan.rows
    assert (row.start, row.count, row.drafts) == (row.request.num_computed, 4, (7, 7, 7))
    assert (plan.num_known(row), plan.rounds, plan.has_drafts, row.sample) == (1, 1, True, True)
    assert len(row.request.block_ids) * BLOCK >= row.start + row.count


def test_guesses_come_before_rounds() -> None:
    made = guessing(scheduler(draft_max=3, max_rounds=8), request("a", 3), plain_ms=2.0)
    plan = made.plan()
    assert (plan.rounds, plan.has_drafts) == (1, True)


def test_nobody_guesses_where_it_is_off_or_beside_a_prompt() -> None:
    made = guessing(scheduler(), request("a", 3))
    assert not made.plan().has_drafts
    made = guessing(scheduler(draft_max=4), request("a", 3))
    made.add(request("b", 40, first=20))
    assert [guess(made) for _ in range(2)] == [{"a": 0, "b": 0}] * 2


def test_no_guess_goes_beyond_what_a_request_may_still_generate() -> None:
    made = guessing(scheduler(draft_max=16), request("a", 3, max_tokens=12))
    while made.running:
        (row,) = made.plan().rows
        assert row.start + row.count < 3 + 12
        guess(made)


def test_a_request_of_which_something_is_told_is_not_guessed_and_keeps_nobody_else_from_it() -> None:
    told = request("told", 9, first=20, report=Report(logprobs=0), max_tokens=100)
    made = guessing(scheduler(draft_max=4), request("a", 3, max_tokens=100), told)
    guessed = [guess(made) for _ in range(6)]
    assert any(one["a"] for one in guessed)
    assert not any(one["told"] for one in guessed)


def test_nobody_is_preempted_for_guesses() -> None:
    requests = [request(id, 7, first=20 * place, max_tokens=30) for place, id in enumerate("ab")]
    made = guessing(scheduler(num_blocks=12, draft_max=16), *requests)
    guessed = []
    while not made.num_preemptions:
        guessed.append(sum(guess(made).values()))
    assert any(guessed)
    assert guessed[-1] == 0


def test_a_newcomer_is_measured_with_before_anything_is_guessed() -> None:
    made = guessing(scheduler(draft_max=8), request("a", 3, max_tokens=200))
    other = request("b", 3, first=20, max_tokens=200)
    made.add(other)
    while not other.is_decoding:
        guess(made)
    assert guess(made) == {"a": 0, "b": 0}
    assert guess(made)["a"] > 0
