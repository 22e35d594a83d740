"""A model, a tokenizer and a whole engine without torch, for tests of the engine and of HTTP.

`FakeRunner` keeps a KV cache of its own: each slot holds the token that was computed into it. To choose a token it
reads the whole prefix back through the request's blocks, so a block shared wrongly, released early or never computed
shows up as an error. The token is a hash of that prefix, the seed and the choice index: any two runs of the same
request must agree, whatever happened to them on the way.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.engine.async_engine import AsyncEngine, EngineInfo, EngineOptions, Loaded
from service.engine.blocks import BlockPool
from service.engine.engine import Engine
from service.engine.grammar import MatcherError
from service.engine.grammar_compiler import GrammarCompiler
from service.engine.logprobs import score
from service.engine.plan import RowResult, ScheduledRow, StepPlan
from service.engine.prompt import Message
from service.engine.request import Logprobs, Request
from service.engine.scheduler import SchedulerLimits
from service.engine.tool_messages import in_words
from service.engine.tools import Tool

BOS, EOS, TURN, COLON, END = 256, 257, 258, 259, 260
VOCAB_SIZE = 261
CONTROL_NAMES = {BOS: "<bos>", EOS: "<eos>", TURN: "<turn>", COLON: "<colon>", END: "<end>"}

Chooser = Callable[[Sequence[int], Request], int]


class FakeTokenizer:
    """One token for each UTF-8 byte, and five special ones. A chat is BOS, then TURN role COLON content END for each
    message, then TURN assistant COLON."""

    vocab_size = VOCAB_SIZE
    max_token_chars = 1
    eos_ids = frozenset({EOS, END})

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        token_ids = [BOS]
        for message in in_words(messages, tools):
            token_ids += [TURN, *message.role.encode(), COLON, *message.content.encode(), END]
        return [*token_ids, TURN, *b"assistant", COLON]

    def encode_text(self, text: str, *, begins: bool = True) -> list[int]:
        return [BOS, *text.encode()] if begins else [*text.encode()]

    def encode_plain(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """`parse_special` finds "<eos>"."""
        pieces = text.split("<eos>") if parse_special else [text]
        token_ids = list(pieces[0].encode())
        for piece in pieces[1:]:
            token_ids += [EOS, *piece.encode()]
        return [BOS] * add_special + token_ids

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        told = in_words(messages, tools)
        return "".join(f"<{message.role}>{message.content}" for message in told) + "<assistant>"

    def spell(self, token_id: int) -> bytes:
        names = {BOS: b"<bos>", EOS: b"<eos>", TURN: b"<turn>", COLON: b"<colon>", END: b"<end>"}
        return names.get(token_id) or bytes([token_id])

    def describe(self) -> dict[str, object]:
        return {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True, "chat_template": "a template"}

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < VOCAB_SIZE:
            raise IndexError(token_id)
        return bytes([token_id]) if token_id < 256 else b""

    def control_name(self, token_id: int) -> str:
        return CONTROL_NAMES.get(token_id, "")


def hashed(prefix: Sequence[int], request: Request) -> int:
    """Any lower-case letter, or now and then EOS: a function of the prefix, the seed and the choice index."""
    material = f"{list(prefix)} {request.params.seed} {request.choice_index}".encode()
    number = int.from_bytes(hashlib.blake2b(material, digest_size=8).digest(), "big")
    return EOS if number % 97 == 0 else ord("a") + number % 26


def endless(prefix: Sequence[int], request: Request) -> int:
    """As `hashed`, and never EOS."""
    token_id = hashed(prefix, request)
    return ord("z") if token_id == EOS else token_id


def echoed(prefix: Sequence[int], request: Request) -> int:
    """The last message (or the whole text prompt) once again, then EOS."""
    prompt = list(request.prompt_ids)
    if END in prompt:
        end = len(prompt) - 1 - prompt[::-1].index(END)
        start = end - prompt[:end][::-1].index(COLON)
        answer = prompt[start:end]
    else:
        answer = prompt[1:]
    num_generated = len(prefix) - len(prompt)
    return answer[num_generated] if num_generated < len(answer) else EOS


def obedient(prefix: Sequence[int], request: Request) -> int:
    """As `endless`; with a grammar, any token that it allows, and an end as soon as it may end."""
    if request.matcher is None:
        return endless(prefix, request)
    allowed = np.flatnonzero(request.matcher.mask()).tolist()
    return EOS if EOS in allowed else int(allowed[hashed(prefix, request) % len(allowed)])


@dataclass
class FakePending:
    results: list[RowResult]

    def tokens(self) -> list[RowResult]:
        return self.results


@dataclass
class FakeRunner:
    """Satisfies Runner. `choose` picks the token; `before_step` may raise or wait; `row_error` may fail a row."""

    num_blocks: int
    block_tokens: int
    choose: Chooser = hashed
    before_step: Callable[[StepPlan], None] = lambda plan: None
    row_error: Callable[[ScheduledRow], str | None] = lambda row: None
    plans: list[StepPlan] = field(default_factory=list)
    keep_plans: bool = False
    slots: list[int | None] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = [None] * (self.num_blocks * self.block_tokens)

    def launch(self, plan: StepPlan) -> FakePending:
        assert plan.rows, "an empty step"
        if self.keep_plans:
            self.plans.append(plan)
        self.before_step(plan)
        for row in plan.rows:
            for position in range(row.start, row.start + plan.num_known(row)):
                self.slots[self._slot(row.request, position)] = row.request.token_ids[position]
        if plan.rounds > 1 or plan.has_drafts:
            return FakePending([self._go_ahead(row) for row in plan.rows])
        return FakePending([self._answer(row) for row in plan.rows if row.has_result])

    def zero_blocks(self, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            start = block_id * self.block_tokens
            self.slots[start : start + self.block_tokens] = [None] * self.block_tokens

    def _go_ahead(self, row: ScheduledRow) -> RowResult:
        """Several rounds of one row, on a stand-in for its request, which the engine has not told of them yet.

        With drafts, as many as are right, and their slots hold them, right or not.
        """
        request, results = row.request.supposing(()), list[RowResult]()
        for place, draft in enumerate(row.drafts):
            self.slots[self._slot(request, row.start + 1 + place)] = draft
        for place in range(row.count):
            position = row.start + place
            if row.drafts and place and row.drafts[place - 1] != request.token_ids[-1]:
                break
            self.slots[self._slot(request, position)] = request.token_ids[position]
            result = self._answer(ScheduledRow(request, position, 1, sample=True))
            if result.error:
                results += [] if results else [result]
                break
            results.append(result)
            request = row.request.supposing([told.token_id for told in results])
        return replace(results[0], later_ids=tuple(result.token_id for result in results[1:]))

    def _slot(self, request: Request, position: int) -> int:
        return request.block_ids[position // self.block_tokens] * self.block_tokens + position % self.block_tokens

    def _answer(self, row: ScheduledRow) -> RowResult:
        if message := self.row_error(row):
            return RowResult(-1, message)
        request, end = row.request, row.start + row.count
        prefix = [self.slots[self._slot(request, position)] for position in range(end)]
        assert prefix == request.token_ids[:end], "the cache holds other tokens than the request"
        num_top = request.report.prompt_logprobs or 0
        scores = [told(prefix[: place + 1], request.token_ids[place + 1], num_top) for place in row.scored]
        if not row.sample:
            return RowResult(-1, prompt_logprobs=tuple(scores))
        try:
            token_id = self.choose(request.token_ids, request)
        except MatcherError as error:
            return RowResult(-1, str(error), is_grammar=True)
        wish = request.report.logprobs
        logprobs = None if wish is None else told(request.token_ids, token_id, wish)
        return RowResult(token_id, logprobs=logprobs, prompt_logprobs=tuple(scores))


def fake_logits(prefix: Sequence[int | None]) -> NDArray[np.float32]:
    """The logits after these tokens; what `choose` picks has nothing to do with them."""
    material = hashlib.blake2b(str(list(prefix)).encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(material, "big"))
    return rng.normal(scale=3.0, size=VOCAB_SIZE).astype(np.float32)


def told(prefix: Sequence[int | None], token_id: int, num_top: int) -> Logprobs:
    made = score(fake_logits(prefix), token_id, num_top)
    assert made is not None
    return made


def make_engine(
    *,
    num_blocks: int = 64,
    block_tokens: int = 8,
    max_running: int = 4,
    n_batch: int = 64,
    n_threads: int = 2,
    step_ms: float | None = None,
    max_rounds: int = 1,
    draft_max: int = 0,
    choose: Chooser = hashed,
    clock: Callable[[], float] = time.perf_counter,
    **runner: Callable[..., object],
) -> Engine:
    """An Engine over a FakeRunner; `runner` are its hooks. Call it from a factory or own it in the test's thread."""
    fake = FakeRunner(num_blocks, block_tokens, choose, **runner)  # type: ignore[arg-type]
    limits = SchedulerLimits(max_running, n_batch, n_threads, step_ms, max_rounds, draft_max)
    return Engine(fake, FakeTokenizer(), BlockPool(num_blocks, block_tokens), limits, clock)


