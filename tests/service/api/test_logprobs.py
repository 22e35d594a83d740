"""Logprobs in every shape clients read, and the fields that travel with them, whole and streamed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from service.api.logprobs import Track
from service.engine.request import Delta, FinishReason
from tests.service.api.asgi import CHAT, Client
from tests.service.engine.fakes import BOS, CONTROL_NAMES, EOS, FakeTokenizer, fake_logits

TEXT = "zwölf 🥊!"


def log_softmax(prefix: Sequence[int]) -> list[float]:
    logits = [float(x) for x in fake_logits(prefix)]
    log_sum = max(logits) + math.log(math.fsum(math.exp(x - max(logits)) for x in logits))
    return [x - log_sum for x in logits]


def name_of(token_id: int) -> str:
    return CONTROL_NAMES.get(token_id) or (chr(token_id) if token_id < 128 else f"bytes:\\x{token_id:02x}")


def check_entries(entries: list[dict[str, Any]], token_ids: Sequence[int], num_prompt: int, num_top: int) -> None:
    """llama.cpp's and OpenAI's entries of all tokens behind the prompt's."""
    assert [entry["id"] for entry in entries] == list(token_ids[num_prompt:])
    for place, entry in enumerate(entries, start=num_prompt):
        truth = log_softmax(token_ids[:place])
        assert entry["logprob"] == pytest.approx(truth[entry["id"]], rel=1e-12)
        likeliest = sorted(range(len(truth)), key=lambda i: -truth[i])[:num_top]
        assert [one["id"] for one in entry["top_logprobs"]] == likeliest
        assert [one["logprob"] for one in entry["top_logprobs"]] == pytest.approx([truth[i] for i in likeliest])
        for one in (entry, *entry["top_logprobs"]):
            name = CONTROL_NAMES.get(one["id"])
            assert bytes(one["bytes"]) == (name.encode() if name else bytes([one["id"]]))
            assert one["token"] == bytes(one["bytes"]).decode("utf-8", "replace")


def chat_ids(client: Client, text: str) -> list[int]:
    prompt = {"messages": [{"role": "user", "content": text}], "return_token_ids": True, "max_tokens": 0}
    return list(client.post("/chat/completions", prompt).json()["prompt_token_ids"])


@pytest.mark.parametrize("num_top", [None, 0, 3, 20])
def test_a_chat_tells_the_tokens_of_its_content(client: Client, num_top: int | None) -> None:
    body = {"messages": [{"role": "user", "content": TEXT}], "logprobs": True, "top_logprobs": num_top}
    (choice,) = client.post("/chat/completions", body).json()["choices"]
    prompt = chat_ids(client, TEXT)
    check_entries(choice["logprobs"]["content"], [*prompt, *TEXT.encode(), EOS], len(prompt), num_top or 0)
    _, events = client.stream("/chat/completions", body)
    told: list[dict[str, Any]] = []
    for event in events:
        (part,) = event["choices"]
        if part["logprobs"] is not None:
            content = part["delta"].get("content", "")
            spelled = b"".join(bytes(e["bytes"]) for e in part["logprobs"]["content"] if e["id"] < 256)
            assert spelled.decode() == content
            told += part["logprobs"]["content"]
    assert told == choice["logprobs"]["content"]


def test_without_logprobs_none_are_told(client: Client) -> None:
    for fields in ({}, {"logprobs": False}):
        assert client.post("/chat/completions", {**CHAT, **fields}).json()["choices"][0]["logprobs"] is None
        assert client.post("/v1/completions", {"prompt": "a", **fields}).json()["choices"][0]["logprobs"] is None
    assert "completion_probabilities" not in client.post("/completion", {"prompt": "a", "n_probs": 0}).json()


def check_legacy(logprobs: dict[str, Any], token_ids: Sequence[int], first: int, num_top: int, text: str) -> None:
    """The four arrays of the tokens from place `first` on; `text` is what they spell."""
    assert logprobs["tokens"] == [name_of(token_id) for token_id in token_ids[first:]]
    offset = 0
    for i, place in enumerate(range(first, len(token_ids))):
        if place == 0:
            assert logprobs["token_logprobs"][i] is None
            assert logprobs["top_logprobs"][i] is None
        else:
            truth = log_softmax(token_ids[:place])
            own = truth[token_ids[place]]
            assert logprobs["token_logprobs"][i] == pytest.approx(own, rel=1e-12)
            likeliest = sorted(range(len(truth)), key=lambda i: -truth[i])[:num_top]
            expected = {name_of(token_id): truth[token_id] for token_id in [*likeliest, token_ids[place]]}
            assert logprobs["top_logprobs"][i] == pytest.approx(expected)
            assert logprobs["token_logprobs"][i] in logprobs["top_logprobs"][i].values()
        assert logprobs["text_offset"][i] == offset
        if token_ids[place] < 256:
            spelled = bytes(token_id for token_id in token_ids[first : place + 1] if token_id < 256)
            offset = len(spelled.decode("utf-8", "ignore"))
    assert len({len(values) for values in logprobs.values()}) == 1


