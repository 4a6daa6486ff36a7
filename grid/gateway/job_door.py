"""Job channels as they come in: a node or a client opens one and proves who it is; then it belongs to the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import Protocol

from grid.clock import Clock
from grid.crypto.cards import CLIENT, NODE, Card
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import AuthenticationFailed, GridError, QuotaExceeded
from grid.gateway.limits import Strangers
from grid.gateway.registry import ConnectionId
from grid.ids import GridId
from grid.logs import tags
from grid.rpc.channel import SecureChannel, accept_channel
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.settings import SessionLimits
from grid.transport.base import Transport

log = logging.getLogger(__name__)


class Guest(Protocol):
    """What the coordinator has of one session."""

    handlers: Handlers

    def came(self, peer: Peer) -> None:
        """The session is open; handlers get this guest as their context, perhaps before this."""

    def went(self) -> None:
        """The session is over."""


class Host(Protocol):
    """The coordinator, as far as sessions know it."""

    def receive(self, card: Card) -> Guest:
        """A node or a client has come. Raises `QuotaExceeded` where there is no place for it."""
        ...


class JobDoor:
    """Accepts job channels of a gateway, with `most` that have not proved who they are at once."""

    def __init__(
        self, host: Host, *, me: LocalIdentity, trust: Trust, grid: GridId, limits: SessionLimits, clock: Clock, most: int
    ) -> None:
        self._host = host
        self._me, self._trust, self._grid, self._limits, self._clock = me, trust, grid, limits, clock
        self._numbers = itertools.count(1)
        self._strangers = Strangers(most)
        self._closed: GridError | None = None
        self._waiting: dict[ConnectionId, Transport] = {}
        self._open: dict[ConnectionId, tuple[Peer, Card]] = {}

    async def serve(self, transport: Transport, source: str = "") -> None:
        """The life of one connection; owns the transport. `source` as for `Gateway.serve`."""
        number = ConnectionId(next(self._numbers))
        try:
            channel = await self._accept(number, transport, source)
            with tags(peer=channel.peer.name, peer_id=channel.peer.id, session=channel.session):
                await self._session(number, channel)
        except GridError as error:
            log.info("a job channel was refused or ended: %s", error)
        finally:
            await transport.close()

    async def _accept(self, number: ConnectionId, transport: Transport, source: str) -> SecureChannel:
        verdict = self._strangers.judge(source)
        if verdict.refused is not None:
            raise QuotaExceeded("too many connections have not proved who they are")
        if verdict.evict is not None:
            with contextlib.suppress(KeyError):
                await self._waiting[verdict.evict].close("too many connections have not proved who they are")
        self._strangers.add(number, source)
        self._waiting[number] = transport
        try:
            return await accept_channel(
                transport,
                me=self._me,
                trust=self._trust,
                grid=self._grid,
                limits=self._limits,
                clock=self._clock,
                roles=(CLIENT, NODE),
            )
        finally:
            self._strangers.discard(number)
            del self._waiting[number]

    async def _session(self, number: ConnectionId, channel: SecureChannel) -> None:
        guest = self._host.receive(channel.peer)
        peer = Peer(
            channel,
            initiator=False,
            handlers=guest.handlers,
            context=guest,
            limits=self._limits,
            clock=self._clock,
            name=str(channel.peer),
        )
        try:
            async with peer:
                self._open[number] = (peer, channel.peer)
                self.end_revoked()  # a list may have come while the session was opening
                if self._closed is not None:
                    peer.close_soon(self._closed)
                guest.came(peer)
                await peer.wait_closed()
        finally:
            self._open.pop(number, None)
            guest.went()

    def end_revoked(self) -> None:
        """End the sessions of those whose identity the grid's root has taken back."""
        for peer, card in list(self._open.values()):
            if self._trust.revoked(card):
                peer.close_soon(AuthenticationFailed(f"{card} was revoked by the grid's root"))

    async def close(self, error: GridError) -> None:
        """End all sessions, and those that wait to become one."""
        self._closed = error
        for transport in list(self._waiting.values()):
            await transport.close(error.message)
        open_now = [peer for peer, _ in self._open.values()]
        for peer in open_now:
            peer.close_soon(error)
        await asyncio.gather(*(peer.wait_closed() for peer in open_now))
