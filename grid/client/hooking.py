"""Methods of the chain on torch's own tensors and modules, for those who ask for them: `grid.hook()`.

`import grid` changes nothing in torch. After `grid.hook()`, `torch.randn(3).fix_precision().share(alice, bob, carol)` works in
this process, until `grid.unhook()`. What torch, or somebody else, has under one of the names already is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any

import torch

from grid.client.chain import BITS, shared_at
from grid.client.fixed_precision import check_bits, fix_precision
from grid.client.links import float_precision, send, share
from grid.errors import InvalidRequest


def _share_module(module: torch.nn.Module, *places: Any, **words: Any) -> Any:
    """A new module whose parameters and buffers are on shares: `committee.share(module)`."""
    return shared_at(module, places, words)


def _fix_module(module: torch.nn.Module, bits: int = BITS, **words: Any) -> torch.nn.Module:
    """The module as it is: its parameters become fixed point when it is shared."""
    check_bits(bits, words)
    return module


METHODS: Mapping[type, Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        torch.Tensor: {
            "send": send,
            "share": share,
            "fix_precision": fix_precision,
            "fix_prec": fix_precision,
            "float_precision": float_precision,
            "float_prec": float_precision,
        },
        torch.nn.Module: {
            "send": send,
            "share": _share_module,
            "fix_precision": _fix_module,
            "fix_prec": _fix_module,
            "float_precision": float_precision,
            "float_prec": float_precision,
        },
    }
)


class Hook:
    """That torch's tensors have the methods; as `with grid.hook():`, for the block, or on after it where they had them before."""

    def __init__(self, *, first: bool) -> None:
        self._first = first

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._first:
            unhook()


def hook() -> Hook:
    """Give torch's tensors and modules `send`, `share`, `fix_precision` and `float_precision`, in this process.

    May be called again; `unhook` takes all of them away, and so does the end of a `with grid.hook():` that gave them: one within
    another leaves them to it. Raises `InvalidRequest`, and changes nothing, where torch or another
    library has one of the names already.
    """
    for kind, methods in METHODS.items():
        for name, method in methods.items():
            if getattr(kind, name, method) is not method:
                raise InvalidRequest(f"{kind.__name__} has a method {name!r} of somebody else's already, which stays as it is")
    first = any(vars(kind).get(name) is not method for kind, methods in METHODS.items() for name, method in methods.items())
    for kind, methods in METHODS.items():
        for name, method in methods.items():
            setattr(kind, name, method)
    return Hook(first=first)


def unhook() -> None:
    """Take away what `hook` gave. May be called at any time."""
    for kind, methods in METHODS.items():
        for name, method in methods.items():
            if vars(kind).get(name) is method:
                delattr(kind, name)
