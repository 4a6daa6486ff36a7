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
from grid.errors import (
    AuthenticationFailed,
    ClockSkew,
    GridError,
    InvalidRequest,
    NodeUnavailable,
    QuotaExceeded,
    WireError,
)
from grid.ids import GridId, PeerId
from grid.rpc.hop import Hop, join_gateway
from grid.rpc.links import OnOffer
from grid.rpc.reconnect import SETTLED_S, Backoff
from grid.settings import SessionLimits
from grid.transport.base import Dial, Transport
from grid.wire.messages import Announce, ListNodes, NodeCard, NodeList

log = logging.getLogger(__name__)

MAX_REFUSALS = 5
"""Refusals in a row after which a node that was here before takes the gateway's word: it was revoked, or its grid is another."""


class Presence:
    """Keeps one node known at one gateway. `run` does it; everything else may be called at any time.

    `announcement` is asked for what to announce each time. `on_link` gets each link that another peer opens, `on_call` is told
    that the gateway has a job for this node.
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
        on_call: Callable[[], None] = lambda: None,
    ) -> None:
        self._me = me
        self._trust = trust
        self._clock = clock
        self._limits = limits
        self._dial = dial
        self._announcement = announcement
        self._on_link = on_link
        self._on_call = on_call
        self._backoff = Backoff(clock, random.Random())
        self._hop: Hop | None = None
        self._grid: GridId | None = trust.grid
        self._gateway: PeerId | None = None
        self._fatal: GridError | None = None
        self._settled = asyncio.Event()
        self._ended = asyncio.Event()
        self._joined_once = False
        self._refusals = 0
        self._told = ""

    @property
    def grid(self) -> GridId | None:
        """The grid that the gateway serves; None before it was met, without a root."""
        return self._grid

    @property
    def gateway(self) -> PeerId | None:
        """The id of the gateway that we joined last; None before the first."""
        return self._gateway

    @property
    def connected(self) -> bool:
        """Whether the gateway knows us at present."""
        return self._hop is not None and not self._hop.peer.closed

    async def ready(self) -> None:
        """Return once the gateway has registered this node for the first time. Raises why it never will."""
        await self._settled.wait()
        if self._fatal is not None:
            raise self._fatal

    async def ended(self) -> GridError:
        """Return once this node has given up: why its gateway will never have it (any more)."""
        await self._ended.wait()
        assert self._fatal is not None
        return self._fatal

    async def run(self) -> None:
        """Connect, and connect again, until cancelled.

        A refusal of the first join or announcement is final, and so are `MAX_REFUSALS` in a row later on.
        """
        while self._fatal is None:
            try:
                await self._connected()
            except (AuthenticationFailed, InvalidRequest, WireError) as error:
                self._tell("the gateway and this node do not go together", error)
                self._refused(error)
            except GridError as error:
                self._tell("the gateway is not reachable", error)
            if self._fatal is None:
                await self._backoff.wait()

    def _refused(self, error: GridError) -> None:
        # Clocks get set, and a gateway of another version gets replaced; an identity that does not hold stays what it is.
        if isinstance(error, AuthenticationFailed) and not isinstance(error, ClockSkew):
            self._refusals += 1
        if not self._joined_once or self._refusals >= MAX_REFUSALS:
            self._fatal = error
            self._settled.set()
            self._ended.set()

    def _tell(self, what: str, error: GridError) -> None:
        """Log what is wrong once, not at each attempt."""
        text = f"{what}: {error}"
        log.log(logging.DEBUG if text == self._told else logging.WARNING, "%s", text)
        self._told = text

    async def _connected(self) -> None:
        """One connection, until it ends."""
        async with join_gateway(
            self._dial,
            me=self._me,
            trust=self._trust,
            clock=self._clock,
            limits=self._limits,
            on_offer=self._on_link,
            on_call=self._on_call,
        ) as hop:
            self._grid, self._gateway = hop.grid, hop.gateway
            await self._announce_first(hop)
            self._hop = hop
            since = self._clock.monotonic()
            try:
                self._joined_once = True
                self._refusals, self._told = 0, ""
                self._settled.set()
                error = await hop.peer.wait_closed()
                log.warning("the connection to the gateway ended%s", "" if error is None else f": {error}")
            finally:
                self._hop = None
                if self._clock.monotonic() - since >= SETTLED_S:
                    self._backoff.settled()

    async def _announce_first(self, hop: Hop) -> None:
        try:
            await hop.peer.request(self._announcement())
        except QuotaExceeded as error:  # what is too much now will be too much next time
            raise InvalidRequest(f"the gateway does not take what this node announces: {error.message}") from error

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
