"""The client's connections, as they are opened and kept: one to the gateway, and a sealed channel to each node in use.

All of them are tasks of one group, and gone when it is. The gateway is dialed again, with full jitter, for as long as the
client lives; a session with a node that ended is opened anew when it is needed again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from grid.client.dispatch import Place
from grid.client.flow import OnFailed
from grid.client.meter import Meter, Metered
from grid.clock import Clock
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import DeadlineExceeded, GridError, LocalProtocolError, NodeUnavailable, NotFound, QuotaExceeded
from grid.ids import PeerId
from grid.rpc.channel import SecureChannel, open_channel, time_limit
from grid.rpc.dispatch import Handlers
from grid.rpc.hop import Hop, join_gateway
from grid.rpc.peer import Peer
from grid.rpc.reconnect import SETTLED_S, Backoff
from grid.rpc.resumable import Resumable, patient
from grid.settings import ClientSettings
from grid.tasks import start
from grid.transport.base import Dial, Transport
from grid.wire.messages import CommandFailed

log = logging.getLogger(__name__)

DialDirect = Callable[[str], Awaitable[Transport]]
"""Opens a transport to an address that a node announced."""

GONE_S = 4.0
"""A node that a gateway has not seen for so long, while we have, has ended: its sessions are not waited for any more. One
that has only lost its connection is back in a fraction of that."""

DIRECT_S = 2.0
"""Time for a direct connection to a node; without one its link is relayed."""


class Paths:
    """How this client reaches others. Everything here runs on the client's loop."""

    def __init__(
        self,
        *,
        dial: Dial,
        dial_direct: DialDirect | None,
        me: LocalIdentity,
        trust: Trust,
        settings: ClientSettings,
        clock: Clock,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.meter = Meter()
        self._dial = dial
        self._dial_direct = dial_direct if settings.direct else None
        self._me = me
        self._trust = trust
        self._limits = settings.session
        self._clock = clock
        self._tasks = tasks
        self._reconnect_s = settings.reconnect_s
        self._backoff = Backoff(clock, random.Random())
        self._hop: Hop | None = None
        self._ready: asyncio.Future[Hop] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._joined_at = -math.inf
        self._joins = 0
        self._why: GridError | None = None
        self._offline: dict[str, float] = {}

    async def hop(self) -> Hop:
        """The connection to the gateway, joined. One that was lost is made anew in the background, and waited for here.

        Raises what joining raises, at once where the first attempt fails; `NodeUnavailable` after `reconnect_s` later on, or
        where the client was closed.
        """
        if self._hop is not None and not self._hop.peer.closed:
            return self._hop
        if self._keeping is None:
            self._keeping = start(self._tasks, self._keep_joined(), name="grid gateway", owner="the client")
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
        try:
            async with time_limit(self._clock, self._reconnect_s, "waiting for the gateway"):
                return await asyncio.shield(self._ready)
        except DeadlineExceeded:
            why = f": {self._why.message}" if self._why is not None else ""
            raise NodeUnavailable(f"the gateway has not come back within {self._reconnect_s:g} s{why}") from None

    async def _keep_joined(self) -> None:
        """Join, and join again after each loss; until the client ends, or joining fails in a way that waiting does not mend."""
        try:
            while True:
                try:
                    await self._join()
                except (NodeUnavailable, DeadlineExceeded, QuotaExceeded) as error:
                    self._why = error
                    if not self._joins:
                        raise
                    log.info("the gateway is not reachable: %s", error)
                if self._ready is None:
                    self._ready = asyncio.get_running_loop().create_future()
                await self._backoff.wait()
        except GridError as error:
            self._failed(error)
        except Exception:
            log.exception("the connection to the gateway ended in an unexpected way")
            self._failed(LocalProtocolError("the connection to the gateway failed by a fault of this program; its log has more"))
        finally:
            self._failed(NodeUnavailable("the client was closed"))
            self._keeping = None

    async def _join(self) -> None:
        """One connection to the gateway, until it ends."""
        async with join_gateway(
            self._metered_dial, me=self._me, trust=self._trust, clock=self._clock, limits=self._limits
        ) as hop:
            self._hop, self._why = hop, None
            self._joined_at = self._clock.monotonic()
            self._joins += 1
            if self._ready is not None:
                self._ready.set_result(hop)
                self._ready = None
            try:
                self._why = await hop.peer.wait_closed()
            finally:
                self._hop = None
                if self._clock.monotonic() - self._joined_at >= SETTLED_S:
                    self._backoff.settled()

    def _failed(self, error: GridError) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.set_exception(error)
            ready.exception()  # Somebody may have stopped waiting; then nobody is to be told.

    @asynccontextmanager
    async def session(self, node: Place, address: str, on_failed: OnFailed) -> AsyncIterator[Peer]:
        """A session with a node over a sealed channel, direct where it listens and can be reached, otherwise relayed."""
        channel, link = await self._channel(node, address)
        handlers = Handlers({CommandFailed: on_failed})
        async with (
            channel,
            Peer(
                channel,
                initiator=True,
                handlers=handlers,
                context=None,
                limits=patient(self._limits) if channel.resumable else self._limits,
                clock=self._clock,
                name=node.name,
                about={"peer_id": node.id, "session": channel.session, "link": link},
            ) as peer,
        ):
            yield peer

    async def _channel(self, node: Place, address: str) -> tuple[SecureChannel, int | None]:
        """A new channel, and the number of its link if it is relayed.

        After a gateway was lost its nodes come back one by one, so for `reconnect_s` they are waited for.
        """
        backoff = Backoff(self._clock, random.Random())
        while True:
            hop = await self.hop()
            channel = await self._direct(node, address, hop) if address and self._dial_direct is not None else None
            if channel is not None:
                return channel, None
            try:
                link = await hop.links.open(PeerId(node.id))
                return await self._seal(link, node, address, hop), link.id
            except (NodeUnavailable, NotFound):
                if self._joins < 2 or self._clock.monotonic() - self._joined_at > self._reconnect_s:
                    raise
            await backoff.wait()

    async def _direct(self, node: Place, address: str, hop: Hop) -> SecureChannel | None:
        assert self._dial_direct is not None
        try:
            async with asyncio.timeout(DIRECT_S):
                transport = await self._dial_direct(address)
                return await self._seal(Metered(transport, self.meter), node, address, hop)
        except (GridError, TimeoutError) as error:
            # The address is the gateway's word, and may be of another network: the relay is as safe, the channel sees to that.
            log.info("%s cannot be reached directly at %s (%s); its link is relayed", node.name, address, error)
            return None

    async def _seal(self, transport: Transport, node: Place, address: str, hop: Hop) -> SecureChannel:
        def resumable(carrier: Transport, secret: bytes) -> Transport:
            return Resumable(
                carrier, secret, limits=self._limits, clock=self._clock, dial=lambda: self._dial_again(node, address)
            )

        return await open_channel(
            transport,
            me=self._me,
            trust=self._trust,
            expect=Expected(id=PeerId(node.id), name=node.name, role="node"),
            grid=hop.grid,
            limits=self._limits,
            clock=self._clock,
            wrap=resumable if self._limits.lease_s else None,
        )

    async def _dial_again(self, node: Place, address: str) -> Transport:
        """Another connection to a node for a session that has lost its own: direct where that works, otherwise relayed."""
        if address and self._dial_direct is not None:
            with suppress(GridError, TimeoutError):
                async with asyncio.timeout(DIRECT_S):
                    return Metered(await self._dial_direct(address), self.meter)
        hop = await self.hop()
        try:
            link = await hop.links.open(PeerId(node.id))
        except (NodeUnavailable, NotFound) as error:
            now = self._clock.monotonic()
            since = self._offline.setdefault(node.id, now)
            if hop.peer.closed or now - max(since, self._joined_at) < GONE_S:
                raise NodeUnavailable(error.message) from None
            del self._offline[node.id]
            raise NotFound(f"{error.message} (for {now - since:.0f} s)") from None
        self._offline.pop(node.id, None)
        return link

    async def _metered_dial(self) -> Transport:
        return Metered(await self._dial(), self.meter)
