"""The relay, as a state machine without I/O: who may send how much to whom, and whose turn it is.

A *port* is a connection; a *link* joins two ports; a *way* is one direction of a link, with a queue here.

Rules:
* Frames are opaque. A frame costs its length plus `LINK_FRAME_COST`.
* A source may send while it has credit, and gets more as its frames move on. Each receiver has `buffer_bytes` to share: equally
  among the peers that have links with it, then among the links of each; never under `LINK_START` or over `LINK_WINDOW`
  a link. So a slow receiver stops those who send to it, and nobody else.
* A target is sent frames while it has given credit for them. A link that is not read holds up itself alone.
* A source that sends without credit, or a target that gives more than a window, loses that link.
* For each receiver the peers that send to it take turns of `TURN_BYTES`, and the links of one peer take turns by frame.
* Closing follows the frames that were sent before it. It is dropped together with them where the source is gone and the receiver
  is behind.

Effects are returned: `Tell` a connection something now, or `Wake` it because `take` has something for it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from grid.errors import GridError, InvalidRequest, NodeUnavailable, QuotaExceeded, WireError
from grid.gateway.registry import ConnectionId
from grid.ids import LinkId, PeerId
from grid.transport.base import MAX_FRAME_BYTES, Buffer
from grid.wire.messages import (
    LINK_FRAME_COST,
    LINK_START,
    LINK_WINDOW,
    CloseLink,
    ErrorInfo,
    LinkCredit,
    LinkData,
    LinkOffer,
    Message,
)

TURN_BYTES = 256 << 10

MAX_LINKS_PER_PAIR = 64
"""Open links between two peers."""

MAX_OVER = 4
"""At most so many times `buffer_bytes` wait for one receiver: beyond, the link that holds most of it is closed."""


class Tell(NamedTuple):
    """Send this one-way message to a connection now."""

    connection: ConnectionId
    message: Message


class Wake(NamedTuple):
    """`take` has something for this connection."""

    connection: ConnectionId


Effect = Tell | Wake


@dataclasses.dataclass(slots=True, eq=False)
class Way:
    """One direction of a link. `given` is what the source may still send, `credit` what the target still takes.

    `moved` counts the bytes of frames that reached the target.
    """

    source: Port
    target: Port
    source_link: LinkId
    target_link: LinkId
    link: Link
    queue: deque[Buffer] = dataclasses.field(default_factory=deque)
    queued: int = 0
    given: int = LINK_START
    credit: int = LINK_START
    closing: CloseLink | None = None
    listed: bool = False
    dead: bool = False
    moved: int = 0

    @property
    def back(self) -> Way:
        return self.link.ways[1] if self.link.ways[0] is self else self.link.ways[0]

    @property
    def ready(self) -> bool:
        return self.credit > 0 if self.queue else self.closing is not None


@dataclasses.dataclass(slots=True, eq=False)
class Link:
    """A relayed link. The first way leads from its opener."""

    number: int
    opener: Port
    since: float
    ways: list[Way] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, eq=False)
class Port:
    """A connection. `links` are its outgoing ways by its own link number; `turns` the sources with something for it.

    `sent` and `received` are bytes of frames that reached their targets since it joined.
    """

    connection: ConnectionId
    peer: PeerId
    links: dict[LinkId, Way] = dataclasses.field(default_factory=dict)
    links_of: dict[PeerId, int] = dataclasses.field(default_factory=dict)
    turns: dict[PeerId, Turn] = dataclasses.field(default_factory=dict)
    opened: int = 0
    next_offer: int = 2
    held: int = 0
    sent: int = 0
    received: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Turn:
    """The ways of one source that have something for a receiver, and what is left of its turn."""

    left: int = TURN_BYTES
    ways: deque[Way] = dataclasses.field(default_factory=deque)


class LinkView(NamedTuple):
    """What the dashboard may know of a link. `sent` are bytes from the opener, `received` bytes to it."""

    number: int
    opener: PeerId
    target: PeerId
    since: float
    sent: int
    received: int
    held: int

    @property
    def moved(self) -> int:
        return self.sent + self.received


class Router:
    """All ports and links. Every method returns effects in the order in which they are to be done."""

    def __init__(self, *, max_links_per_peer: int, buffer_bytes: int) -> None:
        self.moved_bytes = 0
        self.moved_frames = 0
        self.opened = 0
        self.violated = 0
        self._max_links = max_links_per_peer
        self._buffer_bytes = buffer_bytes
        self._ports: dict[ConnectionId, Port] = {}
        self._links: dict[int, Link] = {}

    # ------------------------------------------------------------ ports

    def join(self, connection: ConnectionId, peer: PeerId) -> None:
        """A connection may have links from now on."""
        assert connection not in self._ports
        self._ports[connection] = Port(connection=connection, peer=peer)

    def leave(self, connection: ConnectionId, why: str) -> list[Effect]:
        """A connection is gone, and its links with it."""
        port = self._ports.pop(connection, None)
        if port is None:
            return []
        effects: list[Effect] = []
        for way in list(port.links.values()):
            if way.target.held > self._buffer_bytes:
                _clear(way)
            effects += self._end(way, NodeUnavailable(why))
        return effects

    # ------------------------------------------------------------ links

    def open(self, connection: ConnectionId, link: LinkId, to: ConnectionId, now: float) -> list[Effect]:
        """`connection` opens a link to `to`. Raises `InvalidRequest`, `QuotaExceeded`."""
        port, target = self._ports[connection], self._ports[to]
        if link <= 0 or link % 2 == 0 or link in port.links:
            raise InvalidRequest(f"link {link} cannot be opened: the number must be odd, positive and not in use")
        if port is target:
            raise InvalidRequest("a peer cannot open a link to itself")
        if port.opened >= self._max_links:
            raise QuotaExceeded(f"this peer has {port.opened} links open, as many as it may; close some first")
        if target.links_of.get(port.peer, 0) >= MAX_LINKS_PER_PAIR:
            raise QuotaExceeded(f"{MAX_LINKS_PER_PAIR} links are open between these two peers, the most there may be; close some")
        offer = LinkId(target.next_offer)
        target.next_offer += 2
        self.opened += 1
        made = Link(number=self.opened, opener=port, since=now)
        made.ways = [
            Way(source=port, target=target, source_link=link, target_link=offer, link=made),
            Way(source=target, target=port, source_link=offer, target_link=link, link=made),
        ]
        for way in made.ways:
            way.source.links[way.source_link] = way
            way.source.links_of[way.target.peer] = way.source.links_of.get(way.target.peer, 0) + 1
        port.opened += 1
        self._links[made.number] = made
        return [Tell(to, LinkOffer(link=offer, sender=port.peer))]

    def close(self, connection: ConnectionId, link: LinkId, error: GridError | None) -> list[Effect]:
        """`connection` closes its end of a link. What it sent before still goes out."""
        way = self._way(connection, link)
        return [] if way is None else self._end(way, error)

    def data(self, connection: ConnectionId, link: LinkId, frame: Buffer) -> list[Effect]:
        """A frame from `connection`. One for a link that is closing or gone is dropped: the two crossed on the way."""
        way = self._way(connection, link)
        if way is None or way.dead:
            return []
        if way.given <= 0 or len(frame) > MAX_FRAME_BYTES:
            return self._violated(way, f"a frame of {len(frame)} bytes came on link {link}, which had no credit for it")
        cost = len(frame) + LINK_FRAME_COST
        way.given -= cost
        way.queued += cost
        way.target.held += cost
        way.queue.append(frame)
        effects = self._list(way)
        while way.target.held > MAX_OVER * self._buffer_bytes:
            effects += self._shed(way.target)
        return effects

    def _shed(self, target: Port) -> list[Effect]:
        """Close the link that holds most of what waits for a receiver: every link may have a little, and links may be many."""
        largest = max((way.back for way in target.links.values()), key=lambda way: way.queued)
        if largest.closing is not None:  # Its source is done with it already, and the receiver still hears of that.
            _clear(largest)
            return []
        why = QuotaExceeded("too much waits for a receiver that does not read, and most of it on this link")
        _clear(largest)
        tell = Tell(largest.source.connection, CloseLink(link=largest.source_link, error=ErrorInfo.of(why)))
        return [tell, *self._end(largest, why)]

    def credit(self, connection: ConnectionId, link: LinkId, amount: int) -> list[Effect]:
        """`connection` takes `amount` more bytes of a link."""
        own = self._way(connection, link)
        if own is None:
            return []
        way = own.back
        if amount <= 0 or way.credit + amount > LINK_WINDOW:
            return self._violated(own, f"a credit of {amount} bytes on link {link} is more than a window of {LINK_WINDOW}")
        way.credit += amount
        return self._list(way)

    # ------------------------------------------------------------ moving frames

    def take(self, connection: ConnectionId) -> tuple[Message | None, list[Effect]]:
        """The next message for a receiver that can take one now, by turns; None where nothing is due."""
        port = self._ports.get(connection)
        if port is None or not port.turns:
            return None, []
        way = self._next(port)
        effects: list[Effect] = []
        message: Message
        if way.queue:
            message = LinkData(link=way.target_link, frame=self._pop(way))
            effects += self._give(way)
        else:
            assert way.closing is not None
            message = way.closing
            self._forget(way)
        turn = port.turns[way.source.peer]
        if way.ready and not way.dead:
            turn.ways.append(way)
        else:
            way.listed = False
        if not turn.ways:
            del port.turns[way.source.peer]
        return message, effects

    def _next(self, port: Port) -> Way:
        """The way whose turn it is, taken off its list."""
        while True:
            peer, turn = next(iter(port.turns.items()))
            if turn.left > 0:
                return turn.ways.popleft()
            turn.left += TURN_BYTES
            port.turns[peer] = port.turns.pop(peer)  # To the end: dictionaries keep the order of insertion.

    def _pop(self, way: Way) -> Buffer:
        frame = way.queue.popleft()
        cost = len(frame) + LINK_FRAME_COST
        way.queued -= cost
        way.credit -= cost
        way.target.held -= cost
        way.target.turns[way.source.peer].left -= cost
        way.moved += len(frame)
        way.source.sent += len(frame)
        way.target.received += len(frame)
        self.moved_bytes += len(frame)
        self.moved_frames += 1
        return frame

    def _give(self, way: Way) -> list[Effect]:
        """More credit for the source, in steps worth a message, up to its share of the receiver's buffer."""
        if way.closing is not None:
            return []
        window = self.window(way)
        amount = window - way.given - way.queued
        if amount < window // 4:
            return []
        way.given += amount
        return [Tell(way.source.connection, LinkCredit(link=way.source_link, amount=amount))]

    def window(self, way: Way) -> int:
        """The credit that a way may have: its source's share of the receiver's buffer, divided among that source's links."""
        share = self._buffer_bytes // len(way.target.links_of) // way.target.links_of[way.source.peer]
        return max(LINK_START, min(LINK_WINDOW, share))

    # ------------------------------------------------------------ reading

    def held(self) -> int:
        """Bytes that wait here."""
        return sum(port.held for port in self._ports.values())

    def views(self) -> Iterator[LinkView]:
        """The open links, oldest first."""
        return map(_view, self._links.values())

    def views_of(self, connection: ConnectionId) -> list[LinkView]:
        """The open links of one connection, oldest first."""
        port = self._ports.get(connection)
        links = {way.link.number: way.link for way in port.links.values()} if port is not None else {}
        return [_view(links[number]) for number in sorted(links)]

    def totals(self, connection: ConnectionId) -> tuple[int, int]:
        """Bytes that one connection has sent and received over links since it joined."""
        port = self._ports.get(connection)
        return (port.sent, port.received) if port is not None else (0, 0)

    def __len__(self) -> int:
        return len(self._links)

    # ------------------------------------------------------------ inside

    def _way(self, connection: ConnectionId, link: LinkId) -> Way | None:
        port = self._ports.get(connection)
        return None if port is None else port.links.get(link)

    def _list(self, way: Way) -> list[Effect]:
        """Put a way on its receiver's list if it is ready; wake the receiver if the list was empty."""
        if way.listed or way.dead or not way.ready:
            return []
        way.listed = True
        turns = way.target.turns
        asleep = not turns
        turns.setdefault(way.source.peer, Turn()).ways.append(way)
        return [Wake(way.target.connection)] if asleep else []

    def _violated(self, way: Way, why: str) -> list[Effect]:
        """The peer at the source of `way` broke the rules: both ends of the link close, and its frames are dropped."""
        self.violated += 1
        error = WireError(why)
        _clear(way)
        tell = Tell(way.source.connection, CloseLink(link=way.source_link, error=ErrorInfo.of(error)))
        return [tell, *self._end(way, error)]

    def _end(self, way: Way, error: GridError | None) -> list[Effect]:
        """The source of `way` is done with the link: nothing more goes to it, and the other end hears of it after the queue."""
        source, back = way.source, way.back
        source.links.pop(way.source_link, None)
        _less(source.links_of, way.target.peer)
        self._unlist(back)
        _clear(back)
        back.dead = True
        if way.dead:  # The other end was done before: nobody is left to tell.
            self._unlist(way)
            _clear(way)
            self._drop(way.link)
            return []
        way.closing = CloseLink(link=way.target_link, error=None if error is None else ErrorInfo.of(error))
        return self._list(way)

    def _forget(self, way: Way) -> None:
        """The last message of a way was taken: its target has no more to do with the link."""
        way.dead = True
        way.target.links.pop(way.target_link, None)
        _less(way.target.links_of, way.source.peer)
        self._drop(way.link)

    def _drop(self, link: Link) -> None:
        if self._links.pop(link.number, None) is not None:
            link.opener.opened -= 1

    def _unlist(self, way: Way) -> None:
        if way.listed:
            way.listed = False
            turns = way.target.turns
            turn = turns[way.source.peer]
            turn.ways.remove(way)
            if not turn.ways:
                del turns[way.source.peer]


def _clear(way: Way) -> None:
    way.target.held -= way.queued
    way.queued = 0
    way.queue.clear()


def _less(counts: dict[PeerId, int], peer: PeerId) -> None:
    counts[peer] -= 1
    if not counts[peer]:
        del counts[peer]


def _view(link: Link) -> LinkView:
    way, back = link.ways
    return LinkView(
        number=link.number,
        opener=way.source.peer,
        target=way.target.peer,
        since=link.since,
        sent=way.moved,
        received=back.moved,
        held=way.queued + back.queued,
    )
