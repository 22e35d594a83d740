"""The time-boxed training loop.

One run goes through both stages: plain text first, chats mixed in later, and the learning rate falls to zero exactly at
the deadline.  Progress is trained seconds / (trained seconds + seconds to the deadline), so a pause shortens the run
instead of moving its end, and a restarted run finds its place again.

Sources: Jordan et al. 2024, "Muon" (orthogonalized momentum for matrices, quintic Newton-Schulz coefficients);
Ma et al. 2025, "BitNet b1.58 2B4T Technical Report" (weight decay only in the first stage).
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .data import Rows
from .model import DemoConfig, DemoModel

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
WARMUP = 0.02  # of the whole run
DECAY_FROM = 0.35
WEIGHT_DECAY_UNTIL = 0.5
CHAT_FROM = 0.45
# Share of rows by set before and after CHAT_FROM.  A little chat from the start costs nothing and teaches the format.
FIRST_MIX = {"story": 0.65, "tale": 0.1, "book": 0.05, "chat": 0.2}
SECOND_MIX = {"story": 0.15, "tale": 0.0, "book": 0.0, "chat": 0.85}


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything a run needs besides the data; `deadline` is Unix time."""

    out: Path
    deadline: float
    rows_per_step: int = 12
    rows_per_pass: int = 2
    num_workers: int = 2
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    weight_decay: float = 0.1
    save_every_s: float = 180.0
    device: str = "cpu"
    seed: int = 1
    max_steps: int = 0  # 0: until the deadline
    pause_file: Path | None = None


# ---------------------------------------------------------------- optimizer
def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack [S, N, K], approximately (singular values in about 0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for 2-D weights.

    torch.optim.Muon takes one matrix after the other in bf16, which CPUs without bf16 units emulate slowly; this one
    works in fp32 on stacks of equal shape.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float, pool: ThreadPoolExecutor) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.95, "weight_decay": weight_decay})
        self.pool = pool

    def step(self, closure: object = None) -> None:  # type: ignore[override] # noqa: ARG002
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for param in group["params"]:
                by_shape.setdefault(param.shape, []).append(param)
            stacks = sorted(by_shape.values(), key=lambda params: -params[0].numel() * len(params))
            list(self.pool.map(lambda params, group=group: self._step_stack(params, group), stacks))

    @torch.no_grad()
    def _step_stack(self, params: list[nn.Parameter], group: dict[str, float]) -> None:
        directions = []
        for param in params:
            grad = cast(Tensor, param.grad)
            momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
            momentum.lerp_(grad, 1 - group["momentum"])
            directions.append(grad.lerp(momentum, group["momentum"]))  # Nesterov
        rows, columns = params[0].shape
        lr = group["lr"] * max(1.0, rows / columns) ** 0.5
        for param, update in zip(params, orthogonalize(torch.stack(directions)), strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-lr)


