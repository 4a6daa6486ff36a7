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


class Inbox(Protocol):
    """Where a link puts what comes; `Mailbox` is one."""

    def admit(self, sender: int, label: int, count: int) -> None:
        """A message of `count` words is on its way. Raises what ends the link, before memory is set aside for it."""

    def deliver(self, sender: int, label: int, words: Words) -> None:
        """A message has come. Raises what ends the link."""

    def receive(self, sender: int, label: int, count: int) -> Arrival[Words]:
        """As `Link.receive`."""

    def fail(self, error: GridError) -> None:
        """Nothing comes any more."""

    @property
    def waits(self) -> list[int]:
        """The ranks of the peers whose messages are waited for."""


class Mailbox:
    """Messages by sender and label, each delivered once and taken once. `max_early_bytes` in place of MAX_EARLY_BYTES."""

    def __init__(self, max_early_bytes: int | None = None) -> None:
        self._max_early = max_early_bytes
        self._come: dict[tuple[int, int], Words] = {}
        self._wanted: dict[tuple[int, int], tuple[int, Arrival[Words]]] = {}
        self._early: dict[int, int] = {}
        self._error: GridError | None = None

    def admit(self, sender: int, label: int, count: int) -> None:
        """A message of `count` words is on its way. Raises as `deliver` does, before memory is set aside for it."""
        wanted = self._wanted.get((sender, label))
        if wanted is not None:
            _check(sender, count, wanted[0])
            return
        if (sender, label) in self._come:
            raise WireError(f"party {sender} sent one message twice", party=sender)
        early = self._early.get(sender, 0) + _cost(count)
        most = MAX_EARLY_BYTES if self._max_early is None else self._max_early
        if early > most:
            raise QuotaExceeded(
                f"party {sender} has sent {early} bytes that nobody has asked for; {most} are allowed", party=sender
            )

    def deliver(self, sender: int, label: int, words: Words) -> None:
        """A message has come. Raises `WireError` for one that was there before or is of a wrong size,
        `QuotaExceeded` where too much has come unasked; the caller then gives up the session."""
        key = (sender, label)
        wanted = self._wanted.get(key)
        if wanted is not None and wanted[0] == words.size:
            del self._wanted[key]
            wanted[1].set(words)
            return
        self.admit(sender, label, words.size)
        self._early[sender] = self._early.get(sender, 0) + _cost(words.size)
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
            self._early[sender] -= _cost(words.size)
            _check(sender, words.size, count)
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


def _cost(size: int) -> int:
    """Bytes that a message takes while nobody has asked for it, its bookkeeping included."""
    return 8 * size + 256


def _check(sender: int, size: int, count: int) -> None:
    if size != count:
        raise WireError(f"party {sender} sent {size} words where {count} were due", party=sender)
