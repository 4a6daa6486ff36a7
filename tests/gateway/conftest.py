"""Tests of the port run on both event loops, as sockets behave differently on them; the others on the standard one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from grid.testing.crowd import Crowd, crowd


def pytest_asyncio_loop_factories(config: object, item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.name == "test_http.py":
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture
async def grid() -> AsyncIterator[Crowd]:
    async with crowd() as made:
        yield made
