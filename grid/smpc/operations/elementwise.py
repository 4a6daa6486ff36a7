"""Operations on each element: sums, products, powers, functions of one number, bounds, conversions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from grid.errors import OpNotSupported
from grid.smpc.functions import arithmetic, comparisons, exponential, inverses, rounding
from grid.smpc.numbers import Boolean, Number
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, as_number, as_public, elements, encoded
from grid.smpc.operations.truth import either
from grid.smpc.operations.values import Value
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Work

One = Callable[..., Work[Any]]

LARGEST_POWER = 16


def of_one(function: One, **fixed: Any) -> Kernel:
    """A function of the argument `self`."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        return await function(p, a.number(p, "self"), **fixed)  # type: ignore[no-any-return]

    return kernel


def of_two(function: One) -> Kernel:
    """A function of the arguments `self` and `other`, secret or public."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        return await function(p, a.number(p, "self"), a.number(p, "other"))  # type: ignore[no-any-return]

    return kernel


def times_size(factor: int) -> Callable[[Arguments], int]:
    """A peak of so many tensors of the first result's size."""
    return lambda a: factor * elements(a.shape)


# ---------------------------------------------------------------- sums and products


async def scaled(p: Protocol, x: Any, factor: Any) -> Number:
    """An operand times a public number."""
    if factor == 1:
        return as_number(p, x)
    if not isinstance(x, Value):
        return as_number(p, as_public(x) * factor)
    return await arithmetic.multiply_public(p, as_number(p, x), as_public(factor))


def _sum(function: One, *, swapped: bool = False) -> Kernel:
    async def kernel(p: Protocol, a: Arguments) -> Result:
        x, y, alpha = a["self"], a["other"], a["alpha"]
        if a.dtype == torch.bool and alpha == 1:
            return await either(p, x, y)
        x, y = [await one.numeric(p) if isinstance(one, Value) and not one.extra else one for one in (x, y)]
        other = await scaled(p, x if swapped else y, alpha)
        return await function(p, as_number(p, y if swapped else x), other)  # type: ignore[no-any-return]

    return kernel


async def _negated(p: Protocol, a: Arguments) -> Number:
    x = a.number(p, "self")
    return Number(-x.raw, x.fraction)


async def product(p: Protocol, x: Any, y: Any) -> Result:
    """The product of two operands, at least one of them secret."""
    if not isinstance(x, Value):
        x, y = y, x
    if isinstance(x.content, Boolean) and isinstance(y, Value) and isinstance(y.content, Boolean):
        return await comparisons.both(p, x.content, y.content)
    if isinstance(y, Value) and isinstance(y.content, Boolean):
        x, y = y, x
    if isinstance(x.content, Boolean):
        factor = as_number(p, y)
        return await comparisons.where(p, x.content, factor, as_number(p, 0))
    if isinstance(y, Value):
        x, y = await x.numeric(p), await y.numeric(p)
        return await arithmetic.multiply(p, as_number(p, x), as_number(p, y))
    return await arithmetic.multiply_public(p, as_number(p, x), as_public(y))


async def _product(p: Protocol, a: Arguments) -> Result:
    return await product(p, a["self"], a["other"])


async def quotient(p: Protocol, x: Any, y: Any) -> Number:
    """x / y, by a public divisor or a secret one."""
    if not isinstance(y, Value):
        return await arithmetic.divide_public(p, as_number(p, x), as_public(y))
    x = await x.numeric(p) if isinstance(x, Value) else x
    if y.bits > inverses.MOST_DIVISOR_BITS:
        y = await y.numeric(p)
    return await inverses.divide(p, as_number(p, x), as_number(p, y))


async def _quotient(p: Protocol, a: Arguments) -> Result:
    return await quotient(p, a["self"], a["other"])


def _quotient_peak(a: Arguments) -> int:
    return 11 * elements(a.shape_of("other")) if a.is_secret("other") else 0


async def _added_product(p: Protocol, a: Arguments) -> Result:
    x, y = a["tensor1"], a["tensor2"]
    adds_products = a.op.base == "addcmul"
    if adds_products and all(isinstance(one, Value) and one.dtype.is_floating_point for one in (x, y)):
        return await arithmetic.add_product(p, a.number(p, "self"), as_number(p, x), as_number(p, y), float(a["value"]))
    made = await (product if adds_products else quotient)(p, x, y)
    assert isinstance(made, Number)
    if a["value"] != 1:
        made = await arithmetic.multiply_public(p, made, as_public(a["value"]))
    return await arithmetic.add(p, a.number(p, "self"), made)


def _check_added_product(a: Arguments) -> None:
    if not a.is_secret("tensor1") and not a.is_secret("tensor2"):
        raise OpNotSupported(f"{a.op.name} of two public tensors: compute their product first, and add it")


async def _between(p: Protocol, a: Arguments) -> Result:
    x, y = a.number(p, "self"), a.number(p, "end")
    apart = await arithmetic.subtract(p, y, x)
    weight = a["weight"]
    if isinstance(weight, Value):
        step = await arithmetic.multiply(p, apart, as_number(p, weight))
    else:
        step = await arithmetic.multiply_public(p, apart, as_public(weight))
    return await arithmetic.add(p, x, step)


