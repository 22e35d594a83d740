"""The settings of a deployment: one frozen value, gathered from flags, environment, a TOML file and the defaults.

This is the only module that reads the environment. It knows no torch and no HTTP, so that a wrong setting is
reported before anything heavy is imported. Values that depend on the model or the machine (``None`` here) are
resolved where that knowledge lives: ``service/compose.py``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

ENV_PREFIX = "BITNET_"
_SIZE = re.compile(r"^\s*(\d+)\s*([kmg])(?:i?b)?\s*$", re.IGNORECASE)
_FACTOR = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class ConfigError(Exception):
    """A setting that cannot be honoured; the message names it, its value and where it came from."""


def _size(value: object) -> object:
    """Read ``8K`` or ``512M`` as powers of 1024; anything else is left to pydantic."""
    match = _SIZE.match(value) if isinstance(value, str) else None
    return int(match[1]) * _FACTOR[match[2].lower()] if match else value


def _names(value: object) -> object:
    """Read ``a, b`` (a flag or an environment variable) as two names."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]


class Settings(BaseSettings):
    """Every setting there is. ``None`` means: decided from the model or the machine at start."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=False)

    host: str = Field("127.0.0.1", description="address to listen on; containers pass 0.0.0.0")
    port: int = Field(8081, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: str | None = Field(None, description="checkpoint folder or hub id; without one the demo model is served")
    revision: str | None = Field(None, description="revision of a hub model: a branch, tag or commit")
    offline: bool = Field(False, description="never ask the hub; use what is on disk")
    backend: Literal["auto", "triton", "cpu"] = Field("auto", description="wing that runs the model")
    cpu_isa: Literal["auto", "avx512_vnni", "avx2_vnni", "avx2", "neon_dot", "portable", "torch"] = Field(
        "auto", description="instruction set of the CPU wing"
    )
    n_threads: int | None = Field(None, ge=1, description="CPU threads; default: the cores this process may use")
    n_ctx: Size | None = Field(None, ge=1, description="context of a request that asks for none")
    n_ctx_max: Size | None = Field(None, ge=1, description="largest context a request may ask for")
    n_batch: Size = Field(512, ge=1, description="ceiling of one request's prompt tokens in a step")
    step_ms: float = Field(150.0, gt=0, description="prompt work in a step is limited to this once a stream runs")
    draft_max: int = Field(
        16, ge=0, le=64, description="next tokens of a request that are guessed and checked in a step; 0 = none"
    )
    max_running: int | None = Field(None, ge=1, le=4096, description="requests in one step")
    kv_tokens: Size | None = Field(None, ge=1, description="tokens the KV cache holds")
    kv_cache_dtype: Literal["bf16", "int8"] = Field("bf16", description="type of the KV cache")
    dense_weights: Literal["auto", "on", "off"] = Field(
        "auto", description="int8 copy of the weights on a GPU, for many tokens; auto = in a quarter of its free memory"
    )
    head_dtype: Literal["int8", "int4-rescore", "bf16", "int8-rescore"] | None = Field(
        None,
        description="type of the output head, the backend's own by default; *-rescore: the logits of the wider type, "
        "of the few tokens that the narrower one leaves",
    )
    max_queue: int = Field(512, ge=0, description="waiting requests before 503; 0 = unbounded")
    max_body_bytes: Size = Field(8 << 20, ge=1024, description="largest request body")
    max_header_bytes: Size = Field(64 << 10, ge=1024, description="largest request header")
    receive_timeout_s: float = Field(30.0, gt=0, description="time a client has to send its request")
    drain_timeout_s: float = Field(30.0, ge=0, description="time running requests get after SIGTERM")
    ui: bool = Field(True, description="serve the web page at /")
    tls_certfile: str | None = Field(None, description="PEM file with the certificate chain; serves HTTPS")
    tls_keyfile: str | None = Field(None, description="PEM file with its key, if that is a file of its own")
    path_prefix: str = Field(
        "", pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="what every path starts with, as in /llm; none by default"
    )
    api_key: SecretStr | None = Field(None, min_length=1, description="key that clients must send")
    cors_origins: Names = Field((), description="origins allowed by CORS, comma-separated; none = no CORS headers")
    allowed_hosts: Names = Field((), description="Host headers accepted, comma-separated; none = any")
    default_temperature: float = Field(0.8, ge=0, le=2, description="what a silent request gets")
    default_top_k: int = Field(40, description="what a silent request gets; <= 0 = off")
    default_top_p: float = Field(0.95, ge=0, le=1, description="what a silent request gets")
    default_min_p: float = Field(0.0, ge=0, le=1, description="what a silent request gets")
    default_typical_p: float = Field(1.0, ge=0, le=1, description="what a silent request gets")
    default_repeat_penalty: float = Field(1.1, gt=0, description="what a silent request gets")
    default_repeat_last_n: int = Field(64, ge=-1, description="what a silent request gets; -1 = the context")
    default_presence_penalty: float = Field(0.0, ge=-2, le=2, description="what a silent request gets")
    default_frequency_penalty: float = Field(0.0, ge=-2, le=2, description="what a silent request gets")
    default_seed: int = Field(-1, ge=-1, lt=1 << 64, description="what a silent request gets; -1 = drawn")
    default_max_tokens: int = Field(-1, ge=-1, description="what a silent request gets; -1 = up to n_ctx")
    log_format: Literal["text", "json"] = Field("text", description="form of the log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line shown")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class fixes the signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flag, then environment, then TOML file; no .env file and no secrets folder."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings and, for each, where its value came from (``flag``, ``environment``, a file name, ``default``)."""

    settings: Settings
    origins: Mapping[str, str]

    def table(self) -> list[tuple[str, str, str]]:
        """Rows (name, value, origin) for ``--print-config``; the key is not shown."""
        return [
            (name, _shown(name, getattr(self.settings, name)), self.origins[name]) for name in Settings.model_fields
        ]


