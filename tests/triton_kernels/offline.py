"""Compiles kernels for GPUs that are not here, exactly as the wing would launch them, and reads the machine code.

A `Recorder` stands in for a device: the wing's own launchers run on tensors without memory (device "meta"), with the
wing's own tiles, and each launch is kept instead of run. `build` then compiles one for an architecture, with the same
pointer alignment the just-in-time compiler would find, and reads what ptxas made of it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_kernels.device import Device

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


@dataclass(frozen=True, slots=True)
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        name: str = self.kernel.fn.__name__
        return name


@dataclass(frozen=True, slots=True)
class Built:
    """What ptxas made of one kernel. opcodes holds the first word of each instruction, in order."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    opcodes: tuple[str, ...]

    def count(self, prefix: str) -> int:
        return sum(opcode.startswith(prefix) for opcode in self.opcodes)


class Recorder(Device):
    """A device that keeps launches instead of running them, with as many processors as an H100."""

    __slots__ = ("launches",)

    def __init__(self, *, dp4a: bool = True, wgmma: bool = True, pdl: bool = False) -> None:
        super().__init__(torch.device("meta"), 132, dp4a=dp4a, wgmma=wgmma, bf16=True, name="recorder", pdl=pdl)
        object.__setattr__(self, "launches", [])

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *, num_warps: int, num_stages: int = 1, **arguments: Any
    ) -> None:
        assert all(0 < extent < 65536 or axis == 0 for axis, extent in enumerate(grid)), grid
        options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False, "launch_pdl": self.pdl}
        self.launches.append(Launch(kernel, grid, {**arguments, "PDL": self.pdl}, options))  # type: ignore[attr-defined]


def build(launch: Launch, target: GPUTarget) -> Any:
    """Compile one launch for `target`; the result has Triton's `asm` and `metadata`."""
    kernel = launch.kernel
    assert set(kernel.arg_names) == set(launch.arguments), set(kernel.arg_names) ^ set(launch.arguments)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            shape = ",".join(map(str, value.block_shape))
            signature[parameter.name] = f"tensordesc<{TYPES[value.base.dtype][1:]}[{shape}]>"
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=launch.options)


def cuda(launch: Launch, capability: int) -> Built:
    """Compile for sm_`capability` and read the cubin: registers, stack (spills live there), shared memory, SASS."""
    compiled = build(launch, GPUTarget("cuda", capability, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = tool("cuobjdump", "-res-usage", file.name)
        listing = tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", listing, re.MULTILINE)
    return Built(int(found[1]), int(found[2]), compiled.metadata.shared, tuple(opcodes))


def amd(launch: Launch, architecture: str) -> str:
    """Compile for an AMD GPU; returns its assembly."""
    text: str = build(launch, GPUTarget("hip", architecture, 64)).asm["amdgcn"]
    return text


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout
