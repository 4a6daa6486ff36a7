"""What a kernel of an operation gets, and how an operation is described.

A `Form` says how one operation of the op table is done on shares. Its `kernel` gets the protocol and `Arguments`; its other
fields say what must be known before anything is sent: which arguments it takes, and how much it computes. All of that depends on
public facts alone, so all parties decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grid.errors import ExecutionFailed, InvalidRequest, OpNotSupported
from grid.smpc.functions import comparisons
from grid.smpc.link import Words
from grid.smpc.numbers import VALUE_BITS, Boolean, Number, default_fraction, encode
from grid.smpc.operations.values import Secret, Value, fraction_bits
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.steps import Work
from grid.tensors.ops import Bound, Op

Result = Secret | Value | None
"""A `Value` has something `beside`; None stands for a result that is `Absent`."""


class Arguments:
    """The arguments of one call, bound to the operation's schema: secrets, public tensors, numbers and whatever else.

    `results` are meta tensors: the shapes and dtypes that torch gives.
    """

    def __init__(
        self, bound: Bound, results: Sequence[Tensor], values: Mapping[int, Value | Tensor], *, derives: bool = False
    ) -> None:
        self.bound, self.results = bound, results
        self._values = dict(values)
        self.derives = derives
        """Whether it is known that a gradient is computed of the results."""

    @property
    def op(self) -> Op:
        return self.bound.op

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first result."""
        return tuple(self.results[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the first result."""
        return self.results[0].dtype

    @property
    def bits(self) -> int:
        """Fraction bits of the first result."""
        return fraction_bits(self.dtype)

    def __getitem__(self, name: str) -> Any:
        """The argument of this name: a `Value`, a public tensor or number, or what else the operation takes."""
        return self.actual(self.bound[name])

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of this name, or `default` where the operation has no such argument."""
        return self[name] if name in self.op.index else default

    def actual(self, value: Any) -> Any:
        """What an argument of `bound` stands for."""
        if isinstance(value, Tensor):
            return self._values[id(value)]
        return [self.actual(item) for item in value] if isinstance(value, list) else value

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of an argument that is a tensor, or () of a number."""
        value = self.bound[name]
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    def dtype_of(self, name: str) -> torch.dtype | None:
        """Of an argument that is a tensor; the dtype that stands for a number."""
        value = self.bound[name]
        if isinstance(value, Tensor):
            return value.dtype
        return torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float64

    def is_secret(self, name: str) -> bool:
        return isinstance(self.get(name), Value)

    def secrets(self) -> list[str]:
        """The names of the arguments that are secret, or have something secret in them."""
        found = []
        for parameter, value in zip(self.op.parameters, self.bound.values, strict=True):
            metas = value if isinstance(value, list) else [value]
            if any(isinstance(self._values.get(id(meta)), Value) for meta in metas if isinstance(meta, Tensor)):
                found.append(parameter.name)
        return found

    def secret(self, name: str) -> Secret:
        """A secret argument as functions take it."""
        value = self[name]
        assert isinstance(value, Value)
        return value.secret

    def number(self, protocol: Protocol, name: str) -> Number:
        """An argument, secret or public, as a secret number."""
        return as_number(protocol, self[name])

    async def converted(self, protocol: Protocol, form: Form) -> Arguments:
        """The same arguments as the form wants them: truth values as bits, as they are, or else as 0 and 1; numbers with extra
        fraction bits as they are, or else without. 1 round from numbers to bits, else 2, and all at the same time."""
        if not any(one.dtype is torch.bool or (isinstance(one, Value) and one.extra) for one in self._values.values()):
            return self
        wanted: dict[int, Callable[[Protocol], Work[Value]]] = {}
        for parameter, value in zip(self.op.parameters, self.bound.values, strict=True):
            for meta in value if isinstance(value, list) else [value]:
                held = self._values.get(id(meta)) if isinstance(meta, Tensor) else None
                if isinstance(held, Value) and held.extra and parameter.name not in form.fine:
                    wanted[id(meta)] = held.numeric
                if not isinstance(held, Value) or held.dtype != torch.bool or parameter.name in form.either:
                    continue
                bits = isinstance(held.content, Boolean)
                if parameter.name in form.truths and not bits:
                    wanted[id(meta)] = _to_bits(held)
                elif parameter.name not in form.truths and bits:
                    wanted[id(meta)] = held.numeric
        if not wanted:
            return self
        made = [await next(iter(wanted.values()))(protocol)] if len(wanted) == 1 else await protocol.together(*wanted.values())
        values = self._values | dict(zip(wanted, made, strict=True))
        return Arguments(self.bound, self.results, values, derives=self.derives)


def _to_bits(value: Value) -> Callable[[Protocol], Work[Value]]:
    async def convert(protocol: Protocol) -> Value:
        return Value(await comparisons.boolean(protocol, Number(value.shared, 0)), torch.bool)

    return convert


Kernel = Callable[[Protocol, Arguments], Work[Result | Sequence[Result]]]


def _nothing(arguments: Arguments) -> int:
    return 0


def _anything(arguments: Arguments) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Form:
    """How one operation is done on shares. `functions` are the rows of the table of functions that it uses."""

    kernel: Kernel
    functions: tuple[str, ...] = ()
    secret: tuple[str, ...] | None = None
    """The arguments that may be secret; None stands for all."""
    truths: tuple[str, ...] = ()
    """Arguments that it takes as bits, where they are truth values."""
    either: tuple[str, ...] = ()
    """Arguments that it takes as they are."""
    fine: tuple[str, ...] = ()
    """Arguments that it takes with extra fraction bits."""
    check: Callable[[Arguments], None] = _anything
    """Raises `OpNotSupported` for arguments that it does not take, with what to write instead."""
    unbounded: tuple[str, ...] = ()
    """Numbers among the arguments that may be infinite."""
    peak: Callable[[Arguments], int] = _nothing
    """Elements of the largest tensor that it makes on its way."""
    products: Callable[[Arguments], int] = _nothing
    """Multiplications that a party does at once."""

    def admit(self, arguments: Arguments) -> None:
        """Raises `OpNotSupported` where the arguments are none for it."""
        for name in arguments.secrets():
            if self.secret is not None and name not in self.secret:
                raise OpNotSupported(
                    f"{arguments.op.name} takes a public {name!r} alone on shares; for secret positions use"
                    " torch.nn.functional.embedding, or a product with torch.nn.functional.one_hot"
                )
        for parameter, value in zip(arguments.op.parameters, arguments.bound.values, strict=True):
            if isinstance(value, float) and not math.isfinite(value) and (parameter.name not in self.unbounded or value != value):
                raise InvalidRequest(f"{arguments.op.name}: {parameter.name!r} is {value}. {_NOT_FINITE}")
        _check_axes(arguments)
        self.check(arguments)


def _check_axes(arguments: Arguments) -> None:
    """The meta device does not look at all of them."""
    of = "self" if "self" in arguments.op.index else "output"
    sizes = arguments.get("input_sizes", arguments.shape_of(of) if of in arguments.op.index else ())
    count, dim = len(sizes), arguments.get("dim")
    if arguments.op.base in ("unsqueeze", "stack", "cat", "diag_embed"):
        return
    axes = [axis for axis in (dim if isinstance(dim, list) else [dim]) if axis is not None]
    for axis in axes:
        if not -max(1, count) <= axis < max(1, count):
            raise InvalidRequest(f"{arguments.op.name}: there is no axis {axis} in a tensor of {count}", op=arguments.op.name)
    if len({axis % max(1, count) for axis in axes}) < len(axes):
        raise InvalidRequest(f"{arguments.op.name}: an axis is named twice", op=arguments.op.name)


# ---------------------------------------------------------------- operands

_NOT_FINITE = "Shares hold finite numbers alone; a mask before a softmax may use -1e4 instead of -inf"


def keep_encodings(tensor: Tensor) -> None:
    """For a public tensor that nobody writes to: it is encoded once for each scale, and no more."""
    setattr(tensor, _ENCODINGS, {})


_ENCODINGS = "ring_elements"


def encoded(value: Any, fraction: int) -> Words:
    """A public tensor or number as ring elements. Raises `InvalidRequest`."""
    kept: dict[int, Words] = getattr(value, _ENCODINGS, {})
    try:
        if fraction not in kept:
            kept[fraction] = encode(_plain(value), fraction)
        return kept[fraction]
    except ExecutionFailed:
        raise InvalidRequest(
            f"a public operand is not finite, or not smaller in size than 2**{VALUE_BITS - FRACTION_BITS}. {_NOT_FINITE}"
        ) from None


def as_number(protocol: Protocol, operand: Any) -> Number:
    """A secret number, or a public tensor or number as one."""
    if isinstance(operand, Value):
        return Number(operand.shared, operand.bits)
    fraction = default_fraction(_plain(operand).dtype)
    return Number(protocol.constant(encoded(operand, fraction)), fraction)


def as_public(operand: Any) -> np.ndarray[Any, Any]:
    """A public tensor or number as functions take factors: whole numbers stay such."""
    value = _plain(operand).detach()
    return np.asarray((value.to(torch.float64) if value.dtype.is_floating_point else value.to(torch.int64)).numpy())


def _plain(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


# ---------------------------------------------------------------- axes


def axes_of(shape: Sequence[int], dim: Any) -> tuple[int, ...]:
    """The axes that a `dim` of torch names: all of them for None and for an empty list."""
    if dim is None or dim == []:
        return tuple(range(len(shape)))
    return tuple(sorted(one % max(1, len(shape)) for one in ([dim] if isinstance(dim, int) else dim))) if shape else ()


def gathered(x: Number, axes: Sequence[int]) -> Number:
    """These axes as one, the last one. No message."""
    rest = [axis for axis in range(len(x.shape)) if axis not in axes]
    kept = tuple(x.shape[axis] for axis in rest)
    return x.each(lambda part: part.transpose(*rest, *axes).reshape(*kept, -1))


def elements(shape: Sequence[int]) -> int:
    return math.prod(shape)
