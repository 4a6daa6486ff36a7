"""Rearrangements and sums of elements, and constants: each party does them on its components, and sends nothing.

torch does them itself, on each component: what it does to a tensor of numbers it does to a component of ring elements, and to a
component of bits, each in a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import arithmetic
from grid.smpc.link import Words
from grid.smpc.numbers import Boolean, Number
from grid.smpc.operations.arguments import Arguments, Form, Kernel, Result, as_number, encoded
from grid.smpc.operations.values import Absent, Value
from grid.smpc.packing import pack, unpack
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Bits, Shared
from grid.tensors.ops import Bound, flatten

_DROPPED = (torch.memory_format, torch.dtype)


def tensor_of(words: Words) -> Tensor:
    """A component as a tensor of torch, which is not written."""
    dense = words if words.flags.writeable else words.copy()
    return torch.from_numpy(dense.view(np.int64))


def words_of(tensor: Tensor) -> Words:
    """Back again. A small part of something large does not keep that alive."""
    if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
        tensor = tensor.clone()
    return np.asarray(tensor.contiguous().numpy()).view(np.uint64)


def arranged(*names: str) -> Kernel:
    """The operation on each component of these arguments; public ones among them become secret ones."""

    async def kernel(p: Protocol, a: Arguments) -> Result | list[Result]:
        held = [one for name in names for one in (a[name] if isinstance(a[name], list) else [a[name]])]
        if all(_is_absent(one) for one in held):
            return [None] * len(a.results)
        if a.dtype == torch.bool and all(isinstance(one, Value) and isinstance(one.content, Boolean) for one in held):
            return _bits(a, names, [one.content for one in held])
        numeric = [await one.numeric(p) if isinstance(one, Value) else one for one in held]
        numbers = [as_number(p, one).with_fraction(a.bits).raw for one in numeric]
        made = [_component(a, names, [tensor_of(one.parts[k]) for one in numbers]) for k in range(len(numbers[0].parts))]
        return [Number(Shared(*map(words_of, parts)), a.bits) for parts in zip(*made, strict=True)]

    return kernel


def _is_absent(operand: Any) -> bool:
    return isinstance(operand, Value) and isinstance(operand.content, Absent)


def _bits(a: Arguments, names: tuple[str, ...], held: list[Boolean]) -> list[Result]:
    counts = [int(np.prod(one.shape, dtype=np.int64)) for one in held]
    made = []
    for number in range(len(held[0].bits.parts)):
        own = [
            torch.from_numpy(unpack(one.bits.parts[number], count)[0].reshape(one.shape))
            for one, count in zip(held, counts, strict=True)
        ]
        made.append(_component(a, names, own))
    shapes = [tuple(tensor.shape) for tensor in made[0]]
    packed = [[_packed(tensor.contiguous().numpy()) for tensor in tensors] for tensors in made]
    return [Boolean(Bits(*parts), shape) for shape, parts in zip(shapes, zip(*packed, strict=True), strict=True)]


def _packed(bits: npt.NDArray[Any]) -> Words:
    return pack(bits.reshape(1, -1))


def _component(a: Arguments, names: tuple[str, ...], tensors: list[Tensor]) -> list[Tensor]:
    """The results on one component."""
    waiting = iter(tensors)
    values: list[Any] = []
    for parameter, value in zip(a.op.parameters, a.bound.values, strict=True):
        if parameter.name in names:
            values.append([next(waiting) for _ in value] if isinstance(value, list) else next(waiting))
        else:
            values.append(None if isinstance(value, _DROPPED) else a.actual(value))
    try:
        made = flatten(Bound(a.op, tuple(values)).run())
        if any(size < 0 for one in made for size in one.shape):
            raise IndexError("a size below 0")
        return made
    except (RuntimeError, IndexError) as error:  # about shapes, positions and the like, which the meta device has let pass
        raise InvalidRequest(f"{a.op.name}: {str(error).splitlines()[0][:300]}", op=a.op.name) from None


async def _viewed(p: Protocol, a: Arguments) -> Result:
    """The elements in a row, as another shape."""
    if _is_absent(a["self"]):
        return None
    return a.secret("self").each(lambda part: part.reshape(a.shape))


async def _padded(p: Protocol, a: Arguments) -> Result:
    x, pad, value = a.number(p, "self").with_fraction(a.bits), a["pad"], a["value"]

    def filled(part: Tensor, by: int) -> Tensor:
        return torch.nn.functional.pad(part, pad, value=by)

    made = x.raw.each(lambda part: words_of(filled(tensor_of(part), 0)))
    if value:
        outside = filled(torch.zeros(x.shape, dtype=torch.int64), 1).numpy().view(np.uint64)
        made = p.add_public(made, outside * encoded(value, a.bits))
    return Number(made, a.bits)


async def _placed(p: Protocol, a: Arguments) -> Result:
    """What moves pixels, as positions: torch does it to their numbers."""
    at = _component(a, ("self",), [_places(a.shape_of("self"))])[0].to(torch.int64)
    return a.number(p, "self").each(lambda part: words_of(tensor_of(part).reshape(-1)[at]))


async def _placed_back(p: Protocol, a: Arguments) -> Result:
    """The gradient of that: added up where pixels came from."""
    places = _places(a.shape)
    if a.op.base == "upsample_nearest2d_backward":
        made = torch.ops.aten.upsample_nearest2d(places, a["output_size"], a["scales_h"], a["scales_w"])
    else:
        forward = torch.ops.aten.reflection_pad2d if a.op.base.startswith("reflection") else torch.ops.aten.replication_pad2d
        made = forward(places, a["padding"])
    at = made.reshape(-1).to(torch.int64)

    def added(part: Words) -> Words:
        return words_of(torch.zeros(places.numel(), dtype=torch.int64).index_add_(0, at, tensor_of(part).reshape(-1)))

    return a.number(p, "grad_output").each(lambda part: added(part).reshape(a.shape))


def _places(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)


async def _trace(p: Protocol, a: Arguments) -> Result:
    return a.number(p, "self").each(lambda part: np.trace(part, dtype=np.uint64))


async def _cumulative(p: Protocol, a: Arguments) -> Result:
    x = a.number(p, "self")
    return await arithmetic.cumulative(p, x, a["dim"]) if x.shape else x


def _constant(value: float | None) -> Kernel:
    """A tensor of this number; of the argument `fill_value` or `value` for None."""

    async def kernel(p: Protocol, a: Arguments) -> Result:
        number = encoded(a.get("fill_value", a.get("value")) if value is None else value, a.bits)
        return Number(p.constant(np.broadcast_to(number, a.shape).copy()), a.bits)

    return kernel


def _check_factor(a: Arguments) -> None:
    if a["alpha"] != 1:
        raise OpNotSupported(f"{a.op.name} with alpha: multiply first")


def _form(*names: str) -> Form:
    return Form(arranged(*names), secret=names, either=names)


_VIEWS = (
    *("t.default", "transpose.int", "permute.default", "select.int", "slice.Tensor", "unsqueeze.default", "squeeze.default"),
    *("squeeze.dim", "squeeze.dims", "expand.default", "flip.default", "roll.default", "repeat.default", "tril.default"),
    *("triu.default", "diagonal.default", "diagonal_copy.default", "diag_embed.default", "split.Tensor", "unbind.int"),
    *("split_with_sizes.default", "unsafe_split.Tensor", "unsafe_split_with_sizes.default", "index_select.default"),
    *("index.Tensor", "gather.default", "diagonal_backward.default", "select_backward.default", "slice_backward.default"),
)
_WRITTEN = ("select_scatter.default", "slice_scatter.default", "scatter_add.default")

_NUMBERS = {
    **{f"{kind}.default": value for kind, value in (("zeros_like", 0), ("ones_like", 1), ("full_like", None), ("empty_like", 0))},
    **{f"{kind}.default": value for kind, value in (("new_zeros", 0), ("new_ones", 1), ("new_full", None), ("new_empty", 0))},
    "new_empty_strided.default": 0,
    "fill.Scalar": None,
}
CONSTANTS = frozenset(f"aten.{name}" for name in _NUMBERS)
"""Operations whose results depend on shapes alone."""

FORMS: Mapping[str, Form] = {
    "view.default": Form(_viewed, secret=("self",), either=("self",)),
    "_unsafe_view.default": Form(_viewed, secret=("self",), either=("self",)),
    **{name: _form("grad_output" if "backward" in name else "self") for name in _VIEWS},
    **{name: _form("self", "src") for name in _WRITTEN},
    "index_put.default": _form("self", "values"),
    "index_add.default": Form(
        arranged("self", "source"), secret=("self", "source"), either=("self", "source"), check=_check_factor
    ),
    "cat.default": _form("tensors"),
    "stack.default": _form("tensors"),
    "constant_pad_nd.default": Form(_padded, secret=("self",)),
    "trace.default": Form(_trace, ("sum",)),
    **{
        f"{name}.default": Form(_placed, secret=("self",))
        for name in ("upsample_nearest2d", "reflection_pad2d", "replication_pad2d")
    },
    **{
        f"{name}_backward.default": Form(_placed_back, secret=("grad_output", "self"))
        for name in ("upsample_nearest2d", "reflection_pad2d", "replication_pad2d")
    },
    "cumsum.default": Form(_cumulative, ("cumsum",)),
    **{name: Form(_constant(value), secret=("self",), either=("self",)) for name, value in _NUMBERS.items()},
}
