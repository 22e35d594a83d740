"""The bodies of the generation routes: strict types and ranges, and nothing accepted that is not honoured.

A field that is null is absent. A name that clients of this API's world know and that is not served here is refused
(`not_supported`) unless its value asks for nothing; a name nobody knows is ignored. Limits that depend on the loaded
model are checked in `parameters.py`. Knows neither routes nor the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from service.api.constraint_fields import ConstraintFields
from service.api.errors import ApiError, invalid_parameter, not_supported
from service.api.prompts import PromptField
from service.api.sampler_fields import SamplerFields
from service.api.tools import MAX_CALLS, ToolCallField, ToolFields
from service.api.unserved import (
    NEUTRAL,
    NEUTRAL_IN_MESSAGE,
    NEUTRAL_IN_STREAM_OPTIONS,
    UNSERVED_ROLES,
    refuse_unserved,
    show,
    without_nulls,
)

MAX_SEED = 2**64 - 1
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
MAX_BIAS = 100.0
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_RESPONSE_FIELDS = 64
MAX_RESPONSE_FIELD_CHARS = 256

Bias = tuple[int, float]


def _read_stop(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _fault("should be a string or an array of strings")
    return value


def _read_logit_bias(value: object) -> object:
    """OpenAI's `{"id": bias}` or llama.cpp's `[[id, bias or false], ...]`, as pairs; false is minus infinity."""
    if isinstance(value, dict):
        entries: list[object] = [[_token_id(name), bias] for name, bias in value.items()]
    elif isinstance(value, list):
        entries = value
    else:
        raise _fault("should be an object of token ids and biases, or an array of [token id, bias] pairs")
    if len(entries) > MAX_BIASES:
        raise _fault(f"should have at most {MAX_BIASES} entries, not {len(entries)}")
    return [_bias(entry) for entry in entries]


def _token_id(name: str) -> object:
    return int(name) if name.isascii() and name.isdecimal() and len(name) < 20 else name


def _bias(entry: object) -> Bias:
    match entry:
        case [str(), _]:
            raise _fault("should name tokens by their ids; biases by text are not supported")
        case [int() as token_id, False] if not isinstance(token_id, bool):
            return token_id, float("-inf")
        case [int() as token_id, int() | float() as bias] if not isinstance(token_id, bool) and bias is not True:
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise _fault(f"should hold biases from {-MAX_BIAS:g} to {MAX_BIAS:g}, or false")
            return token_id, float(bias)
    raise _fault("should hold pairs of a token id and a bias, a number or false")


def _fault(message: str) -> PydanticCustomError:
    return PydanticCustomError("bad_value", "Input {what}", {"what": message})


Stops = Annotated[
    list[Annotated[str, Field(max_length=MAX_STOP_CHARS)]],
    Field(max_length=MAX_STOPS, fail_fast=True),
    BeforeValidator(_read_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": MAX_STOP_CHARS},
                {
                    "type": "array",
                    "maxItems": MAX_STOPS,
                    "items": {"type": "string", "maxLength": MAX_STOP_CHARS},
                },
            ]
        }
    ),
]
_BIAS_SCHEMA = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
LogitBias = Annotated[
    Any,
    BeforeValidator(_read_logit_bias),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "maxProperties": MAX_BIASES,
                    "propertyNames": {"pattern": "^[0-9]{1,19}$"},
                    "additionalProperties": {"anyOf": [_BIAS_SCHEMA, {"const": False}]},
                },
                {
                    "type": "array",
                    "maxItems": MAX_BIASES,
                    "items": {
                        "type": "array",
                        "prefixItems": [
                            {"type": "integer", "minimum": 0},
                            {"anyOf": [_BIAS_SCHEMA, {"const": False}]},
                        ],
                        "minItems": 2,
                        "maxItems": 2,
                    },
                },
            ]
        }
    ),
]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    include_usage: bool | None = Field(None, description="send a last chunk with the usage and no choices")
    continuous_usage_stats: bool | None = Field(None, description="every chunk has the usage so far of its choice")


class Generation(SamplerFields, ConstraintFields):
    """The fields of both tables of the API reference, of samplers and of grammars, shared by every generation route."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    model: str | None = Field(None, description="accepted and not looked at: one model is served")
    stream: bool | None = Field(None, description="answer as server-sent events")
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="randomness; 0 takes the likeliest token")
    top_k: int | None = Field(None, description="sample from the k likeliest tokens; <= 0 = off")
    top_p: float | None = Field(None, ge=0, le=1, description="nucleus sampling")
    min_p: float | None = Field(None, ge=0, le=1, description="least probability relative to the likeliest token")
    typical_p: float | None = Field(None, ge=0, le=1, description="locally typical sampling")
    repeat_penalty: float | None = Field(None, gt=0, description="penalty for repetition")
    repetition_penalty: float | None = Field(None, gt=0, description="another name of repeat_penalty")
    repeat_last_n: int | None = Field(None, ge=-1, description="tokens looked back at for penalties; -1 = n_ctx")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="-1 = drawn for this request")
    max_tokens: int | None = Field(None, ge=-1, description="most tokens to generate; -1 = what n_ctx allows")
    max_completion_tokens: int | None = Field(None, ge=-1, description="wins over max_tokens")
    n_predict: int | None = Field(None, ge=-1, description="wins over both")
    n_ctx: int | None = Field(None, ge=1, description="most tokens of prompt and output together")
    n_batch: int | None = Field(None, ge=1, description="most prompt tokens in a step; at most the server's")
    n_threads: int | None = Field(None, ge=1, description="CPU threads; at most the server's")
    stop: Stops | None = Field(None, description="strings that end the output, and are not part of it")
    logit_bias: LogitBias | None = Field(None, description="added to the logits of tokens, by id; false forbids one")
    cache_prompt: bool | None = Field(None, description="false computes the whole prompt, whatever the cache holds")
    timings_per_token: bool | None = Field(None, description="every event of a stream has the timings so far")


