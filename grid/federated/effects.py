"""What the state machines of jobs ask of those who drive them, and the record of why.

Each thing that a machine is told is a stimulus with a number; the effects and the log lines that follow from it carry that
number as `cause`. The story keeps the last of them, so that a round that does not get on can say what it was told.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from grid.ids import PeerId
from grid.wire.messages import Message

log = logging.getLogger(__name__)

Key = tuple[int, int, int]
"""Round, attempt and leg that a request belongs to."""

OFFER: Key = (0, 0, 0)
"""The key of the offer of a job."""

Part = bytes | Callable[[], bytes] | None
"""Bytes to keep, or what makes them (in the thread that writes), or None to forget."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Send this request to a node; its answer goes to `answered` with the same key, its error to `refused`."""

    cause: int
    peer: PeerId
    key: Key
    message: Message
    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Compute this in a thread, in order with the other work of the job; what comes out goes to `worked` with the name."""

    cause: int
    name: str
    run: Callable[[], Any]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Keep:
    """Write these parts of the job to the store, all or none, in order with others; then call `kept` with the name."""

    cause: int
    name: str
    parts: Mapping[str, Part]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """The job waits for this node: ask it to open a job channel."""

    cause: int
    peer: PeerId


@dataclasses.dataclass(frozen=True, slots=True)
class Dismiss:
    """Tell this node that the job is over for it."""

    cause: int
    peer: PeerId
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Tell:
    """What is told of the job has changed: its state, its text, or there is a new report."""

    cause: int


Effect = Ask | Work | Keep | Call | Dismiss | Tell


class Line(NamedTuple):
    """One stimulus, or what was decided because of it."""

    number: int
    now: float
    text: str


class Story:
    """The last things that happened to one job."""

    def __init__(self, name: str, length: int = 200) -> None:
        self.cause = 0
        self._name = name
        self._lines: deque[Line] = deque(maxlen=length)

    def heard(self, now: float, text: str) -> None:
        """Something has happened outside: what follows is because of it."""
        self.cause += 1
        self.note(now, text)

    def note(self, now: float, text: str) -> None:
        """Something was decided."""
        self._lines.append(Line(self.cause, now, text))
        log.debug("%s: [%d] %s", self._name, self.cause, text)

    def lines(self) -> tuple[Line, ...]:
        """The oldest first."""
        return tuple(self._lines)
