"""What layers of networks do besides products and activations: softmax, pooling, normalisations, embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import arithmetic, extremes, layers, softmaxes
from grid.smpc.numbers import Number
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, as_number, as_public, axes_of, elements, gathered
from grid.smpc.operations.products import matrix_product
from grid.smpc.operations.values import Value
from grid.smpc.operations.views import tensor_of, words_of
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Work

# ---------------------------------------------------------------- softmax


def _along(function: Callable[..., Work[Number]]) -> Kernel:
    async def kernel(p: Protocol, a: Arguments) -> Result:
        x = a.number(p, "self")
        if not x.shape:
            found = await function(p, x.each(lambda part: part.reshape(1)), 0)
            return found.each(lambda part: part.reshape(()))
        return await function(p, x, a["dim"])

    return kernel


async def _log_sum_exp(p: Protocol, a: Arguments) -> Result:
    x = a.number(p, "self")
    items = gathered(x, axes_of(x.shape, a["dim"]))
    found = await arithmetic.subtract(p, items, await softmaxes.log_softmax(p, items))
    return found.each(lambda part: part[..., 0].reshape(a.shape))


def _check_softmax(a: Arguments) -> None:
    shape = a.shape_of("self")
    count = math.prod(shape[axis] for axis in axes_of(shape, a["dim"]))
    if not 0 < count <= softmaxes.MOST_ITEMS:
        raise InvalidRequest(f"{a.op.name} is over 1 to {softmaxes.MOST_ITEMS} items on shares, not {count}")


def _exponentials(a: Arguments) -> int:
    return 6 * elements(a.shape_of("self"))


# ---------------------------------------------------------------- pooling


def _sides(a: Arguments, name: str) -> tuple[int, int]:
    sizes = a[name]
    return (sizes[0], sizes[-1])


def _stride(a: Arguments) -> tuple[int, int]:
    return _sides(a, "stride") if a["stride"] else _sides(a, "kernel_size")


async def _max_pool(p: Protocol, a: Arguments) -> Sequence[Result]:
    size, stride, padding = _sides(a, "kernel_size"), _stride(a), _sides(a, "padding")
    return [await extremes.max_pool2d(p, a.number(p, "self"), size, stride=stride, padding=padding), None]


async def _average_pool(p: Protocol, a: Arguments) -> Result:
    x, size, stride, padding = a.number(p, "self"), _sides(a, "kernel_size"), _stride(a), _sides(a, "padding")
    return await layers.avg_pool2d(p, x, size, stride=stride, padding=padding)


def _check_pool(a: Arguments) -> None:
    what = f"on shares {a.op.base.removesuffix('_with_indices')}"
    if a["ceil_mode"]:
        raise OpNotSupported(f"{what} has no ceil_mode: pad the images")
    if a.get("dilation") is not None and set(a["dilation"]) != {1}:
        raise OpNotSupported(f"{what} has no dilation")
    if a.get("divisor_override") is not None:
        raise OpNotSupported(f"{what} has no divisor_override: multiply the result")
    if a.get("count_include_pad", True) is False and any(a["padding"]):
        raise OpNotSupported(f"{what} counts the padding: count_include_pad=True, or no padding")


def _windows(a: Arguments) -> int:
    return math.prod(_sides(a, "kernel_size")) * elements(a.shape)


async def _adaptive_pool(p: Protocol, a: Arguments) -> Result:
    size = _adaptive_size(a)
    return await layers.avg_pool2d(p, a.number(p, "self"), size, stride=size)


def _adaptive_size(a: Arguments) -> tuple[int, int]:
    shape, (rows, columns) = a.shape_of("self"), a.shape[-2:]
    return shape[-2] // rows, shape[-1] // columns


def _check_adaptive(a: Arguments) -> None:
    if len(a["output_size"]) != 2 or not all(a.shape[-2:]):
        raise InvalidRequest(f"{a.op.name} gives images of two sides of 1 or more")
    if any(whole % part for whole, part in zip(a.shape_of("self")[-2:], a.shape[-2:], strict=True)):
        raise OpNotSupported(f"{a.op.name} on shares takes images whose sides are multiples of those of the result")


# ---------------------------------------------------------------- normalisations


def _affine(made: Number, weight: Any, bias: Any, shape: Sequence[int]) -> Callable[[Protocol], Work[Number]]:
    """made weight + bias, where they are given, secret or public."""

    async def apply(p: Protocol) -> Number:
        result = made
        if isinstance(weight, Value):
            result = await arithmetic.multiply(p, result, as_number(p, weight).each(lambda part: part.reshape(shape)))
        elif weight is not None:
            result = await arithmetic.multiply_public(p, result, as_public(weight).reshape(shape))
        if bias is not None:
            result = await arithmetic.add(p, result, as_number(p, bias).each(lambda part: part.reshape(shape)))
        return result

    return apply


async def _batch_norm(p: Protocol, a: Arguments) -> Sequence[Result]:
    x = a.number(p, "input")
    weight, bias, mean, variance = (a[name] for name in ("weight", "bias", "running_mean", "running_var"))
    shape = (-1,) + (1,) * (len(x.shape) - 2)
    if not any(isinstance(one, Value) for one in (weight, mean, variance)):
        if not bool((as_public(variance) + a["eps"] > 0).all()):
            raise InvalidRequest(f"{a.op.name}: a variance and eps are not above 0")
        scale = 1 / np.sqrt(as_public(variance) + a["eps"]) * (1 if weight is None else as_public(weight))
        apart = await arithmetic.subtract(p, x, as_number(p, mean).each(lambda part: part.reshape(shape)))
        made = await _affine(apart, torch.from_numpy(scale), bias, shape)(p)
    else:
        given = [None if one is None else as_number(p, one) for one in (weight, bias)]
        made = await layers.batch_norm(p, x, as_number(p, mean), as_number(p, variance), *given, eps=a["eps"])
    empty = Number(p.constant(np.zeros(0, np.uint64)))
    return [made, *(empty if not elements(meta.shape) else None for meta in a.results[1:])]


def _check_batch_norm(a: Arguments) -> None:
    if a.get("training", False):
        raise OpNotSupported("on shares a batch norm uses its running statistics: call model.eval() first")
    if a["running_mean"] is None or a["running_var"] is None:
        raise OpNotSupported("on shares a batch norm has running statistics: track_running_stats=True")


async def _layer_norm(p: Protocol, a: Arguments) -> Sequence[Result]:
    axes = tuple(range(-len(a["normalized_shape"]), 0))
    made = await layers.layer_norm(p, a.number(p, "input"), axes=axes, eps=a["eps"])
    made = await _affine(made, a["weight"], a["bias"], tuple(a["normalized_shape"]))(p)
    return [made, None, None]


async def _group_norm(p: Protocol, a: Arguments) -> Sequence[Result]:
    x = a.number(p, "input")
    rows = x.each(lambda part: part.reshape(x.shape[0], a["group"], -1))
    made = (await layers.layer_norm(p, rows, eps=a["eps"])).each(lambda part: part.reshape(x.shape))
    made = await _affine(made, a["weight"], a["bias"], (-1,) + (1,) * (len(x.shape) - 2))(p)
    return [made, None, None]


def _norm_peak(a: Arguments) -> int:
    return 2 * elements(a.shape)


# ---------------------------------------------------------------- embeddings


async def _embedding(p: Protocol, a: Arguments) -> Result:
    """Rows by public positions are picked, by secret ones multiplied with: one-hot, all rows."""
    table, index = a["weight"], a["indices"]
    if not isinstance(index, Value):
        at = index.to(torch.int64)
        return as_number(p, table).each(lambda part: words_of(tensor_of(part)[at]))
    if isinstance(table, Value):
        return await layers.embedding(p, as_number(p, index), as_number(p, table))
    hot = await layers.one_hot(p, as_number(p, index), table.shape[0])
    flat = Value(hot.raw.reshape((-1, table.shape[0])), torch.int64)
    return (await matrix_product(p, flat, table)).each(lambda part: part.reshape(a.shape))


def _vocabulary(a: Arguments) -> int:
    return a.shape_of("weight")[0] * elements(a.shape_of("indices")) if a.is_secret("indices") else 0


def _embedding_products(a: Arguments) -> int:
    return _vocabulary(a) * a.shape_of("weight")[1]


_SOFTMAX = Form(_along(softmaxes.softmax), ("softmax",), check=_check_softmax, peak=_exponentials)
_STATISTICS = Form(_batch_norm, ("batch_norm", "multiply_public"), check=_check_batch_norm, peak=_norm_peak)

FORMS: Mapping[str, Form] = {
    "_softmax.default": _SOFTMAX,
    "_safe_softmax.default": _SOFTMAX,
    "_log_softmax.default": Form(_along(softmaxes.log_softmax), ("log_softmax",), check=_check_softmax, peak=_exponentials),
    "logsumexp.default": Form(_log_sum_exp, ("log_softmax",), check=_check_softmax, peak=_exponentials),
    "max_pool2d_with_indices.default": Form(_max_pool, ("max_pool2d",), check=_check_pool, peak=_windows),
    "avg_pool2d.default": Form(_average_pool, ("avg_pool2d",), check=_check_pool, peak=_windows),
    "_adaptive_avg_pool2d.default": Form(_adaptive_pool, ("avg_pool2d",), check=_check_adaptive),
    "native_batch_norm.default": _STATISTICS,
    "_native_batch_norm_legit.default": _STATISTICS,
    "_native_batch_norm_legit_no_training.default": _STATISTICS,
    "_batch_norm_no_update.default": _STATISTICS,
    "native_layer_norm.default": Form(_layer_norm, ("layer_norm", "multiply_public"), peak=_norm_peak),
    "native_group_norm.default": Form(_group_norm, ("layer_norm", "multiply_public"), peak=_norm_peak),
    "embedding.default": Form(_embedding, ("embedding",), peak=_vocabulary, products=_embedding_products),
}
