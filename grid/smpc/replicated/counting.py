"""What a program would cost between three parties, without running it there: shapes decide, so values made up will do.

Everything is computed in the clear, as by `Plain`, while the costs of `costs` are added up. Work at the same time shares its
rounds. Rounds are an upper bound, since a party that has no part in the end of an operation begins the next one. Sorting opens
comparisons, whose number differs from shuffle to shuffle; its cost is that of one order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from grid.smpc.link import Words
from grid.smpc.plain import Plain
from grid.smpc.replicated.costs import Cost, cost
from grid.smpc.shares import Bits, Shared


class Counting(Plain):
    """The reference protocol, with the meter of `Replicated`."""

    def __init__(self, rounds_before: int = 0) -> None:
        super().__init__()
        self._own = Cost(rounds_before, 0)
        self._parts: list[Self] = []

    @property
    def cost(self) -> Cost:
        """Of all that was done so far, by the parts that `split` gave, too."""
        for part in self._parts:
            self._own = self._own.beside(part.cost)
        self._parts.clear()
        return self._own

    def split(self, parts: int, each: int | None = None) -> list[Self]:
        begun = [type(self)(self.cost.rounds) for _ in range(parts)]
        self._parts += begun
        return begun

    def masked(self) -> Self:
        return self

    def _pay(self, method: str, *arguments: int) -> None:
        self._own = self.cost.then(cost(method, *arguments))

    async def share(self, owner: int, shape: Sequence[int], value: Words | None) -> Shared:
        self._pay("share", math.prod(shape))
        return await super().share(owner, shape, value)

    async def multiply(self, x: Shared, y: Shared, truncate: int = 0, add: Shared | None = None) -> Shared:
        self._pay("multiply", x.size, truncate)
        return await super().multiply(x, y, truncate, add)

    async def matmul(self, x: Shared, y: Shared, truncate: int = 0) -> Shared:
        found = await super().matmul(x, y, truncate)
        self._pay("matmul", found.size, truncate)
        return found

    async def conv2d(
        self, x: Shared, w: Shared, *, stride: tuple[int, int], padding: tuple[int, int], truncate: int = 0, groups: int = 1
    ) -> Shared:
        found = await super().conv2d(x, w, stride=stride, padding=padding, truncate=truncate, groups=groups)
        self._pay("conv2d", found.size, truncate)
        return found

    async def truncate(self, x: Shared, bits: int) -> Shared:
        self._pay("truncate", x.size, bits)
        return await super().truncate(x, bits)

    async def negative(self, x: Shared) -> Bits:
        self._pay("negative", x.size)
        return await super().negative(x)

    async def is_zero(self, x: Shared) -> Bits:
        self._pay("is_zero", x.size)
        return await super().is_zero(x)

    async def bits(self, x: Shared, count: int) -> Bits:
        self._pay("bits", x.size, count)
        return await super().bits(x, count)

    async def conjunction(self, a: Bits, b: Bits) -> Bits:
        self._pay("conjunction", a.planes, a.words)
        return await super().conjunction(a, b)

    async def number(self, b: Bits, shape: Sequence[int]) -> Shared:
        self._pay("number", math.prod(shape), b.planes)
        return await super().number(b, shape)

    async def choose(self, b: Bits, x: Shared) -> Shared:
        self._pay("choose", x.size)
        return await super().choose(b, x)

    async def shuffle(self, x: Shared, axis: int = 0) -> Shared:
        self._pay("shuffle", x.size)
        return await super().shuffle(x, axis)

    async def open(self, x: Shared) -> Words:
        self._pay("open", x.size)
        return await super().open(x)

    async def open_to(self, x: Shared, party: int) -> Words | None:
        self._pay("open_to", x.size)
        return await super().open_to(x, party)

    async def open_bits(self, b: Bits) -> Words:
        self._pay("open_bits", b.planes, b.words)
        return await super().open_bits(b)
