"""Clients that leave: whatever stage their request was in, the engine is back where it was, and nobody else notices."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.api.exchange import StreamTimes
from tests.server.asking import LEAST
from tests.server.live import Live, read_all, request_bytes, wait_until
from tests.service.engine.fakes import endless, hashed


def body_of(stream: bool, **fields: object) -> bytes:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({**chat, "prompt": "hi", "stream": stream, **fields}).encode()


@pytest.fixture(scope="module")
def endless_live() -> Iterator[Live]:
    """Generations of about two seconds, two at a time."""
    with Live(choose=endless, step_s=0.004, n_ctx=512, max_running=2, num_blocks=256) as server:
        yield server


def leave(sock: socket.socket, *, abruptly: bool) -> None:
    if abruptly:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", LEAST)
def test_a_client_that_leaves_a_running_generation_ends_it(
    endless_live: Live, path: str, stream: bool, abruptly: bool
) -> None:
    before = int(endless_live.engine.stats()["generated_tokens"])
    sock = endless_live.connect()
    sock.sendall(request_bytes(path, json.dumps({**LEAST[path], "stream": stream}).encode()))
    wait_until(lambda: int(endless_live.engine.stats()["generated_tokens"]) > before)
    leave(sock, abruptly=abruptly)
    wait_until(lambda: endless_live.engine.stats()["open"] == 0, 2.0)
    endless_live.at_rest()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_the_queue_is_forgotten(endless_live: Live, stream: bool) -> None:
    running = [endless_live.connect() for _ in range(2)]
    for sock in running:
        sock.sendall(request_bytes("/completion", body_of(True)))
    wait_until(lambda: endless_live.engine.stats()["running"] == 2)
    queued = [endless_live.connect() for _ in range(3)]
    for sock in queued:
        sock.sendall(request_bytes("/completion", body_of(stream)))
    wait_until(lambda: endless_live.engine.stats()["waiting"] == 3)
    for sock in queued:
        leave(sock, abruptly=False)
    wait_until(lambda: endless_live.engine.stats()["waiting"] == 0, 2.0)
    assert endless_live.engine.stats()["running"] == 2
    for sock in running:
        leave(sock, abruptly=False)
    endless_live.at_rest()


def test_a_client_that_leaves_in_the_middle_of_its_body_costs_nothing(endless_live: Live) -> None:
    for cut in (10, 60, 150):
        sock = endless_live.connect()
        sock.sendall(request_bytes("/completion", body_of(False, user="x" * 100))[:cut])
        leave(sock, abruptly=False)
    endless_live.at_rest()


def test_a_client_that_leaves_during_the_silence_before_the_first_token_is_noticed() -> None:
    gate = threading.Event()
    times = StreamTimes(first_byte_s=0.05, ping_s=0.05)
    with Live(before_step=lambda plan: gate.wait(10) or None, times=times) as live:
        early, late = live.connect(), live.connect()
        for sock in (early, late):
            sock.sendall(request_bytes("/completion", body_of(True)))
        assert b": ping" in late.recv(4096) + late.recv(4096)
        leave(early, abruptly=False)
        leave(late, abruptly=False)
        wait_until(lambda: live.engine.stats()["open"] == 0, 2.0)
        gate.set()
        live.at_rest()


def test_neighbours_of_a_storm_of_leavers_get_the_answers_they_get_alone() -> None:
    with Live(choose=hashed, step_s=0.001, n_ctx=256, max_running=4, num_blocks=64, max_queue=64) as live:
        bodies = [{"prompt": f"neighbour {i}", "seed": i, "n_predict": 20 + i} for i in range(6)]
        alone = [live.post("/completion", body).json()["content"] for body in bodies]
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                sock = live.connect()
                sock.sendall(request_bytes("/completion", body_of(True, prompt="noise " * 10)))
                stop.wait(0.05)
                leave(sock, abruptly=True)

        leavers = [threading.Thread(target=storm) for _ in range(3)]
        for thread in leavers:
            thread.start()
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda body: live.post("/completion", body).json()["content"], bodies))
        stop.set()
        for thread in leavers:
            thread.join()
        assert together == alone
        live.at_rest()


def test_a_reader_that_never_reads_is_cut_off_and_its_neighbours_are_not_held_up() -> None:
    # Far more tokens than the sockets' buffers hold, however many a fast engine puts into one event.
    live = Live({"receive_timeout_s": 0.5}, choose=endless, n_ctx=100_000, num_blocks=12_800)
    live.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with live:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", live.port))
        sock.sendall(request_bytes("/completion", body_of(True)))
        wait_until(lambda: live.engine.stats()["open"] == 1)
        answer = httpx.post(live.url + "/completion", json={"prompt": "hi", "n_predict": 50}, timeout=20).json()
        assert answer["tokens_predicted"] == 50
        wait_until(lambda: live.engine.stats()["open"] == 0)
        wait_until(lambda: not live.server.server_state.connections)
        leave(sock, abruptly=False)
        live.at_rest()


def test_a_half_closed_client_counts_as_gone(endless_live: Live) -> None:
    with endless_live.connect() as sock:
        sock.sendall(request_bytes("/completion", body_of(True)))
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)
    endless_live.at_rest()
