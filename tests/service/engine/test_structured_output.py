"""Whole engines of the demo model with constrained outputs: what comes out obeys, and nothing else moves."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import bitnet_model
from bitnet_model.checkpoint import load_model
from bitnet_model.config import ModelConfig
from bitnet_model.model import Model
from bitnet_model.ops import Ops
from service.engine.blocks import BLOCK_TOKENS, BlockPool
from service.engine.engine import Engine
from service.engine.errors import GrammarFailed
from service.engine.grammar import Grammar
from service.engine.grammar_compiler import GrammarCompiler
from service.engine.request import Delta, FinishReason, Limits, Request, SamplingParams
from service.engine.runner import ModelRunner
from service.engine.scheduler import SchedulerLimits
from service.engine.tokenizer import Tokenizer
from tests.service.engine.random_schemas import random_schema

FOLDER = Path(bitnet_model.__file__).parent / "demo"
NUM_NEW = 3 * BLOCK_TOKENS  # the requests grow by three blocks
# A model of stories would fill a number with digits for ever.
ENDING = {"frequency_penalty": 1.0, "repeat_last_n": -1}
STORY = "Once upon a time"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Demo:
    ops: Ops
    model: Model
    tokenizer: Tokenizer
    grammars: GrammarCompiler

    def engine(self, num_blocks: int = 160, max_running: int = 16, draft_max: int = 0) -> Engine:
        """With guesses its clock stands still, so that they are made whatever they cost."""
        runner = ModelRunner(self.model, self.ops, num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, kv_dtype="bf16")
        limits = SchedulerLimits(max_running, 512, 2, draft_max=draft_max)
        clock = (lambda: 0.0) if draft_max else time.perf_counter
        return Engine(runner, self.tokenizer, BlockPool(num_blocks), limits, clock)

    def request(self, name: str, grammar: Grammar | None, *, max_tokens: int = 150, **params: Any) -> Request:
        matcher = None if grammar is None else self.grammars.submit(grammar).result(20)
        sampling = SamplingParams(**{"seed": len(name), "temperature": 0.8, **params})
        limits = Limits(n_ctx=512, n_batch=512, max_tokens=max_tokens)
        return Request(name, tuple(self.tokenizer.encode_text(STORY)), sampling, limits, matcher=matcher)


@pytest.fixture(scope="module")
def demo(ops: Ops) -> Iterator[Demo]:
    config = ModelConfig.from_folder(FOLDER)
    tokenizer = Tokenizer.from_folder(FOLDER, config.eos_token_ids, vocab_size=config.vocab_size)
    grammars = GrammarCompiler(tokenizer)
    yield Demo(ops, load_model(FOLDER, ops, head_dtype=ops.head_dtypes[0]), tokenizer, grammars)
    grammars.close()


def of_schema(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(schema), "json_schema")


def run(engine: Engine, requests: Sequence[Request]) -> dict[str, Delta]:
    """All that each request came to, as one delta; all run together."""
    whole = {request.id: Delta() for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for request_id, delta in engine.step():
            whole[request_id] = whole[request_id].then(delta)
    assert engine.check_idle()
    return whole


def test_answers_to_200_random_schemas_validate(demo: Demo) -> None:
    schemas = {f"s{seed}": random_schema(random.Random(seed)) for seed in range(200)}
    requests = [
        demo.request(name, of_schema(schema), seed=place, temperature=1.2, max_tokens=500, **ENDING)
        for place, (name, schema) in enumerate(schemas.items())
    ]
    answers = run(demo.engine(num_blocks=600), requests)
    finished = {name: answer for name, answer in answers.items() if answer.finish is FinishReason.STOP}
    assert {answer.finish for answer in answers.values()} <= {FinishReason.STOP, FinishReason.LENGTH}
    assert len(finished) >= 180
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for name, answer in finished.items():
        assert answer.stop_kind == "eos"
        jsonschema.validate(json.loads(answer.text), schemas[name], format_checker=checker)


PLAIN = [("plain greedy", {"temperature": 0.0}), ("plain", {"seed": 5}), ("plain every", {"seed": 6, "top_k": 0})]
CONSTRAINED = [
    ("schema", of_schema(PERSON)),
    ("regex", Grammar("regex", "([a-z]{3,8} ){90,200}", "regex")),
    ("grammar", Grammar("grammar", 'root ::= (word " "){30,50}\nword ::= [A-Z] [a-z]+ | "(" word ")"', "grammar")),
]


def the_requests(demo: Demo) -> list[Request]:
    return [
        *(demo.request(name, None, max_tokens=NUM_NEW, **params) for name, params in PLAIN),
        *(
            demo.request(f"{name} {t}", grammar, temperature=t, max_tokens=NUM_NEW)
            for name, grammar in CONSTRAINED
            for t in (0.0, 1.0)
        ),
    ]


def outcome(deltas: dict[str, Delta]) -> dict[str, tuple[object, ...]]:
    return {name: (delta.token_ids, delta.text, delta.finish, delta.stop_kind) for name, delta in deltas.items()}


@pytest.fixture(scope="module")
def alone(demo: Demo) -> dict[str, tuple[object, ...]]:
    """Each of the requests by itself, in a fresh engine."""
    outcomes = {}
    for request in the_requests(demo):
        outcomes |= outcome(run(demo.engine(), [request]))
    return outcomes


def test_the_constrained_obey_when_they_run_alone(alone: dict[str, tuple[object, ...]]) -> None:
    for temperature in (0.0, 1.0):
        _, text, finish, kind = alone[f"schema {temperature}"]
        assert (finish, kind) == (FinishReason.STOP, "eos")
        jsonschema.validate(json.loads(str(text)), PERSON)
    assert alone["regex 0.0"][2] is FinishReason.LENGTH  # max_tokens comes before the grammar's end


@pytest.mark.parametrize("order", range(3))
def test_plain_and_constrained_rows_of_one_batch_are_what_they_are_alone(
    demo: Demo, alone: dict[str, tuple[object, ...]], order: int
) -> None:
    requests = the_requests(demo)
    random.Random(order).shuffle(requests)
    assert outcome(run(demo.engine(), requests)) == alone


def test_preemption_moves_no_grammar(demo: Demo, alone: dict[str, tuple[object, ...]]) -> None:
    engine = demo.engine(num_blocks=9)
    assert outcome(run(engine, the_requests(demo))) == alone
    assert engine.stats()["preemptions"] > 0


class Flaky:
    """A runner whose every third step raises after it ran, so that the engine runs its rows again."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._num_steps = 0

    def launch(self, plan: Any) -> Any:
        pending = self._inner.launch(plan)
        self._num_steps += 1
        if len(plan.rows) > 1 and self._num_steps % 3 == 0:
            raise RuntimeError("a step that has to be run again")
        return pending

    def zero_blocks(self, block_ids: Sequence[int]) -> None:
        self._inner.zero_blocks(block_ids)


