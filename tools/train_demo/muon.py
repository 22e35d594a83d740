"""The optimizers: Muon for the projections, Adam for the rest.

Source: Jordan et al. 2024, "Muon" (orthogonalized momentum for matrices, quintic Newton-Schulz coefficients).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import torch
from torch import Tensor, nn

from .model import DemoModel

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack [S, N, K], approximately (singular values in about 0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for 2-D weights.

    torch.optim.Muon takes one matrix after the other; this one works on stacks of equal shape, side by side on the
    threads of the run.
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


def make_optimizers(
    model: DemoModel, muon_lr: float, adam_lr: float, weight_decay: float, pool: ThreadPoolExecutor
) -> list[torch.optim.Optimizer]:
    """Muon for the projections, Adam for the embedding and the gains."""
    matrices = [p for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    others = [p for n, p in model.named_parameters() if not n.endswith("_proj.weight")]
    return [
        Muon(matrices, muon_lr, weight_decay, pool),
        torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
