"""Connections that have not proved who they are: how many there may be, and which has to go when one more comes.

Idle strangers must not keep others out, so a newcomer is always let in, and the one that goes is the oldest of whoever has
the most: a sender that opens many relayed links pushes out its own. Direct connections count as one sender, as nothing that
they say of themselves is known to be true.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from grid.ids import PeerId
from grid.transport.base import Transport

EVICTED = "too many connections are proving who they are, and this one was the oldest; try again"

DIRECT = PeerId("")
"""The sender of connections that no gateway relays."""


class Strangers:
    """At most `most` strangers. `evict` is called with the transport that has to go; it closes it, saying why."""

    def __init__(self, most: int, evict: Callable[[Transport], None]) -> None:
        self._most = most
        self._evict = evict
        self._senders: dict[Transport, PeerId] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._senders)

    @contextlib.contextmanager
    def entered(self, transport: Transport, sender: PeerId) -> Iterator[None]:
        """Count a stranger while the block lasts."""
        self._senders[transport] = sender
        if len(self._senders) > self._most:
            self._evict(self._oldest())
        try:
            yield
        finally:
            self._senders.pop(transport, None)

    def _oldest(self) -> Transport:
        (most, _), *_ = Counter(self._senders.values()).most_common(1)
        oldest = next(transport for transport, sender in self._senders.items() if sender == most)
        del self._senders[oldest]
        return oldest
