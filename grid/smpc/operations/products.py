"""Matrix products and convolutions. Where both operands are secret, parties exchange one element for each of the result; a public
one stays with the component that it meets, and only the truncation sends anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import arithmetic
from grid.smpc.link import Words
from grid.smpc.numbers import Number, default_fraction
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, as_number, as_public, encoded
from grid.smpc.operations.values import Value
from grid.smpc.operations.views import tensor_of, words_of
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Work

Bilinear = Callable[[Tensor, Tensor], Tensor]


async def bilinear(p: Protocol, x: Any, y: Any, both: Callable[[Number, Number], Work[Number]], one: Bilinear) -> Number:
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
    x, w = (_plane(a[name]) if line else a[name] for name in ("input", "weight"))
    made = await _correlated(p, x, _dilated(w, dilation), stride=stride, padding=padding, groups=a["groups"])
    made = made.each(lambda part: part.reshape(a.shape))
    if a["bias"] is None:
        return made
    bias = a.number(p, "bias").each(lambda part: part.reshape((-1,) + (1,) * (len(a.shape) - 2)))
    return await arithmetic.add(p, made, bias)


async def _correlated(
    p: Protocol, x: Any, w: Any, *, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0), groups: int
) -> Number:
    """The cross-correlation of images and filters, any of them secret or public."""

    async def both(first: Number, second: Number) -> Number:
        return await arithmetic.conv2d(p, first, second, stride=stride, padding=padding, groups=groups)

    def one(first: Tensor, second: Tensor) -> Tensor:
        parts = zip(first.chunk(groups, 1), second.chunk(groups, 0), strict=True)
        made = [torch.nn.functional.conv2d(x, w, stride=stride, padding=padding) for x, w in parts]
        return made[0] if groups == 1 else torch.cat(made, 1)

    return await bilinear(p, x, w, both, one)


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
    _check_images(a)
    if len(a.shape_of("input")) != len(a.shape):
        raise OpNotSupported(_BATCHES)
    if not a.is_secret("input") and not a.is_secret("weight"):
        raise OpNotSupported("a convolution of two public tensors: compute it first, and add the secret bias")
    filters, bias = a.shape_of("weight"), a.shape_of("bias") if a["bias"] is not None else None
    if filters[0] % a["groups"] or a.shape_of("input")[1] != filters[1] * a["groups"] or bias not in (None, filters[:1]):
        raise InvalidRequest(f"{a.op.name}: filters {filters} in {a['groups']} groups do not fit the images or the bias")


_BATCHES = "on shares convolutions are of batches, (n, c, w) or (n, c, h, w)"


def _check_images(a: Arguments) -> None:
    if a["transposed"]:
        raise OpNotSupported("a transposed convolution is not done on shares: put zeros between the pixels, and convolve")
    sides = len(a.shape_of("input")) - 2
    if sides not in (1, 2):
        raise OpNotSupported(_BATCHES)
    if any(len(a[name]) not in (1, sides) for name in ("stride", "padding", "dilation")):
        raise InvalidRequest(f"{a.op.name}: stride, padding and dilation have one number, or {sides}")


def _fields_of(a: Arguments) -> list[int]:
    """What a filter covers of each side, with the zeros of its dilation."""
    sizes = a.shape_of("weight")[2:]
    steps = a["dilation"] * len(sizes) if len(a["dilation"]) == 1 else a["dilation"]
    return [(size - 1) * step + 1 for size, step in zip(sizes, steps, strict=True)]


def _with_zeros(a: Arguments) -> int:
    """Elements of the images with their edges, or of the filters with zeros in between."""
    images, fields = a.shape_of("input"), _fields_of(a)
    edges = a["padding"] * len(fields) if len(a["padding"]) == 1 else a["padding"]
    padded = [size + 2 * edge for size, edge in zip(images[2:], edges, strict=True)]
    return max(math.prod((*images[:2], *padded)), math.prod((*a.shape_of("weight")[:2], *fields)))


# ---------------------------------------------------------------- convolutions backwards


async def _convolution_backward(p: Protocol, a: Arguments) -> Sequence[Result]:
    """The gradients that are asked for: of the images a convolution with the turned filters, of the filters a product of the
    gradient with the columns of the images, of the bias a sum. At the same time."""
    line = len(a.shape_of("input")) == 3
    grad, x, w = (_plane(a[name]) if line else a[name] for name in ("grad_output", "input", "weight"))
    sizes = [_pair(a[name], line, rest) for name, rest in (("stride", 1), ("padding", 0), ("dilation", 1))]
    works: list[Callable[[Protocol], Work[Number]]] = [
        lambda mine: _images_backward(mine, grad, w, tuple(x.shape), a["groups"], *sizes),
        lambda mine: _filters_backward(mine, grad, x, tuple(w.shape), a["groups"], *sizes),
        lambda mine: arithmetic.total(mine, as_number(mine, grad), (0, 2, 3)),
    ]
    wanted = [work for work, asked in zip(works, a["output_mask"], strict=True) if asked]
    found = await p.together(*wanted) if wanted else []
    return [one.each(_to_shape(tuple(meta.shape))) for one, meta in zip(found, a.results, strict=True)]


def _to_shape(shape: tuple[int, ...]) -> Callable[[Words], Words]:
    return lambda part: part.reshape(shape)


async def _images_backward(
    p: Protocol,
    grad: Any,
    w: Any,
    shape: tuple[int, ...],
    groups: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Number:
    """The stride puts zeros between the gradient's pixels, and what is seen beyond the images is cut off."""

    def turned(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        outputs, inputs, *field = part.shape
        grouped = part.reshape(groups, outputs // groups, inputs, *field).swapaxes(1, 2)
        return grouped.reshape(groups * inputs, outputs // groups, *field)[..., ::-1, ::-1]

    w = _rearranged(_dilated(w, dilation), turned)
    before = [field - 1 - pad for field, pad in zip(w.shape[2:], padding, strict=True)]
    wanted = [size + field - 1 for size, field in zip(shape[2:], w.shape[2:], strict=True)]

    def placed(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        whole = np.zeros((*part.shape[:2], *wanted), part.dtype)
        steps = zip(part.shape[2:], before, stride, wanted, strict=True)
        # Pixel k is at before + k stride, where that is inside.
        seen = [[k for k in range(size) if 0 <= at + k * step < most] for size, at, step, most in steps]
        if all(seen):
            (top, bottom), (left, right) = ((ks[0], ks[-1] + 1) for ks in seen)
            (row, column), (down, along) = before, stride
            rows, columns = row + top * down, column + left * along
            whole[..., rows : row + bottom * down : down, columns : column + right * along : along] = part[
                ..., top:bottom, left:right
            ]
        return whole

    return await _correlated(p, _rearranged(grad, placed), w, groups=groups)


async def _filters_backward(
    p: Protocol,
    grad: Any,
    x: Any,
    shape: tuple[int, ...],
    groups: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Number:
    """(group, outputs, n h' w') @ (group, n h' w', inputs kh kw)."""
    n, outputs, rows, columns = grad.shape
    places = n * rows * columns

    def flat(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return part.reshape(n, groups, outputs // groups, -1).transpose(1, 2, 0, 3).reshape(groups, -1, places)

    def fields(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        edges = [(0, 0), (0, 0), *((pad, pad) for pad in padding)]
        field = [(size - 1) * step + 1 for size, step in zip(shape[2:], dilation, strict=True)]
        seen = np.lib.stride_tricks.sliding_window_view(np.pad(part, edges), field, axis=(2, 3))
        seen = seen[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
        grouped = seen.reshape(n, groups, shape[1], *seen.shape[2:])
        return np.ascontiguousarray(grouped.transpose(1, 0, 3, 4, 2, 5, 6)).reshape(groups, places, -1)

    left, right = _rearranged(grad, flat), _rearranged(x, fields)
    if groups == 1:
        left, right = _reshaped(left, left.shape[1:]), _reshaped(right, right.shape[1:])
    made = await matrix_product(p, left, right)
    return made.each(_to_shape(shape))


def _rearranged(x: Any, rearrange: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Any:
    """The same of a secret tensor's components, or of a public tensor."""
    if isinstance(x, Value):
        return Value(x.shared.each(rearrange), x.dtype)
    return torch.from_numpy(np.ascontiguousarray(rearrange(x.detach().numpy())))


def _check_convolution_backward(a: Arguments) -> None:
    _check_images(a)
    if not a.is_secret("grad_output"):
        raise OpNotSupported("the gradient of a convolution that is asked for is public: compute it before it is shared")


def _fields(a: Arguments) -> int:
    """Elements of the columns."""
    grad, filters = a.shape_of("grad_output"), a.shape_of("weight")
    return math.prod((grad[0], *grad[2:], *filters[1:], a["groups"]))


def _room_backward(a: Arguments) -> int:
    """Elements of the columns, or of the gradient with zeros around its pixels."""
    whole = [size + field - 1 for size, field in zip(a.shape_of("input")[2:], _fields_of(a), strict=True)]
    return max(_fields(a), _with_zeros(a), math.prod((*a.shape_of("grad_output")[:2], *whole)))


def _convolution_backward_products(a: Arguments) -> int:
    filters, images = a.shape_of("weight"), a.shape_of("input")
    whole = math.prod((images[0], *images[2:], *filters, *a["dilation"]))
    return max(whole, _fields(a) * filters[0])


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
    "convolution.default": Form(
        _convolution, ("conv2d",), check=_check_convolution, peak=_with_zeros, products=_convolution_products
    ),
    "convolution_backward.default": Form(
        _convolution_backward,
        ("conv2d", "matmul", "sum"),
        check=_check_convolution_backward,
        peak=_room_backward,
        products=_convolution_backward_products,
    ),
}
