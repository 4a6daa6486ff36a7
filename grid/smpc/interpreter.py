"""Operations of torch on secret-shared tensors: what each name of the op table stands for, on any `Protocol`.

A `Value` is a sharing with the dtype that torch would give it. A floating-point dtype stands for fixed point with FRACTION_BITS,
every other one for integers; so the dtype says which scale a value has. `Call` checks an operation before anything is sent: its
name, its arguments and shapes (by the op table, on meta tensors, as for every other command), and that no operand, no result and
no product is larger than it may be. All of that depends on public facts alone, so all parties decide alike.

Accuracy: fixed point has a resolution of 2**-18, products must stay below 2**26 in size before their truncation, which rounds to
a neighbour at random. What leaves that domain becomes garbage without an error, since nobody can see it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grid.errors import InvalidRequest, OpNotSupported, QuotaExceeded
from grid.smpc.link import Words
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Shared
from grid.smpc.steps import Work
from grid.tensors.ops import bind, infer, lookup

MAX_PUBLIC = 2.0 ** (62 - FRACTION_BITS)
"""Public numbers are smaller in size."""

SIGNIFICANT_BITS = 20
"""Of a public factor: a relative error of 2**-21, where the other factor is below 2**24."""

PRODUCTS_PER_ELEMENT = 256
"""Multiplications that a matrix product or a convolution may take for each element that a tensor may have."""

_MOST_FACTOR_BITS = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A secret tensor at one party."""

    shared: Shared
    dtype: torch.dtype

    @property
    def bits(self) -> int:
        """Its fraction bits."""
        return fraction_bits(self.dtype)


def fraction_bits(dtype: torch.dtype) -> int:
    """The scale that a dtype stands for. `InvalidRequest` for one that is no real number."""
    if dtype.is_complex:
        raise InvalidRequest(f"{dtype} values cannot be shared")
    return FRACTION_BITS if dtype.is_floating_point else 0


