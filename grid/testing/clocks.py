"""A clock that moves only when a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools

ROUNDS = 50
"""Turns of the event loop that tasks get after each step of time. A task that was woken needs one; what it wakes, another."""


class FakeClock:
    """Both times stand still until `advance`. Made for one event loop.

    `advance` stops at every moment for which somebody sleeps, wakes them in order, and lets the loop run before it goes on,
    so that whoever was woken sees the time for which it asked, and can sleep again within the same `advance`.
    """

    def __init__(self, *, monotonic: float = 1000.0, wall: float = 1_800_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    @property
    def sleepers(self) -> int:
        """How many tasks sleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move both times forward by `seconds`, step by step."""
        target = self._monotonic + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, future = heapq.heappop(self._sleepers)
            if future.done():
                continue
            self._move(due)
            future.set_result(None)
            await self.settle()
        self._move(target)
        await self.settle()

    async def settle(self) -> None:
        """Let the tasks of the loop run, with time standing still."""
        for _ in range(ROUNDS):
            await asyncio.sleep(0)

    def jump(self, seconds: float) -> None:
        """Move time without waking anyone on the way, as if this process had stood still."""
        self._move(self._monotonic + seconds)
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    def _move(self, to: float) -> None:
        if to > self._monotonic:
            self._wall += to - self._monotonic
            self._monotonic = to
