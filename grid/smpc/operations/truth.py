"""Comparisons, logic, and choices by truth values, which stay bits: a choice by them takes 2 rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from grid.errors import OpNotSupported
from grid.smpc.functions import arithmetic, comparisons
from grid.smpc.numbers import Boolean, Number
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, as_number, as_public
from grid.smpc.operations.values import Value
from grid.smpc.operations.views import arranged
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Work

Compare = Callable[[Protocol, Number, Number], Work[Boolean]]


def _compared(function: Compare) -> Kernel:
    async def kernel(p: Protocol, a: Arguments) -> Result:
        return await function(p, a.number(p, "self"), a.number(p, "other"))

    return kernel


def _equality(function: Compare, *, inverted: bool) -> Kernel:
    """Of truth values equality is no comparison."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        if a.dtype_of("self") == a.dtype_of("other") == torch.bool:
            other = await _differ(p, await _truth(p, a["self"]), await _truth(p, a["other"]))
            return other if inverted else comparisons.invert(p, other)
        numbers = [as_number(p, await x.numeric(p) if isinstance(x, Value) else x) for x in (a["self"], a["other"])]
        return await function(p, *numbers)

    return kernel


# ---------------------------------------------------------------- logic

Truth = Boolean | np.ndarray[Any, Any]
"""Secret, or a public array."""


async def _truth(p: Protocol, operand: Any) -> Truth:
    """Whether an operand is not 0."""
    if not isinstance(operand, Value):
        return np.asarray(as_public(operand) != 0)
    if isinstance(operand.content, Boolean):
        return operand.content
    if operand.dtype == torch.bool:
        return await comparisons.boolean(p, Number(operand.shared, 0))
    return await comparisons.not_equal(p, as_number(p, operand), as_number(p, 0))


async def _both(p: Protocol, a: Truth, b: Truth) -> Boolean:
    if isinstance(a, Boolean) and isinstance(b, Boolean):
        return await comparisons.both(p, a, b)
    secret, public = (a, b) if isinstance(a, Boolean) else (b, a)
    assert isinstance(secret, Boolean) and not isinstance(public, Boolean)
    none = secret.each(lambda bits: bits * 0)
    return comparisons.where_public(public, secret, none)


async def _either(p: Protocol, a: Truth, b: Truth) -> Boolean:
    return comparisons.invert(p, await _both(p, _inverted(p, a), _inverted(p, b)))


async def _differ(p: Protocol, a: Truth, b: Truth) -> Boolean:
    if isinstance(a, Boolean) and isinstance(b, Boolean):
        return await comparisons.differ(p, a, b)
    secret, public = (a, b) if isinstance(a, Boolean) else (b, a)
    assert isinstance(secret, Boolean) and not isinstance(public, Boolean)
    return comparisons.where_public(public, comparisons.invert(p, secret), secret)


async def either(p: Protocol, x: Any, y: Any) -> Boolean:
    """Whether any of two operands is not 0, at least one of them secret."""
    return await _either(p, await _truth(p, x), await _truth(p, y))


def _inverted(p: Protocol, a: Truth) -> Truth:
    return comparisons.invert(p, a) if isinstance(a, Boolean) else ~a


def _logic(function: Callable[[Protocol, Truth, Truth], Work[Boolean]]) -> Kernel:
    async def kernel(p: Protocol, a: Arguments) -> Result:
        x, y = a["self"], a["other"]
        if isinstance(x, Value) and isinstance(y, Value):
            first, second = await p.together(lambda mine: _truth(mine, x), lambda mine: _truth(mine, y))
        else:
            first, second = await _truth(p, x), await _truth(p, y)
        return await function(p, first, second)

    return kernel


async def _not(p: Protocol, a: Arguments) -> Result:
    found = _inverted(p, await _truth(p, a["self"]))
    assert isinstance(found, Boolean)
    return found


def _check_bits(a: Arguments) -> None:
    if a.dtype != torch.bool:
        raise OpNotSupported(f"{a.op.name} of whole numbers is not done on shares: it is for truth values; use products and sums")


# ---------------------------------------------------------------- choices


async def chosen(p: Protocol, condition: Any, x: Any, y: Any, bits: int) -> Result:
    """x where a condition holds, y elsewhere; any of them secret or public, with so many fraction bits."""
    if all(isinstance(one, Value) and isinstance(one.content, Boolean) for one in (condition, x, y)):
        return await _chosen_truth(p, condition.content, x.content, y.content)
    numbers = [as_number(p, await one.numeric(p) if isinstance(one, Value) else one).with_fraction(bits) for one in (x, y)]
    first, second = arithmetic.aligned(*numbers)
    if not isinstance(condition, Value):
        return await _chosen_by_public(as_public(condition) != 0, first, second)
    if isinstance(condition.content, Boolean):
        return await comparisons.where(p, condition.content, first, second)
    flags = Number(condition.shared, 0)
    apart = await arithmetic.subtract(p, first, second)
    return await arithmetic.add(p, second, await arithmetic.multiply(p, flags, apart))


async def _chosen_truth(p: Protocol, condition: Boolean, x: Boolean, y: Boolean) -> Boolean:
    apart = await comparisons.differ(p, x, y)
    return await comparisons.differ(p, y, await comparisons.both(p, condition, apart))


async def _chosen_by_public(condition: np.ndarray[Any, Any], x: Number, y: Number) -> Number:
    parts = zip(x.raw.parts, y.raw.parts, strict=True)
    return Number(type(x.raw)(*(np.where(condition, first, second) for first, second in parts)), x.fraction)