class Call:
    """One operation on `Value`s, public tensors and plain arguments, checked. Raises `OpNotSupported`, `InvalidRequest`,
    `QuotaExceeded` (more than `most` elements)."""

    def __init__(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, most: int) -> None:
        self._kernel = find(name)
        self.op = lookup(name)
        self._values: dict[int, Value | Tensor] = {}
        self.bound = bind(
            self.op, [self._meta(arg) for arg in args], {key: self._meta(arg) for key, arg in kwargs.items()}
        )
        metas = list(self.bound.tensors())
        for meta in metas:
            _check_elements(name, meta.shape, most)
        self.results = infer(self.bound)
        for meta in self.results:
            _check_elements(name, meta.shape, most)
        work = _multiplications(self)
        if work > PRODUCTS_PER_ELEMENT * most:
            raise QuotaExceeded(
                f"{name} takes {work} multiplications, and {PRODUCTS_PER_ELEMENT * most} are allowed at once here"
                " (max_secure_elements); do it in parts",
                op=name,
            )

    def _meta(self, arg: Any) -> Any:
        """The argument with geometries in place of tensors, each of which stands for one operand."""
        if isinstance(arg, Value):
            meta = torch.empty(arg.shared.shape, dtype=arg.dtype, device="meta")
        elif isinstance(arg, Tensor):
            meta = torch.empty(arg.shape, dtype=arg.dtype, device="meta")
        elif isinstance(arg, list):
            return [self._meta(item) for item in arg]
        else:
            return arg
        self._values[id(meta)] = arg
        return meta

    def on(self, operands: Sequence[Value | Tensor]) -> Call:
        """The same call on other operands of the same geometries, in the order in which these were given. Checks nothing."""
        made = object.__new__(type(self))
        made.__dict__ = self.__dict__ | {"_values": dict(zip(self._values, operands, strict=True))}
        return made

    def _actual(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._values[id(value)]
        return [self._actual(item) for item in value] if isinstance(value, list) else value

    def __getitem__(self, name: str) -> Any:
        """The argument of this name: a `Value`, a public tensor or number, or what else the operation takes."""
        return self._actual(self.bound[name])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first result."""
        return self.results[0].dtype

    @property
    def bits(self) -> int:
        """Fraction bits of the first result."""
        return fraction_bits(self.dtype)

    async def run(self, protocol: Protocol) -> list[Value | None]:
        """The results; None for one that is not computed on shares. Other results are as torch gives them."""
        first = await self._kernel(protocol, self)
        if first.shape != tuple(self.results[0].shape):
            raise AssertionError(f"{self.op.name} gave the shape {first.shape}, not {tuple(self.results[0].shape)}")
        return [Value(first, self.dtype), *(None for _ in self.results[1:])]

    def locally(self, protocol: Protocol, **changed: Any) -> Shared:
        """The operation on each component by itself, for those that are linear in their secret operands."""
        held = self["tensors"] if "tensors" in self.op.index else [self[self.op.parameters[0].name]]
        secret = [as_shared(protocol, one, self.bits) for one in held]
        parts = []
        for number in range(len(secret[0].parts)):
            own = [_tensor(one.parts[number]) for one in secret]
            values = [own if isinstance(self.bound.values[0], list) else own[0], *self.bound.values[1:]]
            given = {p.name: v for p, v in zip(self.op.parameters, values, strict=True) if p.kind != "refused"} | changed
            given = {key: value for key, value in given.items() if key not in ("dtype", "memory_format")}
            parts.append(_words(self.op.call(**given)))
        return Shared(*parts)


Kernel = Callable[[Protocol, Call], Work[Shared]]


def _check_elements(name: str, shape: Sequence[int], most: int) -> None:
    count = math.prod(shape)
    if count > most:
        raise QuotaExceeded(f"{name} has {count} elements, and {most} are allowed here (max_secure_elements)", op=name)


def _multiplications(call: Call) -> int:
    if call.op.base in ("mm", "addmm", "mv"):
        return math.prod((*call.results[0].shape, list(call.bound.tensors())[-1].shape[0]))
    if call.op.base == "convolution":
        return math.prod((*call.results[0].shape, *call.bound["weight"].shape[1:]))
    return 0


# ---------------------------------------------------------------- public and secret operands


def _encoded(value: Any, bits: int) -> Words:
    """A public tensor or number in ring elements."""
    wide = torch.as_tensor(value).detach()
    if bits or wide.dtype.is_floating_point:
        scaled = (wide.to(torch.float64) * 2.0**bits).round()
        if not bool((scaled.abs() < MAX_PUBLIC * 2.0**FRACTION_BITS).all()):
            raise InvalidRequest(f"a public operand is not finite, or not smaller than {MAX_PUBLIC:g}")
        wide = scaled
    return _words(wide.to(torch.int64))


def as_shared(protocol: Protocol, operand: Any, bits: int) -> Shared:
    """An operand as a sharing of this scale."""
    if not isinstance(operand, Value):
        return protocol.constant(_encoded(operand, bits))
    if operand.bits == bits:
        return operand.shared
    if bits < operand.bits:
        raise OpNotSupported("a secret that is no whole number cannot be made one; compare or round it before it is shared")
    return operand.shared.times(1 << (bits - operand.bits))


def _spread(x: Shared, shape: Sequence[int]) -> Shared:
    return x.each(lambda part: np.broadcast_to(part, tuple(shape)))


def _factor(number: float) -> tuple[int, int]:
    """A public factor as m / 2**b."""
    if not math.isfinite(number) or abs(number) >= MAX_PUBLIC:
        raise InvalidRequest(f"a public factor is not finite, or not smaller than {MAX_PUBLIC:g}")
    if not number:
        return 0, 0
    bits = min(max(SIGNIFICANT_BITS - math.frexp(number)[1], 0), _MOST_FACTOR_BITS)
    whole = round(math.ldexp(number, bits))
    while bits and whole % 2 == 0:
        whole, bits = whole >> 1, bits - 1
    return whole, bits


async def _scaled(p: Protocol, x: Shared, number: float) -> Shared:
    """x times a public number."""
    whole, bits = _factor(number)
    product = x.times(whole)
    return await p.truncate(product, bits) if bits else product


def _tensor(words: Words) -> Tensor:
    return torch.from_numpy(words.view(np.int64) if words.flags.writeable else words.copy().view(np.int64))


def _words(tensor: Tensor) -> Words:
    return np.ascontiguousarray(tensor.numpy()).view(np.uint64).reshape(tuple(tensor.shape))


# ---------------------------------------------------------------- elementwise


def _sum_of(sign: int, reverse: bool = False) -> Kernel:
    async def kernel(p: Protocol, call: Call) -> Shared:
        if call["alpha"] != 1:
            raise OpNotSupported(f"{call.op.name} with alpha={call['alpha']}: multiply first")
        x, y = (_spread(as_shared(p, call[name], call.bits), call.results[0].shape) for name in ("self", "other"))
        if reverse:
            return y - x
        return x + y if sign > 0 else x - y

    return kernel


async def _negated(p: Protocol, call: Call) -> Shared:
    return -as_shared(p, call["self"], call.bits)


async def _product(p: Protocol, call: Call) -> Shared:
    x, y = call["self"], call["other"]
    if not isinstance(x, Value):
        x, y = y, x
    shape = call.results[0].shape
    if isinstance(y, bool | int | float):
        return await _scaled(p, as_shared(p, x, call.bits), y)
    if not isinstance(y, Value):
        bits = call.bits if y.dtype.is_floating_point else 0
        product = _spread(as_shared(p, x, call.bits), shape).times(np.broadcast_to(_encoded(y, bits), shape))
        return await p.truncate(product, bits) if bits else product
    return await p.multiply(_spread(x.shared, shape), _spread(y.shared, shape), truncate=x.bits + y.bits - call.bits)


async def _quotient(p: Protocol, call: Call) -> Shared:
    x, y = call["self"], call["other"]
    if isinstance(y, Tensor) and y.ndim == 0:
        y = y.item()
    if not isinstance(x, Value) or not isinstance(y, int | float):
        raise OpNotSupported("on shares only a public number divides: multiply by the reciprocals of a public tensor")
    if not y:
        raise InvalidRequest("a division by zero")
    return await _scaled(p, as_shared(p, x, call.bits), 1 / y)


async def _square(p: Protocol, call: Call) -> Shared:
    x = call["self"]
    if call["exponent"] != 2:
        raise OpNotSupported("on shares only squares are powers: write products")
    return await p.multiply(x.shared, x.shared, truncate=x.bits)


async def _relu(p: Protocol, call: Call) -> Shared:
    return await _positive(p, call["self"].shared)


async def _positive(p: Protocol, x: Shared) -> Shared:
    return await p.choose(p.invert(await p.negative(x)), x)


def _comparison(swapped: bool, inverted: bool) -> Kernel:
    async def kernel(p: Protocol, call: Call) -> Shared:
        x, y = call["self"], call["other"]
        real = any(isinstance(one, float) or getattr(one, "dtype", torch.int64).is_floating_point for one in (x, y))
        bits = FRACTION_BITS if real else 0
        shape = call.results[0].shape
        first, second = (_spread(as_shared(p, one, bits), shape) for one in (x, y))
        less = await p.negative(second - first if swapped else first - second)
        return await p.number(p.invert(less) if inverted else less, tuple(shape))

    return kernel


async def _where(p: Protocol, call: Call) -> Shared:
    shape = call.results[0].shape
    x, y = (_spread(as_shared(p, call[name], call.bits), shape) for name in ("self", "other"))
    condition = _spread(as_shared(p, call["condition"], 0), shape)
    return y + await p.multiply(condition, x - y)


async def _converted(p: Protocol, call: Call) -> Shared:
    return as_shared(p, call["self"], call.bits)


# ---------------------------------------------------------------- views and sums


async def _local(p: Protocol, call: Call) -> Shared:
    return call.locally(p)


async def _reshaped(p: Protocol, call: Call) -> Shared:
    return as_shared(p, call["self"], call.bits).reshape(tuple(call.results[0].shape))


async def _summed(p: Protocol, call: Call) -> Shared:
    return call.locally(p)


async def _mean(p: Protocol, call: Call) -> Shared:
    x = call["self"]
    axes = tuple(call["dim"] or range(len(x.shared.shape))) if "dim" in call.op.index else tuple(range(len(x.shared.shape)))
    count = math.prod(x.shared.shape[axis] for axis in axes)
    total = as_shared(p, x, call.bits).each(lambda part: part.sum(axes, dtype=np.uint64))
    if not count:
        raise InvalidRequest("the mean of nothing")
    return await _scaled(p, total.reshape(tuple(call.results[0].shape)), 1 / count)


# ---------------------------------------------------------------- products


async def _bilinear(
    p: Protocol,
    call: Call,
    x: Any,
    y: Any,
    both: Callable[[Shared, Shared, int], Work[Shared]],
    one: Callable[[Tensor, Tensor], Tensor],
) -> Shared:
    """A product of two operands: with messages where both are secret (`both`), else on each component (`one`)."""
    if isinstance(x, Value) and isinstance(y, Value):
        return await both(x.shared, y.shared, x.bits + y.bits - call.bits)
    public = _tensor(_encoded(y if isinstance(x, Value) else x, call.bits))
    if isinstance(x, Value):
        product = x.shared.each(lambda part: _words(one(_tensor(part), public)))
    else:
        product = y.shared.each(lambda part: _words(one(public, _tensor(part))))
    return await p.truncate(product, call.bits) if call.bits else product


async def _matmul(p: Protocol, call: Call, x: Any, y: Any) -> Shared:
    async def both(a: Shared, b: Shared, truncate: int) -> Shared:
        return await p.matmul(a, b, truncate)

    return await _bilinear(p, call, x, y, both, torch.mm)


async def _mm(p: Protocol, call: Call) -> Shared:
    return await _matmul(p, call, call["self"], call["mat2"])


async def _mv(p: Protocol, call: Call) -> Shared:
    async def both(a: Shared, b: Shared, truncate: int) -> Shared:
        return (await p.matmul(a, b.reshape((b.size, 1)), truncate)).reshape((a.shape[0],))

    return await _bilinear(p, call, call["self"], call["vec"], both, torch.mv)


async def _addmm(p: Protocol, call: Call) -> Shared:
    if call["beta"] != 1 or call["alpha"] != 1:
        raise OpNotSupported("addmm with alpha or beta: multiply first")
    product = await _matmul(p, call, call["mat1"], call["mat2"])
    return product + _spread(as_shared(p, call["self"], call.bits), product.shape)


async def _convolution(p: Protocol, call: Call) -> Shared:
    x, w, bias = call["input"], call["weight"], call["bias"]
    stride, padding = tuple(call["stride"]), tuple(call["padding"])
    if call["transposed"] or call["groups"] != 1 or set(call["dilation"]) != {1} or len(call.results[0].shape) != 4:
        raise OpNotSupported("on shares convolutions have two dimensions, one group and no dilation, and are not transposed")
    stride, padding = (tuple(size * 2)[:2] if len(size) == 1 else size for size in (stride, padding))

    async def both(a: Shared, b: Shared, truncate: int) -> Shared:
        return await p.conv2d(a, b, stride=stride, padding=padding, truncate=truncate)

    def one(a: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(a, b, stride=stride, padding=padding)

    found = await _bilinear(p, call, x, w, both, one)
    if bias is None:
        return found
    return found + as_shared(p, bias, call.bits).reshape((-1, 1, 1))


async def _max_pool(p: Protocol, call: Call) -> Shared:
    """The largest of each window, by a tournament."""
    x: Shared = call["self"].shared
    size, padding, dilation = call["kernel_size"], call["padding"], call["dilation"]
    stride = call["stride"] or size
    if any(padding) or set(dilation) != {1} or call["ceil_mode"]:
        raise OpNotSupported("on shares max_pool2d has no padding, no dilation and no ceil_mode")
    (rows, columns), (down, right) = (list(one) * (3 - len(one)) for one in (size, stride))
    height, width = call.results[0].shape[-2:]
    fields = [
        x[..., r : r + down * (height - 1) + 1 : down, c : c + right * (width - 1) + 1 : right]
        for r in range(rows)
        for c in range(columns)
    ]
    while len(fields) > 1:
        half = len(fields) // 2
        first, second = (_stack(fields[start : start + half]) for start in (0, half))
        best = second + await _positive(p, first - second)
        fields = [best[number] for number in range(half)] + fields[2 * half :]
    return fields[0]


def _stack(values: Sequence[Shared]) -> Shared:
    return Shared(*(np.stack(parts) for parts in zip(*(value.parts for value in values), strict=True)))


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "aten.add.Tensor": _sum_of(1),
        "aten.add.Scalar": _sum_of(1),
        "aten.sub.Tensor": _sum_of(-1),
        "aten.sub.Scalar": _sum_of(-1),
        "aten.rsub.Scalar": _sum_of(-1, reverse=True),
        "aten.neg.default": _negated,
        "aten.mul.Tensor": _product,
        "aten.mul.Scalar": _product,
        "aten.div.Tensor": _quotient,
        "aten.div.Scalar": _quotient,
        "aten.pow.Tensor_Scalar": _square,
        "aten.relu.default": _relu,
        **{
            f"aten.{name}.{kind}": _comparison(swapped, inverted)
            for name, swapped, inverted in (("lt", False, False), ("gt", True, False), ("ge", False, True), ("le", True, True))
            for kind in ("Tensor", "Scalar")
        },
        "aten.where.self": _where,
        "aten._to_copy.default": _converted,
        "aten.clone.default": _converted,
        "aten.view.default": _reshaped,
        "aten._unsafe_view.default": _reshaped,
        **{
            f"aten.{name}": _local
            for name in (
                *("t.default", "transpose.int", "permute.default", "select.int", "slice.Tensor", "unsqueeze.default"),
                *("squeeze.default", "squeeze.dim", "squeeze.dims", "expand.default", "cat.default", "stack.default"),
            )
        },
        "aten.sum.default": _summed,
        "aten.sum.dim_IntList": _summed,
        "aten.mean.default": _mean,
        "aten.mean.dim": _mean,
        "aten.mm.default": _mm,
        "aten.mv.default": _mv,
        "aten.addmm.default": _addmm,
        "aten.convolution.default": _convolution,
        "aten.max_pool2d_with_indices.default": _max_pool,
    }
)
"""Operation -> what does it on shares. A received name only selects from this."""

INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "bmm": "products of matrices, one by one",
        "max": "relu: the larger of a and b is b + (a - b).relu()",
        "abs": "2 * x.relu() - x",
        "clamp": "relu: x.relu() cuts off below 0",
        "detach": "the value itself",
    }
)


def find(name: str) -> Kernel:
    """What does an operation. `OpNotSupported` names it and what to use instead."""
    kernel = KERNELS.get(name)
    if kernel is not None:
        return kernel
    base = name.split(".")[1] if name.count(".") == 2 else name
    if base.endswith("_") and not base.startswith("_"):
        raise OpNotSupported(
            f"{name} writes in place, which shares never do: use `{base.rstrip('_')}` and keep its result", op=name
        )
    known = ", ".join(sorted({key.split(".")[1] for key in KERNELS if not key.startswith("aten._")}))
    instead = INSTEAD.get(base, f"the operations that there are: {known}")
    raise OpNotSupported(f"{name[:80]} is not done on shares (yet); use {instead}", op=name[:80])
