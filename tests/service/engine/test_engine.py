from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from service.engine.engine import Engine
from service.engine.errors import EngineDead, GenerationFailed
from service.engine.plan import ScheduledRow, StepPlan
from service.engine.request import Delta, FinishReason, Limits, Request, SamplingParams
from tests.service.engine.fakes import BOS, EOS, FakePending, FakeRunner, FakeTokenizer, endless, hashed, make_engine

POISON = 200  # a prompt with this token makes the whole step raise
BAD = 201  # a prompt with this token gets an error for its row


class Clock:
    """Every look costs a millisecond."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1e-3
        return self.now_s


def ask(
    id: str,
    prompt: str | tuple[int, ...] = "hello",
    *,
    seed: int = 1,
    max_tokens: int = 12,
    n_ctx: int = 200,
    n_batch: int = 64,
    stop: tuple[str, ...] = (),
) -> Request:
    prompt_ids = tuple(FakeTokenizer().encode_text(prompt)) if isinstance(prompt, str) else prompt
    return Request(id, prompt_ids, SamplingParams(seed=seed), Limits(n_ctx, n_batch, None, max_tokens, stop))


def finish(engine: Engine) -> dict[str, Delta]:
    """Step until nothing is left, checking the books after each; everything each request got, merged."""
    whole: dict[str, Delta] = {}
    while engine.has_work:
        take(engine, whole)
    assert engine.check_idle()
    return whole


def take(engine: Engine, whole: dict[str, Delta]) -> None:
    for id, delta in engine.step():
        assert id not in whole or whole[id].finish is None, "a delta after the final one"
        whole[id] = whole[id].then(delta) if id in whole else delta
    engine.check_integrity()


def alone(request: Request, choose: Callable[..., int] = hashed) -> Delta:
    """What a request gets by itself in a big pool, from a fresh start, in one chunk."""
    engine = make_engine(num_blocks=100, n_batch=1000, choose=choose)
    engine.add(Request("alone", request.prompt_ids, request.params, request.limits))
    return finish(engine)["alone"]


def outcome(delta: Delta) -> tuple[object, ...]:
    return delta.text, delta.token_ids, delta.finish, delta.stop_kind, delta.stopping_word, delta.num_generated


def raise_for_poison(plan: StepPlan) -> None:
    if any(POISON in row.request.prompt_ids for row in plan.rows):
        raise ValueError("poisoned")


def error_for_bad(row: ScheduledRow) -> str | None:
    return "logits are not finite" if BAD in row.request.prompt_ids and row.request.num_generated >= 2 else None


def test_a_request_runs_to_its_limit() -> None:
    engine = make_engine(choose=endless)
    engine.add(ask("a", max_tokens=5))
    delta = finish(engine)["a"]
    assert (delta.finish, delta.stop_kind, delta.num_generated) == (FinishReason.LENGTH, "limit", 5)
    assert delta.text == bytes(delta.token_ids).decode()


def test_unlimited_generation_ends_at_the_context() -> None:
    engine = make_engine(choose=endless)
    engine.add(ask("a", max_tokens=-1, n_ctx=30))
    delta = finish(engine)["a"]
    assert (delta.finish, delta.stop_kind, delta.num_generated) == (FinishReason.LENGTH, "limit", 24)


def test_no_tokens_asked_for_means_the_prompt_is_evaluated_and_nothing_generated() -> None:
    engine = make_engine()
    engine.add(ask("a", "x" * 99, max_tokens=0, n_ctx=100))
    delta = finish(engine)["a"]
    assert outcome(delta) == ("", (), FinishReason.LENGTH, "limit", "", 0)
    assert engine.stats()["prompt_tokens"] == 100


def test_the_end_token_counts_and_has_no_text() -> None:
    engine = make_engine(choose=lambda prefix, request: EOS if len(prefix) == 9 else ord("x"))
    engine.add(ask("a"))
    delta = finish(engine)["a"]
    assert outcome(delta) == ("xxx", (120, 120, 120, EOS), FinishReason.STOP, "eos", "", 4)


def say(text: bytes) -> Callable[..., int]:
    return lambda prefix, request: text[len(prefix) - len(request.prompt_ids)] if len(prefix) < 60 else EOS


def test_a_stop_string_ends_the_request_and_is_not_shown() -> None:
    engine = make_engine(choose=say(b"one. two"))
    engine.add(ask("a", stop=(". t", "two")))
    delta = finish(engine)["a"]
    assert outcome(delta)[:1] + outcome(delta)[2:] == ("one", FinishReason.STOP, "word", ". t", 6)


def test_what_was_held_back_is_shown_when_the_limit_ends_the_request() -> None:
    engine = make_engine(choose=say(b"one. two"))
    engine.add(ask("a", stop=(". tx",), max_tokens=6))
    assert finish(engine)["a"].text == "one. t"


def test_half_a_character_is_held_back_until_it_is_whole() -> None:
    engine = make_engine(choose=say("é!".encode()))
    engine.add(ask("a", max_tokens=3))
    texts = []
    while engine.has_work:
        texts += [delta.text for _, delta in engine.step()]
    assert texts == ["", "é", "!"]


def test_times_and_cached_tokens_are_reported() -> None:
    engine = make_engine(clock=Clock(), block_tokens=8, choose=endless)
    engine.add(ask("a", "x" * 30))
    finish(engine)
    engine.add(ask("b", "x" * 30))
    delta = finish(engine)["b"]
    assert delta.num_cached == 24
    assert delta.prompt_ms > 0
    assert delta.predicted_ms > 0


def test_a_preempted_request_reports_the_prompt_tokens_first_found_in_the_cache() -> None:
    engine = make_engine(num_blocks=8, block_tokens=4, choose=endless, max_running=2)
    engine.add(ask("a", "x" * 7, max_tokens=24, n_ctx=32))
    engine.add(ask("b", "y" * 7, max_tokens=24, n_ctx=32))
    whole = finish(engine)
    assert engine.stats()["preemptions"] > 0
    assert [delta.num_cached for delta in whole.values()] == [0, 0]


def test_aborting_gives_everything_back_at_once_and_disturbs_nobody() -> None:
    engine = make_engine(max_running=2, choose=endless)
    requests = [ask(id, id * 20, max_tokens=30) for id in "abc"]
    for request in requests:
        engine.add(request)
    whole: dict[str, Delta] = {}
    take(engine, whole)
    engine.abort("a")
    engine.abort("c")
    engine.abort("never seen")
    engine.check_integrity()
    whole.update({id: whole[id].then(delta) for id, delta in finish(engine).items()})
    assert outcome(whole["b"]) == outcome(alone(requests[1], endless))
    assert whole["a"].finish is None
    assert "c" not in whole


def test_a_row_with_an_error_fails_alone_and_its_blocks_are_zeroed_and_forgotten() -> None:
    engine = make_engine(row_error=error_for_bad)
    bad = (BOS, *b"X" * 20, BAD)
    engine.add(ask("bad", bad))
    engine.add(ask("good", "good"))
    whole = finish(engine)
    assert whole["bad"].finish is FinishReason.ERROR
    assert isinstance(whole["bad"].error, GenerationFailed)
    assert whole["bad"].num_generated == 2
    assert outcome(whole["good"]) == outcome(alone(ask("good", "good")))
    assert isinstance(engine.runner, FakeRunner)
    assert not any(slot in (ord("X"), BAD) for slot in engine.runner.slots)
    engine.add(ask("again", bad))
    assert finish(engine)["again"].num_cached == 0


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_request_that_makes_the_step_raise_fails_and_its_neighbours_do_not_notice(place: int) -> None:
    engine = make_engine(max_running=8, n_batch=200, before_step=raise_for_poison)
    requests = [ask(str(i), f"neighbour {i}") for i in range(6)]
    requests.insert(place, ask("culprit", (BOS, 65, POISON)))
    for request in requests:
        engine.add(request)
    whole = finish(engine)
    assert isinstance(whole.pop("culprit").error, GenerationFailed)
    for request in requests:
        if request.id != "culprit":
            assert outcome(whole[request.id]) == outcome(alone(request))


def test_a_poisonous_request_by_itself_does_not_kill_the_engine() -> None:
    engine = make_engine(before_step=raise_for_poison)
    for i in range(5):
        engine.add(ask(str(i), (BOS, POISON)))
        assert finish(engine)[str(i)].finish is FinishReason.ERROR
    engine.add(ask("good"))
    assert finish(engine)["good"].error is None


@pytest.mark.parametrize("num_requests", [1, 5])
def test_a_forward_that_always_raises_is_the_engines_death(num_requests: int) -> None:
    def broken(plan: StepPlan) -> None:
        raise RuntimeError("device lost")

    engine = make_engine(before_step=broken)
    for i in range(num_requests):
        engine.add(ask(str(i)))
    with pytest.raises(EngineDead) as caught:
        engine.step()
    assert "RuntimeError" in caught.value.reason


def test_a_model_that_yields_no_numbers_at_all_is_the_engines_death() -> None:
    engine = make_engine(row_error=lambda row: "logits are not finite")
    engine.add(ask("a"))
    with pytest.raises(EngineDead):
        engine.step()


def test_a_token_without_text_fails_its_request_only() -> None:
    engine = make_engine(choose=lambda prefix, request: 9999 if request.params.seed == 13 else hashed(prefix, request))
    engine.add(ask("a", seed=13))
    engine.add(ask("b"))
    whole = finish(engine)
    assert whole["a"].finish is FinishReason.ERROR
    assert outcome(whole["b"]) == outcome(alone(ask("b")))


def ahead(**engine: object) -> Engine:
    """An engine whose every step of decoding, after the first, is of four rounds."""
    return make_engine(clock=Clock(), max_rounds=4, **engine)  # type: ignore[arg-type]


def test_a_step_of_several_rounds_gives_a_delta_of_as_many_tokens() -> None:
    engine = ahead(choose=endless)
    engine.add(ask("a", max_tokens=13))
    sizes = []
    while engine.has_work:
        sizes += [len(delta.token_ids) for _, delta in engine.step()]
        engine.check_integrity()
    assert sizes == [1, 1, 4, 4, 3]


@pytest.mark.parametrize("num_told", range(2, 9))
def test_what_ends_a_request_ends_it_in_the_middle_of_the_rounds_too(num_told: int) -> None:
    requests = [ask("a", max_tokens=40), ask("b", "other", max_tokens=40)]
    engine = ahead(choose=lambda prefix, request: EOS if len(prefix) == len(request.prompt_ids) + num_told else 120)
    for request in requests:
        engine.add(request)
    for delta in finish(engine).values():
        assert outcome(delta) == (
            "x" * num_told,
            (120,) * num_told + (EOS,),
            FinishReason.STOP,
            "eos",
            "",
            num_told + 1,
        )
    assert engine.pool.num_used == 0


def test_a_row_that_goes_bad_in_the_middle_of_the_rounds_has_told_what_came_before() -> None:
    engine = ahead(row_error=lambda row: "logits are not finite" if row.request.num_generated == 4 else None)
    engine.add(ask("bad", max_tokens=40))
    delta = finish(engine)["bad"]
    assert (delta.finish, delta.num_generated) == (FinishReason.ERROR, 4)
    assert delta.text == alone(ask("bad", max_tokens=4)).text


def test_a_token_without_text_in_the_middle_of_the_rounds_loses_none_before_it() -> None:
    engine = ahead(choose=lambda prefix, request: 9999 if len(prefix) == len(request.prompt_ids) + 3 else 120)
    engine.add(ask("a", max_tokens=40))
    delta = finish(engine)["a"]
    assert (delta.finish, delta.text) == (FinishReason.ERROR, "xxx")


ABC = tuple(b"abcabcabcabc")


def abc(prefix: Sequence[int], request: Request) -> int:
    """The alphabet's first three letters, again and again."""
    return ABC[(len(prefix) - len(request.prompt_ids)) % 3]


