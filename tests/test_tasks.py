"""Work for a group of tasks that is ending."""

from __future__ import annotations

import asyncio
import gc

import pytest

from grid.client.paths import Paths
from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import NodeUnavailable
from grid.settings import ClientSettings
from grid.tasks import start
from grid.transport.base import Transport


async def test_a_group_takes_work() -> None:
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    async with asyncio.TaskGroup() as group:
        assert start(group, work(), name="work", owner="the test").get_name() == "work"
    assert done.is_set()


async def test_a_group_that_has_ended_refuses_work_and_leaves_nothing_behind() -> None:
    async with asyncio.TaskGroup() as group:
        pass
    with pytest.raises(NodeUnavailable, match="the test was closed"):
        start(group, asyncio.sleep(0), name="work", owner="the test")
    gc.collect()  # a coroutine that nobody closed would warn here, and warnings are errors


async def test_a_session_that_wants_the_gateway_back_while_its_client_closes_is_told_so() -> None:
    async def dial() -> Transport:
        raise AssertionError("nobody dials for a client that was closed")

    told: list[NodeUnavailable] = []

    async def resuming(paths: Paths) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(NodeUnavailable, match="the client was closed") as refusal:
                await paths.hop()
            told.append(refusal.value)

    clock = SystemClock()
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            paths = Paths(
                dial=dial,
                dial_direct=None,
                me=LocalIdentity.create(name="me", role="client", clock=clock),
                trust=Trust.dev(),
                settings=ClientSettings(),
                clock=clock,
                tasks=group,
            )
            group.create_task(resuming(paths))
            await asyncio.sleep(0)
            raise ValueError("the client closes")
    gc.collect()
    assert len(told) == 1
