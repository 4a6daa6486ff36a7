"""Job channels: sealed, of the gateway that was joined and no other, for nodes and clients that prove who they are."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import AuthenticationFailed, InvalidRequest
from grid.ids import GridId, PeerId
from grid.rpc.dispatch import Handlers
from grid.rpc.job_channel import job_channel
from grid.rpc.peer import Peer
from grid.settings import SessionLimits
from grid.testing import LocalGrid
from grid.transport.base import Transport
from grid.wire.jobs import JobList, ListJobs
from grid.wire.messages import ListNodes


@contextlib.asynccontextmanager
async def channel(local: LocalGrid, role: str, gateway: PeerId | None = None) -> AsyncIterator[Peer]:
    clock = SystemClock()

    async def dial() -> Transport:
        return await local._inside.dial_jobs()

    async with job_channel(
        dial,
        me=LocalIdentity.create(name="somebody", role=role, clock=clock),
        trust=Trust.dev(),
        grid=GridId(local.gateway.grid),
        gateway=gateway or PeerId(local.gateway.grid),
        handlers=Handlers({}),
        context=None,
        limits=SessionLimits(),
        clock=clock,
    ) as peer:
        yield peer


async def test_a_client_asks_over_a_job_channel() -> None:
    async with LocalGrid(nodes=0) as local, channel(local, "client") as peer:
        assert await peer.request(ListJobs()) == JobList(jobs=())
        with pytest.raises(InvalidRequest, match="makes no sense on this connection"):
            await peer.request(ListNodes())


async def test_another_gateway_in_between_is_noticed() -> None:
    other = LocalIdentity.create(name="other", role="gateway", clock=SystemClock())
    async with LocalGrid(nodes=0) as local:
        with pytest.raises(AuthenticationFailed, match="meant for"):
            async with channel(local, "client", other.id):
                pass


async def test_a_gateway_opens_no_job_channel_to_itself() -> None:
    async with LocalGrid(nodes=0) as local:
        with pytest.raises(AuthenticationFailed, match="only a client or node may"):
            async with channel(local, "gateway"):
                pass
