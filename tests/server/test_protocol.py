"""What arrives before there is a request: slow senders, endless headers, things that are not HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.server.live import Live, read_all, request_bytes, wait_until
from tests.service.engine.fakes import endless

BODY = b'{"prompt": "hi"}'


@pytest.fixture(scope="module")
def strict() -> Iterator[Live]:
    """Half a second for a request, 2 KiB for a header, 4 KiB for a body."""
    settings = {"receive_timeout_s": 0.5, "max_header_bytes": 2048, "max_body_bytes": 4096}
    with Live(settings) as server:
        yield server


def error_in(data: bytes, status: int) -> str:
    """The code of the error object of one HTTP response."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), data[:200]
    assert b"content-type: application/json" in head.lower()
    return str(json.loads(body)["error"]["code"])


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", None),
        (b"P", "request_timeout"),
        (b"POST /completion HTTP/1.1\r\nHost: a\r\nX-Slow: ", "request_timeout"),
        (request_bytes("/completion", BODY)[:-4], "request_timeout"),
        (
            b'POST /completion HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"pro',
            "request_timeout",
        ),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /hea", "request_timeout"),
    ],
)
def test_a_request_that_does_not_arrive_is_ended(strict: Live, sent: bytes, code: str | None) -> None:
    with strict.connect() as sock:
        sock.sendall(sent)
        answer = read_all(sock)
    if code is None:
        assert answer == b""
    else:
        last = answer[answer.rindex(b"HTTP/1.1 ") :]
        assert error_in(last, 408) == code
    strict.at_rest()


def test_a_sender_of_one_byte_at_a_time_is_ended_all_the_same(strict: Live) -> None:
    start = time.monotonic()
    with strict.connect() as sock:
        try:
            for byte in request_bytes("/completion", BODY, "X-Filler: " + "x" * 100 + "\r\n"):
                sock.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass
        read_all(sock)
    assert time.monotonic() - start < 5
    strict.at_rest()


def test_the_deadline_leaves_long_streams_and_idle_connections_alone() -> None:
    with Live({"receive_timeout_s": 0.3}, choose=endless, step_s=0.005, n_ctx=200) as live, httpx.Client() as client:
        answer = client.post(live.url + "/completion", json={"prompt": "hi", "stream": True}, timeout=20)
        assert answer.text.endswith("data: [DONE]\n\n")
        time.sleep(0.4)
        (connection,) = live.server.server_state.connections
        assert client.get(live.url + "/health").status_code == 200
        assert connection in live.server.server_state.connections


def test_a_header_that_never_ends_is_431_before_it_fills_the_memory(strict: Live) -> None:
    with strict.connect() as sock:
        try:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nX-Endless: ")
            for _ in range(100):
                sock.sendall(b"x" * 1024)
                time.sleep(0.001)
        except OSError:
            pass
        answer = read_all(sock)
    assert not answer or error_in(answer, 431) == "too_large"
    strict.at_rest()


def test_a_header_that_is_just_too_large_is_told_so(strict: Live) -> None:
    for filler in (2100, 4000):
        with strict.connect() as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Filler: ")
            sock.sendall(b"x" * filler + b"\r\n\r\n")
            assert error_in(read_all(sock), 431) == "too_large"


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /completion HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_the_one_shape(strict: Live, sent: bytes) -> None:
    with strict.connect() as sock:
        sock.sendall(sent)
        answer = read_all(sock)
    status = int(answer.split(b" ")[1])
    assert status in (400, 501)
    assert error_in(answer, status) == "invalid_request"
    strict.at_rest()


def test_a_smuggled_request_is_not_served(strict: Live) -> None:
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
    with strict.connect() as sock:
        head = b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
        sock.sendall(head + b"0\r\n\r\n" + hidden)
        answer = read_all(sock)
    assert error_in(answer, 400) == "invalid_request"


def test_a_body_that_is_too_large_is_413_even_while_it_is_being_sent(strict: Live) -> None:
    assert error_in_response(httpx.post(strict.url + "/completion", content=b" " * 500_000)) == (413, "too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 10_000

    assert error_in_response(httpx.post(strict.url + "/completion", content=chunks())) == (413, "too_large")
    strict.at_rest()


def error_in_response(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_client_that_asks_before_it_sends_is_refused_before_it_sends(strict: Live) -> None:
    with strict.connect() as sock:
        sock.sendall(request_bytes("/completion", b"", "Expect: 100-continue\r\n").replace(b": 0", b": 999999"))
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")
    with strict.connect() as sock:
        whole = request_bytes("/completion", BODY, "Expect: 100-continue\r\nConnection: close\r\n")
        sock.sendall(whole[: -len(BODY)])
        assert sock.recv(4096).startswith(b"HTTP/1.1 100")
        sock.sendall(BODY)
        assert b'"content":"hi"' in read_all(sock)


def test_pipelined_requests_are_answered_in_order(strict: Live) -> None:
    one, two = (request_bytes("/completion", b'{"prompt": "%s"}' % name) for name in (b"first", b"second"))
    last = request_bytes("/completion", b'{"prompt": "third"}', "Connection: close\r\n")
    with strict.connect() as sock:
        sock.sendall(one + two + last)
        answer = read_all(sock)
    places = [answer.index(b'"content":"' + name) for name in (b"first", b"second", b"third")]
    assert places == sorted(places)


def test_an_offer_to_speak_another_protocol_is_passed_over(strict: Live) -> None:
    for offer in ("websocket", "h2c"):
        response = httpx.get(strict.url + "/health", headers={"Connection": "Upgrade", "Upgrade": offer})
        assert response.status_code == 200


def test_nothing_tells_what_serves_and_every_answer_has_an_id(strict: Live) -> None:
    response = httpx.get(strict.url + "/health")
    assert "server" not in response.headers
    assert response.headers["x-request-id"]


def test_a_refusal_in_mid_stream_of_pipelined_nonsense_cuts_the_connection() -> None:
    with Live(choose=endless, step_s=0.002, n_ctx=120) as live:
        with live.connect() as sock:
            sock.sendall(request_bytes("/completion", b'{"prompt": "hi", "stream": true}') + b"nonsense\r\n\r\n")
            answer = read_all(sock)
        assert b"data: [DONE]" in answer
        assert b"invalid_request" in answer
        live.at_rest()


def test_health_answers_while_many_streams_run() -> None:
    with Live(choose=endless, step_s=0.005, n_ctx=400, max_running=8, max_queue=16, num_blocks=512) as live:
        stop = threading.Event()

        def client() -> None:
            with socket.create_connection(("127.0.0.1", live.port)) as sock:
                sock.sendall(request_bytes("/completion", b'{"prompt": "hi", "stream": true}'))
                while not stop.is_set() and sock.recv(65536):
                    pass

        threads = [threading.Thread(target=client) for _ in range(12)]
        for thread in threads:
            thread.start()
        wait_until(lambda: live.engine.stats()["open"] == 12)
        assert httpx.get(live.url + "/health", timeout=5).status_code == 200
        assert httpx.get(live.url + "/health/ready", timeout=5).status_code == 200
        stop.set()
        for thread in threads:
            thread.join()
        live.at_rest()
