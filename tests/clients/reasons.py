"""A check for schemathesis: what obeys the schema and is refused all the same is refused for a reason listed here.

Each is something that a JSON schema cannot say: what depends on the model or on another field, or what a text holds.
"""

from __future__ import annotations

import json
import re
from typing import Any

import schemathesis

REASONS = (
    # To JSON Schema 2.0 is an integer; here it is not.
    r"should be a valid integer \(got -?[0-9.]+(e\+?[0-9]+)?",
    r"^invalid 'logit_bias': should hold pairs of a token id and a bias, .* \(got .*[0-9]\.0(,|\.\.\.)",
    # What a text has to hold, and what a schema or a grammar has to be.
    r"should be a JSON schema, an object or its text",
    r"should be a JSON object as text",
    r"should be a JSON schema of type object",
    r"the (JSON schema|schema|grammar|regular expression|regex) cannot be used",
    r"^invalid '[a-z_]+': '%json' is not taken here",
    # What depends on the model, on the server or on the request's own n_ctx.
    r"^prompt is too long: .* exceeds the available context size",
    r"^the prompt has .* this request's n_ctx is",
    r"token ids? .*(is outside the vocabulary|should be from 0 to)",
    r"this request's n_ctx|this server's ceiling|this server's limit|this server lets in",
    r"may come to .* tokens, and the KV pool holds",
    # What depends on another field, or on the place in a list.
    r"^exactly one of 'content', 'prompt' and 'messages' is required",
    r"^'[a-z_]+' cannot be combined with '[a-z_]+'",
    r"^'best_of' other than 'n' is not supported",
    r"^'response_format.json_schema' is required with this type",
    r"^'tool_choice' (asks for a call, and there are no 'tools'|names .* which is not one of 'tools')",
    r"^invalid 'tools': two functions have the same name",
    r"^invalid 'min_tokens': should be less than or equal to \d+, this request's",
    r"^invalid 'prompt': prompts times 'n' should be at most",
    r"^invalid 'top_logprobs': should come with 'logprobs': true",
    r"should have 'content'|should have 'tool_calls' only with|should have 'tool_call_id' where",
    r"going on with an answer that was begun is not supported",
)


@schemathesis.check
def refused_for_a_documented_reason(ctx: Any, response: Any, case: Any) -> None:
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    message = json.loads(response.content)["error"]["message"]
    assert any(re.search(reason, message) for reason in REASONS), f"what obeys the schema is refused: {message}"