class Several(Generation):
    """What can be asked for more than once."""

    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="choices for each prompt")


TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]


class OpenAIBody(Several):
    """What OpenAI's shapes have room for; the names are vLLM's."""

    prompt_logprobs: TopLogprobs | None = Field(
        None, description="logprobs of the prompt's tokens, with so many of the likeliest; its prompt is computed whole"
    )
    return_token_ids: bool | None = Field(None, description="the ids of the prompt's and the output's tokens")


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] = Field("", validate_default=False)
    tool_calls: list[ToolCallField] | None = Field(None, max_length=MAX_CALLS, description="of an assistant")
    tool_call_id: str | None = Field(None, max_length=128, description="of a tool: which call it answers")

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise PydanticCustomError("missing_content", "Input should have 'content'")
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("misplaced_calls", "Input should have 'tool_calls' only with role 'assistant'")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise PydanticCustomError("misplaced_id", "Input should have 'tool_call_id' where the role is 'tool'")
        return self


class Prediction(BaseModel):
    """OpenAI's Predicted Outputs."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(OpenAIBody, ToolFields):
    """POST /chat/completions."""

    # Stopping at the first bad one bounds what a body of a million bad messages costs.
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    logprobs: bool | None = Field(None, description="tell the logprob of each token of the output")
    top_logprobs: TopLogprobs | None = Field(None, description="with logprobs: so many of the likeliest beside it")
    prediction: Prediction | None = Field(
        None,
        description="what the answer will mostly say: it comes the faster the more of it is right, and is the same",
    )


def _or_false(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"const": False})


class CompletionBody(OpenAIBody):
    """POST /v1/completions."""

    prompt: PromptField
    echo: bool | None = Field(
        None, description="begin the text with the prompt; with logprobs, those of its tokens, too"
    )
    logprobs: Annotated[TopLogprobs | None, BeforeValidator(lambda value: None if value is False else value)] = Field(
        None,
        description="tell the logprob of each token, with so many of the likeliest; false = absent",
        json_schema_extra=_or_false,
    )
    best_of: int | None = Field(None, description="the same as n, or absent")


class NativeBody(Several):
    """POST /completion and POST /completions."""

    prompt: PromptField
    n_probs: TopLogprobs | None = Field(
        None, description="tell the logprob of each token, with so many of the likeliest"
    )
    return_tokens: bool | None = Field(None, description="the ids of the output's tokens; streams always have them")
    response_fields: (
        Annotated[
            list[Annotated[str, Field(max_length=MAX_RESPONSE_FIELD_CHARS)]],
            Field(max_length=MAX_RESPONSE_FIELDS, fail_fast=True),
        ]
        | None
    ) = Field(None, description="the keys of the answer to keep; 'a/b' is the key b of the object a")


Model = TypeVar("Model", bound=BaseModel)
Body = TypeVar("Body", bound=Generation)


def read_body(kind: type[Body], raw: Mapping[str, Any]) -> Body:
    """The checked body. Raises ApiError: `not_supported`, or `invalid_parameter` naming field, value and limit."""
    fields = without_nulls(raw)
    refuse_unserved({name: value for name, value in fields.items() if name not in kind.model_fields}, NEUTRAL)
    if isinstance(options := fields.get("stream_options"), dict):
        fields["stream_options"] = options = without_nulls(options)
        refuse_unserved(options, NEUTRAL_IN_STREAM_OPTIONS, "stream_options")
    if kind is ChatBody and isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return validated(kind, fields)


def validated(kind: type[Model], fields: Mapping[str, Any]) -> Model:
    """Fields as a body. Raises ApiError: `invalid_parameter` naming field, value and limit."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        # Of the members of a union, the one that was meant got furthest.
        problems = error.errors(include_url=False)
        raise _api_error(max(problems, key=lambda problem: len(problem["loc"]))) from None


