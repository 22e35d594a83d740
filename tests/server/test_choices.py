"""Choices, prompts of every form and logprobs from a running server over a real (random, tiny) model.

Most of them are asked for and read by OpenAI's own client.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.completion_choice import Logprobs

from tests.server.live import Live

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "Tell me of a small model."}
]
STORY = "Once upon a time there was a small model, "
CONTROL_TOKEN = re.compile(rb"<\|\w+\|>")
PLAIN = {"repeat_penalty": 1}
GREEDY: dict[str, Any] = {"model": "any", "temperature": 0, "extra_body": PLAIN}


@pytest.fixture
def client(model: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=model.url + "/v1", api_key="none", max_retries=0) as made:
        yield made
    model.at_rest()


def told(answer: Completion, place: int = 0) -> Logprobs:
    logprobs = answer.choices[place].logprobs
    assert logprobs is not None
    return logprobs


def test_choices_of_a_chat_are_the_same_whole_streamed_and_in_company(client: openai.OpenAI) -> None:
    def whole() -> list[str | None]:
        answer = client.chat.completions.create(model="any", messages=MESSAGES, seed=5, max_tokens=20, n=4)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 80
        return [choice.message.content for choice in answer.choices]

    texts: defaultdict[int, str] = defaultdict(str)
    chunks = client.chat.completions.create(
        model="any", messages=MESSAGES, seed=5, max_tokens=20, n=4, stream=True, stream_options={"include_usage": True}
    )
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    alone = whole()
    assert [texts[place] for place in range(4)] == alone
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: whole(), range(4))) == [alone] * 4
    first = client.chat.completions.create(model="any", messages=MESSAGES, seed=5, max_tokens=20)
    assert first.choices[0].message.content == alone[0]


def test_a_chat_tells_its_tokens_and_the_likeliest_of_them_is_the_one_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 12
    spelled = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
    written = CONTROL_TOKEN.sub(b"", spelled)  # they are told by name, and are no part of the text
    assert written.decode("utf-8", "replace") == choice.message.content
    for token in choice.logprobs.content:
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
        scores = [one.logprob for one in token.top_logprobs]
        assert scores == sorted(scores, reverse=True)
        assert 0 > scores[0] > scores[2]


@pytest.mark.parametrize("n_batch", [512, 3])
def test_a_token_is_told_the_same_when_it_is_generated_and_when_it_is_of_a_prompt(
    model: Live, client: openai.OpenAI, n_batch: int
) -> None:
    """What harnesses rely on: scoring a continuation says what generating it said, to the last bit."""
    prompt = model.engine.tokenizer.encode_text(STORY)
    extra: dict[str, Any] = {**PLAIN, "n_batch": n_batch, "return_token_ids": True}
    fields: dict[str, Any] = {"model": "any", "temperature": 0, "extra_body": extra, "logprobs": 2}
    answer = client.completions.create(**fields, prompt=prompt, max_tokens=16)
    generated = told(answer)
    ids = (answer.choices[0].model_extra or {})["token_ids"]
    assert len(ids) == 16
    scored = told(client.completions.create(**fields, prompt=[*prompt, *ids], max_tokens=0, echo=True))
    assert scored.token_logprobs is not None
    assert scored.top_logprobs is not None
    assert scored.tokens is not None
    assert scored.token_logprobs[0] is None
    assert scored.tokens[len(prompt) :] == generated.tokens
    assert scored.token_logprobs[len(prompt) :] == generated.token_logprobs
    assert scored.top_logprobs[len(prompt) :] == generated.top_logprobs


def test_prompts_of_every_form_are_answered_in_one_request_as_each_is_alone(model: Live, client: openai.OpenAI) -> None:
    ids = model.engine.tokenizer.encode_text(STORY)
    alone = client.completions.create(**GREEDY, prompt=STORY, max_tokens=10).choices[0].text
    texts = client.completions.create(**GREEDY, prompt=[STORY, "abc", STORY], max_tokens=10)
    arrays = client.completions.create(**GREEDY, prompt=[ids, ids[:3]], max_tokens=10)
    assert [choice.index for choice in texts.choices] == [0, 1, 2]
    assert [texts.choices[0].text, texts.choices[2].text, arrays.choices[0].text] == [alone] * 3
    assert len({texts.choices[1].text, arrays.choices[1].text, alone}) == 3
    prompts = [[*ids[:2], STORY], STORY, ids, [STORY, ids[5]]]
    body = {"prompt": prompts, "n_predict": 10, "temperature": 0, **PLAIN}
    mixed = model.post("/completion", body).json()
    assert [result["prompt"] for result in mixed] == prompts
    assert mixed[1]["content"] == mixed[2]["content"] == alone
    for prompt, result in zip(prompts, mixed, strict=True):
        assert model.post("/completion", {**body, "prompt": [prompt]}).json()["content"] == result["content"]


def test_a_native_answer_tells_its_tokens_its_settings_and_why_it_stopped(model: Live) -> None:
    fields: dict[str, Any] = {"prompt": STORY, "n_predict": 24, "temperature": 0, "n_probs": 4, "return_tokens": True}
    answer = model.post("/completion", fields).json()
    told = answer["completion_probabilities"]
    assert [one["id"] for one in told] == answer["tokens"]
    assert [len(one["top_logprobs"]) for one in told] == [4] * 24
    assert (answer["stop_type"], answer["stopping_word"]) == ("limit", "")
    settings = answer["generation_settings"]
    assert (settings["n_probs"], settings["n_predict"], settings["temperature"]) == (4, 24, 0)
    assert answer["timings"]["predicted_n"] == answer["tokens_predicted"] == 24
    word = answer["content"][6:8]
    wanted = ["content", "stop_type", "stopping_word", "generation_settings/stop"]
    stopped = model.post("/completion", {**fields, "stop": [word], "response_fields": wanted}).json()
    assert stopped == {
        "content": answer["content"].partition(word)[0],
        "stop_type": "word",
        "stopping_word": word,
        "generation_settings/stop": [word],
    }
    model.at_rest()


def test_a_prompt_asked_again_is_cached_counted_and_answered_the_same(client: openai.OpenAI) -> None:
    prompt = "A prompt that nobody has asked before, of more than a few blocks of tokens. " * 4

    def ask(**extra: Any) -> tuple[str, int]:
        fields: dict[str, Any] = {**GREEDY, "extra_body": {**PLAIN, **extra}}
        answer = client.completions.create(**fields, prompt=prompt, max_tokens=8)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens or 0

    first, again, anew = ask(), ask(), ask(cache_prompt=False)
    assert first[0] == again[0] == anew[0]
    assert first[1] == anew[1] == 0 < again[1]


def test_every_chunk_counts_on_where_usage_is_asked_for_continuously(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=9, stream=True, stream_options=options)
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert (counts[0] > 0, counts[-1]) == (True, 9)
    assert chunks[-1].choices == []


def test_fields_that_describe_the_client_are_taken_and_change_nothing(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=8)
    described = client.chat.completions.create(
        **GREEDY,
        messages=MESSAGES,
        max_completion_tokens=8,
        user="someone",
        metadata={"of": "a test"},
        service_tier="auto",
        store=False,
    )
    assert described.choices[0].message.content == plain.choices[0].message.content
    assert described.system_fingerprint == plain.system_fingerprint
    assert (plain.system_fingerprint or "").startswith("fp_")


def test_text_parts_are_lines_of_one_message(client: openai.OpenAI) -> None:
    def say(content: Any) -> tuple[str | None, int]:
        message: openai.types.chat.ChatCompletionUserMessageParam = {"role": "user", "content": content}
        answer = client.chat.completions.create(**GREEDY, messages=[message], max_tokens=8)
        assert answer.usage is not None
        return answer.choices[0].message.content, answer.usage.prompt_tokens

    parts = [{"type": "text", "text": "Tell me of"}, {"type": "text", "text": "a small model."}]
    assert say(parts) == say("Tell me of\na small model.")


def test_a_bias_in_openais_form_takes_the_token_and_forbids_it(model: Live, client: openai.OpenAI) -> None:
    def ids(logit_bias: dict[str, int]) -> list[int]:
        extra = {**PLAIN, "return_token_ids": True}
        answer = client.completions.create(
            model="any", temperature=0, prompt=STORY, max_tokens=5, logit_bias=logit_bias, extra_body=extra
        )
        return list((answer.choices[0].model_extra or {})["token_ids"])

    free = ids({})
    assert ids({"77": 100}) == [77] * 5
    assert free[0] not in ids({str(free[0]): -100})
    with pytest.raises(openai.BadRequestError) as caught:
        ids({str(model.engine.info.vocab_size): 1})
    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"n": 9}, "n"), ({"top_logprobs": 2}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs")],
    ids=["n", "top_logprobs alone", "top_logprobs"],
)
def test_what_is_beyond_the_limits_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=MESSAGES, **fields)
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", param)
