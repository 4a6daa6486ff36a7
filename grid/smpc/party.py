"""One party of a computation: its rank, its link to the others, its randomness, and the numbers of its operations.

Components are counted as in Araki et al. (CCS 2016): x = x0 + x1 + x2 mod 2**width, and party i holds x_i and x_(i+1).
A protocol is written for the roles A = P0, B = P1, H = P2; an operation runs it with all indices shifted by its number mod 3,
so that the work is spread evenly.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from grid.smpc.keystreams import ALL, NEXT, OWN, Randomness
from grid.smpc.link import Link, Words
from grid.smpc.steps import Arrival

PARTIES = 3

STEPS = 32
"""Messages that one operation may send to one peer: a label is operation * STEPS + step."""

A, B, H = 0, 1, 2
"""Roles: A and B share the first two components, H ("helper") has the other pairs."""


class Ring(NamedTuple):
    """The integers mod 2**width, kept in 64-bit words. Computations use 64; tests that enumerate everything less."""

    width: int = 64

    @property
    def mask(self) -> np.uint64:
        return np.uint64((1 << self.width) - 1)

    def reduced(self, words: Words) -> Words:
        """Modulo 2**width: local sums may leave more than that in a word, which nobody must see."""
        return words if self.width == 64 else words & self.mask


WHOLE = Ring()
"""The ring of all computations but those tests."""


PARTS = (1 << 34, 1 << 22, 1 << 12)
"""Operation numbers of a part, of a part within a part, and of one within that: 16 million of the first in a session, 4096 and
1024 of the others in each above."""

LEAST = 1 << 6
"""Of a part within those, of which there are 64: for tensors of up to 4 million elements, and work without further parts."""


class Operations:
    """Numbers for operations, taken in the same order by all parties. Whatever runs at the same time gets a range of its own
    before it starts."""

    __slots__ = ("_end", "_next", "_size")

    def __init__(self, start: int = 0, end: int = 1 << 58) -> None:
        self._next, self._end, self._size = start, end, end - start

    def take(self) -> int:
        """One number."""
        number = self._next
        if number >= self._end:
            raise AssertionError("a kernel takes more operations than it declares")
        self._next = number + 1
        return number

    def split(self, parts: int, each: int | None = None) -> list[Operations]:
        """A range of `each` numbers for every one of `parts` pieces of work that run at the same time; by default of the
        size that PARTS has for parts of this range."""
        start = self._next
        if each is None:
            each = next((size for size in PARTS if size << 8 <= self._size), LEAST)
        if start + parts * each > self._end:
            raise AssertionError("a kernel takes more operations than it declares")
        self._next = start + parts * each
        return [Operations(start + part * each, start + (part + 1) * each) for part in range(parts)]


@dataclasses.dataclass(frozen=True, slots=True)
class Party:
    """What every protocol gets first."""

    rank: int
    link: Link
    randomness: Randomness
    ring: Ring = WHOLE

    @property
    def following(self) -> int:
        return (self.rank + 1) % PARTIES

    @property
    def preceding(self) -> int:
        return (self.rank + 2) % PARTIES

    def role(self, operation: int) -> int:
        """A, B or H: this party's role in the operation."""
        return (self.rank - operation) % PARTIES

    def at(self, operation: int, role: int) -> int:
        """The rank of the party that has this role."""
        return (role + operation) % PARTIES

    def draw(self, component: int, operation: int, purpose: int, count: int) -> Words:
        """Words of the keystream that both holders of a component (given as a role's: 0, 1, 2 of the operation) have."""
        place = (component + operation - self.rank) % PARTIES
        if place > 1:
            raise AssertionError("a party has no key of a component that it does not hold")
        return self.randomness.draw(OWN if place == 0 else NEXT, operation, purpose, count)

    def draw_common(self, operation: int, purpose: int, count: int) -> Words:
        """Words that all three parties have, and nobody outside."""
        return self.randomness.draw(ALL, operation, purpose, count)

    def send(self, to: int, operation: int, step: int, words: Words) -> None:
        self.link.send(to, operation * STEPS + step, words)

    def receive(self, sender: int, operation: int, step: int, count: int) -> Arrival[Words]:
        return self.link.receive(sender, operation * STEPS + step, count)
