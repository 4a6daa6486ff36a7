"""Replicated secret sharing between three parties, at most one of them corrupt, who follows the protocol (semi-honest)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from grid.smpc.kernels import arithmetic, products
from grid.smpc.link import Words
from grid.smpc.packing import padded
from grid.smpc.party import Operations, Party
from grid.smpc.protocol import Protocol
from grid.smpc.replicated import comparison, conversion, decomposition, equality, multiplication, opening, shuffling, truncation
from grid.smpc.replicated.chunks import Value, empty_bits, empty_shared, in_chunks
from grid.smpc.shares import Bits, Shared
from grid.smpc.steps import Work


class Replicated(Protocol):
    """One party's end of the protocol `replicated3`."""

    def __init__(self, party: Party, operations: Operations | None = None) -> None:
        self.party = party
        self._operations = operations or Operations()

    def split(self, parts: int, each: int | None = None) -> list[Self]:
        return [type(self)(self.party, operations) for operations in self._operations.split(parts, each)]

    # ------------------------------------------------------------ without messages

    def constant(self, value: Words) -> Shared:
        zeros = np.zeros(value.shape, np.uint64)
        return Shared(*(value if number == 0 else zeros for number in self._held()))

    def add_public(self, x: Shared, value: Words) -> Shared:
        return Shared(*(part + value if number == 0 else part for number, part in zip(self._held(), x.parts, strict=True)))

    def invert(self, b: Bits) -> Bits:
        return Bits(*(~part if number == 0 else part for number, part in zip(self._held(), b.parts, strict=True)))

    def _held(self) -> tuple[int, int]:
        """The numbers of the two components of this party. A public value is component 0."""
        return self.party.rank, self.party.following

    # ------------------------------------------------------------ arithmetic

    async def share(self, owner: int, shape: Sequence[int], value: Words | None) -> Shared:
        return await opening.share_input(self.party, self._operations, owner, tuple(shape), value)

    async def multiply(self, x: Shared, y: Shared, truncate: int = 0, add: Shared | None = None) -> Shared:
        async def kernel(operations: Operations, inputs: Sequence[Any], out: Any) -> None:
            a, b, *rest = inputs
            addend = rest[0] if rest else None
            if truncate:
                await truncation.multiply_truncate(self.party, operations, a, b, truncate, out, addend)
            else:
                _copy(await multiplication.multiply(self.party, operations, a, b, addend), out)

        return await self._elementwise(kernel, [x, y] if add is None else [x, y, add])

    async def truncate(self, x: Shared, bits: int) -> Shared:
        async def kernel(operations: Operations, inputs: Sequence[Any], out: Any) -> None:
            await truncation.truncate(self.party, operations, inputs[0], bits, out)

        return await self._elementwise(kernel, [x])

    async def matmul(self, x: Shared, y: Shared, truncate: int = 0) -> Shared:
        return await self._bilinear(products.matmul(*x.pair, *y.pair), truncate)

    async def conv2d(
        self, x: Shared, w: Shared, *, stride: tuple[int, int], padding: tuple[int, int], truncate: int = 0, groups: int = 1
    ) -> Shared:
        return await self._bilinear(products.conv2d(*x.pair, *w.pair, stride, padding, groups), truncate)

    async def _bilinear(self, addend: Words, truncate: int) -> Shared:
        """The sharing of the sum of the three parties' addends, which are hidden by zero shares first."""

        async def kernel(operations: Operations, inputs: Sequence[Any], out: Any) -> None:
            (local,) = inputs
            operation = operations.take()
            own, following = multiplication.zero_draws(self.party, operation, local.size)
            z = np.empty(local.size, np.uint64)
            arithmetic.add_zero_share(local.parts[0], own, following, self.party.ring.mask, z)
            if truncate:
                await truncation.truncate_product(self.party, operation, z, truncate, out)
            else:
                _copy(await multiplication.reshare(self.party, operation, z), out)

        return await self._elementwise(kernel, [Shared(addend)])

    async def _elementwise(self, kernel: Callable[[Operations, Sequence[Any], Any], Work[None]], inputs: list[Value]) -> Shared:
        first = next(value for value in inputs if isinstance(value, Shared))
        out = empty_shared(padded(first.size))
        if first.size:
            await in_chunks(self._operations, kernel, [_flat(value) for value in inputs], first.size, out)
        return out[: first.size].reshape(first.shape)

    # ------------------------------------------------------------ bits

    async def negative(self, x: Shared) -> Bits:
        async def kernel(operations: Operations, inputs: Sequence[Any], out: Any) -> None:
            _copy(await comparison.top_bit(self.party, operations, inputs[0]), out)

        return await self._planes(kernel, x, 1)

    async def is_zero(self, x: Shared) -> Bits:
        async def kernel(operations: Operations, inputs: Sequence[Any], out: Any) -> None:
            _copy(await equality.is_zero(self.party, operations, inputs[0]), out)

        return await self._planes(kernel, x, 1)

    async def bits(self, x: Shared, count: int) -> Bits:
        async def kernel(operations: Operations, inputs: Sequence[Any], out: Any) -> None:
            _copy(await decomposition.decompose(self.party, operations, inputs[0], count), out)

        return await self._planes(kernel, x, count)

    async def _planes(self, kernel: Callable[[Operations, Sequence[Any], Any], Work[None]], x: Shared, planes: int) -> Bits:
        out = empty_bits(planes, padded(x.size))
        if x.size:
            await in_chunks(self._operations, kernel, [x.flat()], x.size, out)
        return out

    async def conjunction(self, a: Bits, b: Bits) -> Bits:
        return await multiplication.conjunction(self.party, self._operations, a, b)

    async def number(self, b: Bits, shape: Sequence[int]) -> Shared:
        async def kernel(operations: Operations, inputs: Sequence[Any], out: Any) -> None:
            await conversion.bit_to_number(self.party, operations, inputs[0], out)

        count = int(np.prod(shape, dtype=np.int64))
        flat = Bits(*(np.ascontiguousarray(part).reshape(1, -1) for part in b.parts))
        out = empty_shared(64 * flat.words)
        if count:
            await in_chunks(self._operations, kernel, [flat], 64 * flat.words, out)
        numbers = out.reshape((b.planes, 64 * b.words))[:, :count].reshape((b.planes, *shape))
        return numbers[0] if b.planes == 1 else numbers

    async def choose(self, b: Bits, x: Shared) -> Shared:
        async def kernel(operations: Operations, inputs: Sequence[Any], out: Any) -> None:
            bit, chosen = inputs
            await conversion.choose(self.party, operations, bit, chosen, out)

        return await self._elementwise(kernel, [b, x])

    # ------------------------------------------------------------ order

    async def shuffle(self, x: Shared, axis: int = 0) -> Shared:
        if not x.size:
            return x
        form = (math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis:][1:]))
        items = x.each(lambda part: np.ascontiguousarray(part).reshape(form))
        return (await shuffling.shuffle(self.party, self._operations, items)).reshape(x.shape)

    # ------------------------------------------------------------ opening

    async def open(self, x: Shared) -> Words:
        return await opening.open_to_all(self.party, self._operations, x)

    async def open_to(self, x: Shared, party: int) -> Words | None:
        return await opening.open_to_one(self.party, self._operations, x, party)

    async def open_bits(self, b: Bits) -> Words:
        return await opening.open_bits(self.party, self._operations, b)


def _flat(value: Value) -> Value:
    return value.flat() if isinstance(value, Shared) else value


def _copy(value: Value, out: Value) -> None:
    for source, target in zip(value.parts, out.parts, strict=True):
        target[:] = source
