"""No documented field is ignored: each field of each body changes what a running server answers, or is known not to.

The fields are read from the document that the server serves, so that a new one is missed here until it has a row. What
is compared is the answer without its ids, its times and the settings that it says back. The model is a random, tiny
one: whatever a sampler does to the distribution shows in the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.asking import MESSAGES, ask, content_of
from tests.server.live import Live

Fields = Mapping[str, Any]
WILD = {"seed": 3, "temperature": 1.5, "top_k": 0, "top_p": 1, "repeat_penalty": 1}
GREEDY = {"temperature": 0, "repeat_penalty": 1}
BRIEF = {**GREEDY, "n_ctx": 100}
ENDS = [" ", "e", "a", "t", "o"]
LOOP = {**GREEDY, "logit_bias": {"77": 20}}  # it says "n" over and over
DRY = {**LOOP, "dry_multiplier": 5.0, "dry_allowed_length": 1}
ENDING = {**GREEDY, "logit_bias": {"497": 100}}  # the model's own end
XTC = {**WILD, "xtc_probability": 1.0, "xtc_threshold": 0.001}
MIROSTAT = {**WILD, "mirostat": 2, "mirostat_tau": 3.0}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "wait"}}]
# With the model's own end forbidden, there is a second call wherever there may be one.
CALLING = {**WILD, "tools": TOOLS, "tool_choice": "required", "ignore_eos": True, "n_predict": 120}

# For each field: what stands beside it, its value, and (where it is not the field's absence) what that differs from.
Row = tuple[Fields, Any] | tuple[Fields, Any, Any]
SAMPLING: Mapping[str, Row] = {
    "temperature": (WILD, 0.2),
    "top_k": (WILD, 2),
    "top_p": (WILD, 0.1),
    "min_p": (WILD, 0.9),
    "typical_p": (WILD, 0.1),
    "repeat_penalty": (GREEDY, 10.0, 1.0),
    "repetition_penalty": (GREEDY | {"repeat_penalty": None}, 10.0, 1.0),
    "repeat_last_n": ({"temperature": 0, "repeat_penalty": 10.0}, 1),
    "presence_penalty": (WILD, 2.0),
    "frequency_penalty": (GREEDY, 2.0),
    "seed": (WILD, 4),
    "logit_bias": (GREEDY, {"77": 100}),
    "samplers": ({**WILD, "top_k": 1}, ["temperature"]),
    "min_keep": ({**WILD, "top_p": 0.0}, 50),
    "dynatemp_range": (WILD, 1.5),
    "dynatemp_exponent": ({**WILD, "dynatemp_range": 1.5}, 10.0, 0.0),
    "top_n_sigma": (WILD, 0.5),
    "xtc_probability": ({**XTC, "xtc_probability": None}, 1.0),
    "xtc_threshold": (XTC, 0.4),
    "dry_multiplier": (LOOP, 5.0),
    "dry_base": ({**LOOP, "dry_multiplier": 0.05}, 50.0, 1.0),
    "dry_allowed_length": (DRY, 12),
    "dry_penalty_last_n": (DRY, 0),
    "dry_sequence_breakers": (DRY, ["n"]),
    "mirostat": (WILD, 1),
    "mirostat_tau": (MIROSTAT, 0.1),
    "mirostat_eta": (MIROSTAT, 5.0),
    "ignore_eos": (ENDING, True),
    "min_tokens": (ENDING, 4),
    "stop_token_ids": ({**GREEDY, "logit_bias": {"77": 100}}, [77]),
    "stop": (GREEDY, ENDS),
    "include_stop_str_in_output": ({**GREEDY, "stop": ENDS, "stop_sequences": ENDS}, True),
}
LENGTHS: Mapping[str, Row] = {
    "n_ctx": (BRIEF, 60),
    "max_tokens": (BRIEF, 5),
    "max_completion_tokens": ({**BRIEF, "max_tokens": 9}, 5),
    "n_predict": ({**BRIEF, "max_tokens": 9, "max_completion_tokens": 7}, 5),
}
CONSTRAINTS: Mapping[str, Row] = {
    "response_format": (WILD, {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}),
    "json_schema": (WILD, SCHEMA),
    "grammar": (WILD, 'root ::= "yes" | "no"'),
    "regex": (WILD, "[0-9]{4}"),
    "structured_outputs": (WILD, {"choice": ["yes", "no"]}),
    "guided_json": (WILD, SCHEMA),
    "guided_regex": (WILD, "[0-9]{4}"),
    "guided_choice": (WILD, ["yes", "no"]),
    "guided_grammar": (WILD, 'root ::= "yes" | "no"'),
}
STREAMS: Mapping[str, Row] = {
    "stream": (GREEDY, True),
    "stream_options": ({**GREEDY, "stream": True}, {"include_usage": True, "continuous_usage_stats": True}),
}
TIMINGS: Mapping[str, Row] = {"timings_per_token": ({**GREEDY, "stream": True}, True)}
SEVERAL: Mapping[str, Row] = {"n": (WILD, 2)}
OPENAI: Mapping[str, Row] = {"prompt_logprobs": (GREEDY, 2), "return_token_ids": (GREEDY, True)}
GENERATION = {**SAMPLING, **LENGTHS, **STREAMS, **TIMINGS, **CONSTRAINTS, **SEVERAL}
ROWS: Mapping[str, Mapping[str, Row]] = {
    "/completion": {
        **GENERATION,
        "prompt": (GREEDY, "Another story"),
        "n_probs": (GREEDY, 3),
        "return_tokens": (GREEDY, True),
        "response_fields": (GREEDY, ["content"]),
    },
    "/v1/chat/completions": {
        **GENERATION,
        **OPENAI,
        "messages": (GREEDY, [*MESSAGES, {"role": "assistant", "content": "One."}, *MESSAGES]),
        "logprobs": (GREEDY, True),
        "top_logprobs": ({**GREEDY, "logprobs": True}, 2),
        "tools": (GREEDY, TOOLS),
        "tool_choice": ({**GREEDY, "tools": TOOLS}, "required"),
        "parallel_tool_calls": (CALLING, False),
        "prediction": (GREEDY, {"type": "content", "content": "Once upon a time"}),  # counted in usage
    },
    "/v1/completions": {
        **GENERATION,
        **OPENAI,
        "prompt": (GREEDY, "Another story"),
        "echo": (GREEDY, True),
        "logprobs": (GREEDY, 2),
    },
    "/v1/responses": {
        **SAMPLING,
        **STREAMS,
        **{name: row for name, row in LENGTHS.items() if name != "max_tokens"},
        "max_output_tokens": LENGTHS["max_tokens"],
        "input": (GREEDY, "Another story"),
        "instructions": (GREEDY, "Be brief."),
    },
    "/v1/messages": {
        **{name: row for name, row in SAMPLING.items() if name != "stop"},
        **STREAMS,
        **LENGTHS,
        "stop_sequences": SAMPLING["stop"],
        "messages": (GREEDY, [{"role": "user", "content": "Another."}]),
        "system": (GREEDY, "Be brief."),
    },
}
# What moves no token and no text, with where it is tested: n_batch, n_threads in test_limits.py, cache_prompt in
# test_choices.py (usage), best_of with its one value in test_ranges.py. The name of the model is not looked at.
STILL = {"model", "n_batch", "n_threads", "cache_prompt", "best_of"}


def fields_of(document: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return dict(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"])


def changes(live: Live, path: str, known: Mapping[str, Any], name: str, row: Row) -> bool:
    """Whether the field changes the answer."""
    beside, value, *other = row
    length = {} if name in LENGTHS or name == "max_output_tokens" else {"n_predict": 16}
    fields = {**length, **{name: beside[name] for name in beside if name in known}}
    without = ask(live, path, **{**fields, **({name: other[0]} if other else {})})
    return bool(content_of(without) != content_of(ask(live, path, **{**fields, name: value})))


@pytest.mark.parametrize("path", ROWS)
def test_every_field_of_a_body_changes_the_answer_or_is_known_not_to(model: Live, path: str) -> None:
    known = fields_of(model.http.get(model.url + "/openapi.json").json(), path)
    assert known.keys() - STILL == ROWS[path].keys()
    with ThreadPoolExecutor(8) as pool:
        moved = pool.map(lambda item: changes(model, path, known, *item), ROWS[path].items())
        assert [name for name, is_moved in zip(ROWS[path], moved, strict=True) if not is_moved] == []
    model.at_rest()
