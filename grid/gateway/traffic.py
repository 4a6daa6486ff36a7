"""Bytes per second from running totals: the last minute of the relay, and of each link."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from grid.gateway.router import LinkView

HISTORY = 60
"""Samples kept."""


class TrafficMeter:
    """Give it the totals about once a second; it answers with rates. Plain arithmetic, no clock of its own."""

    def __init__(self) -> None:
        self.history: deque[float] = deque([0.0] * HISTORY, maxlen=HISTORY)
        self.version = 0
        self._rates: dict[int, float] = {}
        self._moved: dict[int, int] = {}
        self._total = 0
        self._then: float | None = None

    @property
    def rate(self) -> float:
        """Bytes per second over the last sample."""
        return self.history[-1]

    def link_rate(self, number: int) -> float:
        """Bytes per second of one link over the last sample; 0.0 for a link that is newer than it."""
        return self._rates.get(number, 0.0)

    def sample(self, now: float, total: int, links: Iterable[LinkView]) -> None:
        """Take the totals at the time `now`. `version` rises unless nothing has moved for the whole of the history."""
        moved = {link.number: link.moved for link in links}
        if self._then is not None and now > self._then:
            seconds = now - self._then
            self.history.append((total - self._total) / seconds)
            self._rates = {number: (bytes_ - self._moved.get(number, 0)) / seconds for number, bytes_ in moved.items()}
        if any(self.history) or moved.keys() != self._moved.keys():
            self.version += 1
        self._then, self._total, self._moved = now, total, moved
