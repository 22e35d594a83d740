"""The servers that benchmarks.serving compares: ours by the command a user would type, and llama.cpp's llama-server.

Each runs on a free loopback port until the block ends. Knows no client.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.peer_llama import Peer

START_TIMEOUT_S = 120


@contextmanager
def our_server(model: Path, arguments: Sequence[str]) -> Iterator[str]:
    """Run ``bitnet serve`` and give its URL once it is ready."""
    # random weights repeat themselves as no trained ones do: what guesses save is measured by benchmarks.speculation
    command = [sys.executable, "-m", "service", "serve", str(model), "--port", "0", "--draft-max", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    rest = threading.Thread(target=process.stderr.read, daemon=True)
    try:
        for line in process.stderr:
            if "http://" in line and "ready" in line.lower():
                break
        else:
            raise SystemExit(f"the server ended with status {process.wait()}")
        rest.start()  # a full pipe would stop the server
        yield next(word for word in line.split() if word.startswith("http://")).rstrip(".,")
    finally:
        process.terminate()
        process.wait(60)
        if rest.ident is not None:
            rest.join()
        process.stderr.close()


@contextmanager
def llama_server(peer: Peer, model: Path, *, threads: int, slots: int, slot_tokens: int) -> Iterator[str]:
    """Run llama-server with a slot of `slot_tokens` for each client; continuous batching is its default."""
    port = free_port()
    sizes = ["-t", str(threads), "-np", str(slots), "-c", str(slots * slot_tokens)]
    command = [str(peer.server), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *sizes]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_healthy(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def wait_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when /health answers 200. Raises SystemExit when the process ends or takes too long."""
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with status {process.returncode}")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{process.args} was not ready after {START_TIMEOUT_S} s")


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
