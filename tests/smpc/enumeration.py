"""All that can happen to one party in a small ring, in one run: every element of an array is one case.

Cases are (s, q, u). s is a sample of what the party knows: its components of the inputs and the keystreams of its two keys. q
is a secret: the components that it lacks. u is all randomness that it does not know, every value once. The party learns nothing
if for each s the messages that it gets are distributed over u in the same way for all q.

Where there are too many secrets for an array, some of them are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from grid.smpc.keystreams import ALL
from grid.smpc.link import Words
from grid.smpc.local import run_parties
from grid.smpc.party import PARTIES, Operations, Party, Ring
from grid.smpc.shares import Bits, Shared

START = 1
"""The first operation's number: roles are not ranks."""

FEWEST_SAMPLES, MOST_SAMPLES = 4, 16

Program = Callable[[Party, Operations, Sequence[Any]], Awaitable[Any]]

Draw = tuple[int, int, int]
"""Component (3: the key of all), operation, purpose."""


class Value(NamedTuple):
    """An input, "value", that party 0 has as it is, and the others do not."""

    size: int
    words: Words | None


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel with its inputs: "ring" or "bits" of one plane, which are shared, or a `Value`."""

    program: Program
    inputs: tuple[str, ...]
    count_bits: int = 0
    """Bits of the counts of wraps in a truncation."""

    zeroed: frozenset[int] = frozenset()
    """Mutants: purposes whose keystream is left out."""

    reused: frozenset[int] = frozenset()
    """Mutants: purposes whose keystream is the same in all operations."""


class Cases:
    """The randomness and the inputs of all cases, for the view of one party."""

    def __init__(self, case: Case, width: int, rank: int, draws: dict[Draw, int], most: int, seed: int = 0) -> None:
        self.case, self.width, self.rank = case, width, rank
        self._rng = np.random.default_rng(seed)
        self._made: dict[Draw, Words] = {}
        unknown = [place for place in draws if place[0] == (rank + 2) % PARTIES]
        self._unknown = dict(zip(unknown, np.cumsum([0, *(draws[place] for place in unknown)]).tolist(), strict=False))
        self.randomness = 1 << sum(draws[place] for place in unknown)
        lacking = sum(self._bits(kind) for kind in case.inputs if kind != "value" or rank != 0)
        self.secrets = min(1 << lacking, max(2, most // (self.randomness * FEWEST_SAMPLES)))
        self.samples = min(MOST_SAMPLES, max(FEWEST_SAMPLES, most // (self.randomness * self.secrets)))
        if self.size % 64:
            self.samples = 64
        secrets = self._rng.permutation(1 << lacking)[: self.secrets].astype(np.uint64)
        self._q = np.tile(np.repeat(secrets, self.randomness), self.samples)
        self._u = np.tile(np.arange(self.randomness, dtype=np.uint64), self.samples * self.secrets)

    @property
    def size(self) -> int:
        return self.samples * self.secrets * self.randomness

    def _bits(self, kind: str) -> int:
        return 1 if kind == "bits" else self.width

    def sampled(self, bits: int) -> Words:
        """Something that the party knows."""
        return np.repeat(self._rng.integers(0, 1 << bits, self.samples, np.uint64), self.secrets * self.randomness)

    def inputs(self) -> list[list[Any]]:
        """Of each party."""
        given: list[list[Any]] = [[] for _ in range(PARTIES)]
        offset = 0
        for kind in self.case.inputs:
            bits = self._bits(kind)
            secret = (self._q >> np.uint64(offset)) & np.uint64((1 << bits) - 1)
            if kind == "value":
                known = self.sampled(bits) if self.rank == 0 else secret
                for rank in range(PARTIES):
                    given[rank].append(Value(self.size, None if rank else known))
                offset += bits if self.rank else 0
                continue
            offset += bits
            lacks = (self.rank + 2) % PARTIES
            components = [secret if place == lacks else self.sampled(bits) for place in range(PARTIES)]
            if kind == "ring":  # with rubbish above the ring's bits, as local sums leave it
                components = [part | self._rubbish() << np.uint64(self.width) for part in components]
            for rank in range(PARTIES):
                pair = components[rank], components[(rank + 1) % PARTIES]
                given[rank].append(Bits(*(packed(part, 1) for part in pair)) if kind == "bits" else Shared(*pair))
        return given

    def stream(self, place: Draw, count: int) -> Words:
        """The words of one keystream, with rubbish beyond what is enumerated."""
        component, operation, purpose = place
        if purpose in self.case.reused:
            operation = START
        key = (component, operation, purpose)
        if key not in self._made:
            bits = drawn_bits(self.case, self.width, self.size, count)
            if purpose in self.case.zeroed:
                value = np.zeros(self.size, np.uint64)
            elif key in self._unknown:
                value = (self._u >> np.uint64(self._unknown[key])) & np.uint64((1 << bits) - 1)
            else:
                value = self.sampled(bits)
            self._made[key] = self._laid_out(value, bits, count)
        return self._made[key].copy()

    def _rubbish(self) -> Words:
        return self._rng.integers(0, 1 << 16, self.size, np.uint64)

    def _laid_out(self, value: Words, bits: int, count: int) -> Words:
        if count * 2 < self.size:
            return packed(value, bits).reshape(-1)
        rubbish = self._rubbish()
        if count == self.size:
            return value | rubbish << np.uint64(self.width)
        return (value | rubbish << np.uint64(bits)).astype(np.uint32).view(np.uint64)


def packed(value: Words, planes: int) -> Words:
    """The lowest bits of each element as planes."""
    rows = [np.packbits((value >> np.uint64(plane)).astype(np.uint8) & 1, bitorder="little") for plane in range(planes)]
    return np.stack(rows).view(np.uint64)


def drawn_bits(case: Case, width: int, size: int, count: int) -> int:
    """Bits of an element in a draw: it is told by its length whether it is words, counts of 32 bits, or planes."""
    if count == size:
        return width
    return case.count_bits if 2 * count == size else 64 * count // size


class Streams:
    """One party's randomness: that of all cases, or in a first run whatever, to see what is drawn."""

    def __init__(self, rank: int, draw: Callable[[Draw, int], Words]) -> None:
        self._rank = rank
        self._draw = draw

    def draw(self, key: int, operation: int, purpose: int, count: int) -> Words:
        component = PARTIES if key == ALL else (self._rank + key) % PARTIES
        return self._draw((component, operation, purpose), count)


