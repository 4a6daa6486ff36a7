"""Sessions with other nodes: opened when something must be sent, shared by all that is going on, accepted when others call.

Each runs over a channel, so the far end is a node whose card was verified, whatever way the bytes take. What it sends is
handled by `handlers`; when the last session with a node ends, `on_lost` hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from grid.crypto.identity import Card
from grid.errors import GridError, InvalidRequest, NodeUnavailable
from grid.ids import PeerId
from grid.rpc.peer import Peer

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True, eq=False)
class Neighbour:
    """A session with another node, as the context of its handlers. `peer` is there once the session runs."""

    card: Card
    peer: Peer | None = None

    @property
    def id(self) -> PeerId:
        return self.card.id

    @property
    def live(self) -> Peer:
        """The session's `Peer`. Raises `NodeUnavailable` once it is over."""
        if self.peer is None or self.peer.closed:
            raise NodeUnavailable(f"the session with node {self.card.name} is over")
        return self.peer


Open = Callable[[PeerId], AbstractAsyncContextManager[Neighbour]]
"""Dials a node and runs the session with it for as long as it is entered."""

Spawn = Callable[[Coroutine[Any, Any, None], str], object]
"""Starts a task of the node's own group, under a name."""


class Neighbours:
    """All live sessions with other nodes. `me` is this node, which is none of them."""

    def __init__(self, *, me: PeerId, open_session: Open, spawn: Spawn, on_lost: Callable[[PeerId], None]) -> None:
        self._me = me
        self._open_session = open_session
        self._spawn = spawn
        self._on_lost = on_lost
        self._live: dict[PeerId, list[Neighbour]] = {}
        self._opening: dict[PeerId, asyncio.Future[Neighbour]] = {}

    async def session(self, node: PeerId) -> Neighbour:
        """A live session with a node; a new one where there is none. Raises what dialling and the channel raise."""
        if node == self._me:
            raise InvalidRequest("this node itself is named where another one is needed")
        for neighbour in self._live.get(node, ()):
            if neighbour.peer is not None and not neighbour.peer.closed:
                return neighbour
        opening = self._opening.get(node)
        if opening is None:
            opening = asyncio.get_running_loop().create_future()
            self._opening[node] = opening
            self._spawn(self._run(node, opening), f"session with node {node}")
        return await asyncio.shield(opening)

    async def names(self, nodes: Iterable[PeerId]) -> dict[PeerId, str]:
        """Those of the nodes that are not this one, with the names that their cards prove. Raises as `session`."""
        sessions = await asyncio.gather(*(self.session(node) for node in nodes if node != self._me))
        return {session.id: session.card.name for session in sessions}

    async def _run(self, node: PeerId, opening: asyncio.Future[Neighbour]) -> None:
        """The life of a session that this side opened."""
        try:
            async with self._open_session(node) as neighbour, self.entered(neighbour):
                self._opening.pop(node, None)
                opening.set_result(neighbour)
                await neighbour.live.wait_closed()
        except GridError as error:
            log.info("session with node %s: %s", node, error)
            if not opening.done():
                opening.set_exception(error)
                opening.exception()  # marks it as seen: who asked may be gone
        finally:
            self._opening.pop(node, None)
            if not opening.done():
                opening.set_exception(NodeUnavailable("this node is closing"))
                opening.exception()

    @contextlib.asynccontextmanager
    async def entered(self, neighbour: Neighbour) -> AsyncIterator[None]:
        """Count a session as live inside the block."""
        sessions = self._live.setdefault(neighbour.id, [])
        sessions.append(neighbour)
        try:
            yield
        finally:
            sessions.remove(neighbour)
            if not sessions:
                self._live.pop(neighbour.id, None)
                self._on_lost(neighbour.id)
