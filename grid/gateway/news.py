"""What readers of the gateway hear: notices for pages, entries in the log of events, and that something has changed at all."""

from __future__ import annotations

from collections.abc import Callable

from grid.clock import Clock
from grid.crypto.cards import NODE, Card
from grid.gateway.connections import Changes
from grid.gateway.events import Event, EventLog
from grid.gateway.feed import Feed
from grid.gateway.registry import Registry
from grid.gateway.router import Router
from grid.gateway.traffic import TrafficMeter
from grid.ids import JobId, PeerId
from grid.wire.jobs import JobCard

SAMPLE_S = 1.0

BECAME = {
    "waiting": "waits for its nodes",
    "running": "is under way",
    "done": "is done",
    "failed": "failed",
    "cancelled": "was cancelled",
}


class News:
    """See the module. `name` is how a peer is called."""

    def __init__(self, *, clock: Clock, registry: Registry, router: Router, name: Callable[[PeerId], str]) -> None:
        self.feed = Feed()
        self.changes = Changes()
        self.meter = TrafficMeter()
        self.events = EventLog(clock.wall, self._event)
        self._clock, self._registry, self._router, self._name = clock, registry, router, name
        self._told_links = (0, 0)
        self._job_states: dict[JobId, str] = {}

    def note(self, kind: str, card: Card, text: str) -> None:
        """Something that a peer has done, or that was done to it."""
        self.events.add(kind, text, peer=card.id, name=card.name, role=card.role)

    def _event(self, event: Event) -> None:
        self.feed.publish("log", {"number": event.number, "kind": event.kind})
        self.changes.mark()

    def presence(self, card: Card, state: str) -> None:
        """A peer has come or gone."""
        if card.role == NODE:
            self.feed.publish("nodes", {"id": card.id, "name": card.name, "state": state})
        else:
            self._sessions()

    def announced(self, card: Card, number: int) -> None:
        """A node has said that it has so many datasets."""
        self.note("announced", card, f"{number} dataset{'' if number == 1 else 's'}")
        self.feed.publish("datasets", {"id": card.id, "name": card.name, "datasets": number})

    def job(self, card: JobCard) -> None:
        """A job has changed."""
        self.feed.publish("jobs", {"id": card.id, "state": card.state, "round": card.round})
        if self._job_states.get(card.id) != card.state:
            self._job_states[card.id] = card.state
            text = f"job {card.name or card.id} {BECAME[card.state]}{f': {card.text}' if card.text and card.ended else ''}"
            self.events.add("job", text[:500], peer=card.client, name=self._name(card.client), role="client")
        if card.ended:
            self._job_states.pop(card.id, None)
        self.changes.mark()

    def _sessions(self) -> None:
        self._told_links = (self._router.opened, len(self._router))
        self.feed.publish("sessions", {"links": len(self._router), "clients": self._registry.online("client")})

    async def sample(self, connections: Callable[[], int]) -> None:
        """For as long as the gateway runs, once a second: traffic, and links that opened or closed; many are one notice."""
        while True:
            before = self.meter.version
            self.meter.sample(
                self._clock.monotonic(),
                wall=self._clock.wall(),
                moved=self._router.moved_bytes,
                frames=self._router.moved_frames,
                connections=connections(),
                links=self._router.views(),
            )
            if self.meter.version != before:
                self.feed.publish("traffic", self.meter.now())
                self.changes.mark()
            if self._told_links != (self._router.opened, len(self._router)):
                self._sessions()
                self.changes.mark()
            await self._clock.sleep(SAMPLE_S)
