"""Derivatives of activations, as autograd asks for them: the gradient times a slope, or chosen by where the argument lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import activations, arithmetic, comparisons, exponential, layers
from grid.smpc.numbers import Boolean, Number
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, as_number, as_public, elements
from grid.smpc.operations.values import Value
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Work

Slope = Callable[[Protocol, Number], Work[Number]]


def _grad(p: Protocol, a: Arguments) -> Number:
    return a.number(p, "grad_output")


async def _kept(p: Protocol, condition: Boolean, grad: Number) -> Number:
    """The gradient where a condition holds, and 0 elsewhere."""
    return await comparisons.where(p, condition, grad, as_number(p, 0.0))


async def _between(p: Protocol, x: Number, low: float, high: float) -> Boolean:
    """low < x < high."""
    above, below = await p.together(
        lambda mine: comparisons.greater(mine, x, as_number(mine, low)),
        lambda mine: comparisons.less(mine, x, as_number(mine, high)),
    )
    return await comparisons.both(p, above, below)


def _times(slope: Slope) -> Kernel:
    """The gradient times a function of the argument."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        return await arithmetic.multiply(p, _grad(p, a), await slope(p, a.number(p, "self")))

    return kernel


# ---------------------------------------------------------------- where the argument lies


async def _threshold(p: Protocol, a: Arguments) -> Result:
    x = a["self"]
    above = x.beside if isinstance(x, Value) and a["threshold"] == 0 else None
    if not isinstance(above, Boolean):
        above = await comparisons.greater(p, as_number(p, x), as_number(p, a["threshold"]))
    return await _kept(p, above, _grad(p, a))


async def _hardtanh(p: Protocol, a: Arguments) -> Result:
    return await _kept(p, await _between(p, a.number(p, "self"), a["min_val"], a["max_val"]), _grad(p, a))


async def _hardsigmoid(p: Protocol, a: Arguments) -> Result:
    inside = await _kept(p, await _between(p, a.number(p, "self"), -3.0, 3.0), _grad(p, a))
    return await arithmetic.divide_public(p, inside, 6)


async def _hardswish_slope(p: Protocol, x: Number) -> Number:
    """x / 3 + 1/2 between -3 and 3, then 1."""
    middle, above = await p.together(
        lambda mine: _between(mine, x, -3.0, 3.0), lambda mine: comparisons.greater_equal(mine, x, as_number(mine, 3.0))
    )
    line = layers.plus_public(p, await arithmetic.divide_public(p, x, 3), 0.5)
    inside, one = await p.together(
        lambda mine: _kept(mine, middle, line), lambda mine: _kept(mine, above, as_number(mine, np.ones(x.shape)))
    )
    return await arithmetic.add(p, inside, one)


async def _leaky_relu(p: Protocol, a: Arguments) -> Result:
    grad = _grad(p, a)
    above = await _kept(p, await comparisons.greater(p, a.number(p, "self"), as_number(p, 0.0)), grad)
    below = await arithmetic.subtract(p, grad, above)
    return await arithmetic.add(p, above, await arithmetic.multiply_public(p, below, a["negative_slope"]))


async def _prelu(p: Protocol, a: Arguments) -> Sequence[Result]:
    grad, x, weight = _grad(p, a), a.number(p, "self"), a["weight"]
    grad, x = arithmetic.aligned(grad, x)
    above = await comparisons.greater(p, x, as_number(p, 0.0))
    kept, positive = await p.together(lambda mine: _kept(mine, above, grad), lambda mine: _kept(mine, above, x))
    below = await arithmetic.subtract(p, grad, kept)

    async def weighted(mine: Protocol) -> Number:
        if isinstance(weight, Value):
            return await arithmetic.multiply(mine, below, as_number(mine, weight))
        return await arithmetic.multiply_public(mine, below, as_public(weight))

    negative = await arithmetic.subtract(p, x, positive)
    through, of_weight = await p.together(weighted, lambda mine: arithmetic.multiply(mine, below, negative))
    return [await arithmetic.add(p, kept, through), of_weight]


# ---------------------------------------------------------------- slopes


async def _elu(p: Protocol, a: Arguments) -> Result:
    """scale where x > 0, elsewhere alpha scale e**x, which is y + alpha scale of the result y."""
    x, alpha, scale = a.number(p, "self_or_result"), a["alpha"], a["scale"]
    lower = await comparisons.less_equal(p, x, as_number(p, 0.0))
    below = await _kept(p, lower, x)
    if a["is_result"]:  # y <= 0 exactly where x is
        steep = layers.plus_public(p, below, alpha * scale)
    else:
        steep = await arithmetic.multiply_public(p, await exponential.exp(p, below), alpha * scale)
    return await arithmetic.multiply(p, _grad(p, a), await comparisons.where(p, lower, steep, as_number(p, float(scale))))


def _check_elu(a: Arguments) -> None:
    if a["input_scale"] != 1:
        raise OpNotSupported(f"{a.op.name} with input_scale: where(x > 0, x, alpha * (scale * x).expm1())")


async def _gelu(p: Protocol, a: Arguments) -> Result | Sequence[Result]:
    slope = activations.gelu_tanh_slope if a["approximate"] == "tanh" else activations.gelu_slope
    return await _times(slope)(p, a)


async def _softplus(p: Protocol, a: Arguments) -> Result | Sequence[Result]:
    if a["beta"] != 1:
        raise OpNotSupported(f"{a.op.name} with beta: softplus(beta * x) / beta")
    return await _times(activations.sigmoid)(p, a)


async def _log_sigmoid_slope(p: Protocol, x: Number) -> Number:
    return await activations.sigmoid(p, Number(-x.raw, x.fraction))


