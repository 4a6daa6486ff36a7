"""The reference protocol: no secrecy, one component, which is the value itself, and no messages.

Functions are tested on it, and `check=True` runs a program on it first, with values made up: a `Watch` then tells which
operation could overflow. A program on it never waits, so `completed` runs it to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from grid.smpc.link import Words
from grid.smpc.packing import pack, unpack
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Bits, Shared
from grid.smpc.steps import Task, Work

T = TypeVar("T")

TRUNCATION_BOUND = 1 << 61
"""What `Watch` allows: half of what truncations take, for values made up are not the largest ones."""


class Watch:
    """The largest input of a truncation, for each operation of a program. Whoever runs the program sets `operation` to the
    name of what runs now."""

    def __init__(self) -> None:
        self.operation = ""
        self.largest: dict[str, float] = {}
        self.outside: dict[str, None] = {}

    def note(self, sizes: npt.NDArray[Any]) -> None:
        """Inputs of a truncation, as floats, for a product may be larger than the ring."""
        size = float(np.abs(sizes).max(initial=0.0))
        self.largest[self.operation] = max(size, self.largest.get(self.operation, 0.0))

    def overflows(self, bound: float = TRUNCATION_BOUND) -> list[str]:
        """The operations with a larger input of a truncation than `bound`, or an argument outside of what they are right for."""
        large = [operation for operation, size in self.largest.items() if size >= bound]
        return list(dict.fromkeys([*large, *self.outside]))


class Plain(Protocol):
    """Values in the clear.

    Truncations round down, to the lower neighbour; with `rounding`, a generator, to either neighbour at random with the right
    mean, as protocols between parties do.
    """

    def __init__(self, *, watch: Watch | None = None, rounding: np.random.Generator | None = None) -> None:
        self._watch = watch
        self._rounding = rounding

    def split(self, parts: int, each: int | None = None) -> list[Self]:
        return [self] * parts

    def expect(self, x: Shared, low: int, high: int) -> None:
        if self._watch is not None:
            signed = np.asarray(x.parts[0]).view(np.int64)
            if not ((signed >= low) & (signed <= high)).all():
                self._watch.outside[self._watch.operation] = None

    def masked(self) -> Self:
        return type(self)(rounding=self._rounding)

    # ------------------------------------------------------------ without messages

    def constant(self, value: Words) -> Shared:
        return Shared(value)

    def add_public(self, x: Shared, value: Words) -> Shared:
        return Shared(x.parts[0] + value)

    def invert(self, b: Bits) -> Bits:
        return Bits(~b.parts[0])

    # ------------------------------------------------------------ arithmetic

    async def share(self, owner: int, shape: Sequence[int], value: Words | None) -> Shared:
        assert value is not None
        return Shared(value.reshape(tuple(shape)).copy())

    async def multiply(self, x: Shared, y: Shared, truncate: int = 0, add: Shared | None = None) -> Shared:
        product = x.parts[0] * y.parts[0]
        if add is not None:
            product = product + add.parts[0]
        sizes = None
        if self._watch:
            sizes = _sizes(x) * _sizes(y) + (0 if add is None else _sizes(add))
        return self._truncated(product, truncate, sizes)

    async def matmul(self, x: Shared, y: Shared, truncate: int = 0) -> Shared:
        from grid.smpc.kernels import products  # loads a compiler, which a client needs for rehearsals only

        zeros = np.zeros_like(x.parts[0]), np.zeros_like(y.parts[0])
        product = products.matmul(x.parts[0], zeros[0], y.parts[0], zeros[1])
        return self._truncated(product, truncate, _sizes(x) @ _sizes(y) if self._watch else None)

    async def conv2d(
        self, x: Shared, w: Shared, *, stride: tuple[int, int], padding: tuple[int, int], truncate: int = 0, groups: int = 1
    ) -> Shared:
        from grid.smpc.kernels import products

        zeros = np.zeros_like(x.parts[0]), np.zeros_like(w.parts[0])
        product = products.conv2d(x.parts[0], zeros[0], w.parts[0], zeros[1], stride, padding, groups)
        sizes = None
        if self._watch:
            images, filters = (torch.from_numpy(_sizes(value)) for value in (x, w))
            sizes = torch.nn.functional.conv2d(images, filters, stride=stride, padding=padding, groups=groups).numpy()
        return self._truncated(product, truncate, sizes)

    async def truncate(self, x: Shared, bits: int) -> Shared:
        return self._truncated(x.parts[0], bits, _sizes(x) if self._watch else None)

    def _truncated(self, value: Words, bits: int, sizes: npt.NDArray[np.float64] | None) -> Shared:
        if bits == 0:
            return Shared(value)
        if self._watch is not None and sizes is not None:
            self._watch.note(sizes)
        signed = np.asarray(value).view(np.int64)
        if self._rounding is not None:
            signed = signed + self._rounding.integers(0, 1 << bits, value.shape)
        return Shared(np.asarray(signed >> bits).view(np.uint64))

    # ------------------------------------------------------------ bits

    async def negative(self, x: Shared) -> Bits:
        return _plane(x.parts[0].reshape(-1).view(np.int64) < 0)

    async def is_zero(self, x: Shared) -> Bits:
        return _plane(x.parts[0].reshape(-1) == 0)

    async def bits(self, x: Shared, count: int) -> Bits:
        flat, one = x.parts[0].reshape(-1), np.uint64(1)
        return Bits(pack(np.stack([(flat >> np.uint64(j)) & one for j in range(count)]).astype(np.uint8)))

    async def conjunction(self, a: Bits, b: Bits) -> Bits:
        return Bits(a.parts[0] & b.parts[0])

    async def number(self, b: Bits, shape: Sequence[int]) -> Shared:
        count = int(np.prod(shape, dtype=np.int64))
        numbers = unpack(b.parts[0], count).astype(np.uint64).reshape((b.planes, *shape))
        return Shared(numbers[0] if b.planes == 1 else numbers)

    async def choose(self, b: Bits, x: Shared) -> Shared:
        return Shared((unpack(b.parts[0], x.size)[0] * x.parts[0].reshape(-1)).reshape(x.shape))

    # ------------------------------------------------------------ order

    async def shuffle(self, x: Shared, axis: int = 0) -> Shared:
        value = x.parts[0]
        keys = np.random.default_rng().random(value.shape[: axis + 1])
        order = np.argsort(keys, axis=axis).reshape(keys.shape + (1,) * (value.ndim - axis - 1))
        return Shared(np.take_along_axis(value, order, axis))

    # ------------------------------------------------------------ opening

    async def open(self, x: Shared) -> Words:
        return x.parts[0]

    async def open_to(self, x: Shared, party: int) -> Words | None:
        return x.parts[0]

    async def open_bits(self, b: Bits) -> Words:
        return b.parts[0]


def completed(work: Work[T]) -> T:
    """The result of work on `Plain`, or what it raises."""
    return Task(work).outcome.result()


def _sizes(x: Shared) -> npt.NDArray[np.float64]:
    return np.asarray(x.parts[0]).view(np.int64).astype(np.float64)


def _plane(bits: npt.NDArray[np.bool_]) -> Bits:
    return Bits(pack(bits[np.newaxis]))
