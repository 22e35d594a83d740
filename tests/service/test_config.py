"""Settings: precedence, origins, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import ConfigError, Settings, load_settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"BITNET_{name.upper()}", raising=False)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.toml", 'host = "file"\nport = 1\nn_batch = 2\n')
    monkeypatch.setenv("BITNET_PORT", "3")
    monkeypatch.setenv("BITNET_N_BATCH", "4")
    resolved = load_settings({"n_batch": "5"}, file)
    settings, origins = resolved.settings, resolved.origins
    assert (settings.host, settings.port, settings.n_batch, settings.step_ms) == ("file", 3, 5, 150.0)
    assert [origins[name] for name in ("host", "port", "n_batch", "step_ms")] == [
        str(file),
        "environment",
        "flag",
        "default",
    ]


def test_an_unknown_key_of_the_file_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"n_cxt in .*a\.toml; the nearest known name is n_ctx"):
        load_settings({}, write(tmp_path / "a.toml", "n_cxt = 5\n"))


def test_an_unknown_environment_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_PROT", "1")
    with pytest.raises(ConfigError, match="BITNET_PROT in the environment; the nearest known name is BITNET_PORT"):
        load_settings({})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": "70000"}, ["port", "70000", "flag", "65535"]),
        ({"n_batch": "many"}, ["n_batch", "many"]),
        ({"default_temperature": "2.5"}, ["default_temperature", "2.5", "2"]),
        ({"backend": "cuda"}, ["backend", "cuda", "triton"]),
    ],
)
def test_a_bad_value_is_named_with_its_limit(flags: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(flags)
    assert all(word in str(error.value) for word in words)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_settings({"port": "-1", "n_batch": "0"})
    assert len(str(error.value).splitlines()) == 2


def test_a_wrong_key_is_never_printed() -> None:
    with pytest.raises(ConfigError) as error:
        load_settings({"api_key": ""})
    assert "***" in str(error.value)
    shown = {row[0]: row[1] for row in load_settings({"api_key": "hush-hush"}).table()}
    assert "hush" not in shown["api_key"]


def test_human_sizes_and_lists_are_read() -> None:
    settings = load_settings(
        {"kv_tokens": "8K", "max_body_bytes": "2MiB", "cors_origins": "https://a, https://b"}
    ).settings
    assert (settings.kv_tokens, settings.max_body_bytes) == (8192, 2 << 20)
    assert settings.cors_origins == ("https://a", "https://b")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configurations_are_valid_and_hold_only_what_differs(path: Path) -> None:
    resolved = load_settings({}, path)
    same = [
        name
        for name, origin in resolved.origins.items()
        if origin == str(path) and getattr(resolved.settings, name) == Settings.model_fields[name].default
    ]
    assert same == []


@pytest.mark.parametrize("text", ["port = ", "\x00"])
def test_a_file_that_is_not_toml_is_one_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings({}, write(tmp_path / "a.toml", text))


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load_settings({}, tmp_path / "none.toml")
