"""A node's connection to the gateway: joined, announced, watched, and made again after each loss.

The gateway is checked before it is told anything (`Trust.check_greeting`); what it says of other peers is never believed,
only used to reach them. While there is no gateway, direct connections go on, and what needs a relay raises
`NodeUnavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from grid.clock import Clock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, NodeUnavailable, WireError
from grid.ids import GridId, PeerId
from grid.rpc.hop import Hop, join_gateway
from grid.rpc.links import OnOffer
from grid.rpc.reconnect import Backoff
from grid.settings import SessionLimits
from grid.transport.base import Dial, Transport
from grid.wire.messages import Announce, ListNodes, NodeCard, NodeList

log = logging.getLogger(__name__)


class Presence:
    """Keeps one node known at one gateway. `run` does it; everything else may be called at any time.

    `announcement` is asked for what to announce each time. `on_link` gets each link that another peer opens.
    """

    def __init__(
        self,
        *,
        me: LocalIdentity,
        trust: Trust,
        clock: Clock,
        limits: SessionLimits,
        dial: Dial,
        announcement: Callable[[], Announce],
        on_link: OnOffer,
    ) -> None:
        self._me = me
        self._trust = trust
        self._clock = clock
        self._limits = limits
        self._dial = dial
        self._announcement = announcement
        self._on_link = on_link
        self._backoff = Backoff(clock, random.Random())
        self._hop: Hop | None = None
        self._grid: GridId | None = trust.grid
        self._fatal: GridError | None = None
        self._settled = asyncio.Event()
        self._joined_once = False

    @property
    def grid(self) -> GridId | None:
        """The grid that the gateway serves; None before it was met, without a root."""
        return self._grid

    @property
    def connected(self) -> bool:
        """Whether the gateway knows us at present."""
        return self._hop is not None and not self._hop.peer.closed

    async def ready(self) -> None:
        """Return once the gateway has registered this node for the first time. Raises why it never will."""
        await self._settled.wait()
        if self._fatal is not None:
            raise self._fatal

    async def run(self) -> None:
        """Connect, and connect again, until cancelled. A refusal of the first join is final, and `ready` raises it."""
        while self._fatal is None:
            try:
                await self._connected()
            except (AuthenticationFailed, InvalidRequest, WireError) as error:
                log.error("the gateway and this node do not go together: %s", error)
                if not self._joined_once:
                    self._fatal = error
                    self._settled.set()
            except GridError as error:
                log.warning("the gateway is not reachable: %s", error)
            await self._backoff.wait()

    async def _connected(self) -> None:
        """One connection, until it ends."""
        async with join_gateway(
            self._dial, me=self._me, trust=self._trust, clock=self._clock, limits=self._limits, on_offer=self._on_link
        ) as hop:
            self._grid = hop.grid
            await hop.peer.request(self._announcement())
            self._hop = hop
            try:
                self._joined_once = True
                self._settled.set()
                self._backoff.settled()
                error = await hop.peer.wait_closed()
                log.warning("the connection to the gateway ended%s", "" if error is None else f": {error}")
            finally:
                self._hop = None

    async def announce(self) -> None:
        """Tell the gateway what has changed; where there is none, the next connection does."""
        if self._hop is not None:
            with contextlib.suppress(NodeUnavailable):  # it went away meanwhile: the next connection announces anyway
                await self._hop.peer.request(self._announcement())

    async def nodes(self) -> dict[PeerId, NodeCard]:
        """All nodes as the gateway tells them; none where there is no gateway. Nothing of it is to be believed."""
        if self._hop is None:
            return {}
        listed = await self._hop.peer.request(ListNodes())
        if not isinstance(listed, NodeList):
            raise WireError("the gateway did not answer with a list of nodes")
        return {card.id: card for card in listed.nodes}

    async def open_link(self, to: PeerId) -> Transport:
        """A link to another peer through the gateway. Raises `NodeUnavailable` where there is none."""
        if self._hop is None:
            raise NodeUnavailable("there is no connection to the gateway that could relay")
        return await self._hop.links.open(to)
