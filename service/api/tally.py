"""What was counted of a generation, or of several side by side, as OpenAI's usage and as llama.cpp's timings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tally:
    """Tokens of the prompt (cached_tokens of them from the prefix cache) and of the output, and how long each took.

    drafted_tokens: guesses that were checked, accepted_tokens of them right. has_prediction: the client sent some.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prompt_ms: float
    predicted_ms: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    has_prediction: bool = False

    def beside(self, other: Tally) -> Tally:
        """Both together: tokens add up, times run side by side."""
        return Tally(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.generated_tokens + other.generated_tokens,
            max(self.prompt_ms, other.prompt_ms),
            max(self.predicted_ms, other.predicted_ms),
            self.drafted_tokens + other.drafted_tokens,
            self.accepted_tokens + other.accepted_tokens,
            self.has_prediction,
        )

    def usage(self) -> dict[str, Any]:
        """Tokens counted as the clients expect: the prompt with its cached part, the output with its end token."""
        counted: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated_tokens,
            "total_tokens": self.prompt_tokens + self.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        if self.has_prediction:
            counted["completion_tokens_details"] = {
                "accepted_prediction_tokens": self.accepted_tokens,
                "rejected_prediction_tokens": self.drafted_tokens - self.accepted_tokens,
            }
        return counted

    def timings(self) -> dict[str, Any]:
        """llama.cpp's timings: prompt_n is what was evaluated for this request, without what the cache held."""
        timings = {
            "cache_n": self.cached_tokens,
            **_pace("prompt", self.prompt_tokens - self.cached_tokens, self.prompt_ms),
            **_pace("predicted", self.generated_tokens, self.predicted_ms),
        }
        if self.drafted_tokens:
            timings |= {"draft_n": self.drafted_tokens, "draft_n_accepted": self.accepted_tokens}
        return timings


def _pace(name: str, tokens: int, ms: float) -> dict[str, Any]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": round(ms, 3),
        f"{name}_per_token_ms": round(ms / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(tokens * 1000 / ms, 3) if ms > 0 else 0.0,
    }
