"""Our command as a process of its own, watched from outside: by its log and its metrics."""

from __future__ import annotations

import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEY = "a-key-for-clients"

# What the server holds while it answers.
HELD = (
    "bitnet:num_requests_open",
    "bitnet:num_requests_running",
    "bitnet:num_requests_waiting",
    "bitnet:kv_cache_usage_perc",
)
ABORTED = 'bitnet:request_success_total{finished_reason="abort"}'
FAILED = 'bitnet:http_responses_total{status="500"}'


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


class Served:
    """The server with the demo model on a free port of 127.0.0.1, from `with` to its end; it asks for KEY."""

    def __init__(self, log: Path, *arguments: str) -> None:
        """`arguments` go to its command."""
        self._log = log
        self._arguments = arguments
        self.url = ""

    def __enter__(self) -> Served:
        python = ROOT / ".venv" / "bin" / "python"
        command = [str(python), "-X", "faulthandler", "-m", "service", "serve", "--port", "0"]
        command += ["--api-key", KEY, *self._arguments]
        with self._log.open("wb") as stderr:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=stderr, stderr=stderr)
        wait_until(lambda: "ready: " in self.log or self._process.poll() is not None, "the server is ready", 60)
        match = re.search(r"listening on (http://127\.0\.0\.1:\d+)", self.log)
        assert match, self.log
        self.url = match[1]
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            status = self._process.wait(45)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # faulthandler writes where every thread stands
            status = self._process.wait()
        assert status == 0, f"the server told to end did so with status {status}:\n{self.log[-8000:]}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def v1(self) -> str:
        """What the clients call base_url."""
        return self.url + "/v1"

    def metrics(self) -> dict[str, float]:
        """Every series by its name with its labels."""
        request = urllib.request.Request(self.url + "/metrics", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def at_rest(self) -> None:
        """Wait until nothing is open, running or waiting and every block of the KV cache is back."""
        wait_until(lambda: not any(self.metrics()[name] for name in HELD), "the server is at rest")

    def busy(self) -> None:
        """Wait until a request is in a step."""
        wait_until(lambda: self.metrics()["bitnet:num_requests_running"] > 0, "a request is running", 60)

    @contextmanager
    def left_early(self) -> Iterator[None]:
        """The client inside leaves one answer while it is written: the server aborts it and is at rest again."""
        before = self.metrics()[ABORTED]
        yield
        wait_until(lambda: self.metrics()[ABORTED] == before + 1, "the answer that was left is aborted")
        self.at_rest()
