"""Every name that `grid` exports, and the objects that its calls give: signature and what the docstring says first."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

import grid
from grid.client.blocking import Client
from grid.client.committee import Committee
from grid.client.datasets import Dataset
from grid.client.modules import RemoteModule
from grid.client.nodes import Node
from grid.client.tensors import RemoteTensor
from grid.client.traces import Trace
from grid.plans.trace import TracedFunction
from grid.testing import LocalGrid

HEAD = """\
# Python

Made from the code by `make docs`: the names that `grid` exports, and below them the objects that its calls give. Everything
else is internal and may change. `grid.aio` has the asynchronous twins: the same calls, of which those that wait are awaited.
Errors have [a page of their own](errors.md).
"""

GIVEN = {
    "Client": (Client, "What `grid.connect` and `LocalGrid.client` give."),
    "Node": (Node, "What `g.nodes[name]` and `ds.node` give."),
    "Dataset": (Dataset, "What `g.search` and `node.datasets[name]` give."),
    "Remote tensor": (RemoteTensor, "What `node.send`, datasets, plans and operations on other remote tensors give."),
    "Remote module": (RemoteModule, "What `node.send(module)` gives, beside what the module had before."),
    "Traced function": (TracedFunction, "What `@grid.plan` gives."),
    "Committee": (Committee, "What `g.committee` gives."),
    "Trace": (Trace, "What `trio.run(..., trace=True)` of a committee gives."),
}
"""Title -> class and where it comes from."""

TORCHS_OWN = frozenset({"data", "to", "cpu", "cuda", "item", "tolist", "numpy", "apply_", "map_", "map2_", "share_memory_"}) | {
    "data_ptr", "untyped_storage", "storage", "pin_memory",
}  # fmt: skip
"""Methods of a remote tensor that torch documents; the page says nothing new of them."""

INTERNAL = frozenset({"over", "connection", "run_plan", "dry_runs", "encoding", "first_step_value", "leaves_of", "of"}) | {
    "run_on", "costing", "examples",
}  # fmt: skip
"""Methods that other parts of the package call, and users do not."""

OF_AN_OUTBOX = frozenset({"emit", "free", "read", "open_to", "move", "place"})
"""What tensors on shares ask their committee for."""


class Dots:
    """In place of a default that is an object: its text would hold an address in memory."""

    def __repr__(self) -> str:
        return "..."


def page() -> str:
    parts = [HEAD]
    for name in sorted(grid.EXPORTS, key=str.lower):
        value = getattr(grid, name)
        if name not in grid.ERRORS:
            parts.append(_entry(f"grid.{name}", value))
    for title, (cls, where) in GIVEN.items():
        parts.append(f"## {title}\n\n{where}\n\n{_first(cls)}\n\n" + "\n".join(_members(cls)) + "\n")
    return "\n".join(parts)


def _entry(name: str, value: Any) -> str:
    if isinstance(value, ModuleType):
        return f"## {name}\n\n{_first(value)}\n\n" + "\n".join(_names_of(value)) + "\n"
    if inspect.isclass(value):
        return "\n".join([f"## {name}", "", _text(value), "", *_members(value), ""])
    return "\n".join([f"## {name}", "", "```python", f"{name}{_signature(value)}", "```", "", _text(value), ""])


def _names_of(module: ModuleType) -> Iterator[str]:
    for name in module.__all__:
        value = getattr(module, name)
        shown = name if inspect.isclass(value) and value is not LocalGrid else f"{name}{_signature(value)}"
        yield f"- `{shown}`: {_first(value)}"


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class has of its own, or from classes of ours."""
    seen: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("grid."):
            seen |= {name: value for name, value in vars(base).items() if not name.startswith("_") and _is_shown(value)}
    skipped = INTERNAL | {RemoteTensor: TORCHS_OWN, Committee: OF_AN_OUTBOX}.get(cls, frozenset())
    yield from sorted((name, value) for name, value in seen.items() if name not in skipped)


def _is_shown(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, (property, cached_property, classmethod))


def _members(cls: type) -> Iterator[str]:
    for name, value in members(cls):
        call = "" if isinstance(value, (property, cached_property)) else _signature(getattr(cls, name), bound=True)
        yield f"- `{name}{call}`: {_first(value)}"


def _signature(value: Any, *, bound: bool = False) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = [_plain(one) for one in signature.parameters.values()]
    if bound and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def _plain(one: inspect.Parameter) -> inspect.Parameter:
    """A parameter without its annotation, with a default that can be printed."""
    is_object = one.default is not one.empty and not isinstance(one.default, (type(None), bool, int, float, str, tuple))
    return one.replace(annotation=one.empty, default=Dots() if is_object else one.default)


def _first(value: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(_text(value).split("\n\n")[0].split())


def _text(value: Any) -> str:
    return inspect.cleandoc(getattr(value, "__doc__", None) or "")