def guessing(**engine: object) -> Engine:
    """An engine that guesses up to six tokens as soon as it can, since no step takes any time."""
    return make_engine(clock=lambda: 0.0, draft_max=6, **engine)  # type: ignore[arg-type]


def test_guesses_that_are_right_come_in_one_delta_and_are_counted() -> None:
    engine = guessing(choose=abc)
    engine.add(ask("a", max_tokens=40))
    deltas = []
    while engine.has_work:
        deltas += [delta for _, delta in engine.step()]
        engine.check_integrity()
    sizes = [len(delta.token_ids) for delta in deltas]
    assert max(sizes) == 7
    assert sum(sizes) == 40
    stats = engine.stats()
    assert stats["drafted_tokens"] == stats["accepted_tokens"] == 40 - stats["steps"]
    assert (deltas[-1].num_drafted, deltas[-1].num_accepted) == (stats["drafted_tokens"], stats["accepted_tokens"])
    assert "".join(delta.text for delta in deltas) == alone(ask("a", max_tokens=40), choose=abc).text


def test_guesses_that_are_wrong_cost_no_token() -> None:
    prediction = tuple(b"abcabcabXabcabcYabc" * 2)
    request = Request("a", (BOS,), SamplingParams(seed=1), Limits(64, 64, max_tokens=40), prediction=prediction)
    engine = guessing(choose=abc)
    engine.add(request)
    delta = finish(engine)["a"]
    assert delta.token_ids == (ABC * 4)[:40]
    assert 0 < delta.num_accepted < delta.num_drafted