def _message(raw: object, place: str) -> object:
    """A message without its nulls; what only later servers can do is refused here, where it can be named."""
    if not isinstance(raw, dict):
        return raw
    fields = without_nulls(raw)
    refuse_unserved(fields, NEUTRAL_IN_MESSAGE, place)
    if fields.get("role") in UNSERVED_ROLES:
        message = f"'{place}.role': messages of role '{fields['role']}' are not supported by this server"
        raise not_supported("messages", message)
    refuse_other_parts(fields.get("content"), f"{place}.content", ("text",), "messages")
    return fields


def refuse_other_parts(parts: object, place: str, kinds: Sequence[str], param: str) -> None:
    """Raises ApiError for the first of a list of content parts that says it is of no type in `kinds`."""
    for i, part in enumerate(parts if isinstance(parts, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            message = f"'{place}[{i}].type': parts of type {show(kind)} are not supported, text only"
            raise not_supported(param, message)


def _api_error(problem: ErrorDetails) -> ApiError:
    """`param` is the field of the body; the message has the whole path into it."""
    path = _path([part for part in problem["loc"] if not _is_member(part)])
    param = str(problem["loc"][0])
    if problem["type"] == "missing":
        return invalid_parameter(param, f"'{path}' is required")
    if problem["type"] == "not_supported":
        return not_supported(param, f"'{path}': {problem['msg']} are not supported by this server")
    if problem["type"] == "model_type":
        return invalid_parameter(param, f"invalid '{path}': should be an object (got {show(problem['input'])})")
    reason = problem["msg"].replace("Input should", "should").replace("List should", "should")
    reason = reason.replace(" after validation", "")
    return invalid_parameter(param, f"invalid '{path}': {reason} (got {show(problem['input'])})")


def _is_member(part: int | str) -> bool:
    """This part of a path names a member of a union."""
    return isinstance(part, str) and (part == "str" or part.startswith("list["))


def _path(loc: list[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
