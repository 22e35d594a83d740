"""The CPU wing. `load` chooses between its implementations; the rest of the package is private to it."""

from __future__ import annotations

from cpu_fallback.threads import allowed_threads
from cpu_fallback.wing import TorchWing

NATIVE_ISAS = ("avx512_vnni", "avx2_vnni", "avx2", "neon_dot", "portable")


def load(isa: str, threads: int | None) -> TorchWing:
    """The wing for an instruction set: "torch", or "auto" for the best one that is built.

    `threads` None takes all the cores this process may use.

    Raises ValueError for an unknown name and RuntimeError, naming the cure, for one that is not built.
    """
    if isa in NATIVE_ISAS:
        raise RuntimeError(f"the native CPU kernels ({isa}) are not built in this version; use --cpu-isa torch or auto")
    if isa not in ("auto", "torch"):
        raise ValueError(f"cpu_isa must be one of auto, torch, {', '.join(NATIVE_ISAS)}, not {isa!r}")
    return TorchWing(threads or allowed_threads())
