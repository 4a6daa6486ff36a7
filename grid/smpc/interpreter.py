"""One operation of torch on secret-shared tensors, on any `Protocol`.

A `Call` checks an operation before anything is sent: its name, its arguments and shapes (by the op table, on meta tensors, as for
every other command), and that no operand, no result, nothing on the way and no product is larger than it may be. All of that
depends on public facts alone, so all parties decide alike. How each operation is done is in `grid.smpc.operations`.

Accuracy: fixed point has a resolution of 2**-18, products must stay below 2**26 in size before their truncation, which rounds to
a neighbour at random. What leaves that domain becomes garbage without an error, since nobody can see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grid.errors import InvalidRequest, QuotaExceeded
from grid.smpc.operations import narrow
from grid.smpc.operations.arguments import Arguments, Result, elements
from grid.smpc.operations.table import find
from grid.smpc.operations.values import Absent, Value, fraction_bits
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Shared
from grid.tensors.bounds import OutOfBoundsError, examine, examines, measure
from grid.tensors.ops import Bound, bind, lookup

__all__ = ["PRODUCTS_PER_ELEMENT", "Call", "Value", "find", "fraction_bits"]

PRODUCTS_PER_ELEMENT = 256
"""Multiplications that a matrix product or a convolution may take for each element that a tensor may have."""

_NO_LIMIT = 1 << 62
_POSITIONS = ("index", "indices", "target")
"""Arguments that are looked at before they are used, where they are public."""


class Call:
    """One operation on `Value`s, public tensors and plain arguments, checked. Raises `OpNotSupported`, `InvalidRequest`,
    `QuotaExceeded` (more than `most` elements)."""

    def __init__(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, most: int) -> None:
        self._form = find(name)
        self._values: dict[int, Value | Tensor] = {}
        op = lookup(name)
        bound = bind(op, [self._meta(arg) for arg in args], {key: self._meta(arg) for key, arg in kwargs.items()})
        if "output_mask" in op.index and len(bound["output_mask"]) != len(op.call._schema.returns):
            raise InvalidRequest(f"{name}: output_mask says of each result whether it is asked for", op=name)
        for meta in bound.tensors():
            _check_elements(name, meta.shape, most)
        self.results = measure(bound, _NO_LIMIT)
        for meta in self.results:
            _check_elements(name, meta.shape, most)
            fraction_bits(meta.dtype)
        self._arguments = Arguments(bound, self.results, self._values)
        if not any(isinstance(value, Value) for value in self._values.values()):
            raise InvalidRequest(f"{name} has no operand on shares")
        self._form.admit(self._arguments)
        if self.results:
            narrow.check(self._arguments)
        self._check_work(name, most)
        self._looks = examines(op)
        if self._looks:
            self._check_positions(bound)

    def on(self, operands: Sequence[Value | Tensor]) -> Call:
        """The same call on other operands of the same geometries, in the order in which these were given. Only public positions
        are looked at again."""
        made = object.__new__(type(self))
        made._form, made.results = self._form, self.results
        made._values = dict(zip(self._values, operands, strict=True))
        made._arguments = Arguments(self._arguments.bound, self.results, made._values, derives=self._arguments.derives)
        if self._looks:
            made._check_positions(self._arguments.bound)
        return made

    def expect_gradient(self) -> None:
        """Find what a gradient of the results needs, where that is cheaper now. What is not told that is right all the same."""
        self._arguments.derives = True

    def _meta(self, arg: Any) -> Any:
        """The argument with geometries in place of tensors, each of which stands for one operand."""
        if isinstance(arg, Value | Tensor):
            meta = torch.empty(arg.shape, dtype=arg.dtype, device="meta")
            self._values[id(meta)] = arg
            return meta
        return [self._meta(item) for item in arg] if isinstance(arg, list) else arg

    def _check_work(self, name: str, most: int) -> None:
        peak, products = self._form.peak(self._arguments), self._form.products(self._arguments)
        if peak > most:
            raise QuotaExceeded(
                f"{name} takes {peak} elements on its way, and {most} are allowed here (max_secure_elements); do it in parts",
                op=name,
            )
        if products > PRODUCTS_PER_ELEMENT * most:
            raise QuotaExceeded(
                f"{name} takes {products} multiplications, and {PRODUCTS_PER_ELEMENT * most} are allowed at once here"
                " (max_secure_elements); do it in parts",
                op=name,
            )

    def _check_positions(self, bound: Bound) -> None:
        given = [self._arguments.get(name) for name in _POSITIONS]
        flat = [one for item in given for one in (item if isinstance(item, list) else [item])]
        if any(isinstance(one, Value) or _is_unknown(one) for one in flat):
            return
        public = {name: self._arguments[name] for name in _POSITIONS if name in bound.op.index}
        values = [public.get(p.name, value) for p, value in zip(bound.op.parameters, bound.values, strict=True)]
        try:
            examine(Bound(bound.op, tuple(values)))
        except OutOfBoundsError as error:
            raise InvalidRequest(f"{bound.op.name}: {error}", op=bound.op.name) from None

    async def run(self, protocol: Protocol) -> list[Value]:
        """The results, as torch gives them but for what is `Absent`."""
        if not self.results:
            return []
        arguments = await self._arguments.converted(protocol, self._form)
        made = await self._form.kernel(protocol, arguments)
        found = list(made) if isinstance(made, Sequence) else [made]
        values = [self._value(one, meta) for one, meta in zip(found, self.results, strict=True)]
        return [
            await narrow.within(protocol, one)
            if isinstance(one.content, Shared) and narrow.exceeds(arguments, one.dtype)
            else one
            for one in values
        ]

    def _value(self, one: Result, meta: Tensor) -> Value:
        if one is None:
            return Value(Absent(tuple(meta.shape)), meta.dtype)
        value = one if isinstance(one, Value) else Value.of(one, meta.dtype)
        if value.shape != tuple(meta.shape):
            raise AssertionError(f"{self._form} gave the shape {value.shape}, not {tuple(meta.shape)}")
        return value


def _is_unknown(value: Any) -> bool:
    """Whether it stands for a public tensor that comes with a run: `on` looks at it."""
    return isinstance(value, Tensor) and value.is_meta


def _check_elements(name: str, shape: Sequence[int], most: int) -> None:
    count = elements(shape)
    if count > most:
        raise QuotaExceeded(f"{name} has {count} elements, and {most} are allowed here (max_secure_elements)", op=name)
