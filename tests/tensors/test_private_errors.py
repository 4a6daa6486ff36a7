"""Which operations may fail by the values of their operands, shapes and dtypes being the same: those that say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_samples import SAMPLES
from torch import Tensor

from grid.errors import GridError
from grid.tensors import bounds
from grid.tensors.ops import OPS, Bound, bind

FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 2.5, 1e30)
WHOLE = (0, -1, 1, 2**62)


def converted(value: Any, dtype: torch.dtype) -> Any:
    """The same with whole numbers, none of them zero, in the place of floats."""
    if isinstance(value, list):
        return [converted(item, dtype) for item in value]
    return (value * 5).to(dtype) + 1 if isinstance(value, Tensor) and value.is_floating_point() else value


def filled(value: Any, at: int, number: int, seen: list[int]) -> Any:
    """The same with the tensor at position `at` (all, if negative) full of one of the numbers above."""
    if isinstance(value, list):
        return [filled(item, at, number, seen) for item in value]
    if not isinstance(value, Tensor):
        return value
    seen[0] += 1
    if at not in (-1, seen[0] - 1):
        return value
    if value.is_floating_point():
        return torch.full_like(value, FLOATS[number])
    whole = WHOLE[number % len(WHOLE)]
    return torch.full_like(value, bool(whole) if value.dtype is torch.bool else min(whole, torch.iinfo(value.dtype).max))


def calls(name: str) -> Iterator[Bound]:
    """Calls that work, in some dtypes."""
    for dtype in (None, torch.int64, torch.int32):
        args, kwargs = SAMPLES[name]()
        if dtype is not None:
            args, kwargs = converted(args, dtype), {key: converted(value, dtype) for key, value in kwargs.items()}
        try:
            bound = bind(OPS[name], args, kwargs)
            bounds.measure(bound)
            bound.run()
        except (GridError, RuntimeError):
            continue
        yield bound


def fails(name: str) -> bool:
    """Whether an operation that works raises for some other values."""
    for bound in calls(name):
        for at in range(-1, len(list(bound.tensors()))):
            for number in range(len(FLOATS)):
                seen = [0]
                other = Bound(bound.op, tuple([filled(value, at, number, seen) for value in bound.values]))
                try:
                    bounds.examine(other)
                    other.run()
                except (RuntimeError, IndexError, bounds.OutOfBoundsError):
                    return True
    return False


@pytest.mark.parametrize("private_error", [False, True])
def test_operations_that_fail_by_values_say_so(private_error: bool) -> None:
    found = [name for name, op in OPS.items() if op.plannable and op.private_error is private_error and fails(name)]
    assert (len(found) > 10) if private_error else not found, found
