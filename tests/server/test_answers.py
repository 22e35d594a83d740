"""What an answer has to tell beside its text: counts, times, selected fields, and the arrays that harnesses read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.asking import LEAST, STORY, ask, native
from tests.server.live import Live
from tests.service.api.asgi import events_of

GENERATIONS = [path for path in LEAST if path not in ("/v1/responses", "/v1/messages")]
TOLD = ("tokens", "token_logprobs", "top_logprobs")
PACES = ("prompt", "predicted")


@pytest.mark.parametrize("path", GENERATIONS)
def test_usage_and_timings_tell_the_same_counts(model: Live, path: str) -> None:
    for stream in (False, True):
        answer = ask(model, path, temperature=0, max_tokens=9, ignore_eos=True, stream=stream)
        if stream:
            assert not any("timings" in event for event in events_of(answer)[:-1])
            timings = events_of(answer)[-1]["timings"]
        else:
            timings, usage = answer["timings"], answer["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            assert (timings["cache_n"], timings["prompt_n"]) == (cached, usage["prompt_tokens"] - cached)
        assert timings["predicted_n"] == 9
        for pace in PACES:
            ms, count = timings[f"{pace}_ms"], timings[f"{pace}_n"]
            assert ms > 0
            assert timings[f"{pace}_per_token_ms"] == pytest.approx(ms / count, abs=0.002)
            assert timings[f"{pace}_per_second"] == pytest.approx(1000 * count / ms, rel=0.05)


@pytest.mark.parametrize("path", GENERATIONS)
def test_timings_are_in_every_event_where_they_are_asked_for(model: Live, path: str) -> None:
    events = events_of(ask(model, path, max_tokens=9, ignore_eos=True, stream=True, timings_per_token=True))
    counts = [event["timings"]["predicted_n"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 9


def test_tokens_are_told_where_they_are_asked_for_and_are_those_of_the_text(model: Live) -> None:
    assert native(model, return_tokens=False)["tokens"] == []
    answer = native(model, n_predict=9, return_tokens=True)
    assert len(answer["tokens"]) == 9
    text = model.post("/detokenize", {"tokens": answer["tokens"]}).json()["content"]
    assert text == answer["content"]
    events = events_of(ask(model, "/completion", n_predict=9, temperature=0, repeat_penalty=1, stream=True))
    assert [token for event in events for token in event["tokens"]] == answer["tokens"]


def test_n_probs_tell_as_many_of_the_likeliest_as_were_asked_for(model: Live) -> None:
    for count in (1, 5, 20):
        answer = native(model, n_predict=4, n_probs=count)
        told = answer["completion_probabilities"]
        assert [one["id"] for one in told] == answer["tokens"]
        assert {len(one["top_logprobs"]) for one in told} == {count}
        assert all(one["top_logprobs"][0]["id"] == one["id"] for one in told)
    assert "completion_probabilities" not in native(model, n_probs=0)


def test_response_fields_keep_what_is_named_and_nothing_else(model: Live) -> None:
    wishes = ["content", "generation_settings/n_predict", "timings/predicted_n", "no/such", "generation_settings/no"]
    answer = native(model, n_predict=3, response_fields=wishes)
    whole = native(model, n_predict=3)
    assert answer == {
        "content": whole["content"],
        "generation_settings/n_predict": 3,
        "timings/predicted_n": 3,
    }
    last = events_of(ask(model, "/completion", n_predict=3, stream=True, response_fields=["stop"]))[-1]
    assert last == {"stop": True}


def test_the_stop_string_that_came_first_is_named_and_cut_off(model: Live) -> None:
    sampled = {"n_predict": 30, "temperature": 1, "seed": 1}
    text = native(model, **sampled)["content"]
    for start in (3, 9, 17):
        stops = [text[20:23], text[start : start + 2], "never said"]
        place, first = min((text.find(stop), stop) for stop in stops[:2])
        answer = native(model, **sampled, stop=stops)
        assert (answer["content"], answer["stop_type"]) == (text[:place], "word")
        assert answer["stopping_word"] == first
        assert native(model, **sampled, stop=first)["content"] == text[:place]
        kept = native(model, **sampled, stop=stops, include_stop_str_in_output=True)
        assert kept["content"] == text[:place] + first


def test_a_batch_of_token_arrays_is_scored_as_evaluation_harnesses_ask_for_it(model: Live) -> None:
    """Echo, one token, legacy logprobs: arrays as long as prompt and output, in the order of the prompts."""
    encode = model.engine.tokenizer.encode_text
    prompts = [encode(STORY), encode(STORY * 2)[:20], [70]]
    fields: dict[str, Any] = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    answer = ask(model, "/v1/completions", prompt=prompts, **fields)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        told = choice["logprobs"]
        assert {len(array) for array in told.values()} == {len(prompt) + 1}
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        assert all(logprob < 0 for logprob in told["token_logprobs"][1:])
        assert all(
            top[token] <= max(top.values())
            for top, token in zip(told["top_logprobs"][1:], told["tokens"][1:], strict=True)
        )
        assert told["text_offset"] == sorted(told["text_offset"])
        alone = ask(model, "/v1/completions", prompt=[prompt], **fields)["choices"][0]
        assert alone["logprobs"] == told
        assert alone["text"] == choice["text"]


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"json_schema": {"enum": ["yes"]}}, {'"yes"'}),
        ({"regex": "[ab]{2}"}, {"aa", "ab", "ba", "bb"}),
        ({"grammar": 'root ::= "on" | "off"'}, {"on", "off"}),
        ({"grammar": 'start: "on" | "off"'}, {"on", "off"}),
        ({"response_format": {"type": "json_object", "schema": {"const": 7}}}, {"7"}),
        ({"guided_choice": ["left", "right"]}, {"left", "right"}),
        ({"structured_outputs": {"regex": "x"}}, {"x"}),
    ],
    ids=str,
)
def test_an_output_obeys_what_it_was_asked_to_obey_on_every_route(
    model: Live, fields: dict[str, Any], texts: set[str]
) -> None:
    for path in GENERATIONS:
        for seed in range(3):
            answer = ask(model, path, seed=seed, temperature=2, top_k=0, **fields)
            choice = answer["choices"][0] if "choices" in answer else answer
            assert (choice.get("message") or choice).get("content", choice.get("text")) in texts
