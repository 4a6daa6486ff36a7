"""What is checked before an operation runs: the size of its results, and whatever its kernel takes on trust.

`measure` looks at shapes and constants alone (`grid.tensors.bounds_shapes`), so its verdict can be kept for calls that look
the same; it allocates nothing. `examine` looks at values, each time: indices, classes and the few numbers that a processor
traps on. What it finds may tell something about rows; the caller decides what to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from grid.errors import InvalidRequest
from grid.tensors.bounds_shapes import MAX_ELEMENTS, SHAPE_CHECKS, misfit
from grid.tensors.ops import Bound, Op, elements, infer


class OutOfBoundsError(Exception):
    """A value is out of range. The text must not reach a client where the value is private."""


def measure(bound: Bound, max_elements: int = MAX_ELEMENTS) -> list[Tensor]:
    """The call's results as meta tensors. Raises `InvalidRequest` where shapes and constants do not fit or are too large."""
    op = bound.op
    before = SHAPE_CHECKS.get(op.bounds)
    if before is not None:
        before(bound)
    if bound.get("reduction", 0) not in (0, 1, 2):
        raise misfit(bound, "reduction must be 0, 1 or 2")
    results = infer(bound)
    total = sum(elements(result.shape) for result in results)
    if total > max_elements:
        what = f"{op.name} would make {total} elements; one operation may make {max_elements}"
        raise InvalidRequest(f"{what}. Reduce over the rows first, or go through them with ds.batches", op=op.name)
    for name in op.mutates:
        value = bound[name]
        for target in value if isinstance(value, list) else [value]:
            if isinstance(target, Tensor):
                _check_target(bound, name, target)
    return results


def _check_target(bound: Bound, name: str, target: Tensor) -> None:
    if any(s == 0 and n > 1 for s, n in zip(target.stride(), target.shape, strict=True)):
        raise misfit(bound, f"{name} has positions that share memory, and cannot be written; clone it first")
    if bound.op.dense and not target.is_contiguous():
        raise misfit(bound, f"{name} must be dense to be written; clone it first")


def examine(bound: Bound) -> None:
    """Check the values that the kernel would take on trust. Raises `OutOfBoundsError`."""
    check = _VALUES.get(bound.op.bounds)
    if check is not None:
        check(bound)


def examines(op: Op) -> bool:
    """Whether `examine` looks at anything for this operation."""
    return op.bounds in _VALUES


def _within(index: Tensor, low: int, high: int) -> None:
    """Every element lies in low .. high - 1."""
    if index.numel():
        least, most = torch.aminmax(index)
        if int(least) < low or int(most) >= high:
            raise OutOfBoundsError(f"an index is out of range: it must lie between {low} and {high - 1}")


def _index_values(bound: Bound) -> None:
    for index, length in zip(bound["indices"], bound["self"].shape, strict=False):
        if index is not None:
            _within(index, -length, length)


def _dim_index_values(bound: Bound) -> None:
    shape = bound["self"].shape
    _within(bound["index"], 0, shape[bound["dim"]] if len(shape) else 1)


def _class_values(bound: Bound) -> None:
    scores, target, ignored = bound["self"], bound["target"], bound["ignore_index"]
    classes = scores.shape[1] if scores.dim() > 1 else scores.shape[0]
    _within(target if 0 <= ignored < classes else target[target != ignored], 0, classes)


def _gradient_values(bound: Bound) -> None:
    if bound.get("indices") is not None:
        inner = 3 if "3d" in bound.op.base else 2
        _within(bound["indices"], 0, math.prod(bound["self"].shape[-inner:]))


def _pivot_values(bound: Bound) -> None:
    _within(bound["pivots"], 1, bound["LU"].shape[-1] + 1)


def _quotient_values(bound: Bound) -> None:
    """The one whole-number division whose result does not exist: processors stop the program at it."""
    top, under = bound["self"], bound["other"]
    whole = [_is_whole(top), _is_whole(under)]
    if all(whole) and _holds(under, -1) and _holds(top, _lowest(top)):
        raise OutOfBoundsError("a division overflows")


def _chance_values(bound: Bound) -> None:
    chances = bound["p"] if "p" in bound.op.index else bound["self"]
    if not bool(((chances >= 0) & (chances <= 1)).all()):
        raise OutOfBoundsError("a chance must lie between 0 and 1")


def _is_whole(value: Any) -> bool:
    return not value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, int)


def _lowest(value: Any) -> int:
    dtype = value.dtype if isinstance(value, Tensor) and value.dtype is not torch.bool else torch.int64
    return torch.iinfo(dtype).min


def _holds(value: Any, wanted: int) -> bool:
    return bool((value == wanted).any()) if isinstance(value, Tensor) else value == wanted


_VALUES: Mapping[str, Callable[[Bound], None]] = MappingProxyType(
    {
        "index": _index_values,
        "dim_index": _dim_index_values,
        "embedding": lambda bound: _within(bound["indices"], 0, bound["weight"].shape[0]),
        "embedding_backward": lambda bound: _within(bound["indices"], 0, bound["num_weights"]),
        "classes": _class_values,
        "gradient": _gradient_values,
        "pivots": _pivot_values,
        "quotient": _quotient_values,
        "chances": _chance_values,
    }
)

_READ: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "index": ("indices",),
        "dim_index": ("index",),
        "embedding": ("indices",),
        "embedding_backward": ("indices",),
        "classes": ("target",),
        "gradient": ("indices",),
        "pivots": ("pivots",),
    }
)


def read(bound: Bound) -> list[Tensor]:
    """The tensors whose values decide what `examine` finds; of the others it looks at shapes."""
    names = _READ.get(bound.op.bounds)
    if names is None:
        return list(bound.tensors())
    values = [bound.get(name) for name in names]
    return [item for value in values for item in (value if isinstance(value, list) else [value]) if isinstance(item, Tensor)]
