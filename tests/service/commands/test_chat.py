"""`bitnet chat`: one question, a conversation, Ctrl-C, a terminal, and servers that are not there."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
from pathlib import Path

from tests.server.live import Live, wait_until
from tests.service.commands.run import COMMAND, ROOT, bitnet, environment, refused


def test_one_message_prints_the_answer_and_its_figures_apart(live: Live) -> None:
    done = bitnet("chat", "--url", live.url, "-m", "Hello there")
    assert done.returncode == 0
    assert done.stdout == "Hello there\n"
    assert "12 tokens" in done.stderr
    assert "first token" in done.stderr


def test_a_model_of_this_machine_answers_the_same_for_the_same_seed(tiny_packed: Path) -> None:
    arguments = ("chat", tiny_packed, "-m", "Hello", "--max-tokens", 8, "--seed", 3, "--set", "n_threads=1")
    first, second = bitnet(*arguments), bitnet(*arguments)
    assert first.returncode == 0
    assert first.stdout == second.stdout
    assert "8 tokens" in first.stderr


def test_lines_are_messages_and_slashes_are_commands(live: Live, tmp_path: Path) -> None:
    kept = tmp_path / "said.jsonl"
    commands = ["/undo", "/set max_tokens 2", "/set"]
    lines = ["one", "two \\", "lines", *commands, "three", "/again", f"/save {kept}", "/quit"]
    done = bitnet("chat", "--url", live.url, "--system", "be brief", typed="\n".join([*lines, "never"]))
    assert done.returncode == 0
    assert done.stdout == "one\ntwo \nlines\nth\nth\n"
    assert "max_tokens 2" in done.stderr
    said = [(turn["role"], turn["content"]) for turn in map(json.loads, kept.read_text().splitlines())]
    assert said == [("user", "one"), ("assistant", "one"), ("user", "three"), ("assistant", "th")]


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(slow: Live) -> None:
    # A child inherits an ignored SIGINT, which this process has when it runs in the background of a script.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*COMMAND, "chat", "--url", slow.url],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("talk\n")
    process.stdin.flush()
    assert process.stdout.read(5).isalpha()
    process.send_signal(signal.SIGINT)
    slow.at_rest()
    out, errors = process.communicate("/set max_tokens 3\nmore\n", timeout=30)
    assert process.returncode == 0, errors
    assert "stopped" in errors
    assert "3 tokens" in errors
    assert len(out.splitlines()[-1]) == 3


def test_a_terminal_gets_a_banner_help_and_an_end_by_ctrl_d(live: Live) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "chat", "--url", live.url],
        cwd=ROOT,
        env={**environment(), "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = ""

    def shows(text: str) -> bool:
        nonlocal seen
        try:
            seen += os.read(ours, 4096).decode()
        except OSError:  # the terminal's other end is closed
            assert text in seen, seen
        return text in seen

    wait_until(lambda: shows("/help for commands"), 30)
    os.write(ours, b"/help\n")
    wait_until(lambda: shows("take back the last message"))
    os.write(ours, b"Hello you\n")
    wait_until(lambda: shows("10 tokens"))
    while not seen.endswith("> "):  # before its prompt it reads no keys, and the terminal would keep this one to itself
        shows("> ")
    os.write(ours, b"\x04")
    assert process.wait(20) == 0
    os.close(ours)


def test_a_refusal_in_a_script_ends_with_status_1_and_the_servers_words(live: Live) -> None:
    assert "temperature" in refused(1, "chat", "--url", live.url, "-m", "a", "--temperature", 9)


def test_a_key_is_asked_for_with_a_hint_and_taken_from_flag_or_environment() -> None:
    with Live({"api_key": "secret"}) as server:
        assert "--api-key" in refused(1, "chat", "--url", server.url, "-m", "a")
        assert bitnet("chat", "--url", server.url, "-m", "a", "--api-key", "secret").stdout == "a\n"


def test_a_server_that_is_not_there_ends_with_status_1_and_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert "bitnet serve" in refused(1, "chat", "--url", f"http://127.0.0.1:{port}", "-m", "a")
    assert "http://host:port" in refused(1, "chat", "--url", "ftp://a", "-m", "a")


def test_model_and_url_exclude_each_other() -> None:
    assert "--url" in refused(2, "chat", "some/model", "--url", "http://127.0.0.1:1", "-m", "a")


def test_a_model_that_is_none_ends_with_status_3() -> None:
    assert "no such folder" in refused(3, "chat", "no/such/folder/here", "-m", "a")
