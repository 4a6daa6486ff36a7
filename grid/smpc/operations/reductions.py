"""Sums, means, variances, norms, and what all or any of the truth values are, over axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import arithmetic, comparisons, extremes, inverses
from grid.smpc.numbers import Boolean, Number
from grid.smpc.operations.arguments import Arguments, Form, Result, as_number, axes_of, elements, gathered
from grid.smpc.protocol import Protocol


def _axes(a: Arguments) -> tuple[int, ...]:
    return axes_of(a.shape_of("self"), a.get("dim"))


async def _sum(p: Protocol, a: Arguments) -> Result:
    return await arithmetic.total(p, a.number(p, "self"), _axes(a), keepdims=a.get("keepdim", False))


async def _mean(p: Protocol, a: Arguments) -> Result:
    return await arithmetic.mean(p, a.number(p, "self"), _axes(a), keepdims=a.get("keepdim", False))


def _check_mean(a: Arguments) -> None:
    if not elements(a.shape_of("self")):
        raise InvalidRequest(f"{a.op.name}: the mean of nothing")


def _correction(a: Arguments) -> int:
    return 1 if a["correction"] is None else int(a["correction"])


def _check_variance(a: Arguments) -> None:
    count = math.prod(a.shape_of("self")[axis] for axis in _axes(a))
    correction = 1 if a["correction"] is None else a["correction"]
    if not float(correction).is_integer():
        raise OpNotSupported(f"{a.op.name} with correction {correction}: on shares it is a whole number")
    if not count or count - correction < 1:
        raise InvalidRequest(f"{a.op.name} of {count} values with correction {correction} divides by {count - int(correction)}")


async def _variance(p: Protocol, a: Arguments) -> Result | Sequence[Result]:
    x, axes, kept = a.number(p, "self"), _axes(a), a["keepdim"]

    found = await arithmetic.variance(p, x, axes, correction=_correction(a), keepdims=kept)
    found = await inverses.sqrt(p, found) if a.op.base.startswith("std") else found
    return [found, await arithmetic.mean(p, x, axes, keepdims=kept)] if "mean" in a.op.base else found


async def norm(p: Protocol, x: Number, order: float, axes: tuple[int, ...], *, keepdims: bool) -> Number:
    """Of order 1, 2 or infinity."""
    if order == 2:
        return await inverses.sqrt(p, await arithmetic.squared_norm(p, x, axes, keepdims=keepdims))
    sizes = await comparisons.absolute(p, x)
    if order == 1:
        return await arithmetic.total(p, sizes, axes, keepdims=keepdims)
    found = await extremes.largest(p, gathered(sizes, axes))
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    return found.each(lambda part: part.reshape(kept)) if keepdims else found


async def _norm(p: Protocol, a: Arguments) -> Result:
    return await norm(p, a.number(p, "self"), _order(a), _axes(a), keepdims=a.get("keepdim", False))


def _order(a: Arguments) -> float:
    order = a["ord"] if "ord" in a.op.index else a["p"]
    return 2 if order is None else order


def _check_norm(a: Arguments) -> None:
    if _order(a) not in (1, 2, math.inf):
        raise OpNotSupported(f"{a.op.name} of order {_order(a)}: orders 1, 2 and infinity are done on shares")


def _norm_peak(a: Arguments) -> int:
    return 11 * elements(a.shape)


async def _count(p: Protocol, a: Arguments) -> Result:
    x = a["self"]
    flags = x.secret if isinstance(x.content, Boolean) else None
    if flags is None and x.dtype != torch.bool:
        flags = await comparisons.not_equal(p, as_number(p, x), as_number(p, 0))
    number = as_number(p, x) if flags is None else await comparisons.number(p, flags)
    return await arithmetic.total(p, number, _axes(a))


async def _truth(p: Protocol, a: Arguments) -> Result:
    """All or any along axes."""
    x = a["self"]
    if isinstance(x.content, Boolean):
        flags = x.content
    else:
        flags = await comparisons.not_equal(p, as_number(p, x), as_number(p, 0))
    axes, shape = _truth_axes(a), flags.shape
    if not axes:
        return flags
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    items = flags.each(lambda bits: bits.transpose(*rest, *axes).reshape(*(shape[axis] for axis in rest), -1))
    found = await (comparisons.every if a.op.base == "all" else comparisons.some)(p, items)
    return found.each(lambda bits: bits.reshape(a.shape))


def _truth_axes(a: Arguments) -> tuple[int, ...]:
    """None of them for an empty list, unlike for sums."""
    return () if a.get("dim") == [] else _axes(a)


def _check_some(a: Arguments) -> None:
    shape = a.shape_of("self")
    if not math.prod(shape[axis] for axis in _axes(a)):
        raise InvalidRequest(f"{a.op.name} along axes without items")


async def _product(p: Protocol, a: Arguments) -> Result:
    x = a.number(p, "self")
    axes = axes_of(x.shape, a.get("dim"))
    made = await arithmetic.product(p, gathered(x, axes), -1)
    return made.each(lambda part: part.reshape(a.shape))


_VARIANCE = {
    name: Form(_variance, rows, check=_check_variance)
    for name, rows in (
        ("var.correction", ("var",)),
        ("std.correction", ("var", "sqrt")),
        ("var_mean.correction", ("var", "mean")),
        ("std_mean.correction", ("var", "sqrt", "mean")),
    )
}
_NORM = Form(_norm, ("squared_norm", "sqrt", "abs", "sum", "max"), check=_check_norm, unbounded=("ord", "p"), peak=_norm_peak)

FORMS: Mapping[str, Form] = {
    "sum.default": Form(_sum, ("sum",)),
    "sum.dim_IntList": Form(_sum, ("sum",)),
    "mean.default": Form(_mean, ("mean",), check=_check_mean),
    "mean.dim": Form(_mean, ("mean",), check=_check_mean),
    **_VARIANCE,
    "linalg_vector_norm.default": _NORM,
    "norm.Scalar": _NORM,
    "norm.ScalarOpt_dim": _NORM,
    "count_nonzero.default": Form(_count, ("not_equal", "number", "sum"), either=("self",)),
    "count_nonzero.dim_IntList": Form(_count, ("not_equal", "number", "sum"), either=("self",)),
    **{
        f"{name}.{kind}": Form(_truth, (name, "not_equal"), truths=("self",), check=_check_some)
        for name in ("all", "any")
        for kind in ("default", "dim", "dims")
    },
    "prod.default": Form(_product, ("prod",), check=_check_some),
    "prod.dim_int": Form(_product, ("prod",), check=_check_some),
}