def _check_log_sigmoid(a: Arguments) -> None:
    if np.broadcast_shapes(a.shape_of("grad_output"), a.shape_of("self")) != a.shape:
        raise InvalidRequest(f"{a.op.name}: the buffer does not fit the argument")


async def _mish_slope(p: Protocol, x: Number) -> Number:
    """t + x sigmoid(x) (1 - t**2), of t = tanh(softplus(x))."""

    async def outer(mine: Protocol) -> tuple[Number, Number]:
        t = await activations.tanh(mine, await activations.softplus(mine, x))
        square = await arithmetic.multiply(mine, t, t)
        return t, layers.plus_public(mine, Number(-square.raw, square.fraction), 1)

    async def inner(mine: Protocol) -> Number:
        return await arithmetic.multiply(mine, x, await activations.sigmoid(mine, x))

    (t, rest), gate = await p.together(outer, inner)
    return await arithmetic.add(p, t, await arithmetic.multiply(p, gate, rest))


async def _glu(p: Protocol, a: Arguments) -> Result:
    """Of a sigmoid(b): g s to a, g a s (1 - s) to b."""
    dim = a["dim"]
    first, second = (
        a.number(p, "self").each(lambda part, half=half: np.split(part, 2, dim)[half])  # type: ignore[misc]
        for half in (0, 1)
    )
    s = await activations.sigmoid(p, second)
    through, slope = await p.together(
        lambda mine: arithmetic.multiply(mine, _grad(mine, a), s), lambda mine: arithmetic.multiply(mine, s, first)
    )
    # g a s (1 - s) = (g s) a - (g s) (a s)
    rest = await arithmetic.subtract(p, first, slope)
    gate = await arithmetic.multiply(p, through, rest)
    parts = zip(through.raw.parts, gate.raw.parts, strict=True)
    return Number(type(gate.raw)(*(np.concatenate(pair, dim) for pair in parts)), gate.fraction)


def _of_output(slope: Callable[[Protocol, Number, Number], Number]) -> Kernel:
    """Times a function of the output y and of its square."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        y = a.number(p, "output")
        square = await arithmetic.multiply(p, y, y)
        return await arithmetic.multiply(p, _grad(p, a), slope(p, y, square))

    return kernel


def _sigmoid_slope(p: Protocol, y: Number, square: Number) -> Number:
    return Number(y.raw - square.raw)


def _tanh_slope(p: Protocol, y: Number, square: Number) -> Number:
    return layers.plus_public(p, Number(-square.raw), 1)


# ---------------------------------------------------------------- softmax


async def _softmax(p: Protocol, a: Arguments) -> Result:
    """y g - y sum(y g)."""
    y = a.number(p, "output")
    both = await arithmetic.multiply(p, y, _grad(p, a))
    total = await arithmetic.total(p, both, a["dim"] if y.shape else None, keepdims=True)
    return await arithmetic.subtract(p, both, await arithmetic.multiply(p, y, total))


async def _log_softmax(p: Protocol, a: Arguments) -> Result:
    """g - e**y sum(g)."""
    output, grad = a["output"], _grad(p, a)
    power = output.beside if isinstance(output, Value) else None
    if not isinstance(power, Number):
        power = await exponential.exp(p, as_number(p, output))
    total = await arithmetic.total(p, grad, a["dim"] if power.shape else None, keepdims=True)
    return await arithmetic.subtract(p, grad, await arithmetic.multiply(p, power, total))


def _size(factor: int) -> Callable[[Arguments], int]:
    return lambda a: factor * max(elements(a.shape_of("grad_output")), elements(a.shape))


def _form(kernel: Kernel, *functions: str, factor: int = 0, **more: Any) -> Form:
    return Form(kernel, functions, peak=_size(factor), **more)


FORMS: Mapping[str, Form] = {
    f"{name}.default": form
    for name, form in {
        "threshold_backward": _form(_threshold, "greater", "where"),
        "hardtanh_backward": _form(_hardtanh, "greater", "less", "where"),
        "hardsigmoid_backward": _form(_hardsigmoid, "greater", "less", "where", "divide_public"),
        "hardswish_backward": _form(_times(_hardswish_slope), "greater", "less", "where", "multiply"),
        "leaky_relu_backward": _form(_leaky_relu, "greater", "where", "multiply_public"),
        "_prelu_kernel_backward": _form(_prelu, "greater", "where", "multiply", "multiply_public"),
        "elu_backward": _form(_elu, "less_equal", "exp", "where", "multiply", factor=6, check=_check_elu),
        "gelu_backward": _form(_gelu, "gelu_slope", "gelu_tanh_slope", "multiply", factor=3),
        "silu_backward": _form(_times(activations.silu_slope), "silu_slope", "multiply", factor=3),
        "softplus_backward": _form(_softplus, "sigmoid", "multiply", factor=3),
        "log_sigmoid_backward": _form(_times(_log_sigmoid_slope), "sigmoid", "multiply", factor=3, check=_check_log_sigmoid),
        "mish_backward": _form(_times(_mish_slope), "softplus", "tanh", "sigmoid", "multiply", factor=6),
        "glu_backward": _form(_glu, "sigmoid", "multiply", factor=3),
        "sigmoid_backward": _form(_of_output(_sigmoid_slope), "multiply"),
        "tanh_backward": _form(_of_output(_tanh_slope), "multiply"),
        "_softmax_backward_data": _form(_softmax, "multiply"),
        "_log_softmax_backward_data": _form(_log_softmax, "exp", "multiply", factor=6),
    }.items()
}
