"""Weights to begin a run with: those of an earlier run, or of a folder of which only the ternary codes are left."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .export import CONFIG_NAMES, load_checkpoint, unpack_ternary
from .model import DemoConfig, DemoModel


def spread_masters(ternary: Tensor, scale: float, seed: int) -> Tensor:
    """Masters [N, K] of given codes: absolute values of a normal distribution, small ones under the zeros.

    Their absmean is `scale` and their codes are `ternary`, nearly: where a share of zeros is not the 31 % of a normal
    distribution, the values are shifted so that the threshold of half the absmean still parts them.
    """
    draws = torch.randn(ternary.numel(), generator=torch.Generator().manual_seed(seed)).abs_().sort().values
    zero = ternary.flatten() == 0
    num_zeros = int(zero.sum())
    masters = torch.empty(ternary.numel())
    shuffled = torch.Generator().manual_seed(seed + 1)
    small, large = draws[:num_zeros], draws[num_zeros:]
    threshold = 0.5 * draws.mean()
    small, large = small.clamp_max(0.98 * threshold), large.clamp_min(1.02 * threshold)
    masters[zero] = small[torch.randperm(num_zeros, generator=shuffled)]
    masters[zero] *= torch.randint(0, 2, (num_zeros,), generator=shuffled) * 2 - 1
    masters[~zero] = large[torch.randperm(len(large), generator=shuffled)]
    masters[~zero] *= ternary.flatten()[~zero]
    return (masters * (scale / masters.abs().mean())).view_as(ternary)


def load_folder(path: Path) -> DemoModel:
    """A model to train on from an exported folder: its codes with new masters under them."""
    written = json.loads((path / "config.json").read_text())
    model = DemoModel(DemoConfig(**{field: written[name] for field, name in CONFIG_NAMES.items()}))
    tensors = {name: tensor for part in path.glob("model*.safetensors") for name, tensor in load_file(part).items()}
    with torch.no_grad():
        for seed, (name, param) in enumerate(model.named_parameters()):
            if name.endswith("_proj.weight"):
                codes = unpack_ternary(tensors[name])
                param.copy_(spread_masters(codes, float(tensors[name + "_scale"]), seed))
            else:
                param.copy_(tensors[name])
    return model


def load_start(path: Path) -> DemoModel:
    """A model to train on, without a schedule behind it: of a checkpoint.pt, or of an exported folder."""
    return load_folder(path) if path.is_dir() else load_checkpoint(path)
