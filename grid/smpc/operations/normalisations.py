"""Batch, layer and group norm, in evaluation and in training, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import arithmetic, inverses, layers
from grid.smpc.numbers import Number
from grid.smpc.operations.arguments import Arguments, Form, Result, as_number, as_public, elements
from grid.smpc.operations.values import Value
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Work

Apply = Callable[[Protocol], Work[Number]]


def _scaled(x: Number, weight: Any, shape: Sequence[int]) -> Apply:
    """x times a weight of this shape, secret, public or none."""

    async def apply(p: Protocol) -> Number:
        if isinstance(weight, Value):
            return await arithmetic.multiply(p, x, as_number(p, weight).each(lambda part: part.reshape(shape)))
        return x if weight is None else await arithmetic.multiply_public(p, x, as_public(weight).reshape(shape))

    return apply


async def _affine(p: Protocol, x: Number, weight: Any, bias: Any, shape: Sequence[int]) -> Number:
    """x weight + bias, where they are given, secret or public."""
    made = await _scaled(x, weight, shape)(p)
    if bias is None:
        return made
    return await arithmetic.add(p, made, as_number(p, bias).each(lambda part: part.reshape(shape)))


def _peak(a: Arguments) -> int:
    return 2 * elements(a.shape_of("input"))


def _shaped(x: Number, meta: torch.Tensor) -> Number:
    return x.each(lambda part: part.reshape(tuple(meta.shape)))


# ---------------------------------------------------------------- batch norm


def _by_channel(x: Sequence[int]) -> tuple[int, ...]:
    return (-1,) + (1,) * (len(x) - 2)


def _channel_axes(shape: Sequence[int]) -> tuple[int, ...]:
    return (0, *range(2, len(shape)))


def _trains(a: Arguments) -> bool:
    return bool(a.get("training", False))


async def _batch_norm(p: Protocol, a: Arguments) -> Sequence[Result]:
    return await (_batch_norm_of_batch if _trains(a) else _batch_norm_of_past)(p, a)


async def _batch_norm_of_past(p: Protocol, a: Arguments) -> Sequence[Result]:
    """By the running statistics."""
    x = a.number(p, "input")
    weight, bias, average, variance = (a[name] for name in ("weight", "bias", "running_mean", "running_var"))
    shape = _by_channel(x.shape)
    if not any(isinstance(one, Value) for one in (weight, average, variance)):
        if not bool((as_public(variance) + a["eps"] > 0).all()):
            raise InvalidRequest(f"{a.op.name}: a variance and eps are not above 0")
        scale = 1 / np.sqrt(as_public(variance) + a["eps"]) * (1 if weight is None else as_public(weight))
        apart = await arithmetic.subtract(p, x, as_number(p, average).each(lambda part: part.reshape(shape)))
        made = await _affine(p, apart, torch.from_numpy(scale), bias, shape)
    else:
        given = [None if one is None else as_number(p, one) for one in (weight, bias)]
        made = await layers.batch_norm(p, x, as_number(p, average), as_number(p, variance), *given, eps=a["eps"])
    kept = [as_number(p, one) for one in (average, variance)] if len(a.results) == 5 else []
    empty = Number(p.constant(np.zeros(0, np.uint64)))
    return [made, *(empty if not elements(meta.shape) else None for meta in a.results[1:3]), *kept]


async def _batch_norm_of_batch(p: Protocol, a: Arguments) -> Sequence[Result]:
    """By the statistics of the batch, which move the running ones, where there are some."""
    x = a.number(p, "input")
    axes, shape = _channel_axes(x.shape), _by_channel(x.shape)
    found = await layers.normalised(p, x, axes, a["eps"])
    statistics = [_shaped(one, meta) for one, meta in zip((found.mean, found.scale), a.results[1:3], strict=True)]
    if len(a.results) == 3:
        return [await _affine(p, found.value, a["weight"], a["bias"], shape), *statistics]
    n = math.prod(x.shape[axis] for axis in axes)
    made, *moved = await p.together(
        lambda mine: _affine(mine, found.value, a["weight"], a["bias"], shape),
        lambda mine: _moved(mine, a, "running_mean", found.mean, 1.0),
        lambda mine: _moved(mine, a, "running_var", found.variance, n / max(1, n - 1)),
    )
    return [made, *statistics, *moved]


async def _moved(p: Protocol, a: Arguments, name: str, new: Number, factor: float) -> Number:
    """A running statistic, moved towards a new one times a factor."""
    old = a.number(p, name)
    new = await arithmetic.multiply_public(p, new.each(lambda part: part.reshape(old.shape)), factor)
    step = await arithmetic.multiply_public(p, await arithmetic.subtract(p, new, old), a["momentum"])
    return await arithmetic.add(p, old, step)


def _check_batch_norm(a: Arguments) -> None:
    known = [a.get(name) is not None for name in ("running_mean", "running_var")]
    if not _trains(a):
        if not all(known):
            raise OpNotSupported("on shares a batch norm has running statistics in evaluation: track_running_stats=True")
    elif any(known) and len(a.results) == 3:
        raise OpNotSupported(f"{a.op.name} writes running statistics; use _native_batch_norm_legit_functional, which gives them")
    elif math.prod(a.shape_of("input")[axis] for axis in _channel_axes(a.shape_of("input"))) < 2:
        raise InvalidRequest(f"{a.op.name} in training takes more than one value for each channel")


async def _batch_norm_backward(p: Protocol, a: Arguments) -> Sequence[Result]:
    x, grad = a.number(p, "input"), a.number(p, "grad_out")
    axes, shape = _channel_axes(x.shape), _by_channel(x.shape)

    def by_channel(name: str) -> Number:
        return a.number(p, name).each(lambda part: part.reshape(shape))

    if a["train"]:
        average, scale = by_channel("save_mean"), by_channel("save_invstd")
    else:
        average = by_channel("running_mean")
        scale = await inverses.rsqrt(p, layers.plus_public(p, by_channel("running_var"), a["eps"]))

    async def for_input(mine: Protocol) -> Number:
        weighted = await _scaled(grad, a["weight"], shape)(mine)
        if a["train"]:
            return await layers.through_norm(mine, weighted, x, average, scale, axes)
        return await arithmetic.multiply(mine, weighted, scale)

    return await _gradients(p, a, for_input, grad, x, average, scale, axes)


async def _gradients(
    p: Protocol, a: Arguments, for_input: Apply, grad: Number, x: Number, average: Number, scale: Number, axes: Sequence[int]
) -> list[Result]:
    """Those that are asked for, of input, weight and bias; the parameters' are sums over axes."""

    async def for_weight(mine: Protocol) -> Number:
        apart = await arithmetic.subtract(mine, arithmetic.fixed(x), average)
        return await arithmetic.inner(mine, grad, await arithmetic.multiply(mine, apart, scale), axes)

    async def for_bias(mine: Protocol) -> Number:
        return await arithmetic.total(mine, grad, axes)

    wanted = [one for one, asked in zip((for_input, for_weight, for_bias), a["output_mask"], strict=True) if asked]
    found = await p.together(*wanted) if wanted else []
    return [_shaped(one, meta) for one, meta in zip(found, a.results, strict=True)]


