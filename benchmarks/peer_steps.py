"""The same prefill and decode steps by llama.cpp: peer_steps.cpp in a process of its own, asked over pipes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.model_steps import Case
from benchmarks.peer_gguf import HEADS, WEIGHT_BITS
from benchmarks.peer_llama import Peer


class PeerSteps:
    """One GGUF file in llama.cpp; `benchmarks.model_steps.Steps`."""

    weight_bits = WEIGHT_BITS

    def __init__(self, head: str, process: subprocess.Popen[str]) -> None:
        self.name = f"llama.cpp {head}"
        self.head_bits = HEADS[head]
        self._process = process

    def times_s(self, case: Case, threads: int, seconds: float) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case.kind} {case.count} {threads} {seconds}\n")
        self._process.stdin.flush()
        return [float(word) for word in self.answer().split()]

    def answer(self) -> str:
        """The next line. Raises SystemExit when the process is gone; it has said why."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}")
        return line


@contextmanager
def peer_steps(peer: Peer, shape: str, head: str, *, rows: int, context: int, prompt: int) -> Iterator[PeerSteps]:
    """Start it with these sizes and wait until its caches are filled; it ends with the block."""
    command = [str(peer.steps), str(peer.gguf(shape, head)), str(rows), str(context), str(prompt)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        steps = PeerSteps(head, process)
        steps.answer()
        yield steps
    finally:
        process.kill()
        process.wait()
