"""How long to wait before dialing again."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from grid.clock import Clock

SETTLED_S = 5.0
"""A connection that lived as long has held: the wait before the next one is short again."""

class Backoff:
    """Waits with full jitter: each is uniform between 0 and a bound that doubles from `first_s` up to `most_s`.

    Drawing from the whole range spreads the peers of a gateway that comes back; a wait without jitter would bring them all
    at once. `rng` needs no secrecy. `settled` starts over, once a connection has held.
    """

    def __init__(self, clock: Clock, rng: Random, *, first_s: float = 0.2, most_s: float = 10.0) -> None:
        self._clock = clock
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._bound_s = first_s

    def settled(self) -> None:
        """The connection holds: the next wait is short again."""
        self._bound_s = self._first_s

    def next_s(self) -> float:
        """The next wait in seconds."""
        wait = self._rng.uniform(0, self._bound_s)
        self._bound_s = min(2 * self._bound_s, self._most_s)
        return wait

    def __iter__(self) -> Iterator[float]:
        while True:
            yield self.next_s()

    async def wait(self) -> None:
        """Sleep for the next wait."""
        await self._clock.sleep(self.next_s())
