"""What tells of the server: health, the model, its defaults, what runs; and the tokenizer's answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.api.shapes.common import EffectiveSettings, Shape, sometimes


class Health(Shape):
    status: Literal["ok"]


class ModelFacts(Shape):
    vocab_size: int
    n_ctx: int = Field(description="of a request that asks for none")
    n_ctx_max: int = Field(description="the most a request may ask for")


class ModelCard(Shape):
    id: str
    object: Literal["model"]
    created: int = Field(description="seconds since 1970")
    owned_by: str
    max_model_len: int
    meta: ModelFacts


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]


class DefaultSettings(Shape):
    params: EffectiveSettings = Field(description="of a request that asks for nothing")
    n_ctx: int


class Modalities(Shape):
    vision: Literal[False]
    audio: Literal[False]


class Props(Shape):
    default_generation_settings: DefaultSettings
    total_slots: int = Field(description="requests in one step")
    model_alias: str
    model_path: str
    n_ctx_max: int
    kv_tokens: int = Field(description="tokens that the KV cache holds")
    vocab_size: int
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: Modalities
    build_info: str
    is_sleeping: Literal[False]


class NextToken(Shape):
    n_decoded: int
    n_remain: int = Field(description="tokens that it may still generate")


class Slot(Shape):
    id: int
    n_ctx: int
    speculative: bool = Field(description="next tokens are guessed, and checked several at a time")
    is_processing: bool
    generation: str = sometimes("while it is processing: the id of the answer")
    n_prompt_tokens: int = sometimes("while it is processing")
    n_prompt_tokens_processed: int = sometimes("while it is processing")
    n_prompt_tokens_cache: int = sometimes("while it is processing")
    next_token: list[NextToken] = sometimes("while it is processing")


class TokenPiece(Shape):
    id: int
    piece: str | list[int] = Field(description="its text, or its bytes where they are no whole characters")


class TokenizedText(Shape):
    tokens: list[int] | list[TokenPiece] = Field(description="ids; with their pieces where with_pieces is true")
    count: int
    max_model_len: int


class DetokenizedText(Shape):
    content: str
    prompt: str = Field(description="the same as content")


class RenderedPrompt(Shape):
    prompt: str


class TokenizerInfo(Shape):
    """As tokenizer_config.json has it; null where there is no such token."""

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    sep_token: str | None
    pad_token: str | None
    cls_token: str | None
    mask_token: str | None
    add_bos_token: bool
    chat_template: str | None
    tokenizer_class: str
    model_max_length: int
    vocab_size: int
