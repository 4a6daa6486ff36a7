"""By when each party is done with a method of `Replicated`, from when each began it: the longest chains of messages.

A party that has no part in the end of a method goes on at once, so rounds do not just add up. Each kernel says who waits for whom
by being run, once in a process: in lockstep, on one block, with one party late. What ends later then waits for that party.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from grid.smpc.local import Network, fresh_keystreams
from grid.smpc.packing import WORD_BITS, padded
from grid.smpc.party import PARTIES, Operations, Party
from grid.smpc.protocol import Protocol
from grid.smpc.replicated.chunks import CHUNK, DEPTH
from grid.smpc.shares import Bits, Shared
from grid.smpc.steps import Task, Work

Clock = tuple[int, ...]
"""Rounds that have gone by at each party."""

START: Clock = (0,) * PARTIES

LATE = 1 << 10
"""Rounds that a party is late: more than a kernel has."""

NEVER = -(1 << 40)
"""In place of rounds, where a party does not wait for another one."""

PROBES: dict[str, Callable[..., Work[Any]]] = {
    "share": lambda p, x, b, owner: p.share(owner, x.shape, x.parts[0]),
    "multiply": lambda p, x, b, truncate: p.multiply(x, x, truncate),
    "matmul": lambda p, x, b, truncate: p.matmul(x.reshape((WORD_BITS, 1)), x[:1].reshape((1, 1)), truncate),
    "conv2d": lambda p, x, b, truncate: p.conv2d(
        x.reshape((1, 1, 1, WORD_BITS)), x[:1].reshape((1, 1, 1, 1)), stride=(1, 1), padding=(0, 0), truncate=truncate
    ),
    "truncate": lambda p, x, b, bits: p.truncate(x, bits),
    "negative": lambda p, x, b: p.negative(x),
    "is_zero": lambda p, x, b: p.is_zero(x),
    "bits": lambda p, x, b, count: p.bits(x, count),
    "conjunction": lambda p, x, b: p.conjunction(b, b),
    "number": lambda p, x, b: p.number(b, x.shape),
    "choose": lambda p, x, b: p.choose(b, x),
    "shuffle": lambda p, x, b: p.shuffle(x),
    "open": lambda p, x, b: p.open(x),
    "open_to": lambda p, x, b, party: p.open_to(x, party),
    "open_bits": lambda p, x, b: p.open_bits(b),
}
"""A call of each method that sends messages, on one block."""

BY_RANK = frozenset({"share", "open_to"})
"""Methods in which what a party does follows from its rank, not from its role in the operation."""


class Span(NamedTuple):
    """Of one block: `rounds[i][j]` from when party j begins until party i can be done, in an operation of number 0; and the
    operation numbers that it takes."""

    rounds: tuple[Clock, ...]
    numbers: int

    def after(self, begun: Clock, operation: int) -> Clock:
        """When each party is done."""
        roles = [(rank - operation) % PARTIES for rank in range(PARTIES)]
        return tuple(max(self.rounds[mine][its] + at for its, at in zip(roles, begun, strict=True)) for mine in roles)


def after(begun: Clock, operations: Operations, method: str, how: tuple[int, ...], elements: int | None) -> Clock:
    """When each party is done with a call, whose operation numbers are taken. `how`: its arguments beside values. `elements`:
    how many it has, where it goes through them in blocks."""
    if elements == 0:
        return begun
    span = spans(method, how)
    if elements is None or elements <= CHUNK:
        first, *_ = (operations.take() for _ in range(span.numbers))
        return span.after(begun, 0 if method in BY_RANK else first)
    parts = operations.split(-(-padded(elements) // CHUNK), 1)
    lanes = [[at] * min(DEPTH, len(parts)) for at in begun]
    for part in parts:
        ends = span.after(tuple(lane[0] for lane in lanes), part.take())
        for lane, end in zip(lanes, ends, strict=True):
            heapq.heapreplace(lane, end)
    return tuple(map(max, lanes))


@functools.cache
def spans(method: str, how: tuple[int, ...]) -> Span:
    """Those of one block of a method."""
    measured = [_ends(method, how, late) for late in range(PARTIES)]
    rounds = tuple(
        tuple(measured[late][0][rank] - LATE if measured[late][0][rank] >= LATE else NEVER for late in range(PARTIES))
        for rank in range(PARTIES)
    )
    return Span(rounds, measured[0][1])


def _ends(method: str, how: tuple[int, ...], late: int) -> tuple[list[int], int]:
    """After how many rounds each party is done where one begins LATE; and the operation numbers that were taken."""
    from grid.smpc.replicated.protocol import Replicated  # loads a compiler, which a client needs for rehearsals only

    zeros = np.zeros(WORD_BITS, np.uint64)
    x, b = Shared(zeros, zeros), Bits(zeros[:1].reshape(1, 1), zeros[:1].reshape(1, 1))
    network, streams = Network(recorded=False), fresh_keystreams(checked=False)
    numbers = [Operations() for _ in range(PARTIES)]

    async def run(rank: int) -> None:
        protocol: Protocol = Replicated(Party(rank, network.link(rank), streams[rank]), numbers[rank])
        await PROBES[method](protocol, x, b, *how)

    tasks: dict[int, Task[None]] = {}
    ends: dict[int, int] = {}
    for now in itertools.count():
        for rank in range(PARTIES):
            if rank not in tasks and now >= (LATE if rank == late else 0):
                tasks[rank] = Task(run(rank))
            if rank in tasks and rank not in ends and tasks[rank].outcome.done:
                tasks[rank].outcome.result()
                ends[rank] = now
        if len(ends) == PARTIES:
            return [ends[rank] for rank in range(PARTIES)], numbers[0].take()
        network.deliver()
    raise AssertionError
