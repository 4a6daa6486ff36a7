"""Messages of secure sums that come before this node has been asked to take part.

A client asks all nodes at once, and one node's announcement may overtake the client's own request at another. What comes early
is kept for a while, a bounded number from each node; the sum that it belongs to takes it out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter

from grid.ids import PeerId, SumId
from grid.node.neighbours import Neighbour
from grid.wire.codec import encode
from grid.wire.messages import SumAnnouncement, SumShare

log = logging.getLogger(__name__)

KEPT_S = 120.0
MAX_PER_NODE = 1024
MAX_BYTES = 64 << 10
"""Bytes of one message. A statement that is believed has fewer, and a withdrawal a few words."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Early:
    """One message, and when it came (monotonic seconds)."""

    sender: Neighbour
    message: SumAnnouncement | SumShare
    came: float


class EarlyMessages:
    """What is kept, by sum."""

    def __init__(self) -> None:
        self._kept: dict[SumId, list[Early]] = {}
        self._count: Counter[PeerId] = Counter()

    def __len__(self) -> int:
        return self._count.total()

    def keep(self, sender: Neighbour, message: SumAnnouncement | SumShare, now: float) -> None:
        """Keep a message, unless it cannot be early or its sender has too many here."""
        if isinstance(message, SumShare) and message.tensor is not None:
            log.warning("node %s sent a share of a sum that this node has not announced", sender.card.name)
            return
        if sum(map(len, encode(message))) > MAX_BYTES:
            log.warning("node %s announces a sum at greater length than any that would be believed", sender.card.name)
            return
        if self._count[sender.id] >= MAX_PER_NODE:
            self._drop_old(now)
        if self._count[sender.id] >= MAX_PER_NODE:
            log.debug("node %s announces too many sums that this node was not asked for", sender.card.name)
            return
        self._kept.setdefault(message.sum, []).append(Early(sender, message, now))
        self._count[sender.id] += 1

    def take(self, name: SumId) -> list[Early]:
        """What was kept for a sum, and is so no longer."""
        taken = self._kept.pop(name, [])
        for early in taken:
            self._count[early.sender.id] -= 1
        return taken

    def forget(self, node: PeerId) -> None:
        """Drop what a node sent: it is gone, and so are the sums that it took part in."""
        if not self._count[node]:
            return
        for name, kept in list(self._kept.items()):
            left = [early for early in kept if early.sender.id != node]
            if left:
                self._kept[name] = left
            else:
                del self._kept[name]
        del self._count[node]

    def _drop_old(self, now: float) -> None:
        for name in [name for name, kept in self._kept.items() if kept[0].came < now - KEPT_S]:
            self.take(name)
        self._count += Counter()  # forgets nodes that have nothing here any more