def load_settings(flags: Mapping[str, Any], config_file: Path | None = None) -> Resolved:
    """Gather the settings; ``flags`` holds only what was given on the command line.

    Raises ConfigError with every problem, one a line: unknown keys name the nearest known one.
    """
    file_keys = _file_keys(config_file)
    _refuse_unknown(file_keys, f"in {config_file}")
    env_keys = {name[len(ENV_PREFIX) :].lower() for name in os.environ if name.upper().startswith(ENV_PREFIX)}
    _refuse_unknown(env_keys, "in the environment", prefix=ENV_PREFIX)

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config_file)

    origins = dict.fromkeys(Settings.model_fields, "default")
    origins |= dict.fromkeys(file_keys, str(config_file))
    origins |= dict.fromkeys(EnvSettingsSource(FromFile)(), "environment")
    origins |= dict.fromkeys(flags, "flag")
    try:
        settings = FromFile(**flags)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(item, origins) for item in error.errors())) from None
    return Resolved(settings, origins)


def _file_keys(config_file: Path | None) -> set[str]:
    if config_file is None:
        return set()
    try:
        with config_file.open("rb") as file:
            return set(tomllib.load(file))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {config_file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config_file} is not valid TOML: {error}") from None


def _refuse_unknown(names: set[str], place: str, prefix: str = "") -> None:
    known = list(Settings.model_fields)
    problems = []
    for name in sorted(names - set(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        shown, hint = (prefix + text.upper() if prefix else text for text in (name, near))
        problems.append(f"unknown setting {shown} {place}; the nearest known name is {hint}")
    if problems:
        raise ConfigError("\n".join(problems))


def _problem(item: Any, origins: Mapping[str, str]) -> str:
    name = str(item["loc"][0])
    value = "***" if name == "api_key" else item["input"]
    return f"setting {name} = {value!r} ({origins[name]}): {item['msg']}"


def _shown(name: str, value: object) -> str:
    if value is None:
        none = dict.fromkeys(("revision", "api_key", "tls_certfile", "tls_keyfile"), "(none)")
        return {"model": "(the demo model)", **none}.get(name, "(decided at start)")
    if isinstance(value, tuple):
        return ", ".join(value) or "(none)"
    return str(value)
