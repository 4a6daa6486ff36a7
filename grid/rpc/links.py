"""Relayed links, as a node or a client sees them: each is a `Transport` through the gateway to another peer.

Rules:
* The opener numbers its links 1, 3, 5, ...; links that others open to us come from the gateway with even numbers.
* A frame may be sent while the link's credit is above zero. Credit starts at `LINK_START` in each direction; whoever
  receives tops it up as frames are read, to `LINK_WINDOW`. So a link holds at most `LINK_WINDOW` plus one frame here, and
  one that nobody reads stops its own sender and nothing else.
* A gateway that sends more than it has credit for loses that link, not the connection.
* Links end with the connection to the gateway, with `NodeUnavailable`. Frames that had come can still be read.

Nothing that passes here is trusted or secret: `rpc.channel` seals it end to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from grid.errors import GridError, LocalProtocolError, NodeUnavailable, QuotaExceeded, WireError
from grid.ids import LinkId, PeerId
from grid.transport.base import MAX_FRAME_BYTES, Buffer, Transport
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
    OpenLink,
)

log = logging.getLogger(__name__)

TOP_UP_BYTES = LINK_WINDOW // 8
"""Credit is given in steps of this size, so that small frames do not cost a message each."""

OnOffer = Callable[[Transport, PeerId], None]


class Hop(Protocol):
    """What links need from the connection to the gateway; `rpc.peer.Peer` is one."""

    async def request(self, message: Message, *, timeout_s: float | None = None) -> Message: ...
    def notify(self, message: Message) -> None: ...
    def is_drained(self) -> bool: ...
    async def drained(self) -> None: ...
    async def wait_closed(self) -> GridError | None: ...


class Link(Transport):
    """One end of a relayed link. Made by `Links`."""

    def __init__(self, owner: Links, link: LinkId, remote: PeerId) -> None:
        self.id = link
        self.remote = remote
        self._owner = owner
        self._inbox: deque[Buffer] = deque()
        self._credit = LINK_START
        self._given = LINK_START
        self._waiting = 0
        self._read = 0
        self._ended: str | None = None
        self._sending = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    async def send(self, *parts: Buffer) -> None:
        size = sum(memoryview(part).nbytes for part in parts)
        if size > MAX_FRAME_BYTES:
            raise LocalProtocolError(f"a frame of {size} bytes is larger than {MAX_FRAME_BYTES}")
        self._sending = True
        try:
            await self._room()
        finally:
            self._sending = False
        self._credit -= size + LINK_FRAME_COST
        # The queue below keeps what it is given, and the caller may change its buffers once this returns.
        frame = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)
        self._owner.hop.notify(LinkData(link=self.id, frame=frame))

    async def _room(self) -> None:
        """Return once a frame may be sent."""
        while True:
            self._check()
            if self._credit > 0:
                await self._owner.hop.drained()
                if self._credit > 0 and self._ended is None:
                    return
            else:
                self._writable.clear()
                await self._writable.wait()

    def can_send_now(self) -> bool:
        hop = self._owner._hop
        return self._credit > 0 and self._ended is None and not self._sending and hop is not None and hop.is_drained()

    def send_now(self, *parts: Buffer) -> None:
        self._credit -= sum(memoryview(part).nbytes for part in parts) + LINK_FRAME_COST
        frame = parts[0] if len(parts) == 1 else b"".join(parts)
        self._owner.hop.notify(LinkData(link=self.id, frame=frame))

    async def receive(self) -> Buffer:
        while not self._inbox:
            self._check()
            self._readable.clear()
            await self._readable.wait()
        frame = self._inbox.popleft()
        self._waiting -= len(frame) + LINK_FRAME_COST
        self._read += len(frame) + LINK_FRAME_COST
        if self._read >= TOP_UP_BYTES:
            self.top_up()
        return frame

    async def close(self, reason: str = "") -> None:
        if self._ended is None:
            self._owner.close_link(self.id, NodeUnavailable(reason[:500]) if reason else None)
            self.end("the link was closed here")
        self._inbox.clear()

    def top_up(self) -> None:
        """Give credit for what was read, and at first from `LINK_START` up to the whole window."""
        amount = LINK_WINDOW - self._given - self._waiting
        self._read = 0
        if amount > 0 and self._ended is None:
            self._given += amount
            self._owner.tell(LinkCredit(link=self.id, amount=amount))

    def arrived(self, frame: Buffer) -> None:
        """A frame came. Raises `WireError` where the gateway had no credit for it."""
        if self._given <= 0 or len(frame) > MAX_FRAME_BYTES:
            raise WireError(f"the gateway sent {len(frame)} bytes on link {self.id}, which it had no credit for")
        self._given -= len(frame) + LINK_FRAME_COST
        self._waiting += len(frame) + LINK_FRAME_COST
        self._inbox.append(frame)
        self._readable.set()

    def credited(self, amount: int) -> None:
        """More may be sent. Raises `WireError` for credit that cannot be right."""
        if amount <= 0 or self._credit + amount > LINK_WINDOW:
            raise WireError(f"the gateway gave a credit of {amount} bytes on link {self.id}, which is not possible")
        self._credit += amount
        if self._credit > 0:
            self._writable.set()

    def end(self, why: str) -> None:
        """The link is gone; what has come can still be read."""
        if self._ended is None:
            self._ended = why
        self._readable.set()
        self._writable.set()

    def _check(self) -> None:
        if self._ended is not None:
            raise NodeUnavailable(f"the link to {self.remote} is gone: {self._ended}")


class Links:
    """All relayed links of one connection to the gateway.

    Put `handlers()` among the handlers of the gateway's `Peer`, and enter `over(peer)` before sending `Join`:

        links = Links(on_offer=self._accept_link)
        async with Peer(transport, handlers=Handlers({**links.handlers(), ...}), ...) as peer, links.over(peer):
            transport = await links.open(node_id)

    `on_offer(transport, sender)` is called for each link that another peer opens; it must not block, and owns the transport.
    Without it such links are refused.
    """

    def __init__(self, *, on_offer: OnOffer | None = None, max_links: int = 1024) -> None:
        self._on_offer = on_offer
        self._max_links = max_links
        self._links: dict[LinkId, Link] = {}
        self._next = 1
        self._hop: Hop | None = None

    @property
    def hop(self) -> Hop:
        """The connection to the gateway. Raises `NodeUnavailable` where there is none."""
        if self._hop is None:
            raise NodeUnavailable("there is no connection to the gateway")
        return self._hop

    def __len__(self) -> int:
        return len(self._links)

    @contextlib.asynccontextmanager
    async def over(self, hop: Hop) -> AsyncIterator[Links]:
        """Use `hop` for as long as this is entered; all links fail when it closes or at the end."""
        self._hop = hop
        watch = asyncio.create_task(self._watch(hop), name="links watch the gateway")
        try:
            yield self
        finally:
            watch.cancel()
            self._fail_all("the connection to the gateway ended")
            await asyncio.gather(watch, return_exceptions=True)

    async def open(self, to: PeerId) -> Link:
        """A new link to the peer `to`. Raises `NotFound`, `NodeUnavailable`, `QuotaExceeded`."""
        hop = self.hop
        self._check_room()
        link = Link(self, LinkId(self._next), to)
        self._next += 2
        self._links[link.id] = link  # Before the request: the far end may send as soon as the gateway has agreed.
        agreed = False
        try:
            await hop.request(OpenLink(link=link.id, to=to))
            agreed = True
        finally:
            if not agreed:  # Refused, or we were cancelled and the gateway may open it yet.
                self.close_link(link.id, None)
                link.end("it could not be opened")
        link.top_up()
        return link

    def handlers(self) -> Mapping[type[Message], Callable[[Any, Any], None]]:
        """What to do with the messages about links; the handlers ignore their context."""
        return {
            LinkOffer: self._offered,
            LinkData: self._data,
            LinkCredit: self._credit,
            CloseLink: self._closed,
        }

    def tell(self, message: Message) -> None:
        """Send a one-way message if there is still a gateway; where it is gone its links are, too."""
        if self._hop is not None:
            with contextlib.suppress(GridError):  # It closed just now, and `_watch` is about to say so to every link.
                self._hop.notify(message)

    def close_link(self, link: LinkId, error: GridError | None) -> None:
        """Forget a link and tell the gateway."""
        self._links.pop(link, None)
        self.tell(CloseLink(link=link, error=None if error is None else ErrorInfo.of(error)))

    def _check_room(self) -> None:
        if len(self._links) >= self._max_links:
            raise QuotaExceeded(f"{self._max_links} links are open on this connection; close some first")

    def _offered(self, context: object, message: LinkOffer) -> None:
        if message.link in self._links or message.link <= 0 or message.link % 2:
            log.warning("the gateway offered link %s, a number that it cannot use", message.link)
            return
        if self._on_offer is None:
            self.close_link(message.link, NodeUnavailable("this peer accepts no links"))
            return
        try:
            self._check_room()
        except QuotaExceeded as error:
            self.close_link(message.link, error)
            return
        link = Link(self, message.link, message.sender)
        self._links[link.id] = link
        link.top_up()
        self._on_offer(link, message.sender)

    def _data(self, context: object, message: LinkData) -> None:
        link = self._links.get(message.link)
        if link is not None:  # Otherwise it crossed our own CloseLink on the way.
            self._guard(link, lambda: link.arrived(message.frame))

    def _credit(self, context: object, message: LinkCredit) -> None:
        link = self._links.get(message.link)
        if link is not None:
            self._guard(link, lambda: link.credited(message.amount))

    def _guard(self, link: Link, step: Callable[[], None]) -> None:
        """A breach of the rules costs the link, not the connection that carries the others."""
        try:
            step()
        except WireError as error:
            log.warning("%s", error)
            self.close_link(link.id, error)
            link.end(error.message)

    def _closed(self, context: object, message: CloseLink) -> None:
        link = self._links.pop(message.link, None)
        if link is not None:
            link.end(message.error.message if message.error is not None else "the other end closed it")

    async def _watch(self, hop: Hop) -> None:
        error = await hop.wait_closed()
        self._fail_all(error.message if error is not None else "the connection to the gateway was closed")

    def _fail_all(self, why: str) -> None:
        self._hop = None
        links, self._links = self._links, {}
        for link in links.values():
            link.end(why)
