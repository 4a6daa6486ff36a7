"""What a gateway remembers over a restart, and that it acknowledges nothing that it could forget."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from grid.clock import SystemClock
from grid.crypto.enrolment import RootKey
from grid.crypto.identity import LocalIdentity, Token, Trust
from grid.errors import GridError
from grid.gateway.app import Gateway
from grid.settings import GatewaySettings
from grid.store.base import KnownNode, Store
from grid.store.memory import MemoryStore
from grid.store.sqlite import SqliteStore
from grid.testing.crowd import Crowd, make_dataset
from grid.wire.messages import Found, ListNodes, NodeList, Search

CLOCK = SystemClock()


@contextlib.asynccontextmanager
async def gateway_over(store: Store, trust: Trust | None = None) -> AsyncIterator[Crowd]:
    """A gateway with this memory, and a way to bring peers to it."""
    me = LocalIdentity.create(name="gateway", role="gateway", clock=CLOCK)
    trust = trust or Trust.dev()
    gateway = Gateway(GatewaySettings(dev=trust.is_dev), me=me, trust=trust, clock=CLOCK, token="t", store=store)
    async with asyncio.TaskGroup() as tasks, gateway, contextlib.AsyncExitStack() as stack:
        yield Crowd(gateway, tasks, stack)


class SlowStore(MemoryStore):
    """Counts its commits, and holds the first up until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.commits: list[int] = []

    def keep_nodes(self, changes: Mapping[str, KnownNode | None]) -> None:
        assert self.go.wait(10)
        self.commits.append(len(changes))
        super().keep_nodes(changes)


class FullStore(MemoryStore):
    """Has no room while it is full."""

    full = True

    def keep_nodes(self, changes: Mapping[str, KnownNode | None]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().keep_nodes(changes)


async def test_an_announcement_is_acknowledged_when_it_is_on_disk() -> None:
    store = SlowStore()
    async with gateway_over(store) as crowd:
        alice = await crowd.peer("alice")
        announcing = asyncio.ensure_future(alice.announce(make_dataset("patients")))
        found = await alice.request(Search(tags=()))  # the gateway goes on meanwhile, and shows what it knows
        assert isinstance(found, Found) and not announcing.done() and store.nodes() == {}
        store.go.set()
        await announcing
        assert store.nodes()[alice.id].online and b"patients" in store.nodes()[alice.id].announcement


async def test_many_nodes_at_once_cost_few_commits() -> None:
    store = SlowStore()
    async with gateway_over(store) as crowd:
        nodes = [await crowd.peer(f"node{number}") for number in range(30)]
        announcing = [asyncio.ensure_future(node.announce(make_dataset())) for node in nodes]
        await nodes[-1].request(ListNodes())
        store.go.set()
        await asyncio.gather(*announcing)
        assert len(store.commits) <= 3 and len(store.nodes()) == 30


async def test_what_cannot_be_stored_is_not_acknowledged_and_the_grid_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    store = FullStore()
    async with gateway_over(store) as crowd:
        alice = await crowd.peer("alice")
        with pytest.raises(GridError, match="could not store"):
            await alice.announce(make_dataset())
        assert "No space left" in caplog.text
        store.full = False
        await alice.announce(make_dataset())
        assert list(store.nodes()) == [alice.id]


async def test_a_restarted_gateway_lists_the_nodes_it_knew_as_offline(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "gateway.sqlite")
    async with gateway_over(store) as crowd:
        alice = await crowd.peer("alice")
        await alice.announce(make_dataset("patients", tags=("#a",)), address="10.0.0.1:9")
        bob = await crowd.peer("bob")
        await bob.announce(make_dataset("others"))
        before = CLOCK.wall()
    store.close()
    store = SqliteStore(tmp_path / "gateway.sqlite")
    async with gateway_over(store) as crowd:
        carl = await crowd.peer("carl", "client")
        listed = await carl.request(ListNodes())
        assert isinstance(listed, NodeList)
        facts = [(node.id, node.name, node.state, node.address, [one.name for one in node.datasets]) for node in listed.nodes]
        assert facts == [
            (alice.id, "alice", "offline", "10.0.0.1:9", ["patients"]),
            (bob.id, "bob", "offline", "", ["others"]),
        ]
        assert all(before - 1 <= node.since <= CLOCK.wall() for node in listed.nodes)
        assert (await carl.request(Search(tags=("#a",)))).total == 0
        (found,) = (await carl.request(Search(tags=("#a",), offline=True))).datasets
        assert (found.node_name, found.state, found.dataset.name) == ("alice", "offline", "patients")
        again = await crowd.peer("alice", me=alice.me)
        await again.announce(make_dataset("patients", tags=("#a",)))
        assert (await carl.request(Search(tags=("#a",)))).total == 1
    store.close()


async def test_a_revoked_or_damaged_memory_does_not_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = RootKey.create(tmp_path / "root.key")
    store, wall = MemoryStore(), CLOCK.wall()

    async with gateway_over(store, Trust.rooted(root.public)) as crowd:
        for name in ("alice", "bob"):
            token = Token.parse(root.enroll(name=name, role="node", organisation="", gateway_url="ws://127.0.0.1:1", wall=wall))
            me = LocalIdentity.create(name=name, role="node", clock=CLOCK, token=token)
            await (await crowd.peer(name, me=me, trust=Trust.rooted(root.public))).announce(make_dataset())
    known = next(node for node in store.nodes().values() if node.name == "alice")
    store.keep_nodes({"broken": dataclasses.replace(known, announcement=b"\x00garbage")})
    trust = Trust.rooted(root.public)
    trust.merge_revocations(root.revoke("bob", wall=wall))
    async with gateway_over(store, trust) as crowd:
        assert [node.name for node in crowd.gateway.views.nodes()] == ["alice"]
        assert "does not count any more" in caplog.text