async def _where(p: Protocol, a: Arguments) -> Result:
    return await chosen(p, a["condition"], a["self"], a["other"], a.bits)


async def _masked_fill(p: Protocol, a: Arguments) -> Result:
    value = a["value"]
    if a.dtype == torch.bool and not isinstance(value, Value):
        value = bool(value)
    return await chosen(p, a["mask"], value, a["self"], a.bits)


async def _scattered(p: Protocol, a: Arguments) -> Result:
    """A public number at public positions, or at a secret one in each row: what one_hot is in a plan."""
    x, dim, index = a["self"], a["dim"], a["index"]
    if not isinstance(index, Value):
        mask = torch.zeros(a.shape, dtype=torch.bool).scatter(dim, index.to(torch.int64), True)
        return await chosen(p, mask, a["value"], x, a.bits)
    places = [1] * len(a.shape)
    places[dim] = -1
    hot = await comparisons.equal(p, as_number(p, index), as_number(p, torch.arange(a.shape[dim]).reshape(places)))
    return await chosen(p, Value(hot, torch.bool), a["value"], x, a.bits)


async def _scattered_items(p: Protocol, a: Arguments) -> Result | Sequence[Result]:
    """Items at public positions, or at secret ones that differ within a row, as sorting and the largest give them: what their
    gradients are."""
    if not a.is_secret("index"):
        return await arranged("self", "src")(p, a)
    index, dim = a.number(p, "index"), a["dim"] % len(a.shape)
    numeric = [await one.numeric(p) if isinstance(one, Value) else one for one in (a["self"], a["src"])]
    whole, items = (as_number(p, one).with_fraction(a.bits) for one in numeric)
    places = [1] * (len(a.shape) + 1)
    places[dim + 1] = a.shape[dim]
    spread = [one.each(lambda part: np.expand_dims(part, dim + 1)) for one in (index, items)]
    hot = await comparisons.equal(p, spread[0], as_number(p, torch.arange(a.shape[dim]).reshape(places)))
    apart = await arithmetic.subtract(p, spread[1], whole.each(lambda part: np.expand_dims(part, dim)))
    put = await arithmetic.total(p, await comparisons.where(p, hot, apart, as_number(p, 0)), dim)
    return await arithmetic.add(p, whole, put)


def _check_scattered_items(a: Arguments) -> None:
    wanted, index = list(a.shape), a.shape_of("index")
    if wanted:
        wanted[a["dim"]] = index[a["dim"]]
    if a.is_secret("index") and (not wanted or list(index) != wanted or index != a.shape_of("src")):
        raise OpNotSupported(f"{a.op.name} at secret positions writes items into whole rows: use torch.where with ==")


def _scattered_peak(a: Arguments) -> int:
    return int(np.prod(a.shape)) * a.shape_of("index")[a["dim"]] if a.is_secret("index") else 0


def _check_scattered(a: Arguments) -> None:
    wanted = list(a.shape)
    if wanted:
        wanted[a["dim"]] = 1
    if a.is_secret("index") and (not wanted or list(a.shape_of("index")) != wanted):
        raise OpNotSupported(f"{a.op.name} at secret positions writes one number into each row: use torch.where with ==")


_BOTH = ("self", "other")

FORMS: Mapping[str, Form] = {
    **{
        f"{name}.{kind}": Form(_compared(function), (row,))
        for name, row, function in (
            ("lt", "less", comparisons.less),
            ("le", "less_equal", comparisons.less_equal),
            ("gt", "greater", comparisons.greater),
            ("ge", "greater_equal", comparisons.greater_equal),
        )
        for kind in ("Tensor", "Scalar")
    },
    **{
        f"{name}.{kind}": Form(_equality(function, inverted=inverted), (row,), either=_BOTH)
        for name, row, function, inverted in (
            ("eq", "equal", comparisons.equal, False),
            ("ne", "not_equal", comparisons.not_equal, True),
        )
        for kind in ("Tensor", "Scalar")
    },
    "logical_and.default": Form(_logic(_both), ("both", "not_equal"), either=_BOTH),
    "logical_or.default": Form(_logic(_either), ("either", "not_equal"), either=_BOTH),
    "logical_xor.default": Form(_logic(_differ), ("differ", "not_equal"), either=_BOTH),
    "logical_not.default": Form(_not, ("not_equal",), either=("self",)),
    **{
        f"bitwise_{name}.{kind}": Form(_logic(function), (row,), either=_BOTH, check=_check_bits)
        for name, row, function in (("and", "both", _both), ("or", "either", _either), ("xor", "differ", _differ))
        for kind in ("Tensor", "Scalar")
    },
    "bitwise_not.default": Form(_not, either=("self",), check=_check_bits),
    **{
        f"where.{kind}": Form(_where, ("where",), either=("condition", "self", "other"))
        for kind in ("self", "Scalar", "ScalarOther", "ScalarSelf")
    },
    "scatter.value": Form(
        _scattered, ("where", "equal"), either=("self",), check=_check_scattered, peak=lambda a: int(np.prod(a.shape))
    ),
    "scatter.src": Form(
        _scattered_items, ("where", "equal"), either=("self", "src"), check=_check_scattered_items, peak=_scattered_peak
    ),
    **{f"masked_fill.{kind}": Form(_masked_fill, ("where",), either=("self", "mask", "value")) for kind in ("Scalar", "Tensor")},
}
