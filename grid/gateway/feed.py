"""The one stream of small typed notices that pages live on: numbered, kept for a while, read by cursor.

Rules:
* Readers have no queue. Each has a cursor into the notices that are kept, so a thousand slow readers cost what one does.
* A reader that comes back says the last notice that it saw, and gets those after it. One that was away for too long, is far
  behind or comes from before a restart of the gateway is told to look at everything again: that is less than all it missed.
* A notice says what changed and where, never how it looks: pages fetch that, already rendered and escaped.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

TOPICS: Mapping[str, str] = {
    "nodes": "A node came, left or changed: its id, name and state.",
    "datasets": "A node announced: its id and name, and how many datasets it has.",
    "sessions": "A link opened or closed, or a client came or left: how many there are.",
    "traffic": "Bytes and frames a second, and connections.",
    "log": "Something was added to the log of events: its number and kind.",
    "jobs": "A federated job changed: its id, state and finished rounds.",
    "reset": "Notices were missed: look at everything again.",
}

KEPT = 1024
MAX_BEHIND = 64
"""More notices than this at once are a `reset` instead."""

_LAST_ID = re.compile(r"([0-9a-f]{16})-([0-9]{1,18})\Z")


class Notice(NamedTuple):
    """`data` is a JSON object in one line; `number` rises by one."""

    number: int
    topic: str
    data: str


class Feed:
    """Notices of this run of the gateway; `epoch` tells it from other runs."""

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(8)
        self._kept: deque[Notice] = deque(maxlen=KEPT)
        self.last = 0

    def publish(self, topic: str, data: Mapping[str, str | int | float]) -> None:
        """Tell all readers. `data` is small."""
        assert topic in TOPICS
        self.last += 1
        self._kept.append(Notice(self.last, topic, json.dumps(data, allow_nan=False)))

    def cursor(self, last_id: str) -> int | None:
        """Where a reader stands that saw the notice with this id last; None where that is not known here."""
        match = _LAST_ID.match(last_id)
        if match is None or match[1] != self.epoch or int(match[2]) > self.last:
            return None
        return int(match[2])

    def after(self, cursor: int | None) -> list[Notice]:
        """What a reader at `cursor` has to be told, in order; its next cursor is `last`."""
        behind = MAX_BEHIND + 1 if cursor is None else self.last - cursor
        if behind > min(MAX_BEHIND, len(self._kept)):
            return [Notice(self.last, "reset", "{}")]
        return [self._kept[index] for index in range(len(self._kept) - behind, len(self._kept))]

    def write(self, notice: Notice) -> bytes:
        """A notice as server-sent event."""
        return f"id: {self.epoch}-{notice.number}\nevent: {notice.topic}\ndata: {notice.data}\n\n".encode()
