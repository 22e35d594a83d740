"""`bitnet serve` as a user runs it: a real checkpoint, real exit codes, one plain line for what cannot be."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.process import Process
from triton_kernels import unavailable_reason

needs_no_gpu = pytest.mark.skipif(unavailable_reason() is None, reason="this machine has a GPU that will do")


@contextmanager
def bitnet(*arguments: str) -> Iterator[Process]:
    process = Process("service", "serve", *arguments)
    try:
        yield process
    finally:
        process.end()


def refused(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and the log's error lines of a command that cannot serve."""
    with bitnet("--port", "0", *arguments) as process:
        code = process.exit_code(60)
        assert "Traceback" not in process.log, process.log
        return code, [line for line in process.log.splitlines() if "ERROR" in line or line.startswith("error:")]


def test_a_folder_is_served_and_the_end_is_clean(tiny_packed: Path) -> None:
    with bitnet(str(tiny_packed), "--port", "0", "--kv-tokens", "1K", "--n-threads", "1") as process:
        process.wait_for(f"serves {tiny_packed.name}")
        process.wait_for(f"chat in a browser: {process.url}/")
        process.wait_for(f"try: curl {process.url}/chat/completions")
        answer = httpx.post(
            f"{process.url}/completion", json={"prompt": "a", "n_predict": 4, "temperature": 0}, timeout=60
        )
        assert answer.json()["tokens_predicted"] == 4
        assert answer.json()["generation_settings"]["n_ctx"] == 512
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0
        assert "Traceback" not in process.log


def test_the_demo_model_is_served_without_a_name() -> None:
    with bitnet("--port", "0", "--offline") as process:
        process.wait_for("serves bitnet-demo")
        body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 60, "seed": 1}
        answer = httpx.post(f"{process.url}/chat/completions", json=body, timeout=60).json()
        text = answer["choices"][0]["message"]["content"]
        assert text.isascii()
        assert text.count(" ") >= 1
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0


def test_a_damaged_checkpoint_ends_with_status_3_and_says_what_is_wrong(tiny_packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_packed, tmp_path / "damaged"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 256}))
    code, lines = refused(str(folder))
    assert code == 3
    assert "model.embed_tokens.weight" in lines[0]


def test_a_tokenizer_that_cannot_be_read_ends_with_status_3(tiny_packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_packed, tmp_path / "mute"))
    (folder / "tokenizer.json").write_text("{}")
    code, lines = refused(str(folder))
    assert code == 3
    assert "tokenizer.json" in lines[0]


def test_a_name_that_is_no_folder_ends_with_status_3() -> None:
    code, lines = refused("no/such/folder/here")
    assert code == 3
    assert "no such folder" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n-ctx", "4096"], ["n_ctx 4096", "512"]),
        (["--kv-tokens", "256", "--n-ctx", "512"], ["256", "512"]),
        (["--head-dtype", "bf16"], ["head_dtype bf16", "int8"]),
        (["--cpu-isa", "neon_dot", "--backend", "cpu"], ["neon_dot"]),
        pytest.param(["--backend", "triton"], ["triton", "--backend cpu"], marks=needs_no_gpu),
    ],
)
def test_a_setting_that_cannot_be_met_ends_with_status_2_and_the_numbers(
    tiny_packed: Path, arguments: list[str], words: list[str]
) -> None:
    code, lines = refused(str(tiny_packed), *arguments)
    assert code == 2
    assert all(word in lines[0] for word in words)


def test_a_port_in_use_ends_with_status_2(tiny_packed: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        bitnet(str(tiny_packed), "--port", str(sock.getsockname()[1])) as process,
    ):
        assert process.exit_code(60) == 2
        assert "cannot listen on 127.0.0.1 port" in process.log
