"""The largest and the smallest, where they are, sorting, and what sorted rows tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import extremes, sorting
from grid.smpc.numbers import Number
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, axes_of, elements, gathered
from grid.smpc.order import FEWEST_PIVOTS, WORTH
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Work


def _extreme(function: Callable[..., Work[Any]]) -> Kernel:
    """Over some axes, or all of them: their items are one axis."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        x = a.number(p, "self")
        found: Number = await function(p, gathered(x, axes_of(x.shape, a.get("dim"))))
        return found.each(lambda part: part.reshape(a.shape))

    return kernel


def _with_index(sign: int) -> Kernel:
    async def kernel(p: Protocol, a: Arguments) -> Sequence[Result]:
        x = a.number(p, "self")
        if sign < 0:
            x = Number(-x.raw, x.fraction)
        value, index = await extremes.max_with_index(p, gathered(x, axes_of(x.shape, a["dim"])))
        value = Number(-value.raw, value.fraction) if sign < 0 else value
        return [one.each(lambda part: part.reshape(a.shape)) for one in (value, index)]

    return kernel


async def _both_extremes(p: Protocol, a: Arguments) -> Sequence[Result]:
    x = a.number(p, "self")
    items = gathered(x, axes_of(x.shape, a["dim"]))
    found = await p.together(lambda mine: extremes.smallest(mine, items), lambda mine: extremes.largest(mine, items))
    return [one.each(lambda part: part.reshape(a.shape)) for one in found]


def _check_items(a: Arguments) -> None:
    shape = a.shape_of("self")
    if not all(shape[axis] for axis in axes_of(shape, a.get("dim"))):
        raise InvalidRequest(f"{a.op.name}: there is no largest or smallest of nothing")


# ---------------------------------------------------------------- in order


def _row(x: Number) -> Number:
    """A number without axes as a row of one."""
    return x if x.shape else x.each(lambda part: part.reshape(1))


async def _sort(p: Protocol, a: Arguments) -> Sequence[Result]:
    found = await sorting.sort(p, _row(a.number(p, "self")), a["dim"], descending=a["descending"])
    return [one.each(lambda part: part.reshape(a.shape)) for one in found]


async def _topk(p: Protocol, a: Arguments) -> Sequence[Result]:
    found = await sorting.topk(p, _row(a.number(p, "self")), a["k"], a["dim"], largest=a["largest"])
    return [one.each(lambda part: part.reshape(a.shape)) for one in found]


async def _kth(p: Protocol, a: Arguments) -> Sequence[Result]:
    """The k-th smallest; for a median the lower one of both in the middle."""
    x = a.number(p, "self")
    if a.get("dim") is None:
        x = x.each(lambda part: part.reshape(-1))
    x, dim = _row(x), a.get("dim", -1)
    k = a["k"] if "k" in a.op.index else (x.shape[dim] + 1) // 2
    found = await sorting.topk(p, x, k, dim, largest=False)
    return [one.each(lambda part: np.take(part, -1, dim).reshape(a.shape)) for one in found][: len(a.results)]


def _compared(a: Arguments) -> int:
    """Comparisons of one level of a sort."""
    size = elements(a.shape_of("self"))
    return max(FEWEST_PIVOTS * size, min(size * size, WORTH))


def _check_topk(a: Arguments) -> None:
    if not a.shape_of("self") and a["k"] != 1:
        raise InvalidRequest(f"{a.op.name}: one number has no {a['k']} largest")


def _check_median(a: Arguments) -> None:
    if not elements(a.shape_of("self")):
        raise OpNotSupported(f"{a.op.name} of nothing")


_SORT = Form(_sort, ("sort",), peak=_compared)
_KTH = Form(_kth, ("topk",), peak=_compared, check=_check_median)


def _form(kernel: Kernel, row: str) -> Form:
    return Form(kernel, (row,), check=_check_items)


FORMS: Mapping[str, Form] = {
    "max.default": _form(_extreme(extremes.largest), "max"),
    "min.default": _form(_extreme(extremes.smallest), "min"),
    "amax.default": _form(_extreme(extremes.largest), "max"),
    "amin.default": _form(_extreme(extremes.smallest), "min"),
    "argmax.default": _form(_extreme(extremes.argmax), "argmax"),
    "argmin.default": _form(_extreme(extremes.argmin), "argmin"),
    "max.dim": Form(_with_index(1), ("max", "argmax"), check=_check_items),
    "min.dim": Form(_with_index(-1), ("min", "argmin"), check=_check_items),
    "aminmax.default": Form(_both_extremes, ("min", "max"), check=_check_items),
    "sort.default": _SORT,
    "sort.stable": _SORT,
    "topk.default": Form(_topk, ("topk",), check=_check_topk, peak=_compared),
    "kthvalue.default": _KTH,
    "median.default": _KTH,
    "median.dim": _KTH,
}
