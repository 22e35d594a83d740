"""The command line: flags, exit codes, one-line errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.config import Settings


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"BITNET_{name.upper()}", raising=False)
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_every_setting_is_a_flag(cli: CliRunner) -> None:
    text = cli.invoke(app, ["serve", "--help"]).stdout
    missing = [name for name in Settings.model_fields if name != "model" and f"--{name.replace('_', '-')}" not in text]
    assert missing == []


def test_the_help_shows_defaults(cli: CliRunner) -> None:
    text = cli.invoke(app, ["serve", "--help"]).stdout
    (line,) = [line for line in text.splitlines() if "--port " in line]
    assert "default: 8081" in line
    assert "without one the demo model" in text


def test_the_shell_completes_commands() -> None:
    environment = {**os.environ, "_BITNET_COMPLETE": "complete_bash", "COMP_WORDS": "bitnet se", "COMP_CWORD": "1"}
    # The variable's name comes from the program's, which is the console script's.
    code = "import sys; sys.argv = ['bitnet']; from service.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["serve", "selfcheck"]


def test_print_config_shows_value_and_origin_of_every_setting(cli: CliRunner) -> None:
    result = cli.invoke(app, ["serve", "some/model", "--print-config", "--n-ctx", "8K", "--offline"])
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert result.exit_code == 0
    assert rows.keys() == Settings.model_fields.keys()
    assert all(word in rows["n_ctx"] for word in ("8192", "flag"))
    assert all(word in rows["model"] for word in ("some/model", "flag"))
    assert all(word in rows["offline"] for word in ("True", "flag"))
    assert all(word in rows["port"] for word in ("8081", "default"))


def test_a_bad_setting_ends_with_status_2_and_one_line(cli: CliRunner) -> None:
    result = cli.invoke(app, ["serve", "--port", "http"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: setting port = 'http' (flag)")
    assert len(result.stderr.splitlines()) == 1


def test_an_unknown_flag_ends_with_status_2(cli: CliRunner) -> None:
    assert cli.invoke(app, ["serve", "--no-such-flag"]).exit_code == 2
