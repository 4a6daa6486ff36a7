"""What the relay moves over time, from running totals: each second of ten minutes, each minute of a day, and each link now."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from grid.gateway.router import LinkView

SECONDS = 600
MINUTES = 1440
MINUTE_S = 60.0

BUSY = 60
"""While something has moved within so many samples, every sample is news."""


class Sample(NamedTuple):
    """A stretch of time that ended at `wall` (seconds): mean rates in it, and the most connections and links at once."""

    wall: float
    bytes_per_s: float
    frames_per_s: float
    connections: int
    links: int


class TrafficMeter:
    """Give it the totals about once a second; it answers with rates. Plain arithmetic, no clock of its own.

    `version` rises with each sample that a reader would see.
    """

    def __init__(self) -> None:
        self.seconds: deque[Sample] = deque(maxlen=SECONDS)
        self.minutes: deque[Sample] = deque(maxlen=MINUTES)
        self.version = 0
        self._rates: dict[int, float] = {}
        self._moved: dict[int, int] = {}
        self._bytes = self._frames = 0
        self._then: float | None = None
        self._minute: list[Sample] = []
        self._minute_began = 0.0
        self._quiet = BUSY

    @property
    def rate(self) -> float:
        """Bytes per second over the last sample."""
        return self.seconds[-1].bytes_per_s if self.seconds else 0.0

    @property
    def frame_rate(self) -> float:
        """Frames per second over the last sample."""
        return self.seconds[-1].frames_per_s if self.seconds else 0.0

    def now(self) -> dict[str, float]:
        """The last sample in a few numbers."""
        if not self.seconds:
            return {"bytes_per_s": 0.0, "frames_per_s": 0.0, "connections": 0}
        last = self.seconds[-1]
        return {
            "bytes_per_s": round(last.bytes_per_s, 1),
            "frames_per_s": round(last.frames_per_s, 1),
            "connections": last.connections,
        }

    def history(self, seconds: int) -> list[float]:
        """Bytes per second for each of the last `seconds` samples; 0.0 before the first."""
        last = list(itertools.islice(self.seconds, max(0, len(self.seconds) - seconds), None))
        return [0.0] * (seconds - len(last)) + [sample.bytes_per_s for sample in last]

    def link_rate(self, number: int) -> float:
        """Bytes per second of one link over the last sample; 0.0 for a link that is newer than it."""
        return self._rates.get(number, 0.0)

    def sample(
        self, now: float, *, wall: float, moved: int, frames: int, connections: int, links: Iterable[LinkView]
    ) -> None:
        """Take the totals at the time `now` (`wall` for people): bytes and frames since the start, connections, open links."""
        by_link = {link.number: link.moved for link in links}
        before = self.seconds[-1] if self.seconds else None
        if self._then is None:
            self._minute_began = now
        elif now > self._then:
            seconds = now - self._then
            rates = (moved - self._bytes) / seconds, (frames - self._frames) / seconds
            self._rates = {number: (bytes_ - self._moved.get(number, 0)) / seconds for number, bytes_ in by_link.items()}
            self._take(now, Sample(wall, *rates, connections, len(by_link)))
        last = self.seconds[-1] if self.seconds else None
        self._quiet = 0 if last is not None and last.frames_per_s else self._quiet + 1
        counts = (last.connections, last.links) if last is not None else None
        if self._quiet < BUSY or (before is not None and counts != (before.connections, before.links)):
            self.version += 1
        self._then, self._bytes, self._frames, self._moved = now, moved, frames, by_link

    def _take(self, now: float, sample: Sample) -> None:
        self.seconds.append(sample)
        self._minute.append(sample)
        if now - self._minute_began >= MINUTE_S:
            self.minutes.append(_mean(self._minute))
            self._minute, self._minute_began = [], now


def _mean(samples: Sequence[Sample]) -> Sample:
    return Sample(
        wall=samples[-1].wall,
        bytes_per_s=sum(sample.bytes_per_s for sample in samples) / len(samples),
        frames_per_s=sum(sample.frames_per_s for sample in samples) / len(samples),
        connections=max(sample.connections for sample in samples),
        links=max(sample.links for sample in samples),
    )


def condensed(samples: Iterable[Sample], seconds: float) -> list[Sample]:
    """One sample for each stretch of so many seconds of the clock in which there is any; the newest may be shorter."""
    stretches = itertools.groupby(samples, key=lambda sample: sample.wall // seconds)
    return [_mean(list(stretch)) for _, stretch in stretches]