# ---------------------------------------------------------------- powers, exponentials, logarithms


async def power(p: Protocol, x: Number, exponent: float) -> Number:
    """x to a public exponent that `check_power` takes."""
    if exponent % 1:
        return await power(p, await (inverses.sqrt if exponent > 0 else inverses.rsqrt)(p, x), 2 * abs(exponent))
    if exponent < 0:
        return await power(p, await inverses.reciprocal(p, x), -exponent)
    if exponent == 0:
        return await arithmetic.add(p, as_number(p, 1), Number(x.raw.times(0), x.fraction))
    result: Number | None = None
    square, left = x, int(exponent)
    while left:
        if left & 1:
            result = square if result is None else await arithmetic.multiply(p, result, square)
        left >>= 1
        if left:
            square = await arithmetic.multiply(p, square, square)
    assert result is not None
    return result


def check_power(a: Arguments) -> None:
    """Raises for an exponent that is not done."""
    exponent = a["exponent"]
    if isinstance(exponent, Value):
        raise OpNotSupported(f"{a.op.name} with a secret exponent is not done on shares: (exponent * x.log()).exp() for x > 0")
    if 2 * exponent != int(2 * exponent) or abs(exponent) > LARGEST_POWER:
        raise OpNotSupported(
            f"{a.op.name} with exponent {exponent}: whole exponents up to {LARGEST_POWER} and their halves are done on shares;"
            " (exponent * x.log()).exp() for others, where x > 0"
        )


async def _power(p: Protocol, a: Arguments) -> Result:
    return await power(p, a.number(p, "self"), a["exponent"])


async def _square(p: Protocol, a: Arguments) -> Result:
    return await power(p, a.number(p, "self"), 2)


async def _exp_less_1(p: Protocol, a: Arguments) -> Result:
    return await arithmetic.subtract(p, await exponential.exp(p, a.number(p, "self")), as_number(p, 1))


async def _log_of_1_more(p: Protocol, a: Arguments) -> Result:
    return await inverses.log(p, await arithmetic.add(p, a.number(p, "self"), as_number(p, 1)))


def _log_to(base: float) -> Kernel:
    async def kernel(p: Protocol, a: Arguments) -> Result:
        return await arithmetic.multiply_public(p, await inverses.log(p, a.number(p, "self")), 1 / math.log(base))

    return kernel


# ---------------------------------------------------------------- choices by size


def _limit(value: Any) -> float | None:
    """A bound of a clamp; an infinite one is none."""
    return None if value is None or math.isinf(value) else value


async def _clamped(p: Protocol, a: Arguments) -> Result:
    low, high = a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))
    return await clamp(p, a.number(p, "self").with_fraction(a.bits), _limit(low), _limit(high))


async def clamp(p: Protocol, x: Number, low: float | None, high: float | None) -> Number:
    """x between bounds; the upper one where they cross, as in torch."""
    encoded([bound for bound in (low, high) if bound is not None], x.fraction)  # refuses NaN and what is too large
    if low is not None and high is not None:
        low = min(low, high)
    return await comparisons.clamp(p, x, low, high)


async def _clamped_by_tensors(p: Protocol, a: Arguments) -> Result:
    x = a.number(p, "self")
    for name, function in (("min", comparisons.maximum), ("max", comparisons.minimum)):
        if a.get(name) is not None:
            x = await function(p, x, a.number(p, name))
    return x


async def _fraction(p: Protocol, a: Arguments) -> Result:
    x = a.number(p, "self")
    return await arithmetic.subtract(p, x, await rounding.trunc(p, x))


async def _never(p: Protocol, a: Arguments) -> Result:
    """Shares hold finite numbers alone."""
    return Number(p.constant(np.zeros(a.shape, np.uint64)), 0)


# ---------------------------------------------------------------- dtypes and copies


async def _converted(p: Protocol, a: Arguments) -> Result:
    x = a["self"]
    if isinstance(x.content, Boolean):
        return x.content if a.dtype == torch.bool else await comparisons.number(p, x.content)
    number = as_number(p, x)
    if a.dtype == torch.bool and x.dtype != torch.bool:
        return await comparisons.not_equal(p, number, as_number(p, 0))
    return await rounding.trunc(p, number) if a.bits < number.fraction else number


async def _copied(p: Protocol, a: Arguments) -> Result:
    """Another tensor's values, with the dtype and the shape of this one."""
    x = a.number(p, "src").each(lambda part: np.broadcast_to(part, a.shape))
    return await rounding.trunc(p, x) if a.bits < x.fraction else x


def _check_copied(a: Arguments) -> None:
    if a.dtype == torch.bool:
        raise OpNotSupported(f"{a.op.name} of truth values: make a new tensor with torch.where or ==")


async def _same(p: Protocol, a: Arguments) -> Result:
    return a.secret("self")


def _rounding(function: One) -> Form:
    async def kernel(p: Protocol, a: Arguments) -> Result:
        x = a.number(p, "self")
        return x if not x.fraction else await function(p, x)

    return Form(kernel, (function.__name__,), peak=times_size(2))