def make_optimizers(model: DemoModel, settings: TrainSettings, pool: ThreadPoolExecutor) -> list[torch.optim.Optimizer]:
    """Muon for the projections, Adam for the embedding and the gains."""
    matrices = [p for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    others = [p for n, p in model.named_parameters() if not n.endswith("_proj.weight")]
    return [
        Muon(matrices, settings.muon_lr, settings.weight_decay, pool),
        torch.optim.AdamW(others, settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def lr_factor(progress: float) -> float:
    """Warm up, hold, then fall linearly to a hundredth; `progress` in [0, 1]."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    if progress < DECAY_FROM:
        return 1.0
    return max(0.01, (1 - progress) / (1 - DECAY_FROM))


# ---------------------------------------------------------------- batches
class Sampler:
    """Draws rows without repetition inside an epoch of each set, sets by their share."""

    def __init__(self, sets: dict[str, Rows], seed: int) -> None:
        self.sets = sets
        self.rng = np.random.default_rng(seed)
        self._orders: dict[str, Iterator[int]] = {name: self._order(name) for name in sets}
        self.epochs = dict.fromkeys(sets, 0.0)

    def _order(self, name: str) -> Iterator[int]:
        while True:
            yield from self.rng.permutation(len(self.sets[name].token_ids)).tolist()

    def draw(self, num_rows: int, mix: dict[str, float]) -> tuple[Tensor, Tensor]:
        """token_ids [B, L] int64 and loss [B, L] bool."""
        names = self.rng.choice(list(mix), size=num_rows, p=list(mix.values()))
        ids, loss = [], []
        for name in names.tolist():
            row = next(self._orders[name])
            self.epochs[name] += 1 / len(self.sets[name].token_ids)
            ids.append(self.sets[name].token_ids[row].astype(np.int64))
            loss.append(self.sets[name].loss[row])
        return torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(loss))


def piece_mask(token_ids: Tensor, begin_id: int) -> Tensor:
    """Causal attention inside a piece: bool [B, 1, T, T] of token_ids [B, T]."""
    piece = (token_ids == begin_id).cumsum(-1)
    return ((piece[:, :, None] == piece[:, None, :]).tril())[:, None]


def batch_loss(model: DemoModel, token_ids: Tensor, loss: Tensor, begin_id: int) -> Tensor:
    """Summed cross entropy over the targets of rows [B, L]."""
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    states = model.hidden(inputs, piece_mask(inputs, begin_id))
    wanted = loss[:, 1:]
    # Only target places go through the head: on chat rows that is about half of them.
    return functional.cross_entropy(model.logits(states[wanted]).float(), targets[wanted], reduction="sum")


# ---------------------------------------------------------------- the run
class Run:
    """Model, optimizers and counters of one training run, with what it takes to stop and go on."""

    def __init__(self, config: DemoConfig, sets: dict[str, Rows], settings: TrainSettings, begin_id: int) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.begin_id = settings, begin_id
        self.device = torch.device(settings.device)
        self.model = DemoModel(config).to(self.device)
        # Threads that each run whole passes, instead of threads inside every operator: with 2 busy cores shared with
        # other work, operator barriers cost more than half of the speed.
        self.pool = ThreadPoolExecutor(settings.num_workers, initializer=torch.set_num_threads, initargs=(1,))
        self.optimizers = make_optimizers(self.model, settings, self.pool)
        self.base_lrs = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.step, self.tokens, self.trained_s = 0, 0, 0.0
        self.stop_requested = False
        self.sampler = Sampler(sets, settings.seed)

    def progress(self) -> float:
        left_s = max(0.0, self.settings.deadline - time.time())
        return self.trained_s / max(1e-9, self.trained_s + left_s) if left_s else 1.0

    def save(self) -> None:
        """Write checkpoint.pt whole or not at all."""
        state = {
            "config": self.model.config.to_dict(),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "trained_s": self.trained_s,
            "epochs": self.sampler.epochs,
        }
        temporary = self.settings.out / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(self.settings.out / "checkpoint.pt")

    def load(self) -> None:
        """Go on from checkpoint.pt if there is one; rows are drawn anew, seeded by the step."""
        path = self.settings.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.trained_s = state["step"], state["tokens"], state["trained_s"]
        self.sampler = Sampler(self.sampler.sets, self.settings.seed + self.step)
        self.sampler.epochs |= state["epochs"]

    def train_step(self) -> float:
        """One update; returns the mean loss per target token."""
        start = time.time()
        progress = self.progress()
        self._schedule(progress)
        mix = FIRST_MIX if progress < CHAT_FROM else SECOND_MIX
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
        self.trained_s += time.time() - start
        return total / num_targets

    def _pass(self, token_ids: Tensor, loss: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        """Summed loss and gradients of some rows; touches nothing shared, so several may run at once."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            summed = batch_loss(self.model, token_ids, loss, self.begin_id)
        return float(summed.detach()), torch.autograd.grad(summed, list(self.model.parameters()))

    def _accumulate(self, grads: tuple[Tensor, ...], factor: float) -> None:
        for param, grad in zip(self.model.parameters(), grads, strict=True):
            param.grad = grad.mul_(factor) if param.grad is None else param.grad.add_(grad, alpha=factor)

    def _schedule(self, progress: float) -> None:
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            group = optimizer.param_groups[0]
            group["lr"] = base * lr_factor(progress)
            if "momentum" in group:
                group["weight_decay"] = self.settings.weight_decay if progress < WEIGHT_DECAY_UNTIL else 0.0

    def finished(self) -> bool:
        return self.stop_requested or time.time() >= self.settings.deadline or 0 < self.settings.max_steps <= self.step


def train(run: Run, report: Callable[[Run, float], None]) -> None:
    """Train until the deadline; `report` is called after every step, log.jsonl gets a line every ten."""
    settings = run.settings
    settings.out.mkdir(parents=True, exist_ok=True)
    saved_at, recent = time.time(), []
    while not run.finished():
        if settings.pause_file and settings.pause_file.exists():
            time.sleep(0.5)
            continue
        loss = run.train_step()
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss {loss} at step {run.step}")
        recent.append(loss)
        report(run, loss)
        if run.step % 10 == 0:
            _log(run, sum(recent) / len(recent))
            recent.clear()
        if time.time() - saved_at > settings.save_every_s:
            run.save()
            saved_at = time.time()
    run.save()


def _log(run: Run, loss: float) -> None:
    record = {
        "step": run.step,
        "loss": round(loss, 4),
        "tokens": run.tokens,
        "trained_s": round(run.trained_s, 1),
        "progress": round(run.progress(), 4),
    }
    with (run.settings.out / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
