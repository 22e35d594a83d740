"""The names that clients of this API's world know and that are not served here, and the values of them that are taken.

A value that asks for nothing is honoured by doing nothing; any other is refused as `not_supported`, never ignored. A
later feature takes its row out of here; a row that only some routes serve stays, and counts where the body has no such
field. Knows no types of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from service.api.errors import not_supported

# What asks for nothing: the values of a name not served that are taken, because doing nothing honours them. Names whose
# values carry no behaviour at all (user, metadata, store, name, ...) are absent.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "cache_salt": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "id_slot": (-1,),
    "image_data": ([],),
    "input_prefix": (),
    "input_suffix": (),
    "length_penalty": (1,),
    "logprobs": (False,),
    "lora": ([],),
    "modalities": (["text"],),
    "n": (1,),
    "n_discard": (0,),
    "n_indent": (0,),
    "n_keep": (0, -1),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "prediction": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "response_fields": (),
    "return_progress": (False,),
    "return_token_ids": (False,),
    "return_tokens": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "t_max_predict_ms": (-1, 0),
    "tfs_z": (1,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
NEUTRAL_IN_MESSAGE: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": (),
    "refusal": (),
}
NEUTRAL_IN_STREAM_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "include_obfuscation": (False,),
}
UNSERVED_ROLES = ("function",)


def without_nulls(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Null is absent."""
    return {name: value for name, value in raw.items() if value is not None}


def refuse_unserved(fields: Mapping[str, Any], neutral: Mapping[str, tuple[object, ...]], place: str = "") -> None:
    """Raises ApiError for the first of `fields` that `neutral` knows and whose value asks for something.

    `place` says where in the body the fields are, where they are not its own.
    """
    for name, value in fields.items():
        if name in neutral and not any(value == item and _same_kind(value, item) for item in neutral[name]):
            path = f"{place}.{name}" if place else name
            param = path.partition(".")[0].partition("[")[0]
            raise not_supported(param, f"'{path}' is not supported by this server (got {show(value)})")


def _same_kind(value: object, item: object) -> bool:
    return isinstance(value, bool) == isinstance(item, bool)  # in Python, True == 1


def show(value: object, max_chars: int = 60) -> str:
    """A value for a message: one line of ASCII, cut where it is long."""
    if isinstance(value, str | list):
        value = value[:max_chars]
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
