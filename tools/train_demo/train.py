"""The time-boxed training loop.

One run goes through both stages: plain text first, chats mixed in later, and the learning rate falls to zero exactly
at the deadline.  Every step moves progress by its share of what is left: its usual seconds / seconds to the deadline.
So a run that is stopped, killed and started again, or slowed by other work never jumps in its schedule and still ends
on time.

Source: Ma et al. 2025, "BitNet b1.58 2B4T Technical Report" (weight decay only in the first stage).
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .batches import Sampler
from .data import Rows
from .model import DemoModel, pieces_of
from .muon import make_optimizers

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
WARMUP = 0.02  # of the whole run
WEIGHT_DECAY_UNTIL = 0.5


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything a run needs besides model and data.

    `deadline` is the Unix time at which the run is complete, `stop_at` the one at which this process saves and leaves
    what is left of the run to the next.
    """

    out: Path
    deadline: float
    first_mix: dict[str, float]
    second_mix: dict[str, float]
    stop_at: float = math.inf
    rows_per_step: int = 16
    rows_per_pass: int = 2
    num_workers: int = 2
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    weight_decay: float = 0.1
    decay_from: float = 0.35  # progress at which the learning rate begins to fall
    chat_from: float = 0.55  # progress at which the second mix begins
    save_every_s: float = 180.0
    device: str = "cpu"
    bf16: bool = True
    seed: int = 1
    max_steps: int = 0  # 0: until the deadline
    compile: bool = False  # takes a C++ compiler; pays after a few minutes
    watch_every: int = 100  # steps from one look at the held-out rows to the next


def lr_factor(progress: float, decay_from: float) -> float:
    """Warm up, hold, then fall linearly to a hundredth; `progress` in [0, 1], `decay_from` in [WARMUP, 1)."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    if progress < decay_from:
        return 1.0
    return max(0.01, (1 - progress) / (1 - decay_from))


def head_loss(embedding: Tensor, states: Tensor, targets: Tensor) -> Tensor:
    """Summed cross entropy of states [T, H] at targets [T]."""
    return functional.cross_entropy(functional.linear(states, embedding).float(), targets, reduction="sum")


def check_gradients(named: Iterable[str], wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """RuntimeError where a gradient is less than half or more than twice as long as it should be."""
    sizes = [(float(a.norm()), float(b.norm())) for a, b in zip(wanted, found, strict=True)]
    wrong = [
        f"{name} (|gradient| {b:.3g} instead of {a:.3g})"
        for name, (a, b) in zip(named, sizes, strict=True)
        if not a / 2 <= b <= 2 * a
    ]
    if wrong:
        raise RuntimeError(f"compiled layers have wrong gradients, try --no-compile: {len(wrong)}, as of {wrong[0]}")


class Run:
    """Model, optimizers and counters of one training run, with what it takes to stop and go on."""

    def __init__(
        self,
        model: DemoModel,
        sets: dict[str, Rows],
        settings: TrainSettings,
        begin_id: int,
        held_out: Rows | None = None,
    ) -> None:
        self.settings, self.begin_id, self.held_out = settings, begin_id, held_out
        self.device = torch.device(settings.device)
        self.model = model.to(self.device)
        # Threads that each run whole passes, instead of threads inside every operator: with 2 busy cores shared with
        # other work, operator barriers cost more than half of the speed.
        torch.set_num_threads(1)
        if settings.compile:
            self.model.compile_parts()
        self.head_loss = torch.compile(head_loss, dynamic=True) if settings.compile else head_loss
        self.pool = ThreadPoolExecutor(settings.num_workers, initializer=torch.set_num_threads, initargs=(1,))
        self.optimizers = make_optimizers(
            self.model, settings.muon_lr, settings.adam_lr, settings.weight_decay, self.pool
        )
        self.base_lrs = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.step, self.tokens, self.progress, self.step_s = 0, 0, 0.0, 0.0
        self.trained_s, self.cpu_s = 0.0, 0.0
        self.stop_requested = False
        self.sampler = Sampler(sets, settings.seed)

    def advance(self, step_s: float) -> None:
        """Move `progress` by the share that one step has in the time left; a stop counts as twice usual."""
        usual_s = self.step_s or step_s
        self.step_s = 0.95 * usual_s + 0.05 * min(step_s, 2 * usual_s)
        left_s = max(self.step_s, self.settings.deadline - time.time())
        self.progress += (1 - self.progress) * self.step_s / left_s

    def warm_up(self) -> None:
        """Compile what is to be compiled, before the clock of the steps runs, and see that it learns as it should.

        RuntimeError where compiled gradients are not of the size of those computed operator by operator: a wrong one
        raises nothing by itself, and the loss still falls a little by the head alone.
        """
        if not self.settings.compile:
            return
        row_length = next(iter(self.sampler.sets.values())).token_ids.shape[1]
        shape, vocab_size = (self.settings.rows_per_pass, row_length), self.model.config.vocab_size
        rows = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(self.settings.seed))
        given = rows.to(self.device), torch.ones(shape, dtype=torch.bool, device=self.device)
        with torch.compiler.set_stance("force_eager"):
            wanted = self._pass(*given)[1]
        check_gradients(dict(self.model.named_parameters()), wanted, self._pass(*given)[1])
        self.held_out_loss()

    def save(self) -> None:
        """Write checkpoint.pt whole or not at all."""
        state = {
            "config": self.model.config.to_dict(),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "progress": self.progress,
            "trained_s": self.trained_s,
            "cpu_s": self.cpu_s,
            "epochs": self.sampler.epochs,
        }
        temporary = self.settings.out / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(self.settings.out / CHECKPOINT)

    def load(self) -> None:
        """Go on from checkpoint.pt if there is one; rows are drawn anew, seeded by the step."""
        path = self.settings.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.progress = state["step"], state["tokens"], state["progress"]
        self.trained_s, self.cpu_s = state["trained_s"], state["cpu_s"]
        self.sampler = Sampler(self.sampler.sets, self.settings.seed + self.step)
        self.sampler.epochs |= state["epochs"]

    def train_step(self) -> float:
        """One update; returns the mean loss per target token."""
        start, start_cpu = time.time(), time.process_time()
        self._schedule(self.progress)
        settings = self.settings
        mix = settings.first_mix if self.progress < settings.chat_from else settings.second_mix
        token_ids, loss = self.sampler.draw(self.settings.rows_per_step, mix)
        token_ids, loss = token_ids.to(self.device), loss.to(self.device)
        num_targets = int(loss[:, 1:].sum())
        passes = zip(
            torch.split(token_ids, self.settings.rows_per_pass),
            torch.split(loss, self.settings.rows_per_pass),
            strict=True,
        )
        total = 0.0
        for summed, grads in self.pool.map(lambda rows: self._pass(*rows), passes):
            total += summed
            self._accumulate(grads, 1 / num_targets)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += token_ids[:, 1:].numel()
        self.cpu_s += time.process_time() - start_cpu
        step_s = time.time() - start
        self.trained_s += step_s
        self.advance(step_s)
        return total / num_targets

    def _pass(self, token_ids: Tensor, loss: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        """Summed loss and gradients of some rows; touches nothing shared, so several may run at once."""
        summed = self._summed_loss(token_ids, loss)
        return float(summed.detach()), torch.autograd.grad(summed, list(self.model.parameters()))

    def _summed_loss(self, token_ids: Tensor, loss: Tensor) -> Tensor:
        """Loss of all targets of token_ids [B, L] where `loss` [B, L]: f32 []."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            inputs, targets, wanted = token_ids[:, :-1], token_ids[:, 1:], loss[:, 1:]
            states = self.model.hidden(inputs, pieces_of(inputs == self.begin_id))
            # Only target places go through the head: on chat rows that is about half of them.
            summed: Tensor = self.head_loss(self.model.model.embed_tokens.weight, states[wanted], targets[wanted])
        return summed

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """Mean loss per target token of the first held-out rows, as many as go through the model at once."""
        if self.held_out is None:
            return None
        rows = slice(self.settings.rows_per_pass)
        token_ids = torch.from_numpy(self.held_out.token_ids[rows].astype(np.int64)).to(self.device)
        loss = torch.from_numpy(self.held_out.loss[rows]).to(self.device)
        return float(self._summed_loss(token_ids, loss)) / int(loss[:, 1:].sum())

    def _accumulate(self, grads: tuple[Tensor, ...], factor: float) -> None:
        for param, grad in zip(self.model.parameters(), grads, strict=True):
            param.grad = grad.mul_(factor) if param.grad is None else param.grad.add_(grad, alpha=factor)

    def _schedule(self, progress: float) -> None:
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            group = optimizer.param_groups[0]
            group["lr"] = base * lr_factor(progress, self.settings.decay_from)
            if "momentum" in group:
                group["weight_decay"] = self.settings.weight_decay if progress < WEIGHT_DECAY_UNTIL else 0.0

    def finished(self) -> bool:
        settings = self.settings
        out_of_time = time.time() >= min(settings.deadline, settings.stop_at)
        return self.stop_requested or out_of_time or 0 < settings.max_steps <= self.step


