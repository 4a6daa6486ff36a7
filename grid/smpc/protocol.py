"""What a protocol for secret-shared tensors offers to the functions built on it.

`grid.smpc.functions` calls nothing else, so a function written once runs under every protocol: `replicated` between three
parties, `plain` on the values themselves, as the reference. Values are integers mod 2**64; a real number x stands as
round(x * 2**FRACTION_BITS), and a product of two such numbers is truncated by FRACTION_BITS. Which scale a value has is the
functions' matter.

A protocol object owns a range of operation numbers. Work that runs at the same time gets objects of its own from `split`, so
that its messages share rounds and never meet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from grid.smpc.link import Words
from grid.smpc.shares import Bits, Shared
from grid.smpc.steps import Work, gather

T = TypeVar("T")

FRACTION_BITS = 18
"""Of fixed-point numbers: a resolution of 4e-6, and products of up to 2**26 before their truncation."""


class Protocol(ABC):
    """One party's view of a computation. All parties call the same methods in the same order, with their own shares.

    Arrays may have any shape; elementwise methods want equal ones (`numpy.broadcast_to` by the caller). Nothing here looks
    at values, so which messages are sent depends on shapes alone.
    """

    # ------------------------------------------------------------ concurrency

    @abstractmethod
    def split(self, parts: int, each: int | None = None) -> list[Self]:
        """Objects for `parts` pieces of work at the same time, with `each` operation numbers apiece: by default plenty, of which
        they may give to parts of their own."""

    async def together(self, *works: Callable[[Self], Work[Any]]) -> list[Any]:
        """Run pieces of work at the same time, each on an object of its own; their results in order."""
        return await gather([work(mine) for work, mine in zip(works, self.split(len(works)), strict=True)])

    # ------------------------------------------------------------ hints, for checks of a program on values made up

    def expect(self, x: Shared, low: int, high: int) -> None:  # noqa: B027
        """A function is right where low <= x <= high, as signed ring elements. Nothing happens; `plain` can look."""

    def masked(self) -> Self:
        """For work whose result is multiplied by 0 wherever it overflows: a check must not mind."""
        return self

    # ------------------------------------------------------------ without messages

    @abstractmethod
    def constant(self, value: Words) -> Shared:
        """A public value as a sharing."""

    @abstractmethod
    def add_public(self, x: Shared, value: Words) -> Shared:
        """x + value, which broadcasts to the shape of x."""

    @abstractmethod
    def invert(self, b: Bits) -> Bits:
        """NOT b."""

    # ------------------------------------------------------------ arithmetic

    @abstractmethod
    async def share(self, owner: int, shape: Sequence[int], value: Words | None) -> Shared:
        """A sharing of a value that party `owner` has, who alone passes it. 1 round."""

    @abstractmethod
    async def multiply(self, x: Shared, y: Shared, truncate: int = 0, add: Shared | None = None) -> Shared:
        """(x y + add) / 2**truncate. 1 round, or 3 with a truncation; the addend costs nothing."""

    @abstractmethod
    async def matmul(self, x: Shared, y: Shared, truncate: int = 0) -> Shared:
        """x @ y / 2**truncate for matrices (m, k) and (k, n), or batches of them (b, m, k) and (b, k, n). 1 round, or 3; one
        element sent for each of the result."""

    @abstractmethod
    async def conv2d(
        self, x: Shared, w: Shared, *, stride: tuple[int, int], padding: tuple[int, int], truncate: int = 0, groups: int = 1
    ) -> Shared:
        """The cross-correlation of images (n, c, h, w) with filters (o, c / groups, kh, kw) / 2**truncate. 1 round, or 3."""

    @abstractmethod
    async def truncate(self, x: Shared, bits: int) -> Shared:
        """x / 2**bits, rounded to a neighbour at random with the right mean; |x| <= 2**62. 2 rounds."""

    # ------------------------------------------------------------ bits

    @abstractmethod
    async def negative(self, x: Shared) -> Bits:
        """One plane: 1 where x < 0, for every x. 6 rounds."""

    @abstractmethod
    async def is_zero(self, x: Shared) -> Bits:
        """One plane: 1 where x = 0. 6 rounds."""

    @abstractmethod
    async def bits(self, x: Shared, count: int) -> Bits:
        """The lowest `count` bits of x as planes, lowest first. 2 + ceil(log2((count - 1) / 4)) rounds, 1 for one bit."""

    @abstractmethod
    async def conjunction(self, a: Bits, b: Bits) -> Bits:
        """a AND b. 1 round."""

    @abstractmethod
    async def number(self, b: Bits, shape: Sequence[int]) -> Shared:
        """One plane as integers 0 and 1, of the shape whose elements it was made of. Several planes give a leading axis of
        planes. 2 rounds."""

    @abstractmethod
    async def choose(self, b: Bits, x: Shared) -> Shared:
        """x where the one plane b is 1, and 0 elsewhere. 2 rounds."""

    # ------------------------------------------------------------ order

    @abstractmethod
    async def shuffle(self, x: Shared, axis: int = 0) -> Shared:
        """The items along an axis in an order that no party knows, uniform over all orders; each index of the axes before it
        has an order of its own. 3 rounds."""

    # ------------------------------------------------------------ opening

    @abstractmethod
    async def open(self, x: Shared) -> Words:
        """The value, to all parties. 1 round."""

    @abstractmethod
    async def open_to(self, x: Shared, party: int) -> Words | None:
        """The value, to one party alone. 1 round."""

    @abstractmethod
    async def open_bits(self, b: Bits) -> Words:
        """Packed bits (planes, words), to all parties. 1 round."""