# ---------------------------------------------------------------- layer norm


async def _layer_norm(p: Protocol, a: Arguments) -> Sequence[Result]:
    axes = tuple(range(-len(a["normalized_shape"]), 0))
    found = await layers.normalised(p, a.number(p, "input"), axes, a["eps"])
    made = await _affine(p, found.value, a["weight"], a["bias"], tuple(a["normalized_shape"]))
    return [made, _shaped(found.mean, a.results[1]), _shaped(found.scale, a.results[2])]


async def _layer_norm_backward(p: Protocol, a: Arguments) -> Sequence[Result]:
    x, grad, average, scale = (a.number(p, name) for name in ("input", "grad_out", "mean", "rstd"))
    inside = len(a["normalized_shape"])
    axes, rest = tuple(range(-inside, 0)), tuple(range(len(x.shape) - inside))

    async def for_input(mine: Protocol) -> Number:
        weighted = await _scaled(grad, a["weight"], tuple(a["normalized_shape"]))(mine)
        return await layers.through_norm(mine, weighted, x, average, scale, axes)

    return await _gradients(p, a, for_input, grad, x, average, scale, rest)


# ---------------------------------------------------------------- group norm


async def _group_norm(p: Protocol, a: Arguments) -> Sequence[Result]:
    x = a.number(p, "input")
    rows = x.each(lambda part: part.reshape(x.shape[0], a["group"], -1))
    found = await layers.normalised(p, rows, (-1,), a["eps"])
    made = await _affine(p, _shaped(found.value, a.results[0]), a["weight"], a["bias"], _by_channel(x.shape))
    return [made, _shaped(found.mean, a.results[1]), _shaped(found.scale, a.results[2])]


async def _group_norm_backward(p: Protocol, a: Arguments) -> Sequence[Result]:
    """In the shape (n, groups, channels of a group, pixels)."""
    n, channels, groups = a["N"], a["C"], a["group"]
    whole = (n, groups, channels // groups, -1)
    x, grad = (a.number(p, name).each(lambda part: part.reshape(whole)) for name in ("input", "grad_out"))
    average, scale = (a.number(p, name).each(lambda part: part.reshape(n, groups, 1, 1)) for name in ("mean", "rstd"))

    async def for_input(mine: Protocol) -> Number:
        weighted = await _scaled(grad, a["weight"], (1, groups, channels // groups, 1))(mine)
        return await layers.through_norm(mine, weighted, x, average, scale, (2, 3))

    return await _gradients(p, a, for_input, grad, x, average, scale, (0, 3))


_BATCH_NORM = Form(_batch_norm, ("batch_norm", "layer_norm", "multiply_public"), check=_check_batch_norm, peak=_peak)
_NORM = ("layer_norm", "multiply_public")
_BACKWARD = ("multiply", "mean")

FORMS: Mapping[str, Form] = {
    "native_batch_norm.default": _BATCH_NORM,
    "_native_batch_norm_legit.default": _BATCH_NORM,
    "_native_batch_norm_legit.no_stats": _BATCH_NORM,
    "_native_batch_norm_legit_functional.default": _BATCH_NORM,
    "_native_batch_norm_legit_no_training.default": _BATCH_NORM,
    "_batch_norm_no_update.default": _BATCH_NORM,
    "native_batch_norm_backward.default": Form(_batch_norm_backward, (*_BACKWARD, "rsqrt"), peak=_peak),
    "native_layer_norm.default": Form(_layer_norm, _NORM, peak=_peak),
    "native_layer_norm_backward.default": Form(_layer_norm_backward, _BACKWARD, peak=_peak),
    "native_group_norm.default": Form(_group_norm, _NORM, peak=_peak),
    "native_group_norm_backward.default": Form(_group_norm_backward, _BACKWARD, peak=_peak),
}
