"""libbitnet_native through ctypes: where it lies, its structs, and its functions with errors turned into exceptions.

Mirrors native/abi.h (change both, and ABI_VERSION). Knows addresses and extents, not tensors' meaning; the verbs are
in native_wing.py. ctypes releases the GIL for the length of every call. Nothing is loaded at import.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any

ABI_VERSION = 4
FILE_NAME = "libbitnet_native.so"


class NativeWeights(Structure):
    """bn_weights: ternary blocks of 16 rows x 16 k."""

    _fields_ = [("blocks", c_void_p), ("row_scale", c_void_p), ("rows", c_int32), ("width", c_int32)]


class NativeSegment(Structure):
    """bn_segment: planes of one checkpoint tensor."""

    _fields_ = [("planes", c_void_p), ("rows", c_int32)]


class NativeQuantized(Structure):
    """bn_quantized: int8 codes with a scale and a sum per token."""

    _fields_ = [
        ("codes", c_void_p),
        ("scale", c_void_p),
        ("sums", c_void_p),
        ("tokens", c_int32),
        ("width", c_int32),
    ]


class NativeTable(Structure):
    """bn_table: an int8 vocabulary table."""

    _fields_ = [
        ("blocks", c_void_p),
        ("row_scale", c_void_p),
        ("row_sums", c_void_p),
        ("refinement", c_void_p),
        ("low", c_void_p),
        ("rows", c_int32),
        ("width", c_int32),
    ]


class NativeCache(Structure):
    """bn_cache: pages of one (block, layer, key-value head) each."""

    _fields_ = [
        ("base", c_void_p),
        ("layers", c_int32),
        ("blocks", c_int32),
        ("block_tokens", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("is_int8", c_int32),
        ("token_lanes", c_int32),
        ("value_lanes", c_int32),
        ("values_offset", c_size_t),
        ("scales_offset", c_size_t),
        ("head_bytes", c_size_t),
    ]


class NativeRope(Structure):
    """bn_rope: cosines and sines of every position."""

    _fields_ = [("cos", c_void_p), ("sin", c_void_p), ("positions", c_int32)]


class NativeBatch(Structure):
    """bn_batch: the index tensors of a step."""

    _fields_ = [
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("block_tables", c_void_p),
        ("lengths", c_void_p),
        ("starts", c_void_p),
        ("logit_rows", c_void_p),
        ("tokens", c_int32),
        ("requests", c_int32),
        ("max_blocks", c_int32),
        ("wanted", c_int32),
    ]


class NativeLayer(Structure):
    """bn_layer: gains and weights of one layer; a sub gain may be null."""

    _fields_ = [
        ("attn_gain", c_void_p),
        ("attn_sub_gain", c_void_p),
        ("ffn_gain", c_void_p),
        ("ffn_sub_gain", c_void_p),
        ("qkv", NativeWeights),
        ("o", NativeWeights),
        ("gate_up", NativeWeights),
        ("down", NativeWeights),
    ]


class NativePlan(Structure):
    """bn_plan: everything a whole step needs."""

    _fields_ = [
        ("hidden_size", c_int32),
        ("intermediate_size", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("act", c_int32),
        ("num_layers", c_int32),
        ("eps", c_float),
        ("rope", NativeRope),
        ("embedding", NativeTable),
        ("layers", POINTER(NativeLayer)),
        ("head_gain", c_void_p),
        ("head", NativeTable),
    ]


class NativeDecoding(Structure):
    """bn_decoding: rows of one token each."""

    _fields_ = [
        ("token_ids", c_void_p),
        ("block_tables", c_void_p),
        ("lengths", c_void_p),
        ("requests", c_int32),
        ("max_blocks", c_int32),
    ]


class NativeDraw(Structure):
    """bn_draw: the samplers of one row. A batch of them is handed over as float64 [R, 8]."""

    _fields_ = [
        ("temperature", c_double),
        ("top_k", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repeat", c_double),
        ("presence", c_double),
        ("frequency", c_double),
        ("last_n", c_double),
    ]


class NativeDraws(Structure):
    """bn_draws: the draws of a batch of rows, and of several tokens for each."""

    _fields_ = [
        ("rows", c_void_p),
        ("randoms", c_void_p),
        ("windows", c_void_p),
        ("window_starts", c_void_p),
        ("bias_ids", c_void_p),
        ("biases", c_void_p),
        ("bias_starts", c_void_p),
        ("num_rows", c_int32),
        ("rounds", c_int32),
    ]


_I = c_int32
_P = c_void_p
# Functions that may refuse: argument types after the context. All return NULL or a message.
_VERBS: dict[str, tuple[Any, ...]] = {
    "set_threads": (_I,),
    "pack": (POINTER(NativeSegment), _I, POINTER(NativeWeights)),
    "pack_table": (_P, _I, POINTER(NativeTable)),
    "embed": (POINTER(NativeTable), _P, _I, _P),
    "norm_quantize": (_P, _P, c_float, POINTER(NativeQuantized)),
    "gate_norm_quantize": (_P, _P, c_float, _I, POINTER(NativeQuantized)),
    "linear": (POINTER(NativeQuantized), POINTER(NativeWeights), _P, _P),
    "rope_write": (_P, _I, POINTER(NativeRope), POINTER(NativeCache), _I, POINTER(NativeBatch), _P),
    "attention": (_P, _I, POINTER(NativeCache), _I, POINTER(NativeBatch), _P),
    "head": (_P, _P, c_float, POINTER(NativeTable), _I, _P),
    "head_topk": (_P, _P, c_float, POINTER(NativeTable), _I, _I, _P, _I, _P, _P),
    "head_draw": (_P, _P, c_float, POINTER(NativeTable), POINTER(NativeDraws), _P),
    "step": (POINTER(NativePlan), POINTER(NativeBatch), POINTER(NativeCache), _P),
    "decode": (POINTER(NativePlan), POINTER(NativeDecoding), POINTER(NativeCache), POINTER(NativeDraws), _P),
}


def find_library() -> Path | None:
    """The library the package's build put beside the sources, or None where there was no compiler.

    Every folder of the package is looked at: an editable install keeps built files apart from the sources.
    """
    import cpu_fallback

    for folder in cpu_fallback.__path__:
        path = Path(folder) / "native" / FILE_NAME
        if path.is_file():
            return path
    return None


class NativeLibrary:
    """The loaded library. Raises OSError when it cannot be loaded or was built for another ABI_VERSION."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dll = dll = ctypes.CDLL(str(path))
        dll.bn_abi_version.restype = c_int32
        if (version := dll.bn_abi_version()) != ABI_VERSION:
            raise OSError(f"{path} has ABI version {version}, not {ABI_VERSION}: build it again")
        self._declare("isa_refusal", c_char_p, c_char_p)
        self._declare("open", c_void_p, c_char_p, c_int32)
        self._declare("close", None, c_void_p)
        self._declare("allocate", c_void_p, c_size_t, c_int32)
        self._declare("release", None, c_void_p, c_size_t)
        self._declare("cache_shape", None, POINTER(NativeCache))
        self._declare("zero_blocks", c_char_p, POINTER(NativeCache), c_void_p, c_int32)
        for name, arguments in _VERBS.items():
            self._declare(name, c_char_p, c_void_p, *arguments)

    def _declare(self, name: str, result: Any, *arguments: Any) -> None:
        function = getattr(self._dll, f"bn_{name}")
        function.restype, function.argtypes = result, list(arguments)

    def refusal(self, isa: str) -> str | None:
        """Why this machine or this build cannot run `isa`, or None."""
        reason: bytes | None = self._dll.bn_isa_refusal(isa.encode())
        return reason.decode() if reason else None

    def shape_cache(self, cache: NativeCache) -> int:
        """Fill in a cache's lanes and offsets from its extents; returns the bytes it needs."""
        self._dll.bn_cache_shape(ctypes.byref(cache))
        return int(cache.head_bytes * cache.kv_heads * cache.layers * cache.blocks)

    def zero_blocks(self, cache: NativeCache, ids: Any, count: int) -> None:
        """Zero the blocks at address `ids` (int64). Raises ValueError for an id outside the cache."""
        raise_refusal(self._dll.bn_zero_blocks(ctypes.byref(cache), ids, count))


