"""How long a request may be and how many tokens the KV cache holds: settings and model brought together.

Knows no torch and no HTTP; a wish that cannot be met is refused with the numbers, before any weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.config import ConfigError, Settings

SILENT_N_CTX = 2048
CPU_KV_TOKENS = 8192
CPU_MAX_RUNNING = 16
GPU_MAX_RUNNING = 256


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens. n_ctx: what a silent request gets; n_ctx_max: the most it may ask for; kv_tokens: the whole pool.
    max_running: requests in one step."""

    n_ctx: int
    n_ctx_max: int
    kv_tokens: int
    max_running: int


def settle_sizes(settings: Settings, max_position_embeddings: int, device_kv_tokens: int | None = None) -> Sizes:
    """Fill in what the settings leave open.

    `device_kv_tokens`: tokens for which a GPU has memory; None where the KV cache lives in the system's memory. Raises
    ConfigError when the settings contradict the model, the device or each other.
    """
    kv_tokens = settings.kv_tokens or (CPU_KV_TOKENS if device_kv_tokens is None else max(1, device_kv_tokens))
    n_ctx_max = settings.n_ctx_max or min(max_position_embeddings, kv_tokens)
    n_ctx = settings.n_ctx or min(SILENT_N_CTX, n_ctx_max)
    problems = []
    if device_kv_tokens is not None and kv_tokens > device_kv_tokens:
        problems.append(f"kv_tokens {kv_tokens} is above the {device_kv_tokens} that the device has memory for")
    if n_ctx_max > max_position_embeddings:
        problems.append(f"n_ctx_max {n_ctx_max} is above the model's max_position_embeddings {max_position_embeddings}")
    if n_ctx > max_position_embeddings:
        problems.append(f"n_ctx {n_ctx} is above the model's max_position_embeddings {max_position_embeddings}")
    elif settings.n_ctx_max is not None and n_ctx > n_ctx_max:
        problems.append(f"n_ctx {n_ctx} is above n_ctx_max {n_ctx_max}")
    longest = max(n_ctx, n_ctx_max)
    if longest > kv_tokens:
        problems.append(
            f"the KV cache of {kv_tokens} tokens does not hold one request of {longest}: "
            f"raise kv_tokens to at least {longest}, or lower n_ctx and n_ctx_max to {kv_tokens}"
        )
    if problems:
        raise ConfigError("\n".join(problems))
    max_running = CPU_MAX_RUNNING if device_kv_tokens is None else GPU_MAX_RUNNING
    return Sizes(n_ctx, n_ctx_max, kv_tokens, settings.max_running or max_running)
