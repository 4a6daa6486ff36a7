"""What a function can reach beside its arguments: left as it was by tracing, and refused where it is meant to change.

A function is run several times while it is traced, on tensors without values. Modules that it reaches get back their
attributes, parameters, buffers, hooks and flags afterwards, and the random generators go on where they were. A list that grew, a
counter that was counted up: such a change would happen while tracing and never when the plan runs, so it is an error.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from grid.errors import PlanRejected
from grid.plans.lines import at_line, line_of

DEPTH = 3
"""Levels of functions and containers that are looked through."""

_CONTAINERS = (list, dict, set)
_VALUES = (bool, int, float, str, type(None))

_Names = Mapping[tuple[int, str], Any]


@contextmanager
def surroundings_kept(function: Callable[..., Any]) -> Iterator[None]:
    """Restore modules and generators at the end. Raises `PlanRejected` at the line of a change to something else."""
    functions = list(_functions(function, DEPTH))
    before = {(id(one), name): _state(value) for one in functions for name, value in _reached(one)}
    modules = {id(module): module for module in _modules(function, DEPTH)}
    saved = [(module, _saved(module)) for module in modules.values()]
    wanted = [(parameter, parameter.requires_grad) for module in modules.values() for parameter in module.parameters(False)]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, attributes in saved:
                _restore(module, attributes)
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)
    for one in functions:
        for name, value in _reached(one):
            if before.get((id(one), name), _state(value)) != _state(value):
                raise PlanRejected(
                    f"the function changes {name!r}, which is not among its arguments: that would happen while it is traced, and "
                    f"not when the plan runs; return the new value instead{at_line(_line(one.__code__, name))}"
                )


def _functions(value: Any, depth: int) -> Iterator[FunctionType]:
    """A function written in Python, and those that it reaches through its closure."""
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType) and depth:
        yield value
        for cell in value.__closure__ or ():
            yield from _functions(_content(cell), depth - 1)


def _reached(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Names of the closure and of the module that a function's own code uses, with their values."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield name, _content(cell)
    for name in code.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _state(value: Any) -> Any:
    """What shows that a value was replaced or grew."""
    if isinstance(value, _CONTAINERS):
        return id(value), len(value)
    if isinstance(value, _VALUES):
        return type(value).__name__, repr(value)
    return id(value) if isinstance(value, torch.Tensor) else None


def _line(code: CodeType, name: str) -> str:
    """The line of a function that changes this name: where it is given a value, or else where it is last used."""
    used = [one for one in dis.get_instructions(code) if one.argval == name and one.positions is not None]
    stores = [one for one in used if one.opname.startswith("STORE")]
    found = next((one for one in reversed(stores or used)), None)
    number = found.positions.lineno if found is not None and found.positions is not None else None
    return line_of(code.co_filename, number or code.co_firstlineno)


# ---------------------------------------------------------------- modules


def _modules(value: Any, depth: int) -> Iterator[nn.Module]:
    """The modules that a value is or reaches, submodules included."""
    if isinstance(value, nn.Module):
        yield from value.modules()
    elif not depth:
        return
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _modules(part, depth)
    elif isinstance(value, MethodType):
        yield from _modules(value.__self__, depth)
        yield from _modules(value.__func__, depth)
    elif isinstance(value, FunctionType):
        for _, reached in _reached(value):
            yield from _modules(reached, depth - 1)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _modules(item, depth - 1)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _modules(item, depth - 1)


def _saved(module: nn.Module) -> dict[str, Any]:
    """A module's attributes; of those that are dicts, the entries."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}


def _restore(module: nn.Module, saved: dict[str, Any]) -> None:
    own = vars(module)
    for name in [name for name in own if name not in saved]:
        del own[name]
    for name, value in saved.items():
        if isinstance(value, dict) and isinstance(own.get(name), dict):
            own[name].clear()
            own[name].update(value)
        else:
            own[name] = value
