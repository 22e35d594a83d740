"""A server in a process of its own, its log read as it comes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from tests.server.live import wait_until

ROOT = Path(__file__).parents[2]


class Process:
    """A server process; its log is read as it comes."""

    def __init__(self, *arguments: str) -> None:
        """Run `python -m` with these arguments."""
        command = [sys.executable, "-m", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.log = ""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log or self.process.poll() is not None, 30)
        assert text in self.log, self.log

    @property
    def port(self) -> int:
        self.wait_for("listening on")
        match = re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.log)
        assert match
        return int(match[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> Process:
        self.wait_for("ready: ")
        return self

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def exit_code(self, seconds: float = 15) -> int:
        code = self.process.wait(seconds)
        self.reader.join()
        return code

    def end(self) -> None:
        """Make sure that nothing of it is left."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
