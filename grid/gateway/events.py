"""What happened lately: a bounded log of who joined, left, announced, was refused or revoked, which
jobs began and ended, and what went wrong.

Each kind has its own places, so that a flood of one, which strangers can cause, does not push out the others. The same thing
happening to the same peer again within `TOGETHER_S` is one event that happened several times.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from grid.display import printable
from grid.ids import PeerId

KINDS: Mapping[str, str] = {
    "joined": "A node or client proved who it is and came in.",
    "left": "A node or client is gone.",
    "announced": "A node said which datasets it has.",
    "refused": "Somebody was not let in.",
    "revoked": "The grid's root took an identity back.",
    "job": "A federated job began, or ended.",
    "error": "A request of a peer failed.",
}

MAX_OF_KIND = 500
TOGETHER_S = 60.0


class Event(NamedTuple):
    """One thing that happened, `times` times, last at `wall` (seconds). `number` rises; `peer` is "" for strangers."""

    number: int
    wall: float
    kind: str
    text: str
    peer: PeerId | str = ""
    name: str = ""
    role: str = ""
    times: int = 1

    def same(self, other: Event) -> bool:
        return (self.peer, self.text) == (other.peer, other.text) and other.wall - self.wall < TOGETHER_S


class EventLog:
    """The last events of each kind. `wall` tells the time, `told` hears of each event."""

    def __init__(self, wall: Callable[[], float], told: Callable[[Event], None] = lambda event: None) -> None:
        self._wall = wall
        self._told = told
        self._numbers = itertools.count(1)
        self._kinds: dict[str, deque[Event]] = {kind: deque(maxlen=MAX_OF_KIND) for kind in KINDS}

    def add(self, kind: str, text: str, *, peer: PeerId | str = "", name: str = "", role: str = "") -> None:
        """Something happened. `text` says what, in a few words, and may hold a peer's text."""
        event = Event(next(self._numbers), self._wall(), kind, printable(text), peer, name, role)
        events = self._kinds[kind]
        if events and events[-1].same(event):
            event = event._replace(times=events.pop().times + 1)
        events.append(event)
        self._told(event)

    def find(self, *, kinds: Collection[str] = (), peer: PeerId | None = None, words: Sequence[str] = ()) -> list[Event]:
        """Events of these kinds (all without any), of one peer, with every word in name or text; the newest first."""
        found = [
            event
            for kind, events in self._kinds.items()
            if not kinds or kind in kinds
            for event in events
            if (peer is None or event.peer == peer) and _has(event, words)
        ]
        return sorted(found, key=lambda event: -event.number)

    def since(self, kind: str, wall: float) -> int:
        """How often something of this kind happened after `wall`, as far as is known."""
        return sum(event.times for event in self._kinds[kind] if event.wall > wall)

    def __len__(self) -> int:
        return sum(map(len, self._kinds.values()))


def _has(event: Event, words: Sequence[str]) -> bool:
    if not words:
        return True
    text = f"{event.name}\n{event.text}\n{event.peer}".casefold()
    return all(word in text for word in words)
