"""How the process starts, stops and ends: signals, exit codes, and what its clients get to see meanwhile."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.server.live import read_all, request_bytes, wait_until
from tests.server.process import Process
from tests.service.api.asgi import error_of, events_of


@contextmanager
def serving(**given: Any) -> Iterator[Process]:
    """A process that is gone afterwards; unless its engine is made to die, there is no traceback in its log."""
    process = Process("tests.server.fake_server", json.dumps(given))
    try:
        yield process
        process.exit_code()
        assert "dies" in given or "Traceback" not in process.log, process.log
    finally:
        process.end()


class Streaming(threading.Thread):
    """One streamed completion, read to its end."""

    def __init__(self, process: Process, n_predict: int) -> None:
        super().__init__()
        self.url = process.url
        self.n_predict = n_predict
        self.text = ""
        self.start()
        wait_until(lambda: self.text != "")

    def run(self) -> None:
        body = {"prompt": "hi", "stream": True, "n_predict": self.n_predict}
        with httpx.stream("POST", self.url + "/completion", json=body, timeout=30) as response:
            for piece in response.iter_text():
                self.text += piece


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server_with_status_zero(number: int) -> None:
    with serving() as process:
        process.ready()
        process.wait_for(f"try: curl {process.url}/chat/completions")
        with httpx.Client() as client:
            client.get(process.url + "/health")
            process.signal(number)
            assert process.exit_code(5) == 0


def test_running_streams_end_whole_while_new_requests_get_503() -> None:
    with serving(step_s=0.02) as process:
        process.ready()
        streams = [Streaming(process, 60) for _ in range(3)]
        process.signal(signal.SIGTERM)
        process.wait_for("stopping")
        for path in ("/health", "/health/ready", "/v1/models"):
            refusal = httpx.get(process.url + path)
            error_of(refusal, 503, "draining")
            assert int(refusal.headers["retry-after"]) > 0
        error_of(httpx.post(process.url + "/completion", json={"prompt": "hi"}), 503, "draining")
        assert httpx.get(process.url + "/health/live").status_code == 200
        assert process.exit_code() == 0
        for stream in streams:
            stream.join()
            assert events_of(stream.text)[-1]["tokens_predicted"] == 60


def test_at_the_deadline_streams_get_an_error_event_and_done() -> None:
    with serving(step_s=0.02, n_ctx=2000, settings={"drain_timeout_s": 0.3}) as process:
        process.ready()
        stream = Streaming(process, -1)
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0
        stream.join()
        *chunks, last = events_of(stream.text)
        assert chunks
        assert last["error"]["code"] == "draining"


def test_a_second_signal_ends_at_once() -> None:
    with serving(step_s=0.02, n_ctx=2000) as process:
        process.ready()
        with socket.create_connection(("127.0.0.1", process.port)) as sock:
            sock.sendall(request_bytes("/completion", b'{"prompt": "hi", "stream": true}'))
            sock.recv(4096)
            process.signal(signal.SIGTERM)
            process.wait_for("stopping")
            start = time.monotonic()
            process.signal(signal.SIGTERM)
            assert process.exit_code(5) == 128 + signal.SIGTERM
            assert time.monotonic() - start < 5
            read_all(sock)


def test_requests_that_are_still_arriving_do_not_hold_the_end_up() -> None:
    with serving() as process:
        process.ready()
        socks = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(3)]
        for sock, sent in zip(socks, (b"", b"GET /hea", request_bytes("/completion", b"{}")[:-1]), strict=True):
            sock.sendall(sent)
        httpx.get(process.url + "/health")
        process.signal(signal.SIGTERM)
        assert process.exit_code(5) == 0
        for sock in socks:
            read_all(sock)
            sock.close()


def test_a_signal_while_the_model_is_loading_ends_with_status_zero() -> None:
    with serving(load_s=20) as process:
        error_of(httpx.get(process.url + "/health"), 503, "model_loading")
        error_of(httpx.post(process.url + "/completion", json={"prompt": "hi"}), 503, "model_loading")
        process.signal(signal.SIGTERM)
        assert process.exit_code(5) == 0


def test_a_port_in_use_is_one_clear_line_and_status_two() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(settings={"port": port}) as process:
            assert process.exit_code() == 2
            assert process.log == f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


def test_a_model_that_does_not_load_ends_the_process_with_the_reason() -> None:
    with serving(fail="code 3 in layer 7") as process:
        assert process.exit_code() == 3
        assert "error: code 3 in layer 7" in process.log


def test_an_engine_that_dies_ends_the_process_with_an_error_status() -> None:
    with serving(dies=True) as process:
        process.ready()
        response = httpx.post(process.url + "/completion", json={"prompt": "hi"})
        assert response.status_code in (500, 503)
        assert response.json()["error"]["code"] in ("internal_error", "engine_dead")
        assert process.exit_code() == 70


def test_the_log_has_one_line_for_each_request_and_never_its_prompt() -> None:
    with serving(settings={"log_level": "debug"}) as process:
        process.ready()
        for stream in (False, True):
            body = {"prompt": "our secret", "n_predict": 3, "stream": stream}
            httpx.post(process.url + "/completion", json=body, headers={"X-Request-Id": f"request-{stream}"})
        process.signal(signal.SIGTERM)
        assert process.exit_code(5) == 0
        for stream in (False, True):
            assert len(re.findall(rf"\[request-{stream}\] method=POST", process.log)) == 1
        assert "secret" not in process.log
        assert "uvicorn.access" not in process.log
