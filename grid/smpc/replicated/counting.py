"""What a program would cost between three parties, without running it there: shapes decide, so values made up will do.

Everything is computed in the clear, as by `Plain`, while the bytes of `costs` are added up, and `spans` tells how many rounds
have gone by at each party. Work at the same time shares its rounds. Both are exact, but where a program sorts more than
128 items: that opens comparisons, whose number differs from shuffle to shuffle, and its cost is that of one order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from grid.smpc.link import Words
from grid.smpc.packing import padded
from grid.smpc.party import Operations
from grid.smpc.plain import Plain
from grid.smpc.replicated.costs import Cost, cost
from grid.smpc.replicated.spans import START, Clock, after
from grid.smpc.shares import Bits, Shared


def later(one: Clock, other: Clock) -> Clock:
    """When each party is done with both."""
    return tuple(map(max, one, other))


class Counting(Plain):
    """The reference protocol, with the meter of `Replicated`. Each party begins when `begun` says."""

    def __init__(self, operations: Operations | None = None, begun: Clock = START) -> None:
        super().__init__()
        self._operations = operations or Operations()
        self._clock, self._sent = begun, 0
        self._parts: list[Self] = []

    @property
    def clock(self) -> Clock:
        """When each party is done with all that was begun so far, by the parts that `split` gave, too."""
        for part in self._parts:
            self._clock, self._sent = later(self._clock, part.clock), self._sent + part.cost.bytes_sent
        self._parts.clear()
        return self._clock

    @property
    def cost(self) -> Cost:
        """Of all that was done so far."""
        rounds = max(self.clock)
        return Cost(rounds, self._sent)

    def split(self, parts: int, each: int | None = None) -> list[Self]:
        begun = [type(self)(operations, self.clock) for operations in self._operations.split(parts, each)]
        self._parts += begun
        return begun

    def masked(self) -> Self:
        return self

    def _pay(self, method: str, *arguments: int, how: tuple[int, ...] = (), elements: int | None = None) -> None:
        """The bytes of `cost(method, *arguments)`, and the rounds of `after`."""
        self._clock = after(self.clock, self._operations, method, how, elements)
        self._sent += cost(method, *arguments).bytes_sent

    async def share(self, owner: int, shape: Sequence[int], value: Words | None) -> Shared:
        self._pay("share", math.prod(shape), how=(owner,))
        return await super().share(owner, shape, value)

    async def multiply(self, x: Shared, y: Shared, truncate: int = 0, add: Shared | None = None) -> Shared:
        self._pay("multiply", x.size, truncate, how=(truncate,), elements=x.size)
        return await super().multiply(x, y, truncate, add)

    async def matmul(self, x: Shared, y: Shared, truncate: int = 0) -> Shared:
        found = await super().matmul(x, y, truncate)
        self._pay("matmul", found.size, truncate, how=(truncate,), elements=found.size)
        return found

    async def conv2d(
        self, x: Shared, w: Shared, *, stride: tuple[int, int], padding: tuple[int, int], truncate: int = 0, groups: int = 1
    ) -> Shared:
        found = await super().conv2d(x, w, stride=stride, padding=padding, truncate=truncate, groups=groups)
        self._pay("conv2d", found.size, truncate, how=(truncate,), elements=found.size)
        return found

    async def truncate(self, x: Shared, bits: int) -> Shared:
        self._pay("truncate", x.size, bits, how=(bits,), elements=x.size)
        return await super().truncate(x, bits)

    async def negative(self, x: Shared) -> Bits:
        self._pay("negative", x.size, elements=x.size)
        return await super().negative(x)

    async def is_zero(self, x: Shared) -> Bits:
        self._pay("is_zero", x.size, elements=x.size)
        return await super().is_zero(x)

    async def bits(self, x: Shared, count: int) -> Bits:
        self._pay("bits", x.size, count, how=(count,), elements=x.size)
        return await super().bits(x, count)

    async def conjunction(self, a: Bits, b: Bits) -> Bits:
        self._pay("conjunction", a.planes, a.words)
        return await super().conjunction(a, b)

    async def number(self, b: Bits, shape: Sequence[int]) -> Shared:
        count = math.prod(shape)
        self._pay("number", count, b.planes, elements=b.planes * padded(count))
        return await super().number(b, shape)

    async def choose(self, b: Bits, x: Shared) -> Shared:
        self._pay("choose", x.size, elements=x.size)
        return await super().choose(b, x)

    async def shuffle(self, x: Shared, axis: int = 0) -> Shared:
        self._pay("shuffle", x.size, elements=min(x.size, 1))
        return await super().shuffle(x, axis)

    async def open(self, x: Shared) -> Words:
        self._pay("open", x.size)
        return await super().open(x)

    async def open_to(self, x: Shared, party: int) -> Words | None:
        self._pay("open_to", x.size, how=(party,))
        return await super().open_to(x, party)

    async def open_bits(self, b: Bits) -> Words:
        self._pay("open_bits", b.planes, b.words)
        return await super().open_bits(b)
