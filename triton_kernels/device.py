"""The device a kernel runs on: what it can do, whether it will do at all, and the one place where kernels are launched.

Knows no kernel. Three kinds of device: an NVIDIA GPU, an AMD GPU (no inline assembly), and the CPU, which means
Triton's interpreter (neither bf16 arithmetic nor inline assembly). Kernels take these differences as constants.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OLDEST_CAPABILITY = (8, 0)
INTERPRETER = "Triton interpreter"
CPU_WING = "or run on the CPU with --backend cpu"


@dataclass(frozen=True, slots=True)
class Device:
    """Where tensors live and what a kernel may use there.

    dp4a   the four-way int8 dot product of NVIDIA's PTX may be written as inline assembly
    wgmma  tensor cores are fed by warp groups (Hopper); it decides tiles only
    bf16   bf16 arithmetic works (the interpreter computes on the raw bits and stores by cutting off)
    pdl    a kernel is launched while its predecessor still runs (`chain.py`)
    tuned  the measured rows of this device (`tuning.py`)
    """

    torch_device: torch.device
    num_processors: int
    dp4a: bool
    wgmma: bool
    bf16: bool
    name: str
    pdl: bool = False
    tuned: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def asks_ahead(self) -> bool:
        """Whether a kernel, while its predecessor runs, may ask for weights by an instruction of NVIDIA's."""
        return self.pdl and self.dp4a

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.torch_device)

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.torch_device)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *, num_warps: int, num_stages: int = 1, **arguments: Any
    ) -> None:
        """Run `kernel` over `grid` on the current stream.

        No product and sum are fused into one rounding anywhere in this wing: two kernels that compute the same value
        must get the same bits.
        """
        options = {"launch_pdl": True} if self.pdl else {}
        kernel[grid](
            **arguments, PDL=self.pdl, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False, **options
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What this machine has, as far as this wing cares. capability is (0, 0) and device_name "" without a GPU."""

    has_triton: bool
    device_name: str
    capability: tuple[int, int]
    is_amd: bool


def look() -> Found:
    """Ask torch and the import system; imports nothing new and starts no kernel."""
    has_gpu = torch.cuda.is_available()
    return Found(
        has_triton=importlib.util.find_spec("triton") is not None,
        device_name=torch.cuda.get_device_name() if has_gpu else "",
        capability=torch.cuda.get_device_capability() if has_gpu else (0, 0),
        is_amd=torch.version.hip is not None,
    )


def refusal(found: Found) -> str | None:
    """Why the GPU kernels cannot run on what was found, in one line with the cure; None when they can."""
    if not found.device_name:
        return (
            f"torch {torch.__version__} sees no GPU: install a CUDA build of torch on a machine with an NVIDIA GPU and "
            f"driver, {CPU_WING}"
        )
    if not found.is_amd and found.capability < OLDEST_CAPABILITY:
        have, need = (".".join(map(str, pair)) for pair in (found.capability, OLDEST_CAPABILITY))
        return (
            f"{found.device_name} has compute capability {have} and the GPU kernels need {need} or newer "
            f"(Ampere): use a newer GPU, {CPU_WING}"
        )
    if not found.has_triton:
        return f"the package triton is missing: pip install triton (it comes with CUDA builds of torch), {CPU_WING}"
    return None


def device_name(torch_device: torch.device) -> str:
    """What the tuning table calls it."""
    return INTERPRETER if torch_device.type == "cpu" else torch.cuda.get_device_properties(torch_device).name


def open_device(
    torch_device: torch.device, *, pdl: bool = False, tuned: Mapping[str, Mapping[str, int]] | None = None
) -> Device:
    """The Device behind a torch device; "cpu" is Triton's interpreter (set TRITON_INTERPRET=1 before the import).

    `pdl` is ignored where the hardware has no such thing.
    """
    rows = tuned or {}
    if torch_device.type == "cpu":
        return Device(torch_device, num_processors=1, dp4a=False, wgmma=False, bf16=False, name=INTERPRETER, tuned=rows)
    properties = torch.cuda.get_device_properties(torch_device)
    return Device(
        torch_device,
        num_processors=properties.multi_processor_count,
        dp4a=torch.version.hip is None,
        wgmma=torch.version.hip is None and properties.major == 9,
        bf16=True,
        name=properties.name,
        pdl=pdl and torch.version.hip is None and properties.major >= 9,
        tuned=rows,
    )
