"""The CPU wing. `load` chooses between its implementations; the rest of the package is private to it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cpu_fallback import native_loading
from cpu_fallback.native_wing import NativeCpuWing
from cpu_fallback.threads import allowed_threads
from cpu_fallback.wing import TorchWing

logger = logging.getLogger(__name__)


def load(
    isa: str, threads: int | None, load_native: Callable[[str, int], NativeCpuWing] = native_loading.load
) -> NativeCpuWing | TorchWing:
    """The wing for an instruction set: a native one by name, "torch", or "auto" for the fastest that runs here.

    `threads` None takes all the cores this process may use. "auto" without a native library falls back to torch and
    says so. Raises ValueError for an unknown name, and RuntimeError, naming the cure, for one that cannot run here.
    """
    num_threads = threads or allowed_threads()
    if isa == "torch":
        return TorchWing(num_threads)
    if isa != "auto" and isa not in native_loading.ISAS:
        raise ValueError(f"cpu_isa must be one of auto, torch, {', '.join(native_loading.ISAS)}, not {isa!r}")
    try:
        return load_native(isa, num_threads)
    except RuntimeError as error:
        if isa != "auto":
            raise RuntimeError(f"cpu_isa {isa} cannot run here ({error}); use cpu_isa auto or torch") from error
        logger.warning("the native CPU kernels are not used, and torch is much slower: %s", error)
        return TorchWing(num_threads)
