"""Losses, and the derivatives that autograd asks for around them and around common activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from grid.errors import OpNotSupported
from grid.smpc.functions import activations, arithmetic, comparisons, exponential, layers
from grid.smpc.numbers import Number
from grid.smpc.operations.arguments import Arguments, Form, Result, as_number, as_public, elements
from grid.smpc.operations.values import Value
from grid.smpc.operations.views import tensor_of, words_of
from grid.smpc.protocol import Protocol

_NONE, _MEAN = 0, 1


async def reduced(p: Protocol, losses: Number, reduction: int, count: float | None = None) -> Number:
    """Losses as they are, their mean (over `count`), or their sum."""
    if reduction == _NONE:
        return losses
    total = await arithmetic.total(p, losses)
    return total if reduction != _MEAN else await arithmetic.divide_public(p, total, count or losses.raw.size)


def _check_reduced(a: Arguments) -> None:
    if a["reduction"] == _MEAN and not elements(a.shape_of("self")):
        raise OpNotSupported(f"{a.op.name}: the mean of nothing")
    for name in ("weight", "pos_weight"):
        if a.get(name) is not None:
            raise OpNotSupported(f"{a.op.name} with {name}: reduction='none' and a product")


async def _squared(p: Protocol, a: Arguments) -> Result:
    apart = await arithmetic.subtract(p, a.number(p, "self"), a.number(p, "target"))
    return await reduced(p, await arithmetic.multiply(p, apart, apart), a["reduction"])


async def _squared_backward(p: Protocol, a: Arguments) -> Result:
    apart = await arithmetic.subtract(p, a.number(p, "self"), a.number(p, "target"))
    scaled = await arithmetic.multiply_public(p, apart, 2 / (apart.raw.size if a["reduction"] == _MEAN else 1))
    return await arithmetic.multiply(p, scaled, a.number(p, "grad_output"))


async def _with_logits(p: Protocol, a: Arguments) -> Result:
    """softplus(x) - x target."""
    x, target = a["self"], a["target"]
    number = as_number(p, x)
    if isinstance(target, Value):
        taken = await arithmetic.multiply(p, number, as_number(p, target))
    else:
        taken = await arithmetic.multiply_public(p, number, as_public(target))
    losses = await arithmetic.subtract(p, await activations.softplus(p, number), taken)
    return await reduced(p, losses, a["reduction"])


# ---------------------------------------------------------------- classes


def _classes(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Public targets as a column, and whether they count."""
    target = a["target"].reshape(-1, 1)
    counted = target != a["ignore_index"]
    return torch.where(counted, target, 0), counted


async def _class_loss(p: Protocol, a: Arguments) -> Sequence[Result]:
    """Less the score of each target: picked by public ones, a product with one-hot secret ones."""
    x = a.number(p, "self")
    rows = x.each(lambda part: part.reshape(-1, part.shape[-1]))
    if isinstance(a["target"], Value):
        hot = await layers.one_hot(p, a.number(p, "target").each(lambda part: part.reshape(-1)), rows.shape[1])
        taken = await arithmetic.total(p, await arithmetic.multiply(p, rows, hot), -1)
        count = rows.shape[0]
    else:
        target, counted = _classes(a)
        taken = rows.each(lambda part: words_of((tensor_of(part).gather(1, target) * counted)[:, 0]))
        count = int(counted.sum())
    losses = Number(-taken.raw, taken.fraction)
    if a["reduction"] == _NONE:
        losses = losses.each(lambda part: part.reshape(a.shape))
    made = await reduced(p, losses, a["reduction"], count)
    total = torch.full(tuple(a.results[1].shape), float(count))
    return [made, as_number(p, total)]


