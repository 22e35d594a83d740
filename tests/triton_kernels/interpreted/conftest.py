"""These tests run kernels in Triton's interpreter, in a process of their own (see ../test_interpreted.py).

Outside such a process they are not collected. Two details of Triton 3.6's interpreter are replaced here: it turns a
loop bound into a number by int() of a one-element array, which NumPy 2.4 refuses; and each call of one kernel function
by another patches the whole language again and for good, where once for each module is enough (it is most of the time).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.runtime.interpreter as interpreter

if not triton.knobs.runtime.interpret:
    collect_ignore_glob = ["test_*.py"]

torch.set_num_threads(1)
_patch = interpreter._patch_lang_tensor
_call = interpreter.InterpretedFunction.__call__
_patched: set[int] = set()


def _patch_with_index(tensor: Any, scope: Any) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _call_patching_once(self: Any, *args: Any, **kwargs: Any) -> Any:
    module = id(self.fn.__globals__)
    if module in _patched:
        return self.rewrite()(*args, **kwargs)
    _patched.add(module)
    return _call(self, *args, **kwargs)


interpreter._patch_lang_tensor = _patch_with_index
interpreter.InterpretedFunction.__call__ = _call_patching_once