def raise_refusal(message: bytes | None) -> None:
    """Turn what a function returned into an exception: MemoryError, RuntimeError, or ValueError for the arguments."""
    if message is None:
        return
    if message == b"out of memory":
        raise MemoryError("the native wing ran out of memory")
    if message == b"the system refused a thread":
        raise RuntimeError("the system refused the native wing a thread")
    raise ValueError(message.decode())


class NativeMemory:
    """Zeroed pages that live as long as this object. Raises MemoryError when the system refuses.

    `huge` asks for huge pages, for what is read from end to end; without, pages are taken as they are first touched.
    """

    def __init__(self, library: NativeLibrary, num_bytes: int, *, huge: bool) -> None:
        address = library._dll.bn_allocate(max(num_bytes, 1), huge)
        if not address:
            raise MemoryError(f"no {num_bytes} bytes for the native wing")
        self.address: int = address
        self.num_bytes = num_bytes
        weakref.finalize(self, library._dll.bn_release, address, max(num_bytes, 1))

    def bytes_view(self) -> Any:
        """The pages as a writable ctypes array; valid only while this object lives."""
        return (ctypes.c_uint8 * self.num_bytes).from_address(self.address)


class NativeContext:
    """A thread pool and scratch on one instruction set: the first argument of every verb of abi.h."""

    def __init__(self, library: NativeLibrary, isa: str, threads: int) -> None:
        if reason := library.refusal(isa):
            raise RuntimeError(f"{isa}: {reason}")
        address = library._dll.bn_open(isa.encode(), threads)
        if not address:
            raise RuntimeError(f"the native wing could not start {threads} threads")
        self.library = library
        self._address = c_void_p(address)
        self._functions: dict[str, Callable[..., bytes | None]] = {
            name: getattr(library._dll, f"bn_{name}") for name in _VERBS
        }
        self.close = weakref.finalize(self, library._dll.bn_close, self._address)

    def call(self, verb: str, *arguments: Any) -> None:
        """Run one verb. Raises ValueError with the library's words where it refuses; see raise_refusal."""
        raise_refusal(self._functions[verb](self._address, *arguments))


def layers_array(layers: Sequence[NativeLayer]) -> Any:
    """A C array of layers; keep it alive as long as a plan points to it."""
    return (NativeLayer * len(layers))(*layers)