_EXP, _INVERSE = times_size(6), times_size(11)
_ADD, _SUBTRACT, _MULTIPLY = ("add", "either"), ("subtract",), ("multiply", "multiply_public", "where")
_TWO = ("self", "other")
_BOUNDS = ("min", "max", "min_val", "max_val")
_add, _subtract = _sum(arithmetic.add), _sum(arithmetic.subtract)

FORMS: Mapping[str, Form] = {
    "add.Tensor": Form(_add, _ADD, either=_TWO, fine=_TWO),
    "add.Scalar": Form(_add, _ADD, either=_TWO, fine=_TWO),
    "sub.Tensor": Form(_subtract, _SUBTRACT, fine=_TWO),
    "sub.Scalar": Form(_subtract, _SUBTRACT, fine=_TWO),
    "rsub.Scalar": Form(_sum(arithmetic.subtract, swapped=True), _SUBTRACT),
    "rsub.Tensor": Form(_sum(arithmetic.subtract, swapped=True), _SUBTRACT),
    "neg.default": Form(_negated, fine=_TWO),
    "mul.Tensor": Form(_product, _MULTIPLY, either=_TWO, fine=_TWO),
    "mul.Scalar": Form(_product, _MULTIPLY, either=_TWO, fine=_TWO),
    "div.Tensor": Form(_quotient, ("divide_public", "divide"), peak=_quotient_peak, fine=_TWO),
    "div.Scalar": Form(_quotient, ("divide_public",), fine=_TWO),
    "addcmul.default": Form(_added_product, ("add_product", "multiply_public"), check=_check_added_product, fine=("self",)),
    "addcdiv.default": Form(_added_product, ("divide", "divide_public", "add"), check=_check_added_product, fine=("tensor2",)),
    "lerp.Scalar": Form(_between, ("multiply_public",)),
    "lerp.Tensor": Form(_between, ("multiply", "multiply_public")),
    "reciprocal.default": Form(of_one(inverses.reciprocal), ("reciprocal",), peak=_INVERSE),
    "square.default": Form(_square, ("multiply",)),
    "pow.Tensor_Scalar": Form(_power, ("multiply", "reciprocal", "sqrt", "rsqrt"), check=check_power, peak=_INVERSE),
    "sqrt.default": Form(of_one(inverses.sqrt), ("sqrt",), peak=_INVERSE, fine=_TWO),
    "rsqrt.default": Form(of_one(inverses.rsqrt), ("rsqrt",), peak=_INVERSE),
    "exp.default": Form(of_one(exponential.exp), ("exp",), peak=_EXP),
    "expm1.default": Form(_exp_less_1, ("exp",), peak=_EXP),
    "log.default": Form(of_one(inverses.log), ("log",), peak=_INVERSE),
    "log1p.default": Form(_log_of_1_more, ("log",), peak=_INVERSE),
    "log2.default": Form(_log_to(2), ("log", "multiply_public"), peak=_INVERSE),
    "log10.default": Form(_log_to(10), ("log", "multiply_public"), peak=_INVERSE),
    "abs.default": Form(of_one(comparisons.absolute), ("abs",)),
    "sign.default": Form(of_one(comparisons.sign), ("sign",)),
    "sgn.default": Form(of_one(comparisons.sign), ("sign",)),
    "clamp.default": Form(_clamped, ("clamp",), unbounded=_BOUNDS),
    "clamp_min.default": Form(_clamped, ("clamp",), unbounded=_BOUNDS),
    "clamp_max.default": Form(_clamped, ("clamp",), unbounded=_BOUNDS),
    "hardtanh.default": Form(_clamped, ("clamp",), unbounded=_BOUNDS),
    "clamp.Tensor": Form(_clamped_by_tensors, ("minimum", "maximum")),
    "clamp_min.Tensor": Form(_clamped_by_tensors, ("maximum",)),
    "clamp_max.Tensor": Form(_clamped_by_tensors, ("minimum",)),
    "minimum.default": Form(of_two(comparisons.minimum), ("minimum",)),
    "maximum.default": Form(of_two(comparisons.maximum), ("maximum",), fine=_TWO),
    "fmin.default": Form(of_two(comparisons.minimum), ("minimum",)),
    "fmax.default": Form(of_two(comparisons.maximum), ("maximum",)),
    "frac.default": Form(_fraction, ("trunc",), peak=times_size(2)),
    **{f"{name}.default": Form(_never) for name in ("isnan", "isinf", "isposinf", "isneginf")},
    "floor.default": _rounding(rounding.floor),
    "ceil.default": _rounding(rounding.ceil),
    "trunc.default": _rounding(rounding.trunc),
    "_to_copy.default": Form(_converted, ("number", "not_equal", "trunc"), either=("self",)),
    "copy.default": Form(_copied, ("trunc",), either=("self",), check=_check_copied),
    "clone.default": Form(_same, either=("self",), fine=("self",)),
    "detach.default": Form(_same, either=("self",), fine=("self",)),
    "alias.default": Form(_same, either=("self",), fine=("self",)),
    "lift_fresh.default": Form(_same, either=("self",), fine=("self",)),
}
