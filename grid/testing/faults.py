"""A transport that goes wrong on purpose, in ways that a seed repeats."""

from __future__ import annotations

import dataclasses
from collections import Counter
from random import Random

from grid.clock import Clock
from grid.errors import NodeUnavailable
from grid.transport.base import Buffer, Transport


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The chance of each fault for each frame that is sent, between 0 and 1.

    `delay` sleeps up to `max_delay_s` before the frame; `reorder` sends it after the next one; `repeat` sends it twice;
    `truncate` sends a part of it; `flip` changes one bit; `drop` sends nothing; `cut` closes the connection instead.
    The first `spare` frames pass untouched.
    """

    delay: float = 0.0
    reorder: float = 0.0
    repeat: float = 0.0
    truncate: float = 0.0
    flip: float = 0.0
    drop: float = 0.0
    cut: float = 0.0
    max_delay_s: float = 0.05
    spare: int = 0


class FaultyTransport(Transport):
    """`inner` with `faults` on what is sent; wrap both ends for both directions.

    `applied` counts what was done, so a test can see that it met what it is about. `str()` and the error after a cut name the
    seed.
    """

    def __init__(self, inner: Transport, *, seed: int, faults: Faults, clock: Clock) -> None:
        self._inner = inner
        self._seed = seed
        self._faults = faults
        self._clock = clock
        self._rng = Random(seed)
        self._spare = faults.spare
        self._late: list[bytes] = []
        self.applied: Counter[str] = Counter()

    def __str__(self) -> str:
        return f"FaultyTransport(seed={self._seed}, applied={dict(self.applied)})"

    async def send(self, *parts: Buffer) -> None:
        frame = b"".join(parts)
        if self._spare > 0:
            self._spare -= 1
            await self._inner.send(frame)
            return
        if self._meets("cut"):
            await self._inner.close(f"cut by {self}")
            raise NodeUnavailable(f"cut by {self}")
        if self._meets("delay"):
            await self._clock.sleep(self._rng.uniform(0, self._faults.max_delay_s))
        frame = self._damaged(frame)
        if self._meets("reorder"):
            self._late.append(frame)
            return
        if not self._meets("drop"):
            await self._inner.send(frame)
            if self._meets("repeat"):
                await self._inner.send(frame)
        await self._send_late()

    async def receive(self) -> Buffer:
        return await self._inner.receive()

    async def close(self, reason: str = "") -> None:
        await self._inner.close(reason)

    def _meets(self, fault: str) -> bool:
        chance: float = {
            "delay": self._faults.delay,
            "reorder": self._faults.reorder,
            "repeat": self._faults.repeat,
            "truncate": self._faults.truncate,
            "flip": self._faults.flip,
            "drop": self._faults.drop,
            "cut": self._faults.cut,
        }[fault]
        # A fault that is off draws nothing, so that turning one on does not move the others.
        if chance <= 0 or self._rng.random() >= chance:
            return False
        self.applied[fault] += 1
        return True

    def _damaged(self, frame: bytes) -> bytes:
        if frame and self._meets("truncate"):
            frame = frame[: self._rng.randrange(len(frame))]
        if frame and self._meets("flip"):
            changed = bytearray(frame)
            changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
            frame = bytes(changed)
        return frame

    async def _send_late(self) -> None:
        late, self._late = self._late, []
        for frame in late:
            await self._inner.send(frame)
