"""Losses and their derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from grid.errors import OpNotSupported
from grid.smpc.functions import activations, arithmetic, comparisons, layers
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
            each = "F.one_hot(target, k).float() @ weight" if a.op.base.startswith("nll") else name
            raise OpNotSupported(f"{a.op.name} with {name}: make the losses with reduction='none', and multiply them by {each}")


async def _squared(p: Protocol, a: Arguments) -> Result:
    apart = await arithmetic.subtract(p, a.number(p, "self"), a.number(p, "target"))
    return await reduced(p, await arithmetic.multiply(p, apart, apart), a["reduction"])


async def _squared_backward(p: Protocol, a: Arguments) -> Result:
    apart = await arithmetic.subtract(p, a.number(p, "self"), a.number(p, "target"))
    scaled = await arithmetic.multiply_public(p, apart, 2 / (max(apart.raw.size, 1) if a["reduction"] == _MEAN else 1))
    return await arithmetic.multiply(p, scaled, a.number(p, "grad_output"))


async def _apart(p: Protocol, a: Arguments) -> Number:
    return arithmetic.fixed(await arithmetic.subtract(p, a.number(p, "self"), a.number(p, "target")))


async def _clamped_square(p: Protocol, a: Arguments) -> Result:
    """c (d - c / 2), of the distance d and c, d kept between bounds: Huber's loss; over the bound, the smooth L1 loss."""
    apart, bound = await _apart(p, a), _bound(a)
    near = await comparisons.clamp(p, apart, -bound, bound)
    half = await arithmetic.divide_public(p, near, 2)
    losses = await arithmetic.multiply(p, near, await arithmetic.subtract(p, apart, half))
    if "beta" in a.op.index:
        losses = await arithmetic.divide_public(p, losses, bound)
    return await reduced(p, losses, a["reduction"])


async def _clamped_square_backward(p: Protocol, a: Arguments) -> Result:
    apart, bound = await _apart(p, a), _bound(a)
    near = await comparisons.clamp(p, apart, -bound, bound)
    count = near.raw.size if a["reduction"] == _MEAN else 1
    grad = await arithmetic.divide_public(p, a.number(p, "grad_output"), count * (bound if "beta" in a.op.index else 1))
    return await arithmetic.multiply(p, near, grad)


def _bound(a: Arguments) -> float:
    return float(a["beta"] if "beta" in a.op.index else a["delta"])


def _check_bound(a: Arguments) -> None:
    _check_reduced(a)
    if not _bound(a) > 0:
        raise OpNotSupported(f"{a.op.name} with a bound of {_bound(a)}: torch.nn.functional.l1_loss")


async def _margin(p: Protocol, a: Arguments) -> Number:
    """Less score times target."""
    x, target = a.number(p, "self"), a["target"]
    if isinstance(target, Value):
        made = await arithmetic.multiply(p, x, as_number(p, target))
    else:
        made = await arithmetic.multiply_public(p, x, as_public(target))
    return Number(-made.raw, made.fraction)


async def _soft_margin(p: Protocol, a: Arguments) -> Result:
    return await reduced(p, await activations.softplus(p, await _margin(p, a)), a["reduction"])


async def _soft_margin_backward(p: Protocol, a: Arguments) -> Result:
    """Less sigmoid(-x y) y g."""
    slope = await activations.sigmoid(p, await _margin(p, a))
    made = await arithmetic.multiply(p, slope, a.number(p, "target"))
    count = made.raw.size if a["reduction"] == _MEAN else 1
    return await arithmetic.multiply(p, made, await arithmetic.divide_public(p, a.number(p, "grad_output"), -count))


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
    if isinstance(a["target"], Value):
        return await _secret_class_loss_backward(p, a)
    shape, (target, counted) = a.shape, _classes(a)
    count = max(1, int(counted.sum())) if a["reduction"] == _MEAN else 1
    grad = await arithmetic.divide_public(p, a.number(p, "grad_output"), -count)

    def place(part: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
        values = tensor_of(part).reshape(-1, 1).expand(target.shape[0], 1) * counted
        return words_of(torch.zeros(target.shape[0], shape[-1], dtype=torch.int64).scatter(1, target, values).reshape(shape))

    return grad.each(place)


async def _secret_class_loss_backward(p: Protocol, a: Arguments) -> Result:
    rows = elements(a.shape[:-1])
    hot, grad = await p.together(
        lambda mine: layers.one_hot(mine, a.number(mine, "target").each(lambda part: part.reshape(-1)), a.shape[-1]),
        lambda mine: arithmetic.divide_public(mine, a.number(mine, "grad_output"), -rows if a["reduction"] == _MEAN else -1),
    )
    made = await arithmetic.multiply(p, hot, grad.each(lambda part: part.reshape(-1, 1)))
    return made.each(lambda part: part.reshape(a.shape))


def _exponentials(a: Arguments) -> int:
    return 6 * elements(a.shape_of("self"))


def _hot(a: Arguments) -> int:
    return elements(a.shape_of("self")) if a.is_secret("target") else 0


_CLAMPED = ("clamp", "multiply", "divide_public")

FORMS: Mapping[str, Form] = {
    "mse_loss.default": Form(_squared, ("multiply", "divide_public"), check=_check_reduced),
    "mse_loss_backward.default": Form(_squared_backward, ("multiply_public", "multiply"), check=_check_reduced),
    "binary_cross_entropy_with_logits.default": Form(
        _with_logits, ("softplus", "multiply", "multiply_public"), check=_check_reduced, peak=_exponentials
    ),
    **{f"{name}.default": Form(_clamped_square, _CLAMPED, check=_check_bound) for name in ("huber_loss", "smooth_l1_loss")},
    **{
        f"{name}_backward.default": Form(_clamped_square_backward, _CLAMPED, check=_check_bound)
        for name in ("huber_loss", "smooth_l1_loss")
    },
    "soft_margin_loss.default": Form(_soft_margin, ("multiply", "softplus"), check=_check_reduced, peak=_exponentials),
    "soft_margin_loss_backward.default": Form(
        _soft_margin_backward, ("multiply", "sigmoid"), check=_check_reduced, peak=_exponentials
    ),
    "nll_loss_forward.default": Form(
        _class_loss, ("divide_public", "multiply"), secret=("self", "target"), check=_check_reduced, peak=_hot
    ),
    "nll_loss_backward.default": Form(
        _class_loss_backward,
        ("divide_public", "multiply"),
        secret=("grad_output", "self", "target", "total_weight"),
        check=_check_reduced,
        peak=_hot,
    ),
}
