"""A session with a gateway's coordinator of jobs: a connection of its own to the gateway's port, sealed like any channel.

The far end is the gateway itself, under the key that its greeting named when we joined it. No root vouches for a gateway, so this
says only that it is the one that we joined; what it carries between peers they sign themselves. A model's weights pass here
sealed, also where the gateway's port has no TLS.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from ssl import SSLContext

from grid.clock import Clock
from grid.crypto.cards import GATEWAY, Expected
from grid.crypto.identity import LocalIdentity, Trust
from grid.ids import GridId, PeerId
from grid.rpc.channel import open_channel
from grid.rpc.dispatch import Handlers
from grid.rpc.hop import SOCKET_PATH
from grid.rpc.peer import Peer
from grid.settings import SessionLimits
from grid.transport.base import Dial
from grid.transport.websocket import dial_websocket

JOBS_PATH = SOCKET_PATH + "/jobs"


def dial_jobs(url: str, ssl: SSLContext | None = None) -> Dial:
    """Opens connections to the coordinator behind the gateway at `ws://HOST:PORT` or `wss://HOST:PORT`."""
    return lambda: dial_websocket(url.rstrip("/").removesuffix(SOCKET_PATH) + JOBS_PATH, ssl=ssl)


@contextlib.asynccontextmanager
async def job_channel(
    dial: Dial,
    *,
    me: LocalIdentity,
    trust: Trust,
    grid: GridId,
    gateway: PeerId,
    handlers: Handlers,
    context: object,
    limits: SessionLimits,
    clock: Clock,
) -> AsyncIterator[Peer]:
    """A session with the coordinator of `gateway`, for as long as the context lasts; `handlers` answer what it asks.

    Raises `NodeUnavailable`, `AuthenticationFailed`, `ClockSkew`, `DeadlineExceeded`, `WireError`.
    """
    channel = await open_channel(
        await dial(),
        me=me,
        trust=trust,
        expect=Expected(id=gateway, role=GATEWAY),
        grid=grid,
        limits=limits,
        clock=clock,
    )
    peer = Peer(
        channel,
        initiator=True,
        handlers=handlers,
        context=context,
        limits=limits,
        clock=clock,
        name=str(channel.peer),
        about={"peer": channel.peer.name, "peer_id": channel.peer.id, "session": channel.session},
    )
    async with peer:
        yield peer
