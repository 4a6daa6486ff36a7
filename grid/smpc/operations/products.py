"""Matrix products and convolutions. Where both operands are secret, parties exchange one element for each of the result; a public
one stays with the component that it meets, and only the truncation sends anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import arithmetic
from grid.smpc.numbers import Number, default_fraction
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, as_number, as_public, encoded
from grid.smpc.operations.values import Value
from grid.smpc.operations.views import tensor_of, words_of
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Work

Bilinear = Callable[[Tensor, Tensor], Tensor]


async def bilinear(
    p: Protocol, x: Any, y: Any, both: Callable[[Number, Number], Work[Number]], one: Bilinear
) -> Number:
    """A bilinear map of two operands: `both` where both are secret, else `one` on each component of the secret one."""
    if isinstance(x, Value) and isinstance(y, Value):
        return await both(as_number(p, x), as_number(p, y))
    secret, public = (x, y) if isinstance(x, Value) else (y, x)
    fraction = default_fraction(public.dtype)
    factor = tensor_of(encoded(public, fraction))
    if secret is x:
        return await arithmetic.mapped(p, as_number(p, x), lambda part: words_of(one(tensor_of(part), factor)), fraction)
    return await arithmetic.mapped(p, as_number(p, y), lambda part: words_of(one(factor, tensor_of(part))), fraction)


# ---------------------------------------------------------------- matrices


async def matrix_product(p: Protocol, x: Any, y: Any) -> Number:
    """(m, k) @ (k, n), or batches of them; any of them secret or public."""
    return await bilinear(p, x, y, lambda a, b: arithmetic.matmul(p, a, b), torch.matmul)


async def _vector_product(p: Protocol, x: Any, y: Any) -> Number:
    """(m, k) @ (k,)."""
    column = _reshaped(y, (-1, 1))
    made = await matrix_product(p, x, column)
    return made.each(lambda part: part[..., 0])


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    return Value(x.shared.reshape(shape), x.dtype) if isinstance(x, Value) else x.reshape(shape)


def _product_of(x: str, y: str) -> Kernel:
    async def kernel(p: Protocol, a: Arguments) -> Result:
        return await matrix_product(p, a[x], a[y])

    return kernel


async def _mv(p: Protocol, a: Arguments) -> Result:
    return await _vector_product(p, a["self"], a["vec"])


async def _dot(p: Protocol, a: Arguments) -> Result:
    x, y = a["self"], a["other"] if "other" in a.op.index else a["tensor"]
    made = await matrix_product(p, _reshaped(x, (1, -1)), _reshaped(y, (-1, 1)))
    return made.each(lambda part: part[0, 0])


def _added(x: str, y: str) -> Kernel:
    """beta self + alpha x @ y."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        first, second = a[x], a[y]
        if isinstance(first, Value) or isinstance(second, Value):
            made = await (_vector_product if y == "vec" else matrix_product)(p, first, second)
        else:
            made = as_number(p, torch.matmul(first.to(torch.float64), second.to(torch.float64)).to(a.dtype))
        if a["alpha"] != 1:
            made = await arithmetic.multiply_public(p, made, as_public(a["alpha"]))
        if a["beta"] == 0:
            return made
        addend = a.number(p, "self")
        if a["beta"] != 1:
            addend = await arithmetic.multiply_public(p, addend, as_public(a["beta"]))
        return await arithmetic.add(p, made, addend)

    return kernel


def _inner(*names: str) -> Callable[[Arguments], int]:
    """Multiplications of a product whose first operand is the first of these."""
    return lambda a: math.prod(a.shape) * (a.shape_of(names[0])[-1:] or (1,))[0]


# ---------------------------------------------------------------- convolutions