def train(run: Run, report: Callable[[Run, float], None]) -> None:
    """Train until the deadline or until told to stop.

    `report` is called after every step, log.jsonl gets a line every ten and at the end, checkpoint.pt is written
    every few minutes.
    """
    settings = run.settings
    settings.out.mkdir(parents=True, exist_ok=True)
    run.warm_up()
    saved_at, recent = time.time(), []
    while not run.finished():
        loss = run.train_step()
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss {loss} at step {run.step}")
        recent.append(loss)
        report(run, loss)
        if run.step % 10 == 0:
            _log(run, sum(recent) / len(recent), run.held_out_loss() if run.step % settings.watch_every == 0 else None)
            recent.clear()
        if time.time() - saved_at > settings.save_every_s:
            run.save()
            saved_at = time.time()
    if recent:
        _log(run, sum(recent) / len(recent), run.held_out_loss())
    run.save()


def trained_s(out: Path) -> float:
    """Seconds of training behind the checkpoint of a run's folder; 0 without one."""
    path = out / CHECKPOINT
    return float(torch.load(path, map_location="cpu", mmap=True)["trained_s"]) if path.exists() else 0.0


def _log(run: Run, loss: float, held_out: float | None) -> None:
    record = {
        "step": run.step,
        "loss": round(loss, 4),
        "tokens": run.tokens,
        "progress": round(run.progress, 4),
        "trained_s": round(run.trained_s, 1),
        "cpu_s": round(run.cpu_s, 1),
        "time": round(time.time(), 1),
    }
    if held_out is not None:
        record["held_out"] = round(held_out, 4)
    with (run.settings.out / LOG).open("a") as file:
        file.write(json.dumps(record) + "\n")