@pytest.mark.parametrize("num_told", range(12, 24))
def test_what_ends_a_request_ends_it_in_the_middle_of_its_guesses_too(num_told: int) -> None:
    def ending(prefix: Sequence[int], request: Request) -> int:
        return EOS if len(prefix) == len(request.prompt_ids) + num_told else abc(prefix, request)

    requests = [ask("a", max_tokens=40), ask("b", "other", max_tokens=40)]
    engine = guessing(choose=ending)
    for request in requests:
        engine.add(request)
    for delta in finish(engine).values():
        assert delta.token_ids == (*(ABC * 4)[:num_told], EOS)
        assert (delta.finish, delta.stop_kind, delta.num_generated) == (FinishReason.STOP, "eos", num_told + 1)
    assert engine.stats()["drafted_tokens"] > 0
    assert engine.pool.num_used == 0


def test_a_row_that_goes_bad_in_the_middle_of_its_guesses_has_told_what_came_before() -> None:
    engine = guessing(
        choose=abc, row_error=lambda row: "logits are not finite" if row.request.num_generated == 20 else None
    )
    engine.add(ask("bad", max_tokens=40))
    delta = finish(engine)["bad"]
    assert (delta.finish, delta.text) == (FinishReason.ERROR, "abcabcabcabcabcabcab")
    assert engine.stats()["drafted_tokens"] > 0


