"""What layers of networks do besides products and activations: softmax, pooling, embeddings; and the gradients of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import arithmetic, extremes, layers, softmaxes
from grid.smpc.link import Words
from grid.smpc.numbers import Number
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, as_number, axes_of, elements, gathered
from grid.smpc.operations.products import matrix_product
from grid.smpc.operations.values import Absent, Value
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


async def _log_softmax(p: Protocol, a: Arguments) -> Result | Sequence[Result]:
    if not a.derives or not a.shape:
        return await _along(softmaxes.log_softmax)(p, a)
    made, quotients = await softmaxes.log_softmax_beside_softmax(p, a.number(p, "self"), a["dim"])
    return Value(made.raw, a.dtype, beside=quotients)


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
    value, winners = await extremes.pooled(p, a.number(p, "self"), size, stride=stride, padding=padding)
    return [value, Value(Absent(a.shape), torch.int64, beside=winners)]


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
    shape, (rows, columns) = a.shape_of("self"), _adaptive_sides(a)
    return shape[-2] // rows, shape[-1] // columns


def _adaptive_sides(a: Arguments) -> tuple[int, ...]:
    """Of the pooled images."""
    return (a.shape_of("grad_output") if "grad_output" in a.op.index else a.shape)[-2:]


def _check_adaptive(a: Arguments) -> None:
    sides = _adaptive_sides(a)
    if len(sides) != 2 or len(a.get("output_size", sides)) != 2 or not all(sides):
        raise InvalidRequest(f"{a.op.name} gives images of two sides of 1 or more")
    if any(whole % part for whole, part in zip(a.shape_of("self")[-2:], sides, strict=True)):
        raise OpNotSupported(f"{a.op.name} on shares takes images whose sides are multiples of those of the result")


# ---------------------------------------------------------------- pooling backwards


async def _max_pool_backward(p: Protocol, a: Arguments) -> Result:
    """Each window's gradient to the first of its largest, which comparisons find anew where nobody knows it any more."""
    x, size, stride, padding = a.number(p, "self"), _sides(a, "kernel_size"), _stride(a), _sides(a, "padding")
    found = a["indices"].beside if isinstance(a["indices"], Value) else None
    if not isinstance(found, extremes.Winners) or found.items != math.prod(size):  # else they are another pool's
        found = await extremes.winners_of(p, extremes.padded_windows(p, x, size, stride, padding))
    spread = await extremes.at_largest(p, found, a.number(p, "grad_output"))
    return spread.each(lambda part: extremes.put_back(part, x.shape, size, stride, padding))


async def _average_pool_backward(p: Protocol, a: Arguments) -> Result:
    """A share of each window's gradient to each of its pixels."""
    if "kernel_size" in a.op.index:
        size, stride, padding = _sides(a, "kernel_size"), _stride(a), _sides(a, "padding")
    else:
        size = stride = _adaptive_size(a)
        padding = (0, 0)
    count, shape = math.prod(size), a.shape_of("self")
    share = await arithmetic.divide_public(p, a.number(p, "grad_output"), count)
    return share.each(lambda part: extremes.put_back(np.broadcast_to(part, (count, *part.shape)), shape, size, stride, padding))


def _windows_backward(a: Arguments) -> int:
    return math.prod(_sides(a, "kernel_size")) * elements(a.shape_of("grad_output"))


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


async def _embedding_backward(p: Protocol, a: Arguments) -> Result:
    """Each position's gradient added to its row: by secret positions, a product with one-hot."""
    grad, index, rows = a.number(p, "grad_output"), a["indices"], a["num_weights"]
    flat = grad.each(lambda part: part.reshape(-1, a.shape[1]))
    if isinstance(index, Value):
        hot = await layers.one_hot(p, as_number(p, index), rows)
        if a["padding_idx"] >= 0:
            kept = (np.arange(rows) != a["padding_idx"]).astype(np.uint64)
            hot = hot.each(lambda part: part * kept)
        across = hot.each(lambda part: part.reshape(-1, rows).T)
        return await arithmetic.matmul(p, across, flat)
    at = index.to(torch.int64).reshape(-1)
    counted = (at != a["padding_idx"]).to(torch.int64)[:, None]

    def added(part: Words) -> Words:
        return words_of(torch.zeros(a.shape, dtype=torch.int64).index_add_(0, at, tensor_of(part) * counted))

    return flat.each(added)


def _check_embedding_backward(a: Arguments) -> None:
    if a["scale_grad_by_freq"]:
        raise OpNotSupported("on shares an embedding has no scale_grad_by_freq: leave it out")


def _embedding_backward_peak(a: Arguments) -> int:
    return a["num_weights"] * elements(a.shape_of("indices")) if a.is_secret("indices") else 0


def _vocabulary(a: Arguments) -> int:
    return a.shape_of("weight")[0] * elements(a.shape_of("indices")) if a.is_secret("indices") else 0


def _embedding_products(a: Arguments) -> int:
    return _vocabulary(a) * a.shape_of("weight")[1]


_SOFTMAX = Form(_along(softmaxes.softmax), ("softmax",), check=_check_softmax, peak=_exponentials)

FORMS: Mapping[str, Form] = {
    "_softmax.default": _SOFTMAX,
    "_safe_softmax.default": _SOFTMAX,
    "_log_softmax.default": Form(_log_softmax, ("log_softmax",), check=_check_softmax, peak=_exponentials),
    "logsumexp.default": Form(_log_sum_exp, ("log_softmax",), check=_check_softmax, peak=_exponentials),
    "max_pool2d_with_indices.default": Form(_max_pool, ("max_pool2d",), check=_check_pool, peak=_windows),
    "avg_pool2d.default": Form(_average_pool, ("avg_pool2d",), check=_check_pool, peak=_windows),
    "_adaptive_avg_pool2d.default": Form(_adaptive_pool, ("avg_pool2d",), check=_check_adaptive),
    "max_pool2d_with_indices_backward.default": Form(
        _max_pool_backward, ("max", "where"), check=_check_pool, peak=_windows_backward
    ),
    "avg_pool2d_backward.default": Form(_average_pool_backward, ("divide_public",), check=_check_pool, peak=_windows_backward),
    "_adaptive_avg_pool2d_backward.default": Form(_average_pool_backward, ("divide_public",), check=_check_adaptive),
    "embedding.default": Form(_embedding, ("embedding",), peak=_vocabulary, products=_embedding_products),
    "embedding_dense_backward.default": Form(
        _embedding_backward,
        ("embedding",),
        check=_check_embedding_backward,
        peak=_embedding_backward_peak,
        products=lambda a: _embedding_backward_peak(a) * a.shape[1],
    ),
}
