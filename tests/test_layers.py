"""Imports only go down, between the packages of `grid`, and inside each package there are no cycles.

The rank of a package is its layer in ARCHITECTURE.md. Imports inside functions and under `if TYPE_CHECKING` count too; the
latter may be part of a circle inside one package, since nothing runs them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
GRID = ROOT / "grid"

RANK = {
    "display": 0,
    "errors": 1, "ids": 1, "clock": 1,
    "settings": 2, "confinement": 2, "logs": 2, "telemetry": 2, "tasks": 2,
    "wire": 3,
    "crypto": 4, "transport": 4, "tensors": 4, "mock": 4,
    "plans": 5, "store": 5, "rpc": 5,
    "policy": 6, "smpc": 6, "federated": 6,
    "node": 7, "gateway": 7, "client": 7,
    "testing": 8, "demo": 8, "doctor": 8,
    "cli": 9,
    "__init__": 10, "__main__": 10,
}  # fmt: skip

GIVEN_SOCKETS = {"socket.py", "socket_link.py"}
"""Files outside the transport that may handle sockets; the link of a party gets connected ones."""

TESTS_ONLY = {"pytest", "hypothesis", "playwright", "noise", "psutil", "dissononce"}
"""What `pip install grid` does not bring. `grid.testing` may offer suites for pytest, and imports it there."""


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A file's tree, which is only to be read: several checks look at it."""
    return ast.parse(path.read_text(), str(path))


def package_of(module: str) -> str | None:
    """`grid.wire.codec` -> `wire`; `grid` itself -> `__init__`; anything else -> None. `grid.cli_x` belongs to `cli`."""
    first, *rest = module.split(".")
    if first != "grid":
        return None
    part = rest[0] if rest else "__init__"
    return part if part in RANK else part.split("_")[0] or part


def modules_imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str, list[str]]]:
    """Line, full name and imported members of every import of a file; `package` resolves relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield node.lineno, base, [alias.name for alias in node.names]


def layer_faults(path: Path, root: Path) -> list[str]:
    """What is wrong with the imports of one file under `root/grid`."""
    module = ".".join(path.relative_to(root).with_suffix("").parts)
    own = package_of(module.removesuffix(".__init__") if module != "grid.__init__" else "grid")
    assert own in RANK, f"{path}: which layer is {own}? Enter it in RANK and in ARCHITECTURE.md"
    faults = []
    for line, name, members in modules_imported(parsed(path), module.rpartition(".")[0]):
        inner = [package_of(f"grid.{member}") for member in members] if name == "grid" else [package_of(name)]
        for other in [part if part in RANK else "__init__" for part in inner if part is not None]:
            if other != own and RANK[other] >= RANK[own]:
                faults.append(f"{path.name}:{line}: {own} (layer {RANK[own]}) must not import {other} (layer {RANK[other]})")
        if name.split(".")[0] in TESTS_ONLY and own != "testing":
            faults.append(f"{path.name}:{line}: {name} is for tests only")
    return faults


def without(path: Path, forbidden: set[str]) -> list[str]:
    """The lines of a file that import one of the named top-level packages."""
    names = modules_imported(parsed(path), "grid")
    return [f"{path.name}:{line}: {name}" for line, name, _ in names if name.split(".")[0] in forbidden]


def cycle_in(imports: dict[str, set[str]]) -> list[str]:
    """The modules of one import cycle, in order; [] where there is none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in finished:
            return []
        for other in sorted(imports.get(module, ())):
            if found := visit(other, [*path, module]):
                return found
        finished.add(module)
        return []

    return next((found for module in sorted(imports) if (found := visit(module, []))), [])


class WithoutTypes(ast.NodeTransformer):
    """Takes `if TYPE_CHECKING:` out of a file."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        self.generic_visit(node)
        return node


class AtTheStart(WithoutTypes):
    """Takes functions out of a file too: what is left is run when it is imported."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        return None

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        return None