def test_a_step_that_is_run_again_moves_no_grammar(demo: Demo, alone: dict[str, tuple[object, ...]]) -> None:
    engine = demo.engine()
    engine.runner = Flaky(engine.runner)
    assert outcome(run(engine, the_requests(demo))) == alone
    assert engine.stats()["rerun_steps"] > 5


@pytest.mark.parametrize("draft_max", [1, 16])
def test_guesses_move_no_grammar(demo: Demo, alone: dict[str, tuple[object, ...]], draft_max: int) -> None:
    engine = demo.engine(max_running=3, draft_max=draft_max)
    answers = run(engine, the_requests(demo))
    assert outcome(answers) == alone
    assert answers["schema 1.0"].num_accepted > 5
    stats = engine.stats()
    assert 0 < stats["accepted_tokens"] < stats["drafted_tokens"]


def test_most_of_an_object_is_guessed_from_its_schema(demo: Demo) -> None:
    keys = [f"the_name_of_key_{number}" for number in range(6)]
    schema = {"type": "object", "properties": {key: {"type": "boolean"} for key in keys}, "required": keys}
    engine = demo.engine(draft_max=16)
    answer = run(engine, [demo.request("keys", of_schema({**schema, "additionalProperties": False}))])["keys"]
    assert json.loads(answer.text).keys() == set(keys)
    assert answer.num_accepted > 0.7 * answer.num_generated
    assert engine.stats()["steps"] < answer.num_generated / 3


def test_stop_strings_end_a_constrained_output_too(demo: Demo) -> None:
    request = demo.request("stop", of_schema({"const": "abc def ghi"}))
    request.limits = Limits(n_ctx=256, n_batch=512, stop=(" def",))
    answer = run(demo.engine(), [request])["stop"]
    assert (answer.text, answer.finish, answer.stopping_word) == ('"abc', FinishReason.STOP, " def")


def test_an_end_that_biases_forbid_is_reached_all_the_same(demo: Demo) -> None:
    forbidden = tuple((token_id, float("-inf")) for token_id in sorted(demo.tokenizer.eos_ids))
    request = demo.request("bias", of_schema({"const": 5}), logit_bias=forbidden)
    answer = run(demo.engine(), [request])["bias"]
    assert (answer.text, answer.finish) == ("5", FinishReason.STOP)


def test_a_grammar_that_comes_to_its_limits_ends_its_request_alone(
    demo: Demo, alone: dict[str, tuple[object, ...]]
) -> None:
    late = Grammar("regex", "[b-z ]{40}((a{1000}){1000}){1000}", "regex")
    requests = [demo.request("late", late), *the_requests(demo)]
    answers = run(demo.engine(), requests)
    failed = answers.pop("late")
    assert failed.finish is FinishReason.ERROR
    assert isinstance(failed.error, GrammarFailed)
    assert outcome(answers) == alone
