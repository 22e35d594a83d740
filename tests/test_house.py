"""The import law of docs/architecture.md, kept by reading every module's imports from its syntax tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("service", "bitnet_model", "cpu_fallback", "triton_kernels")

# For each room (the longest matching prefix decides): the rooms of this project it may import.
LAW: dict[str, tuple[str, ...]] = {
    "service.__main__": ("service.cli",),
    "service.cli": ("service.config", "service.compose", "service.commands"),
    "service.commands": (
        "service.commands",
        "service.api",
        "service.compose",
        "service.config",
        "service.engine",
        "service.logs",
        "service.server",
        "service.sizes",
        "bitnet_model",
    ),
    "service.compose": ("service", "bitnet_model"),
    "service.server": ("service.api", "service.config", "service.engine", "service.logs"),
    "service.api": (
        "service.api",
        "service.config",
        "service.engine",
        "service.logs",
        "service.metrics",
        "service.version",
    ),
    "service.engine": ("service.engine",),
    "service.engine.runner": ("service.engine", "bitnet_model"),
    "service.engine.sampler": ("service.engine", "bitnet_model"),
    "service.config": (),
    "service.fingerprint": ("service.version",),
    "service.sizes": ("service.config",),
    "service.logs": (),
    "service.metrics": (),
    "service.version": (),
    "service": (),
    "bitnet_model": ("bitnet_model",),
    "bitnet_model.ops": ("bitnet_model", "cpu_fallback", "triton_kernels"),
    "cpu_fallback": ("cpu_fallback",),
    "triton_kernels": ("triton_kernels",),
}
ENGINE_MODULES_WITH_TORCH = ("service.engine.runner", "service.engine.sampler")
MAY_TORCH = (*ENGINE_MODULES_WITH_TORCH, "bitnet_model", "cpu_fallback", "triton_kernels")
HTTP_LIBRARIES = {"fastapi", "starlette", "uvicorn", "sse_starlette", "h11", "httpx"}
MAY_HTTP = ("service.api", "service.server")
WING_LIBRARIES = {
    "cpu_fallback": sys.stdlib_module_names | {"torch", "numpy"},
    "triton_kernels": sys.stdlib_module_names | {"torch", "numpy", "triton"},
}
LAZY_ONLY = {"bitnet_model.ops": ("cpu_fallback", "triton_kernels")}


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    place: str
    lazy: bool


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def imports(root: Path) -> Iterator[Import]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            tree = ast.parse(path.read_text(), str(path))
            checked_only = {
                id(child)
                for node in ast.walk(tree)
                if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
                for child in ast.walk(node)
            }
            top = {id(node) for node in tree.body}
            for node in ast.walk(tree):
                if id(node) in checked_only:
                    continue
                place = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
                for name in imported_names(node, module, is_package=parts[-1] == "__init__"):
                    yield Import(module, name, place, lazy=id(node) not in top)


def imported_names(node: ast.AST, module: str, *, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            here = module.split(".") if is_package else module.split(".")[:-1]
            anchor = here[: len(here) - node.level + 1]
            base = ".".join([*anchor, *filter(None, [node.module])])
        # `from package import module` names the module as well as the package
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def breaches(root: Path) -> list[str]:
    """One line for each import that the law forbids."""
    return [
        f"{item.place}: {item.importer} imports {item.imported}: {why}"
        for item in imports(root)
        for why in faults(item)
    ]


def faults(item: Import) -> Iterator[str]:
    top = item.imported.split(".")[0]
    if top in PACKAGES:
        room = max((room for room in LAW if within(item.importer, room)), key=len)
        if not any(within(item.imported, allowed) for allowed in LAW[room]):
            yield f"{room} may import only {', '.join(LAW[room]) or 'nothing of this project'}"
        if item.importer.startswith("service.api") and any(within(item.imported, m) for m in ENGINE_MODULES_WITH_TORCH):
            yield "HTTP knows no torch"
        if not item.lazy and top in LAZY_ONLY.get(item.importer, ()):
            yield "a wing is imported inside load_ops only"
        return
    if top == "torch" and not any(within(item.importer, room) for room in MAY_TORCH):
        yield "torch is for the runner, the sampler, the model and the wings"
    if top in HTTP_LIBRARIES and not any(within(item.importer, room) for room in MAY_HTTP):
        yield "HTTP belongs to service/api and service/server.py"
    for wing, libraries in WING_LIBRARIES.items():
        if within(item.importer, wing) and top not in libraries:
            yield f"the wing {wing} stands on the standard library, torch and its own toolchain"


def test_every_import_obeys_the_law() -> None:
    assert breaches(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("service/api/chat.py", "import torch"),
        ("service/api/chat.py", "from service.engine import runner"),
        ("service/commands/info.py", "import torch"),
        ("service/commands/chat.py", "import httpx"),
        ("service/commands/doctor.py", "from cpu_fallback import native_loading"),
        ("service/engine/scheduler.py", "import fastapi"),
        ("service/engine/scheduler.py", "import torch"),
        ("service/engine/scheduler.py", "from service.api.errors import status_of"),
        ("bitnet_model/model.py", "from cpu_fallback import linear"),
        ("bitnet_model/ops.py", "import cpu_fallback"),
        ("bitnet_model/model.py", "from service.config import Settings"),
        ("cpu_fallback/linear.py", "from bitnet_model.batch import ForwardBatch"),
        ("cpu_fallback/linear.py", "import transformers"),
        ("triton_kernels/linear.py", "from cpu_fallback import pack"),
    ],
)
def test_a_planted_breach_is_named_with_its_file_and_line(tmp_path: Path, file: str, line: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(f'"""A module."""\n\n{line}\n')
    assert [found.split(": ")[0] for found in breaches(tmp_path)] == [f"{file}:3"]


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {item.importer for item in imports(ROOT)}
    edges: dict[str, set[str]] = {module: set() for module in modules}
    for item in imports(ROOT):
        if not item.lazy:
            candidates = [module for module in modules if within(item.imported, module) and module != item.importer]
            if candidates:
                edges[item.importer].add(max(candidates, key=len))
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(modules):
        visit(module, ())


@pytest.mark.parametrize("module", ["service.api.app", "service.cli", "service.compose", "service.engine.async_engine"])
def test_importing_the_http_side_leaves_torch_unloaded(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_repository_names_no_place_outside_itself() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    outside = "../" + "shared"
    texts = [name for name in files if name.endswith((".py", ".md", ".toml", ".sh", ".txt", ".cpp", ".h", "Makefile"))]
    assert [name for name in texts if outside in (ROOT / name).read_text()] == []
