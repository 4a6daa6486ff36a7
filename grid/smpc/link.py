"""How a party reaches the two others: labelled messages of whole words, in any order.

`Link` is what protocols need of the outside; the node gives one over its sealed channels, `grid.smpc.local` one in memory.
`Mailbox` is the half that both share: what has come and is not asked for yet, and what is waited for.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from grid.errors import GridError, QuotaExceeded, WireError
from grid.smpc.steps import Arrival

Words = npt.NDArray[np.uint64]
"""Ring elements, or packed bits: 64-bit words."""

MAX_EARLY_BYTES = 1 << 28
"""What may have come from one peer before it is asked for. Peers run the same program, so more means that one runs away."""


class Link(Protocol):
    """The connection of one party to the others, who are ranks 0, 1 and 2."""

    def send(self, to: int, label: int, words: Words) -> None:
        """Send one message: a flat array. The caller may write into it again after this returns."""

    def receive(self, sender: int, label: int, count: int) -> Arrival[Words]:
        """The message of this label, which must have `count` words. It belongs to the caller alone."""


class Mailbox:
    """Messages by sender and label, each delivered once and taken once."""

    def __init__(self) -> None:
        self._come: dict[tuple[int, int], Words] = {}
        self._wanted: dict[tuple[int, int], tuple[int, Arrival[Words]]] = {}
        self._early: dict[int, int] = {}
        self._error: GridError | None = None

    def deliver(self, sender: int, label: int, words: Words) -> None:
        """A message has come. Raises `WireError` for one that was there before or is of a wrong size,
        `QuotaExceeded` where too much has come unasked; the caller then gives up the session."""
        key = (sender, label)
        wanted = self._wanted.pop(key, None)
        if wanted is not None:
            count, arrival = wanted
            _check(sender, words, count)
            arrival.set(words)
            return
        if key in self._come:
            raise WireError(f"party {sender} sent one message twice")
        early = self._early.get(sender, 0) + words.nbytes
        if early > MAX_EARLY_BYTES:
            raise QuotaExceeded(f"party {sender} has sent {early} bytes that nobody has asked for; {MAX_EARLY_BYTES} are allowed")
        self._early[sender] = early
        self._come[key] = words

    def receive(self, sender: int, label: int, count: int) -> Arrival[Words]:
        arrival: Arrival[Words] = Arrival()
        if self._error is not None:
            arrival.fail(self._error)
            return arrival
        words = self._come.pop((sender, label), None)
        if words is None:
            self._wanted[sender, label] = (count, arrival)
        else:
            self._early[sender] -= words.nbytes
            _check(sender, words, count)
            arrival.set(words)
        return arrival

    def fail(self, error: GridError) -> None:
        """Nothing comes any more: all that wait, and all that ask from now on, get the error."""
        if self._error is None:
            self._error = error
            self._come.clear()
            wanted, self._wanted = self._wanted, {}
            for _, arrival in wanted.values():
                arrival.fail(error)

    @property
    def waits(self) -> list[int]:
        """The ranks of the peers whose messages are waited for."""
        return sorted({sender for sender, _ in self._wanted})


def _check(sender: int, words: Words, count: int) -> None:
    if words.size != count:
        raise WireError(f"party {sender} sent {words.size} words where {count} were due")