async def _class_loss_backward(p: Protocol, a: Arguments) -> Result:
    shape, (target, counted) = a.shape, _classes(a)
    count = max(1, int(counted.sum())) if a["reduction"] == _MEAN else 1
    grad = await arithmetic.divide_public(p, a.number(p, "grad_output"), -count)

    def place(part: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
        values = tensor_of(part).reshape(-1, 1).expand(target.shape[0], 1) * counted
        return words_of(torch.zeros(target.shape[0], shape[-1], dtype=torch.int64).scatter(1, target, values).reshape(shape))

    return grad.each(place)


def _check_classes(a: Arguments) -> None:
    _check_reduced(a)
    if isinstance(a["target"], Value):
        if a.op.base == "nll_loss_backward":
            raise OpNotSupported(f"{a.op.name} takes public targets: write -(one_hot(target, n) * scores).sum(1).mean()")


# ---------------------------------------------------------------- activations backwards


async def _threshold_backward(p: Protocol, a: Arguments) -> Result:
    above = await comparisons.greater(p, a.number(p, "self"), as_number(p, a["threshold"]))
    return await comparisons.where(p, above, a.number(p, "grad_output"), as_number(p, 0.0))


def _of_output(slope: Callable[[Protocol, Number, Number], Number]) -> Form:
    """Times a function of the output y and of its square."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        y = a.number(p, "output")
        square = await arithmetic.multiply(p, y, y)
        return await arithmetic.multiply(p, a.number(p, "grad_output"), slope(p, y, square))

    return Form(kernel, ("multiply",))


def _sigmoid_slope(p: Protocol, y: Number, square: Number) -> Number:
    return Number(y.raw - square.raw)


def _tanh_slope(p: Protocol, y: Number, square: Number) -> Number:
    return layers.plus_public(p, Number(-square.raw), 1)


async def _softmax_backward(p: Protocol, a: Arguments) -> Result:
    """y g - y sum(y g)."""
    y = a.number(p, "output")
    both = await arithmetic.multiply(p, y, a.number(p, "grad_output"))
    total = await arithmetic.total(p, both, a["dim"] if y.shape else None, keepdims=True)
    return await arithmetic.subtract(p, both, await arithmetic.multiply(p, y, total))


async def _log_softmax_backward(p: Protocol, a: Arguments) -> Result:
    """g - e**y sum(g)."""
    y, grad = a.number(p, "output"), a.number(p, "grad_output")
    total = await arithmetic.total(p, grad, a["dim"] if y.shape else None, keepdims=True)
    return await arithmetic.subtract(p, grad, await arithmetic.multiply(p, await exponential.exp(p, y), total))


def _exponentials(a: Arguments) -> int:
    return 6 * elements(a.shape_of("output" if "output" in a.op.index else "self"))


def _hot(a: Arguments) -> int:
    return elements(a.shape_of("self")) if a.is_secret("target") else 0


FORMS: Mapping[str, Form] = {
    "mse_loss.default": Form(_squared, ("multiply", "divide_public"), check=_check_reduced),
    "mse_loss_backward.default": Form(_squared_backward, ("multiply_public", "multiply"), check=_check_reduced),
    "binary_cross_entropy_with_logits.default": Form(
        _with_logits, ("softplus", "multiply", "multiply_public"), check=_check_reduced, peak=_exponentials
    ),
    "nll_loss_forward.default": Form(
        _class_loss, ("divide_public", "multiply"), secret=("self", "target"), check=_check_classes, peak=_hot
    ),
    "nll_loss_backward.default": Form(
        _class_loss_backward, ("divide_public",), secret=("grad_output", "self", "total_weight"), check=_check_classes
    ),
    "threshold_backward.default": Form(_threshold_backward, ("greater", "where")),
    "sigmoid_backward.default": _of_output(_sigmoid_slope),
    "tanh_backward.default": _of_output(_tanh_slope),
    "_softmax_backward_data.default": Form(_softmax_backward, ("multiply",)),
    "_log_softmax_backward_data.default": Form(_log_softmax_backward, ("exp", "multiply"), peak=_exponentials),
}
