"""Whether the peer is there: when to ask, and how long its silence has lasted.

Hearing nothing makes us ask, and saying nothing does too: a peer that only listens must hear that we live. The accepting side
waits a little longer than the initiator, so that an idle pair exchanges one ping a period and not two.

A process that stood still (a laptop's lid, a debugger, a long step without the event loop) must not take its own absence for
the peer's: frames may wait unread. So silence counts at most one heartbeat of a time in which we were late ourselves.
"""

from __future__ import annotations

import math

from grid.settings import SessionLimits

ACCEPTOR_SLACK = 1.25


class Pulse:
    """Heartbeats of one side of a session."""

    __slots__ = ("_asked", "_heard", "_heartbeat_s", "_next", "_patience_s", "_period_s", "_planned", "_said")

    def __init__(self, limits: SessionLimits, *, initiator: bool) -> None:
        self._heartbeat_s = limits.heartbeat_s
        self._patience_s = limits.patience_s
        self._period_s = limits.heartbeat_s * (1.0 if initiator else ACCEPTOR_SLACK)
        self._heard = self._said = self._asked = 0.0
        self._planned = math.inf
        self._next = 1

    def start(self, now: float) -> None:
        """All is well at `now`."""
        self._heard = self._said = self._asked = now

    def heard(self, now: float) -> None:
        """A frame came."""
        self._heard = now

    def said(self, now: float) -> None:
        """A frame left."""
        self._said = now

    def plan(self, due: float, now: float) -> float:
        """The time of the next look: `due`, the next ping or the end of patience. Remembers it, to know if we come late."""
        self._planned = max(now, min(due, self._heard + self._patience_s, self._ping_due()))
        return self._planned

    def silence(self, now: float) -> float:
        """Seconds for which the peer has said nothing, as far as we were there to hear it."""
        if now - self._planned > self._heartbeat_s / 2:
            self._heard = max(self._heard, now - self._heartbeat_s)
        return now - self._heard

    def ping(self, now: float) -> int | None:
        """The number of the ping to send now; None where none is due."""
        if now < self._ping_due():
            return None
        self._asked = now
        self._next += 1
        return self._next - 1

    def _ping_due(self) -> float:
        return max(min(self._heard, self._said), self._asked) + self._period_s