def import_graph(root: Path, left: type[WithoutTypes] = WithoutTypes) -> dict[str, set[str]]:
    """Module -> the modules of `grid` that it imports. `from grid.wire import codec` counts as `grid.wire.codec`."""
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in (root / "grid").rglob("*.py")}
    modules = {name.removesuffix(".__init__") for name in names.values()}
    graph: dict[str, set[str]] = {}
    for path, name in names.items():
        found: set[str] = set()
        for _, base, members in modules_imported(left().visit(ast.parse(path.read_text())), name.rpartition(".")[0]):
            inner = {f"{base}.{member}" for member in members} & modules
            found |= inner or {base} & modules
        own = name.removesuffix(".__init__")
        graph[own] = found - {own}
    return graph


def loaded_with(module: str, graph: dict[str, set[str]]) -> set[str]:
    """All modules that are loaded once this one is."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name and name not in found:
            found.add(name)
            waiting += [name.rpartition(".")[0], *graph.get(name, ())]
    return found


def test_imports_go_down() -> None:
    files = sorted(GRID.rglob("*.py"))
    assert len(files) >= 20
    faults = [fault for path in files for fault in layer_faults(path, ROOT)]
    assert not faults, "\n".join(faults)


def test_there_are_no_import_cycles() -> None:
    assert cycle_in(import_graph(ROOT)) == []


def test_processes_of_a_node_start_without_the_tracer() -> None:
    """It brings some 800 modules of torch's compiler, for a second of each start; only clients trace."""
    graph = import_graph(ROOT, AtTheStart)
    loaded = {module: loaded_with(module, graph) for module in ("grid.node.app", "grid.node.nursery", "grid.gateway.app")}
    assert all(len(found) > 60 for found in loaded.values())
    assert not [module for module, found in loaded.items() if "grid.plans.capture" in found]
    assert "grid.plans.capture" in loaded_with("grid.client.training", graph)


def test_wire_knows_no_loop_no_torch_and_no_socket() -> None:
    outside = {"asyncio", "torch", "socket", "websockets", "aiohttp"}
    faults = [fault for path in (GRID / "wire").glob("*.py") for fault in without(path, outside)]
    assert not faults, "\n".join(faults)


def test_only_transport_dials_sockets() -> None:
    files = [path for path in GRID.rglob("*.py") if path.parent.name != "transport"]
    faults = [fault for path in files for fault in without(path, {"websockets", "socket"}) if path.name not in GIVEN_SOCKETS]
    assert not faults, "\n".join(faults)


def test_nothing_unpickles() -> None:
    outside = {"pickle", "cloudpickle", "marshal", "shelve", "dill"}
    faults = [fault for path in GRID.rglob("*.py") for fault in without(path, outside)]
    assert not faults, "\n".join(faults)


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    """A made-up tree with one fault of each kind: each is found, and nothing else."""
    (tmp_path / "grid" / "wire").mkdir(parents=True)
    (tmp_path / "grid" / "node").mkdir()
    bad = tmp_path / "grid" / "wire" / "bad.py"
    bad.write_text(
        "from grid.errors import WireError\n"
        "import grid.node.app\n"
        "from grid import transport\n"
        "from ..plans import ir\n"
        "from . import codec\n"
        "def f():\n"
        "    from grid.wire import session\n"
        "    from grid.crypto.noise import Noise\n"
        "    import hypothesis\n"
        "from grid import Plan\n"
    )
    found = layer_faults(bad, tmp_path)
    assert {fault.split(": ")[0] for fault in found} == {"bad.py:2", "bad.py:3", "bad.py:4", "bad.py:8", "bad.py:9", "bad.py:10"}
    sideways = tmp_path / "grid" / "node" / "__init__.py"
    sideways.write_text("from grid.client import api\nfrom grid.rpc import peer\n")
    assert layer_faults(sideways, tmp_path) == ["__init__.py:1: node (layer 7) must not import client (layer 7)"]
    assert without(bad, {"hypothesis"}) == ["bad.py:9: hypothesis"]


def test_the_cycle_check_finds_a_cycle(tmp_path: Path) -> None:
    (tmp_path / "grid").mkdir()
    files = {"a": "import grid.b", "b": "def f():\n    from grid import c", "c": "from .a import x", "d": "import grid.a"}
    for name, text in files.items():
        (tmp_path / "grid" / f"{name}.py").write_text(text)
    assert cycle_in(import_graph(tmp_path)) == ["grid.a", "grid.b", "grid.c"]
    (tmp_path / "grid" / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import grid.a")
    assert cycle_in(import_graph(tmp_path)) == []
