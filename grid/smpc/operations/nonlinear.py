"""Activations: functions of a number that networks have between products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from grid.errors import OpNotSupported
from grid.smpc.functions import activations, arithmetic, comparisons
from grid.smpc.numbers import Boolean, Number
from grid.smpc.operations.arguments import Arguments, Form, Result, as_number, as_public
from grid.smpc.operations.elementwise import of_one, times_size
from grid.smpc.operations.values import Value
from grid.smpc.protocol import Protocol


async def _relu(p: Protocol, a: Arguments) -> Result:
    """With where it is above 0, strictly: there its gradient is 1."""
    x = a.number(p, "self")
    above = Boolean(await p.negative(-x.raw), x.shape)
    return Value(await p.choose(above.bits, x.raw), a.dtype, beside=above)


async def _threshold(p: Protocol, a: Arguments) -> Result:
    x = a.number(p, "self")
    above = await comparisons.greater(p, x, as_number(p, a["threshold"]))
    return await comparisons.where(p, above, x, as_number(p, a["value"]))


async def _leaky_relu(p: Protocol, a: Arguments) -> Result:
    return await activations.leaky_relu(p, a.number(p, "self"), a["negative_slope"])


async def _gelu(p: Protocol, a: Arguments) -> Result:
    function = activations.gelu_tanh if a["approximate"] == "tanh" else activations.gelu
    return await function(p, a.number(p, "self"))


async def _hardsigmoid(p: Protocol, a: Arguments) -> Result:
    return await _ramp(p, a.number(p, "self"))


async def _hardswish(p: Protocol, a: Arguments) -> Result:
    x = a.number(p, "self")
    return await arithmetic.multiply(p, x, await _ramp(p, x))


async def _ramp(p: Protocol, x: Number) -> Number:
    shifted = await arithmetic.add(p, arithmetic.fixed(x), as_number(p, 3))
    return await arithmetic.divide_public(p, await comparisons.clamp(p, shifted, 0, 6), 6)


async def _elu(p: Protocol, a: Arguments) -> Result:
    made = await activations.elu(p, a.number(p, "self"), a["alpha"])
    return await arithmetic.multiply_public(p, made, as_public(a["scale"])) if a["scale"] != 1 else made


def _check_elu(a: Arguments) -> None:
    if a["input_scale"] != 1:
        raise OpNotSupported(f"{a.op.name} with input_scale: where(x > 0, x, alpha * (scale * x).expm1())")


async def _gated(p: Protocol, a: Arguments) -> Result:
    """The first half times the sigmoid of the second."""
    first, second = (
        a.number(p, "self").each(lambda part, half=half: np.split(part, 2, a["dim"])[half])  # type: ignore[misc]
        for half in (0, 1)
    )
    return await arithmetic.multiply(p, first, await activations.sigmoid(p, second))


async def _prelu(p: Protocol, a: Arguments) -> Result:
    """max(x, 0) + weight min(x, 0)."""
    x = a.number(p, "self")
    above = await comparisons.relu(p, x)
    below = await arithmetic.subtract(p, x, above)
    weight = a["weight"]
    if isinstance(weight, Value):
        return await arithmetic.add(p, above, await arithmetic.multiply(p, below, as_number(p, weight)))
    return await arithmetic.add(p, above, await arithmetic.multiply_public(p, below, as_public(weight)))


async def _log_sigmoid(p: Protocol, a: Arguments) -> Sequence[Result]:
    x = a.number(p, "self")
    found = await activations.softplus(p, Number(-x.raw, x.fraction))
    empty = Number(p.constant(np.zeros(tuple(a.results[1].shape), np.uint64)))
    return [Number(-found.raw, found.fraction), empty]


async def _log_add_exp(p: Protocol, a: Arguments) -> Result:
    x, y = a.number(p, "self"), a.number(p, "other")
    return await arithmetic.add(p, y, await activations.softplus(p, await arithmetic.subtract(p, x, y)))


async def _mish(p: Protocol, a: Arguments) -> Result:
    x = a.number(p, "self")
    return await arithmetic.multiply(p, x, await activations.tanh(p, await activations.softplus(p, x)))


async def _softplus(p: Protocol, a: Arguments) -> Result:
    return await activations.softplus(p, a.number(p, "self"))


def _check_softplus(a: Arguments) -> None:
    if a["beta"] != 1:
        raise OpNotSupported(f"{a.op.name} with beta: softplus(beta * x) / beta")


_EXP, _ACTIVATION = times_size(6), times_size(3)

FORMS: Mapping[str, Form] = {
    "threshold.default": Form(_threshold, ("greater", "where")),
    "relu.default": Form(_relu, ("relu",)),
    "leaky_relu.default": Form(_leaky_relu, ("leaky_relu",)),
    "sigmoid.default": Form(of_one(activations.sigmoid), ("sigmoid",), peak=_ACTIVATION),
    "tanh.default": Form(of_one(activations.tanh), ("tanh",), peak=_ACTIVATION),
    "gelu.default": Form(_gelu, ("gelu", "gelu_tanh"), peak=_ACTIVATION),
    "silu.default": Form(of_one(activations.silu), ("silu",), peak=_ACTIVATION),
    "hardsigmoid.default": Form(_hardsigmoid, ("clamp", "divide_public")),
    "hardswish.default": Form(_hardswish, ("clamp", "divide_public", "multiply")),
    "elu.default": Form(_elu, ("elu",), check=_check_elu, peak=_EXP),
    "softplus.default": Form(_softplus, ("softplus",), check=_check_softplus, peak=_EXP),
    "glu.default": Form(_gated, ("sigmoid", "multiply"), peak=_ACTIVATION),
    "_prelu_kernel.default": Form(_prelu, ("relu", "multiply", "multiply_public")),
    "log_sigmoid_forward.default": Form(_log_sigmoid, ("softplus",), peak=_EXP),
    "logaddexp.default": Form(_log_add_exp, ("softplus",), peak=_EXP),
    "mish.default": Form(_mish, ("softplus", "tanh", "multiply"), peak=_EXP),
}