def test_blocks_that_held_wrong_guesses_are_shared_with_what_is_computed_in_them_later() -> None:
    request = Request(
        "a",
        (BOS,),
        SamplingParams(seed=1),
        Limits(64, 64, max_tokens=30),
        prediction=tuple(b"abcabcabcabcabcabXabcabcabc"),
    )
    engine = guessing(choose=abc)
    engine.add(request)
    first = finish(engine)["a"]
    assert first.num_accepted < first.num_drafted
    again = ask("b", (BOS, *first.token_ids[:-1]), max_tokens=3)
    engine.add(again)
    assert finish(engine)["b"].num_cached == 24  # the fake's cache would have found another token there


def test_a_leak_is_noticed_when_idle(caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine()
    assert engine.check_idle()
    engine.pool.take()
    assert not engine.check_idle()
    assert engine.stats()["idle_leaks"] == 1
    assert "1 blocks used" in caplog.text


def test_a_runner_that_answers_for_other_rows_is_the_engines_death() -> None:
    class Forgetful(FakeRunner):
        def launch(self, plan: StepPlan) -> FakePending:
            return FakePending(super().launch(plan).results[:-1])

    engine = make_engine()
    engine.runner = Forgetful(64, 8)
    engine.add(ask("a"))
    with pytest.raises(EngineDead):
        engine.step()


@pytest.mark.parametrize("n_batch", [1, 3, 8, 64])
def test_the_output_depends_on_no_chunking(n_batch: int) -> None:
    request = ask("a", "a prompt of some length, longer than a block or two", n_batch=n_batch)
    engine = make_engine()
    engine.add(request)
    assert outcome(finish(engine)["a"]) == outcome(alone(ask("x", request.prompt_ids)))


WORDS = ["alpha ", "beta ", "alpha beta gamma ", "delta " * 6, "x", ""]


def stuttering(prefix: Sequence[int], request: Request) -> int:
    """A function of the last token, so that it soon repeats itself, until the end that `hashed` comes to."""
    end = hashed(prefix, request)
    return end if end == EOS else ord("a") + (7 * prefix[-1] + request.params.seed) % 26


def random_request(rng: random.Random, id: str, most: int) -> Request:
    text = "".join(rng.choices(WORDS, k=rng.choice([0, 1, 2, 6])))[: most - 4]
    prompt_ids = (BOS, *text.encode())
    if rng.random() < 0.08:
        prompt_ids += (rng.choice([POISON, BAD]),)
    n_ctx = rng.choice([most, rng.randint(len(prompt_ids) + 1, most)])
    stop = tuple(rng.choice(["a", "qu", "zi", "ing", "e"]) for _ in range(rng.choice([0, 0, 0, 0, 1, 2])))
    limits = Limits(n_ctx, rng.choice([1, 5, 16, 64]), rng.choice([None, 1, 4]), rng.choice([-1, -1, 40, 7, 0]), stop)
    return Request(id, prompt_ids, SamplingParams(seed=rng.randrange(3)), limits)


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("is_tight", [True, False], ids=["tight", "roomy"])
def test_under_random_traffic_every_request_gets_what_it_gets_alone(seed: int, is_tight: bool) -> None:
    rng = random.Random(f"{seed} {is_tight}")
    choose = rng.choice([hashed, stuttering])
    num_blocks, block_tokens = rng.choice([(7, 8), (14, 4), (20, 4)] if is_tight else [(60, 4), (200, 8)])
    engine = make_engine(
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        max_running=rng.choice([5, 16] if is_tight else [1, 2, 5, 16]),
        n_batch=rng.choice([1, 7, 32]),
        step_ms=rng.choice([None, 5.0]),
        max_rounds=rng.choice([1, 3, 8]),
        draft_max=rng.choice([0, 1, 6]),
        choose=choose,
        clock=Clock(),
        before_step=raise_for_poison,
        row_error=error_for_bad,
    )
    requests: dict[str, Request] = {}
    aborted: set[str] = set()
    whole: dict[str, Delta] = {}
    arrivals = rng.choice([0.7, 1.5] if is_tight else [0.2, 1.5])
    for _ in range(100):
        for _ in range(int(arrivals) + (rng.random() < arrivals % 1)):
            request = random_request(rng, str(len(requests)), min(56, num_blocks * block_tokens))
            requests[request.id] = request
            engine.add(request)
        if requests and rng.random() < 0.1:
            id = rng.choice(list(requests))
            if id not in whole or whole[id].finish is None:
                aborted.add(id)
            engine.abort(id)
        take(engine, whole)
    num_steps = 0
    while engine.has_work:
        take(engine, whole)
        num_steps += 1
        assert num_steps < 100 * len(requests), "no progress"
    assert engine.check_idle()
    assert engine.pool.num_free == num_blocks
    assert engine.scheduler.num_preemptions > 0 or not is_tight
    for id, request in requests.items():
        if id in aborted:
            assert id not in whole or whole[id].finish is None
        elif POISON in request.prompt_ids:
            assert whole[id].finish is FinishReason.ERROR
        else:
            check_against_solo(request, whole[id], choose)


def check_against_solo(request: Request, got: Delta, choose: Callable[..., int]) -> None:
    expected = alone(request, choose)
    if got.finish is FinishReason.ERROR:
        assert BAD in request.prompt_ids
        assert expected.text.startswith(got.text)
        assert expected.token_ids[:2] == got.token_ids
    else:
        assert outcome(got) == outcome(expected)


def test_nobody_starves_when_requests_keep_coming() -> None:
    engine = make_engine(num_blocks=24, max_running=3, choose=endless)
    order: list[str] = []
    for i in range(60):
        engine.add(ask(str(i), f"{i} " * 10, max_tokens=9, n_ctx=100))
        for id, delta in engine.step():
            if delta.finish:
                order.append(id)
    order += finish(engine)
    assert sorted(set(order), key=int) == [str(i) for i in range(60)]
    firsts = [order.index(str(i)) for i in range(60)]
    assert all(abs(place - i) <= 3 for i, place in enumerate(firsts))