def drawn(case: Case, width: int) -> dict[Draw, int]:
    """The keystreams that a kernel draws, with their bits for each element."""
    found: dict[Draw, int] = {}

    def draw(place: Draw, count: int) -> Words:
        component, operation, purpose = place
        if purpose not in case.zeroed:
            operation = START if purpose in case.reused else operation
            found[component, operation, purpose] = drawn_bits(case, width, 64, count)
        return np.zeros(count, np.uint64)

    zeros = np.zeros(64, np.uint64)
    inputs = {"value": Value(64, zeros), "ring": Shared(zeros, zeros), "bits": Bits(zeros[:1, None], zeros[:1, None])}

    async def program(party: Party) -> None:
        await case.program(party, Operations(START), [inputs[kind] for kind in case.inputs])

    run_parties(program, ring=Ring(width), randomness=[Streams(rank, draw) for rank in range(PARTIES)])
    return found


def learns(case: Case, width: int, rank: int, most: int = 1 << 18) -> bool:
    """Whether this party's view depends on what it must not know. `most`: how many cases are looked at."""
    cases = Cases(case, width, rank, drawn(case, width), most)
    inputs = cases.inputs()

    async def program(party: Party) -> None:
        await case.program(party, Operations(START), inputs[party.rank])

    outcome = run_parties(
        program, ring=Ring(width), randomness=[Streams(rank, cases.stream) for rank in range(PARTIES)]
    )  # fmt: skip
    code = np.zeros(cases.size, np.uint64)
    for _, _, words in sorted(outcome.views[rank], key=lambda message: message[1]):
        for value, bits in _values(words, cases.size, width, case.count_bits):
            assert not (value >> np.uint64(bits)).any(), "a message carries more than the ring's bits"
            code = code << np.uint64(bits) | value
    seen = np.sort(code.reshape(cases.samples, cases.secrets, cases.randomness), axis=2)
    return not bool((seen == seen[:, :1]).all())


def _values(words: Words, size: int, width: int, count_bits: int) -> list[tuple[npt.NDArray[np.uint64], int]]:
    """What a message says of each element. It is planes, then words, then counts of 32 bits, told by its length."""
    found = []
    planes = words.size * 64 // size % 32
    if planes:
        rows, words = words[: planes * size // 64], words[planes * size // 64 :]
        found += [(np.unpackbits(row.view(np.uint8), bitorder="little").astype(np.uint64), 1) for row in rows.reshape(planes, -1)]
    if words.size >= size:
        found.append((words[:size], width))
        words = words[size:]
    if words.size:
        found.append((words.view(np.uint32).astype(np.uint64), count_bits))
    return found
