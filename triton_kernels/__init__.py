"""The GPU wing: Triton kernels for the verbs of the seam, on NVIDIA GPUs of compute capability 8.0 and newer.

Knows neither the model nor the engine. Importing this package touches no device and does not import Triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

EVERYTHING = 1 << 62
"""Room for copies of all weights."""

if TYPE_CHECKING:
    import torch

    from triton_kernels.wing import TritonWing


def unavailable_reason() -> str | None:
    """Why the kernels cannot run here, in one line that names the cure; None when they can."""
    from triton_kernels.device import look, refusal

    return refusal(look())


def load(device: str = "cuda", why: str = "asked for", *, pdl: bool | None = None, dense: str = "auto") -> TritonWing:
    """The wing on one torch device; RuntimeError with `unavailable_reason` when it cannot run there.

    `pdl` launches kernels before their predecessors have ended, on hardware that can (compute capability 9.0 and
    newer); None does what the tuning table has measured to be better, without a row the plain thing.
    `dense` keeps a second copy of the weights at one byte each, for steps of many tokens: "on", "off", or "auto", which
    gives them a quarter of the device's free memory.
    "cpu" is Triton's interpreter, for tests: it needs TRITON_INTERPRET=1 in the environment before Triton is imported.
    """
    import torch

    from triton_kernels.device import device_name, open_device
    from triton_kernels.tuning import overlaps_launches, table

    if device != "cpu" and (reason := unavailable_reason()) is not None:
        raise RuntimeError(reason)
    there = torch.device(device)
    tuned = table().get(device_name(there), {})
    opened = open_device(there, pdl=overlaps_launches(tuned) if pdl is None else pdl, tuned=tuned)

    from triton_kernels.graphs import CudaCapture
    from triton_kernels.wing import TritonWing

    capture = CudaCapture if opened.torch_device.type == "cuda" else None
    return TritonWing(opened, why, capture, dense_room=dense_room(dense, there))


def dense_room(dense: str, device: torch.device) -> int:
    """Bytes that weights at one byte each may take."""
    import torch

    if dense == "auto":
        return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0
    if dense not in ("on", "off"):
        raise ValueError(f"dense weights are auto, on or off, not {dense!r}")
    return EVERYTHING if dense == "on" else 0
