"""`x += y` on shares: nothing there is written, so the tensor comes to stand for the new value instead.

That is the same as long as nobody sees the old memory through a view: a tensor that shares it with another one is refused.
torch itself writes what it has just made in this way, in recurrent cells and normalisations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

import torch

from grid.client.dispatch import ALIAS, DETACH, VIEWS_IN_PLACE, Handle, Transposed
from grid.client.origins import describe, origin
from grid.client.tensors import RemoteTensor
from grid.errors import InvalidRequest
from grid.smpc.operations.table import FORMS

aten: Any = torch.ops.aten


def _twins() -> Mapping[Any, Any]:
    found = {}
    for name in FORMS:
        _, base, overload = name.split(".")
        packet = getattr(torch.ops.aten, f"{base}_", None)  # a name of our table, never a received one
        written = getattr(packet, overload, None) if packet is not None else None
        makes = getattr(getattr(torch.ops.aten, base), overload)
        if written is not None and written not in VIEWS_IN_PLACE:
            found[written] = makes
        into = getattr(getattr(torch.ops.aten, base), "out", None)
        if into is not None and _names(into) == [*_names(makes), "out"]:
            found[into] = makes
    return MappingProxyType(found)


def _names(call: Any) -> list[str]:
    return [one.name for one in call._schema.arguments]


TWINS: Mapping[Any, Any] = _twins()
"""Operation in place, or one that writes into `out` -> the operation that makes a new value."""


def trains(func: Any, args: Sequence[Any]) -> bool:
    """Whether it is a batch norm that writes its running statistics, which its schema does not say."""
    return func is aten.native_batch_norm.default and bool(args[5]) and args[3] is not None


def batch_norm(dispatch: Callable[[Any, Sequence[Any], dict[str, Any]], Any], args: Sequence[Any]) -> tuple[Any, ...]:
    """A batch norm in training: its running statistics come to stand for the new ones."""
    *results, mean, variance = dispatch(aten._native_batch_norm_legit_functional.default, args, {})
    for target, new in zip(args[3:5], (mean, variance), strict=True):
        rewritten(target, lambda new=new: new, "batch_norm")  # type: ignore[misc]
    return tuple(results)


VIEWS = frozenset(
    call
    for name in FORMS
    for call in [getattr(getattr(torch.ops.aten, name.split(".")[1]), name.split(".")[2])]
    if any(value.alias_info is not None and not value.alias_info.is_write for value in call._schema.returns)
    and call not in (DETACH, ALIAS)
)
"""Operations whose results are views of their first operand, with handles of their own."""


def mark(operand: Any, results: Any) -> None:
    """Note that one is a view of the other: they are relatives until all but one are gone, as a layer's transposed weights are
    after a backward pass."""
    handle: Handle = operand._handle
    if handle.relatives is None:
        handle.relatives = WeakSet([handle])
    for one in results if isinstance(results, Iterable) and not isinstance(results, torch.Tensor) else [results]:
        made: Handle = one._handle
        if made is not handle:
            made.relatives = handle.relatives
            handle.relatives.add(made)


def rewritten(target: Any, make: Callable[[], Any], name: str) -> Any:
    """`target`, standing for what `make` gives from now on, and so does whatever shares its handle."""
    if not isinstance(target, RemoteTensor):
        raise InvalidRequest(
            f"{name} would write a value on shares into a local tensor: put that on shares first, trio.share(target); a recurrent"
            f" layer takes its first hidden state so (at {describe(origin(2))})"
        )
    handle: Handle = target._handle
    if isinstance(handle, Transposed) or len(handle.relatives or ()) > 1:
        raise InvalidRequest(
            f"{name} writes in place a tensor on shares that is a view of another, or has one: make a new tensor, as in"
            f" `x = x + y`, and a part with torch.where, torch.cat or torch.select_scatter (at {describe(origin(2))})"
        )
    made = make()
    if (made.shape, made.dtype) != (target.shape, target.dtype):
        raise InvalidRequest(f"{name} in place would change shape or dtype: make a new tensor (at {describe(origin(2))})")
    other: Handle = made._handle
    handle.object_id, other.object_id = other.object_id, handle.object_id
    handle.ref, other.ref = other.ref, handle.ref
    return target
