"""One connection to the gateway: what is known of its peer, what it may send, and how readers wait for changes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping

from grid.clock import Clock
from grid.crypto.cards import Card
from grid.errors import GridError, NodeUnavailable, QuotaExceeded
from grid.gateway.limits import Allowance
from grid.gateway.registry import ConnectionId
from grid.rpc.peer import Peer
from grid.settings import SessionLimits
from grid.transport.base import Transport
from grid.wire.messages import Greeting, Message
from grid.wire.session import Session

HOP_MESSAGE_BYTES = 4 << 20
"""Largest message on a connection to a gateway; the bulk that passes is frames of links, of at most 1 MiB."""

HOP_WINDOW_BYTES = 4 << 20
"""Little waits in a session, so that turns are taken by the router and not by who came first."""

HOP_OPEN_REQUESTS = 512

STRANGER_MESSAGE_BYTES = 16 << 10
"""Largest message of a peer that has not proved who it is: a card has at most 4 KiB."""


@dataclasses.dataclass(slots=True, eq=False)
class Connection:
    """One connection. `card` is None until the peer has proved who it is; `due` is set when the router has frames for it.

    `leaving` is set once it is being closed; nothing more is done for it then.
    """

    id: ConnectionId
    greeting: Greeting
    peer: Peer | None = None
    card: Card | None = None
    leaving: bool = False
    due: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    answering: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    announcements: Allowance = dataclasses.field(default_factory=lambda: Allowance(burst=20, per_s=1))

    def tell(self, message: Message) -> None:
        """Send a one-way message; a connection that is going needs none."""
        if self.peer is not None:
            try:
                with contextlib.suppress(NodeUnavailable):  # Its `serve` sees the end and tidies up.
                    self.peer.notify(message)
            except QuotaExceeded as error:  # It reads so little that even these pile up; without one of them links would hang.
                self.close_soon(error)

    def known(self) -> None:
        """The peer has proved who it is, and may send larger messages."""
        if self.peer is not None:
            self.peer.limit_messages(HOP_MESSAGE_BYTES)

    def close_soon(self, error: GridError) -> None:
        self.leaving = True
        if self.peer is not None:
            self.peer.close_soon(error)


class Changes:
    """Lets readers wait for the next change: take `next` before looking, look, then wait for it."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def mark(self) -> None:
        self.next.set()
        self.next = asyncio.Event()


def hop_limits(limits: SessionLimits) -> SessionLimits:
    """The limits of a connection to a gateway: as those of other sessions, and tighter where a hop needs less."""
    return dataclasses.replace(
        limits,
        max_message_bytes=min(limits.max_message_bytes, HOP_MESSAGE_BYTES),
        max_chunked_bytes=min(limits.max_chunked_bytes, 2 * HOP_MESSAGE_BYTES),
        window_bytes=min(limits.window_bytes, HOP_WINDOW_BYTES),
        max_open_requests=min(limits.max_open_requests, HOP_OPEN_REQUESTS),
    )


REFUSE_S = 2.0
"""Time for a refusal to be read."""

_REFUSALS: Mapping[str, str] = {
    "connections": "the gateway has as many connections as it takes; try again later",
    "source": "too many connections from this address have not joined; close some, or try again later",
    "unauthenticated": "too many connections have not joined, and this was the oldest of them; join at once, or try again later",
}


def refusal(reason: str) -> GridError:
    """What somebody is told for whom there is no place."""
    if reason == "stopping":
        return NodeUnavailable("the gateway is shutting down")
    return QuotaExceeded(_REFUSALS[reason])


async def refuse(transport: Transport, greeting: Greeting, limits: SessionLimits, clock: Clock, error: GridError) -> None:
    """Say hello and goodbye with the reason, listen to nothing, and close."""
    session, now = Session(initiator=False, limits=limits, greeting=greeting), clock.monotonic()
    session.start(now)
    session.close(error, now)
    try:
        with contextlib.suppress(GridError, TimeoutError):  # It has gone, or does not read: then it need not know.
            async with asyncio.timeout(REFUSE_S):
                while (frame := session.next_frame(now)) is not None:
                    await transport.send(*frame)
    finally:
        await transport.close(error.message)
