"""What strangers and peers may cost the gateway: how often something may happen, and who has to go when there are too many."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import NamedTuple

from grid.gateway.registry import ConnectionId

SHARE_OF_SOURCE = 4
"""One address may have this part (a fourth) of the places for strangers."""


class Allowance:
    """At most `burst` at once and `per_s` in the long run. Times are of any clock that only rises, in seconds."""

    __slots__ = ("_burst", "_left", "_per_s", "_then")

    def __init__(self, *, burst: float, per_s: float) -> None:
        self._burst = self._left = burst
        self._per_s = per_s
        self._then = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may happen now; if so it counts."""
        self._left = min(self._burst, self._left + (now - self._then) * self._per_s)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Verdict(NamedTuple):
    """What to do with a new stranger: `refused` says why it cannot come in, `evict` who goes to make room for it."""

    refused: str | None = None
    evict: ConnectionId | None = None


class Strangers:
    """Connections that have not proved who they are, oldest first, with the network address that each came from.

    When the places are taken the oldest goes: somebody who means to join does so at once, so those who fill the places with
    silence wait for nothing. One address can have only a part of the places. This machine's own are exempt from that: all
    that a reverse proxy passes on comes from one of them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._source_of: dict[ConnectionId, str] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._source_of)

    def judge(self, source: str) -> Verdict:
        """What a newcomer from this address means; changes nothing."""
        if not _is_local(source) and self._counts[source] >= max(1, self._most // SHARE_OF_SOURCE):
            return Verdict(refused="source")
        if len(self._source_of) >= self._most:
            return Verdict(evict=next(iter(self._source_of), None), refused=None if self._source_of else "unauthenticated")
        return Verdict()

    def add(self, connection: ConnectionId, source: str) -> None:
        self._source_of[connection] = source
        self._counts[source] += 1

    def discard(self, connection: ConnectionId) -> None:
        """This one has joined or is gone."""
        source = self._source_of.pop(connection, None)
        if source is not None:
            self._counts[source] -= 1
            if not self._counts[source]:
                del self._counts[source]


def _is_local(source: str) -> bool:
    """Whether an address is this machine's own; so is "", of connections that do not come over a network."""
    try:
        return not source or ipaddress.ip_address(source).is_loopback
    except ValueError:
        return False
