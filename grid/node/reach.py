"""How a node reaches other nodes: at the address that one announced, where it answers there as itself, relayed otherwise."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from grid.clock import Clock
from grid.crypto.cards import NODE, is_name
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import GridError, NodeUnavailable
from grid.ids import GridId, PeerId
from grid.node.presence import Presence
from grid.rpc.channel import SecureChannel, open_channel, time_limit
from grid.settings import SessionLimits
from grid.transport.base import Transport
from grid.wire.address import parse_address

log = logging.getLogger(__name__)

DIRECT_DIAL_S = 3.0
"""Time to reach another node at its address and open a channel there, before the gateway is asked for a link."""

DialAddress = Callable[[str], Awaitable[Transport]]
"""Opens a transport to an address that another node announced; raises `NodeUnavailable`."""

DialNode = Callable[[PeerId], Awaitable[Transport]]
"""Opens a transport to another node; raises `NodeUnavailable`."""


class Reach:
    """Opens channels to other nodes. `dial_node` takes the place of a gateway and of `dial_direct`.

    `grid` is None until it is known. `names` learns what nodes are called, as the gateway has it.
    """

    def __init__(
        self,
        *,
        me: LocalIdentity,
        trust: Trust,
        clock: Clock,
        limits: SessionLimits,
        dial_direct: DialAddress | None,
        dial_node: DialNode | None,
        presence: Callable[[], Presence | None],
        grid: Callable[[], GridId | None],
        names: dict[PeerId, str],
    ) -> None:
        self._me, self._trust, self._clock, self._limits = me, trust, clock, limits
        self._dial_direct, self._dial_node = dial_direct, dial_node
        self._presence, self._grid, self._names = presence, grid, names

    async def channel(self, node: PeerId) -> SecureChannel:
        """A channel to another node. Raises `NodeUnavailable`, and as opening a channel does."""
        if self._dial_node is not None:
            return await self._over(node, await self._dial_node(node))
        presence = self._presence()
        if presence is None:
            raise NodeUnavailable("this node has no gateway to find other nodes by")
        known = await presence.nodes()
        for card in known.values():  # for messages to people alone; a name from a verified card stays
            if is_name(card.name):
                self._names.setdefault(card.id, card.name)
        address = known[node].address if node in known else ""
        if address and self._dial_direct is not None:
            try:
                parse_address(address)  # it comes from a stranger: what is no address must not steer our dial
                async with time_limit(self._clock, DIRECT_DIAL_S, "reaching a node directly"):
                    return await self._over(node, await self._dial_direct(address))
            except GridError as error:
                log.info("node %s does not answer at its address, going through the gateway: %s", node, error)
        return await self._over(node, await presence.open_link(node))

    async def _over(self, node: PeerId, transport: Transport) -> SecureChannel:
        grid = self._grid()
        if grid is None:
            raise NodeUnavailable("this node does not know its grid yet")
        return await open_channel(
            transport,
            me=self._me,
            trust=self._trust,
            expect=Expected(id=node, role=NODE),
            grid=grid,
            limits=self._limits,
            clock=self._clock,
        )