@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_a_text_tells_its_tokens_in_the_legacy_arrays(client: Client, num_top: int) -> None:
    body = {"prompt": TEXT, "logprobs": num_top}
    (choice,) = client.post("/v1/completions", body).json()["choices"]
    token_ids = [BOS, *TEXT.encode(), *TEXT.encode(), EOS]
    check_legacy(choice["logprobs"], token_ids, 1 + len(TEXT.encode()), num_top, TEXT)
    _, events = client.stream("/v1/completions", body)
    parts = [event["choices"][0] for event in events]
    assert {
        name: [value for part in parts for value in part["logprobs"][name]] for name in choice["logprobs"]
    } == choice["logprobs"]


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 20])
def test_an_echo_with_logprobs_tells_the_prompts_tokens_first(client: Client, as_ids: bool, max_tokens: int) -> None:
    prompt_ids = [BOS, *TEXT.encode()]
    body = {"prompt": prompt_ids if as_ids else TEXT, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    answer = client.post("/v1/completions", body).json()
    (choice,) = answer["choices"]
    token_ids = [*prompt_ids, *[*TEXT.encode(), EOS][:max_tokens]]
    spelled = bytes(token_id for token_id in token_ids if token_id < 256).decode("utf-8", "replace")
    assert choice["text"] == spelled
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    check_legacy(choice["logprobs"], token_ids, 0, 1, spelled)
    _, events = client.stream("/v1/completions", body)
    parts = [event["choices"][0] for event in events]
    assert "".join(part["text"] for part in parts) == spelled
    assert parts[0]["text"] == TEXT
    assert {
        name: [value for part in parts for value in part["logprobs"][name]] for name in choice["logprobs"]
    } == choice["logprobs"]


def test_an_echo_alone_repeats_the_prompt_as_it_was_sent(client: Client) -> None:
    for prompt, text in (("ab", "abab"), ([BOS, 97, 98], "abab"), ("", "")):
        choice = client.post("/v1/completions", {"prompt": prompt, "echo": True}).json()["choices"][0]
        assert (choice["text"], choice["logprobs"]) == (text, None)


def test_what_evaluation_harnesses_send_is_answered_for_each_prompt(client: Client) -> None:
    prompts = [[BOS, *b"the cat"], [BOS, *b"a much longer prompt"], [BOS]]
    body = {"prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    choices = client.post("/v1/completions", body).json()["choices"]
    assert [len(choice["logprobs"]["token_logprobs"]) for choice in choices] == [len(ids) + 1 for ids in prompts]
    for choice in choices:
        told = choice["logprobs"]
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        for own, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
            assert own <= max(top.values())


def test_a_written_control_token_of_an_echoed_prompt_has_its_place_in_the_text(client: Client) -> None:
    class Parsing(FakeTokenizer):
        """Reads `<turn>` as one token."""

        def encode_text(self, text: str, *, begins: bool = True) -> list[int]:
            first, *rest = text.split("<turn>")
            return [BOS, *first.encode(), *[i for part in rest for i in (258, *part.encode())]]

    from service.api.logprobs import prompt_tokens

    text = "a<turn>bc"
    token_ids = Parsing().encode_text(text)
    starts = [token.start for token in prompt_tokens(token_ids, (), text, Parsing())]
    assert [text[start:][:1] for start in starts] == ["a", "a", "<", "b", "c"]


@pytest.mark.parametrize("num_top", [1, 4])
def test_a_native_answer_tells_its_tokens_as_llama_cpp_does(client: Client, num_top: int) -> None:
    body = {"prompt": TEXT, "n_probs": num_top}
    answer = client.post("/completion", body).json()
    prompt = [BOS, *TEXT.encode()]
    check_entries(answer["completion_probabilities"], [*prompt, *TEXT.encode(), EOS], len(prompt), num_top)
    _, events = client.stream("/completion", body)
    streamed = [entry for event in events for entry in event["completion_probabilities"]]
    assert streamed == answer["completion_probabilities"]
    assert answer["generation_settings"]["n_probs"] == num_top


def test_tokens_of_a_stop_string_that_is_cut_off_are_not_told(client: Client) -> None:
    body = {"prompt": "one two three", "stop": [" th"], "n_probs": 1}
    answer = client.post("/completion", body).json()
    assert answer["content"] == "one two"
    assert "".join(entry["token"] for entry in answer["completion_probabilities"]) == "one two"
    _, events = client.stream("/completion", body)
    for event in events:
        assert "".join(entry["token"] for entry in event["completion_probabilities"]) == event["content"]


def test_a_token_goes_with_the_text_it_helps_to_spell() -> None:
    track = Track(FakeTokenizer(), is_wanted=True)
    fist = "🥊".encode()
    steps = [
        (Delta(token_ids=(fist[0],)), []),
        (Delta(token_ids=tuple(fist[1:3])), []),
        (Delta("🥊", token_ids=(fist[3],)), [(i, 0) for i in fist]),
        (Delta("a", token_ids=(97, 98)), [(97, 1)]),
        (Delta("b", token_ids=(fist[0],)), [(98, 2)]),
        (Delta("\ufffd", token_ids=(EOS,), finish=FinishReason.STOP), [(fist[0], 3), (EOS, 3)]),
    ]
    for delta, expected in steps:
        assert [(token.id, token.start) for token in track.take(delta)] == expected


def test_vllms_prompt_logprobs_and_token_ids_are_told_on_both_openai_routes(client: Client) -> None:
    body = {**CHAT, "prompt": "ab", "prompt_logprobs": 2, "return_token_ids": True, "max_tokens": 2}
    chat, text = client.post("/chat/completions", body).json(), client.post("/v1/completions", body).json()
    for holder, choice in ((chat, chat["choices"][0]), (text["choices"][0], text["choices"][0])):
        token_ids = holder["prompt_token_ids"]
        assert holder["prompt_logprobs"][0] is None
        assert len(holder["prompt_logprobs"]) == len(token_ids)
        for place, told in enumerate(holder["prompt_logprobs"][1:], start=1):
            truth = log_softmax(token_ids[:place])
            ranked = sorted(range(len(truth)), key=lambda i: -truth[i])
            assert told.keys() == {str(token_id) for token_id in [*ranked[:2], token_ids[place]]}
            for token_id, one in told.items():
                assert one["logprob"] == pytest.approx(truth[int(token_id)])
                assert one["rank"] == ranked.index(int(token_id)) + 1
        assert len(choice["token_ids"]) == 2
    assert text["choices"][0]["prompt_token_ids"] == [BOS, 97, 98]
    assert text["choices"][0]["token_ids"] == [97, 98]
    _, events = client.stream("/v1/completions", body)
    parts = [event["choices"][0] for event in events]
    assert parts[0]["prompt_logprobs"] == text["choices"][0]["prompt_logprobs"]
    assert [token_id for part in parts for token_id in part["token_ids"]] == [97, 98]


def test_cache_prompt_false_computes_what_the_cache_holds(client: Client) -> None:
    body = {"prompt": "a prompt of several blocks, said twice", "n_predict": 1}
    client.post("/completion", body)
    assert client.post("/completion", body).json()["tokens_cached"] == 32
    answer = client.post("/completion", {**body, "cache_prompt": False}).json()
    assert (answer["tokens_cached"], answer["timings"]["prompt_n"]) == (0, 39)
    assert answer["generation_settings"]["cache_prompt"] is False
    usage = client.post("/v1/completions", body).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 32}


def test_native_tokens_come_with_return_tokens_and_always_in_streams(client: Client) -> None:
    assert client.post("/completion", {"prompt": "abc"}).json()["tokens"] == []
    answer = client.post("/completion", {"prompt": "abc", "return_tokens": True}).json()
    assert answer["tokens"] == [97, 98, 99, EOS]
    _, events = client.stream("/completion", {"prompt": "abc"})
    assert [token_id for event in events for token_id in event["tokens"]] == [97, 98, 99, EOS]


def test_response_fields_select_keys_and_lift_those_of_inner_objects(client: Client) -> None:
    fields = ["content", "generation_settings/n_predict", "timings/prompt_n", "nothing", "content/x", "", "prompt"]
    body = {"prompt": "abc", "n_predict": 2, "response_fields": fields}
    expected = {"content": "ab", "generation_settings/n_predict": 2, "timings/prompt_n": 4, "prompt": "abc"}
    assert client.post("/completion", body).json() == expected
    assert client.post("/completion", {**body, "n": 2}).json() == [expected] * 2
    _, events = client.stream("/completion", body)
    assert events[-1] == {**expected, "content": ""}
    assert all(event["stop"] is False for event in events[:-1])
    assert client.post("/completion", {**body, "response_fields": []}).json()["stop"] is True


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/completions"])
def test_continuous_usage_and_timings_are_on_every_chunk(client: Client, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**CHAT, "prompt": "hello there", "stream_options": options, "timings_per_token": True}
    _, events = client.stream(path, body)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 12
    assert all(event["usage"]["prompt_tokens"] == events[-1]["usage"]["prompt_tokens"] for event in events)
    assert [event["timings"]["predicted_n"] for event in events[:-1]] == counts[:-1]
    _, events = client.stream("/completion", {"prompt": "abc", "timings_per_token": True})
    assert [event["timings"]["predicted_n"] for event in events][-1] == 4


def test_every_openai_object_has_the_fingerprint(client: Client) -> None:
    for path in ("/chat/completions", "/v1/completions"):
        answer = client.post(path, {**CHAT, "prompt": "a"}).json()
        assert answer["system_fingerprint"] == "fp_fake"
        _, events = client.stream(path, {**CHAT, "prompt": "a"})
        assert {event["system_fingerprint"] for event in events} == {"fp_fake"}
