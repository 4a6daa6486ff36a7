"""A time for which the gateway cannot be reached, and what whoever waits for it is told."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from grid.clock import Clock
from grid.errors import GridError, NodeUnavailable

log = logging.getLogger(__name__)

WORD_S = 3.0
"""A gateway that is back before is not worth a word."""


@dataclass(slots=True)
class Absence:
    """Since when, in the clock's monotonic seconds, and why as far as is known. `gateway` is how it is called."""

    gateway: str
    since: float
    clock: Clock
    why: GridError | None = None
    _told: bool = False

    @property
    def text(self) -> str:
        """`the gateway HOST:PORT has not been reachable for 12 s; ...`, "" in the first seconds."""
        seconds = self.clock.monotonic() - self.since
        return f"{self._for(seconds)}; the job goes on when it is back" if seconds >= WORD_S else ""

    def _for(self, seconds: float) -> str:
        return f"{self.gateway} has not been reachable for {seconds:.0f} s"

    def watch(self, ends: float) -> float:
        """Say it once, in a log line. Gives when to look again; raises `NodeUnavailable` from the moment `ends` on."""
        now = self.clock.monotonic()
        if now >= ends:
            why = f" ({self.why.message})" if self.why is not None else ""
            raise NodeUnavailable(
                f"{self._for(now - self.since)}{why}. Jobs are kept there and go on when it is back: make the same call again, or"
                " g.job(id) later"
            )
        if now < self.since + WORD_S:
            return min(ends, self.since + WORD_S)
        if not self._told:
            self._told = True
            log.warning("%s", self.text)
        return ends
