"""The client's connections, as they are opened and kept: one to the gateway, and a sealed channel to each node in use.

All of them are tasks of one group, and gone when it is. A connection that ends is opened anew when it is needed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from grid.client.dispatch import Place
from grid.client.flow import OnFailed
from grid.client.meter import Meter, Metered
from grid.clock import Clock
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import GridError, LocalProtocolError, NodeUnavailable
from grid.ids import PeerId
from grid.rpc.channel import SecureChannel, open_channel
from grid.rpc.dispatch import Handlers
from grid.rpc.hop import Hop, join_gateway
from grid.rpc.peer import Peer
from grid.settings import ClientSettings
from grid.transport.base import Dial, Transport
from grid.wire.messages import CommandFailed

log = logging.getLogger(__name__)

DialDirect = Callable[[str], Awaitable[Transport]]
"""Opens a transport to an address that a node announced."""

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
        self._hop: asyncio.Future[Hop] | None = None

    async def hop(self) -> Hop:
        """The connection to the gateway, joined; a new one if the last has ended. Raises what joining raises."""
        current = self._hop
        if current is None or (current.done() and (current.exception() is not None or current.result().peer.closed)):
            current = self._hop = asyncio.get_running_loop().create_future()
            self._tasks.create_task(self._keep_hop(current), name="grid gateway")
        return await asyncio.shield(current)

    async def _keep_hop(self, ready: asyncio.Future[Hop]) -> None:
        """The life of one connection to the gateway."""
        try:
            async with join_gateway(
                self._metered_dial, me=self._me, trust=self._trust, clock=self._clock, limits=self._limits
            ) as hop:
                ready.set_result(hop)
                await hop.peer.wait_closed()
        except GridError as error:
            _fail(ready, error)
        except Exception:
            log.exception("the connection to the gateway ended in an unexpected way")
            _fail(ready, LocalProtocolError("the connection to the gateway failed by a fault of this program; its log has more"))
        finally:
            if not ready.done():
                _fail(ready, NodeUnavailable("the client was closed"))

    @asynccontextmanager
    async def session(self, node: Place, address: str, on_failed: OnFailed) -> AsyncIterator[Peer]:
        """A session with a node over a sealed channel, direct where it listens and can be reached, otherwise relayed."""
        hop = await self.hop()
        channel = await self._direct(node, address, hop) if address and self._dial_direct is not None else None
        link = None
        if channel is None:
            link = await hop.links.open(PeerId(node.id))
            channel = await self._seal(link, node, hop)
        handlers = Handlers({CommandFailed: on_failed})
        async with (
            channel,
            Peer(
                channel,
                initiator=True,
                handlers=handlers,
                context=None,
                limits=self._limits,
                clock=self._clock,
                name=node.name,
                about={"peer_id": node.id, "session": channel.session, "link": getattr(link, "id", None)},
            ) as peer,
        ):
            yield peer

    async def _direct(self, node: Place, address: str, hop: Hop) -> SecureChannel | None:
        assert self._dial_direct is not None
        try:
            async with asyncio.timeout(DIRECT_S):
                transport = await self._dial_direct(address)
                return await self._seal(Metered(transport, self.meter), node, hop)
        except (GridError, TimeoutError) as error:
            # The address is the gateway's word, and may be of another network: the relay is as safe, the channel sees to that.
            log.info("%s cannot be reached directly at %s (%s); its link is relayed", node.name, address, error)
            return None

    async def _seal(self, transport: Transport, node: Place, hop: Hop) -> SecureChannel:
        return await open_channel(
            transport,
            me=self._me,
            trust=self._trust,
            expect=Expected(id=PeerId(node.id), name=node.name, role="node"),
            grid=hop.grid,
            limits=self._limits,
            clock=self._clock,
        )

    async def _metered_dial(self) -> Transport:
        return Metered(await self._dial(), self.meter)


def _fail(ready: asyncio.Future[Hop], error: GridError) -> None:
    if not ready.done():
        ready.set_exception(error)
        ready.exception()  # Somebody may have stopped waiting; then nobody is to be told.