async def _convolution(p: Protocol, a: Arguments) -> Result:
    """Of one dimension as one of two; a dilation puts zeros between what a filter has."""
    line = len(a.shape) == 3
    stride, padding, dilation = (_pair(a[name], line, rest) for name, rest in (("stride", 1), ("padding", 0), ("dilation", 1)))
    groups = a["groups"]
    x, w = (_plane(a[name]) if line else a[name] for name in ("input", "weight"))
    w = _dilated(w, dilation)

    async def both(first: Number, second: Number) -> Number:
        return await arithmetic.conv2d(p, first, second, stride=stride, padding=padding, groups=groups)

    def one(first: Tensor, second: Tensor) -> Tensor:
        parts = zip(first.chunk(groups, 1), second.chunk(groups, 0), strict=True)
        made = [torch.nn.functional.conv2d(x, w, stride=stride, padding=padding) for x, w in parts]
        return made[0] if groups == 1 else torch.cat(made, 1)

    made = await bilinear(p, x, w, both, one)
    made = made.each(lambda part: part.reshape(a.shape))
    if a["bias"] is None:
        return made
    bias = a.number(p, "bias").each(lambda part: part.reshape((-1,) + (1,) * (len(a.shape) - 2)))
    return await arithmetic.add(p, made, bias)


def _pair(sizes: Any, line: bool, rest: int) -> tuple[int, int]:
    """A size for both axes of a plane; a line is a plane of height 1."""
    if line:
        return rest, sizes[-1]
    return (sizes[0], sizes[-1])


def _plane(x: Any) -> Any:
    return _reshaped(x, (*x.shape[:2], 1, x.shape[2]))


def _dilated(w: Any, dilation: tuple[int, int]) -> Any:
    if dilation == (1, 1):
        return w
    height, width = ((size - 1) * step + 1 for size, step in zip(w.shape[2:], dilation, strict=True))

    def apart(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        wide = np.zeros((*part.shape[:2], height, width), part.dtype)
        wide[:, :, :: dilation[0], :: dilation[1]] = part
        return wide

    if isinstance(w, Value):
        return Value(w.shared.each(apart), w.dtype)
    return torch.from_numpy(apart(w.detach().numpy()))


def _check_convolution(a: Arguments) -> None:
    if a["transposed"]:
        raise OpNotSupported("a transposed convolution is not done on shares: put zeros between the pixels, and convolve")
    if len(a.shape) not in (3, 4) or len(a.shape_of("input")) != len(a.shape):
        raise OpNotSupported("on shares convolutions are of batches, (n, c, w) or (n, c, h, w)")
    if not a.is_secret("input") and not a.is_secret("weight"):
        raise OpNotSupported("a convolution of two public tensors: compute it first, and add the secret bias")
    sides = len(a.shape) - 2
    if any(len(a[name]) not in (1, sides) for name in ("stride", "padding", "dilation")):
        raise InvalidRequest(f"{a.op.name}: stride, padding and dilation have one number, or {sides}")
    filters, bias = a.shape_of("weight"), a.shape_of("bias") if a["bias"] is not None else None
    if filters[0] % a["groups"] or a.shape_of("input")[1] != filters[1] * a["groups"] or bias not in (None, filters[:1]):
        raise InvalidRequest(f"{a.op.name}: filters {filters} in {a['groups']} groups do not fit the images or the bias")


def _convolution_products(a: Arguments) -> int:
    dilation = math.prod(a["dilation"]) if a["dilation"] else 1
    return math.prod(a.shape) * math.prod(a.shape_of("weight")[1:]) * dilation


_MATMUL = ("matmul",)

FORMS: Mapping[str, Form] = {
    "mm.default": Form(_product_of("self", "mat2"), _MATMUL, products=_inner("self")),
    "bmm.default": Form(_product_of("self", "mat2"), _MATMUL, products=_inner("self")),
    "mv.default": Form(_mv, _MATMUL, products=_inner("self")),
    "dot.default": Form(_dot, _MATMUL, products=_inner("self")),
    "vdot.default": Form(_dot, _MATMUL, products=_inner("self")),
    "addmm.default": Form(_added("mat1", "mat2"), _MATMUL, products=_inner("mat1")),
    "addmv.default": Form(_added("mat", "vec"), _MATMUL, products=_inner("mat")),
    "baddbmm.default": Form(_added("batch1", "batch2"), _MATMUL, products=_inner("batch1")),
    "convolution.default": Form(_convolution, ("conv2d",), check=_check_convolution, products=_convolution_products),
}