def make_fake_engine(
    *,
    max_queue: int = 8,
    n_ctx: int = 128,
    choose: Chooser = echoed,
    step_s: float = 0.0,
    before_load: Callable[[], None] = lambda: None,
    options: EngineOptions | None = None,
    on_hang: Callable[[], None] = lambda: None,
    grammars: bool = False,
    **engine: object,
) -> AsyncEngine:
    """A started AsyncEngine that answers by repeating what it was told (see `echoed`), `step_s` seconds a token.

    `before_load` runs in the engine thread before the state becomes ready: wait in it to stay "loading", raise in it
    to fail. `engine` goes to `make_engine`. Outputs can be constrained with `grammars` (see `obedient`). Call
    `shutdown()` at the end.
    """

    def load() -> Loaded:
        before_load()
        settings = {"choose": choose, **({"before_step": lambda plan: time.sleep(step_s)} if step_s else {}), **engine}
        made = make_engine(**settings)  # type: ignore[arg-type]
        info = EngineInfo(
            model_id="fake",
            created=1_700_000_000,
            vocab_size=VOCAB_SIZE,
            n_ctx=n_ctx,
            n_ctx_max=made.pool.num_tokens,
            n_batch=made.limits.n_batch,
            n_threads=made.limits.n_threads,
            max_running=made.limits.max_running,
            kv_tokens=made.pool.num_tokens,
            fingerprint="fp_fake",
            eos_ids=(EOS, END),
        )
        return Loaded(made, FakeTokenizer(), info, GrammarCompiler(FakeTokenizer()) if grammars else None)

    started = AsyncEngine(options or EngineOptions(max_queue=max_queue), on_hang=on_hang)
    started.start(load)
    return started
