"""A clock that stands where a test puts it."""

from __future__ import annotations

from grid.errors import LocalProtocolError

NOON = 1_800_000_000.0


class StillClock:
    """Wall and monotonic time that move only when a test says so."""

    def __init__(self) -> None:
        self.now = NOON

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        raise LocalProtocolError("nothing in these tests waits")
