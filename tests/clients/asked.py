"""What all drivers ask, so that their answers can be compared."""

from __future__ import annotations

from typing import Any

QUESTION = "Tell me a story about a dog."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
MAX_TOKENS = 24

# Fields of ours that no client knows: an answer that goes on until the context is full.
ENDLESS = {"ignore_eos": True}

# More tokens than the demo model's context has.
TOO_LONG = "dog " * 4000

# What a schema or a tool asks for; small enough to be complete within MAX_FORM_TOKENS whatever the model prefers.
MAX_FORM_TOKENS = 200
ANIMAL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["dog", "cat"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["kind", "age"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "find_animal", "description": "Find an animal.", "parameters": ANIMAL},
    }
]
