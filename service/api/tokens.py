"""/tokenize, /detokenize, /apply-template and /tokenizer_info: the tokenizer and the template, without the model.

llama.cpp's shapes; vLLM's spelling of the same is taken (`prompt` or `messages` for `content`), and answers have the
keys of both. Text is bounded as prompts are. Knows no generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from service.api.chat import prompts
from service.api.errors import invalid_parameter
from service.api.exchange import read_request, service_of
from service.api.openapi import get_docs, post_docs
from service.api.schemas import ChatBody, read_body, validated
from service.api.shapes.system import DetokenizedText, RenderedPrompt, TokenizedText, TokenizerInfo
from service.api.unserved import without_nulls
from service.engine.prompt import ChatPrompt
from service.engine.text_tools import PlainText, TextTools, detokenize, render, tokenize

router = APIRouter(tags=["tokens"])


class TokenizeBody(BaseModel):
    """POST /tokenize: one of `content`, `prompt` and `messages`."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    content: str | None = Field(None, description="the text")
    prompt: str | None = Field(None, description="the text; tokens that start one are added unless told otherwise")
    add_special: bool | None = Field(None, description="add the tokens that start a text; default: false for `content`")
    add_special_tokens: bool | None = Field(None, description="another name of add_special")
    parse_special: bool | None = Field(None, description="what spells a control token is one; default: true")
    with_pieces: bool | None = Field(None, description="tell what each token is written as; default: false")

    def source(self) -> PlainText:
        """Raises ApiError unless there is exactly one text."""
        if (self.content is None) == (self.prompt is None):
            raise invalid_parameter("content", "exactly one of 'content', 'prompt' and 'messages' is required")
        by_name = self.add_special if self.add_special is not None else self.add_special_tokens
        return PlainText(
            text=self.content if self.content is not None else self.prompt or "",
            add_special=by_name if by_name is not None else self.prompt is not None,
            parse_special=self.parse_special is not False,
        )


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    tokens: list[int] = Field(fail_fast=True, description="token ids")


def _read_tokenize(fields: Mapping[str, Any]) -> tuple[PlainText | ChatPrompt, bool]:
    """What to cut into tokens, and whether pieces are wanted. Raises ApiError."""
    fields = without_nulls(fields)
    body = validated(TokenizeBody, fields)
    if "messages" in fields and body.content is None and body.prompt is None:
        return _read_chat(fields), body.with_pieces is True
    return body.source(), body.with_pieces is True


def _read_chat(fields: Mapping[str, Any]) -> ChatPrompt:
    """The conversation of a chat's body; what else such a body may hold is checked as a chat's is."""
    (prompt,) = prompts(read_body(ChatBody, fields))
    return prompt


@router.post("/tokenize", **post_docs(TokenizeBody, "Text or messages into token ids", TokenizedText))
@router.post("/v1/tokenize", **post_docs(TokenizeBody, "Text or messages into token ids", TokenizedText))
async def tokenize_route(request: Request) -> dict[str, Any]:
    engine = service_of(request).engine
    engine.raise_if_unavailable()
    source, with_pieces = await read_request(request, _read_tokenize)
    n_ctx = engine.info.n_ctx_max

    def work(tools: TextTools) -> tuple[int, list[Any]]:
        token_ids = tokenize(source, n_ctx, tools)
        return len(token_ids), [_piece(id_, tools) for id_ in token_ids] if with_pieces else token_ids

    count, tokens = await engine.with_tokenizer(work)
    return {"tokens": tokens, "count": count, "max_model_len": n_ctx}


def _piece(token_id: int, tools: TextTools) -> dict[str, Any]:
    """A token and its text, or its bytes where they are not whole characters."""
    spelling = tools.spell(token_id)
    try:
        return {"id": token_id, "piece": spelling.decode()}
    except UnicodeDecodeError:
        return {"id": token_id, "piece": list(spelling)}


@router.post("/detokenize", **post_docs(DetokenizeBody, "Token ids into text", DetokenizedText))
@router.post("/v1/detokenize", **post_docs(DetokenizeBody, "Token ids into text", DetokenizedText))
async def detokenize_route(request: Request) -> dict[str, str]:
    engine = service_of(request).engine
    engine.raise_if_unavailable()
    body = await read_request(request, lambda fields: validated(DetokenizeBody, without_nulls(fields)))
    n_ctx = engine.info.n_ctx_max
    text = await engine.with_tokenizer(lambda tools: detokenize(body.tokens, n_ctx, tools))
    return {"content": text, "prompt": text}


@router.post("/apply-template", **post_docs(ChatBody, "What the chat template makes of messages", RenderedPrompt))
@router.post("/v1/apply-template", **post_docs(ChatBody, "What the chat template makes of messages", RenderedPrompt))
async def apply_template(request: Request) -> dict[str, str]:
    engine = service_of(request).engine
    engine.raise_if_unavailable()
    prompt = await read_request(request, _read_chat)
    n_ctx = engine.info.n_ctx_max
    return {"prompt": await engine.with_tokenizer(lambda tools: render(prompt, n_ctx, tools))}


@router.get("/tokenizer_info", **get_docs("Special tokens and the chat template", TokenizerInfo))
@router.get("/v1/tokenizer_info", **get_docs("Special tokens and the chat template", TokenizerInfo))
async def tokenizer_info(request: Request) -> dict[str, Any]:
    engine = service_of(request).engine
    facts = await engine.with_tokenizer(lambda tools: dict(tools.describe()))
    info = engine.info
    return {
        **facts,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": info.n_ctx_max,
        "vocab_size": info.vocab_size,
    }
