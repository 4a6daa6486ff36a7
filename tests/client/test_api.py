"""The asynchronous client on a whole grid in memory: the lines of api.md, with `await` where they wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import torch

import grid
from grid.client import api
from grid.client.api import Client, connect
from grid.client.tensors import RemoteTensor
from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import AuthenticationFailed, DeadlineExceeded, ExecutionFailed, InvalidRequest, NodeUnavailable, ReleaseDenied
from grid.testing import LocalGrid
from grid.transport.base import Buffer, Transport
from grid.transport.memory import memory_pair

ROWS = 60


def dataset(seed: int) -> dict[str, object]:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, 4, generator=rng)
    return {"features": features, "targets": (features.sum(1) > 0).long(), "classes": 2, "tags": ["#cancer", "#train"]}


@pytest.fixture
async def local() -> AsyncIterator[LocalGrid]:
    async with LocalGrid(nodes={"alice": {"a": dataset(1)}, "bob": {"b": dataset(2)}, "carol": {"c": dataset(3)}}) as running:
        yield running


async def test_pointers(local: LocalGrid) -> None:
    async with await local.client() as g:
        alice, bob = g.nodes["alice"], g.nodes["bob"]
        x, w = alice.send(torch.ones(3, 4)), alice.send(torch.ones(4, 2)).requires_grad_()
        (x @ w).relu().sum().backward()
        assert (await w.grad.get()).tolist() == [[3.0, 3.0]] * 4 and w.grad.location is alice
        y = await x.move(bob)
        assert y.location is bob and torch.equal(await y.get(), await x.get())
        model = alice.send(torch.nn.Linear(4, 2))
        optimizer = torch.optim.Adam(model.parameters())
        model(x).sum().backward()
        optimizer.step()
        assert isinstance(await model.get(), torch.nn.Linear)
        with pytest.raises(InvalidRequest, match="alice and at bob"):
            x + y


async def test_datasets_and_the_gate(local: LocalGrid) -> None:
    async with await local.client() as g:
        found = await g.search("#cancer", "#train")
        assert [ds.node.name for ds in found] == ["alice", "bob", "carol"]
        ds = found[0]
        rows = dataset(1)["features"]
        assert isinstance(rows, torch.Tensor)
        assert torch.allclose(await ds.features.sum(0).get(), rows.sum(0), atol=1e-4)
        assert torch.allclose(await ds["x1"].mean().get(), rows[:, 1].mean(), atol=1e-5)
        with pytest.raises(ReleaseDenied, match="Instead"):
            await ds.features.get()
        with pytest.raises(ReleaseDenied, match="sinks"):
            await ds.features.move(g.nodes["bob"])
        seen = [(xb.shape, yb.shape) for xb, yb in ds.batches(20, shuffle=True, seed=0)]
        assert seen == [((20, 4), (20,))] * 3


async def test_training_by_pointers_on_batches(local: LocalGrid) -> None:
    async with await local.client() as g:
        (ds, *_) = await g.search("#train")
        model = ds.node.send(torch.nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for epoch in range(6):
            for features, targets in ds.batches(20, shuffle=True, seed=epoch):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(features), targets).backward()
                optimizer.step()
        trained = await model.get()
        data = dataset(1)
        accuracy = (trained(data["features"]).argmax(1) == data["targets"]).float().mean()
        assert accuracy > 0.9


async def test_plans_and_the_secure_sum(local: LocalGrid) -> None:
    @grid.plan
    def gradient(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(x @ w, y, reduction="sum")
        return torch.autograd.grad(loss, w)[0]

    async with await local.client() as g:
        w = torch.randn(4, 2).requires_grad_()
        parts = [gradient(w, ds.features, ds.targets) for ds in await g.search("#train")]
        assert all(isinstance(part, RemoteTensor) for part in parts)
        total = await grid.aio.sum(parts)
        data = [dataset(seed) for seed in (1, 2, 3)]
        pooled = sum(torch.nn.functional.cross_entropy(one["features"] @ w, one["targets"], reduction="sum") for one in data)
        expected = torch.autograd.grad(pooled, w)[0]
        assert torch.allclose(total, expected, atol=1e-3)


async def test_an_error_at_a_node_names_operation_and_line(local: LocalGrid) -> None:
    async with await local.client() as g:
        alice = g.nodes["alice"]
        x = alice.send(torch.randn(3, 3))
        broken = torch.linalg.solve(alice.send(torch.zeros(3, 3)), x)
        with pytest.raises(ExecutionFailed, match=r"linalg.*test_api\.py:\d+"):
            await (broken * 2).get()
        assert (await x.get()).shape == (3, 3)


async def test_a_node_that_dies_fails_its_tensors_and_nobody_elses(local: LocalGrid) -> None:
    async with await local.client() as g:
        x, y = g.nodes["alice"].send(torch.ones(2)), g.nodes["bob"].send(torch.ones(2))
        await x.get()
        await y.get()
        await local.stop_node("bob")
        with pytest.raises(NodeUnavailable, match="bob"):
            await y.get()
        assert (await (x + 1).get()).tolist() == [2, 2]


async def test_a_client_may_be_closed_by_another_task_and_twice(local: LocalGrid) -> None:
    g = await local.client()
    x = g.nodes["alice"].send(torch.ones(2))
    await x.get()
    await asyncio.create_task(g.close())
    await g.close()
    with pytest.raises(NodeUnavailable, match="closed"):
        await g.search()
    with pytest.raises(NodeUnavailable):
        x + 1


async def test_what_was_sent_is_freed_when_the_client_leaves(local: LocalGrid) -> None:
    g = await local.client()
    x = g.nodes["alice"].send(torch.ones(2))
    await x.get()
    await g.close()
    async with await local.client() as other:
        assert (await other.nodes["alice"].send(torch.zeros(1)).get()).tolist() == [0]


class Silent(Transport):
    """A gateway that says nothing, and notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def send(self, *parts: Buffer) -> None:
        self.heard.append(b"".join(parts))

    async def receive(self) -> Buffer:
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self, reason: str = "") -> None:
        return


async def test_a_gateway_that_says_nothing_is_given_up_and_told_nothing() -> None:
    from grid.settings import ClientSettings, SessionLimits

    silent = Silent()

    async def dial() -> Transport:
        return silent

    me = LocalIdentity.create(name="dora", role="client", clock=SystemClock())
    settings = ClientSettings(session=SessionLimits(handshake_s=0.1))
    with pytest.raises((NodeUnavailable, DeadlineExceeded)):
        async with Client(dial=dial, me=me, trust=Trust.dev(), settings=settings):
            raise AssertionError
    assert not silent.heard


async def test_nobody_at_the_url() -> None:
    with pytest.raises(NodeUnavailable, match="cannot connect"):
        await connect("ws://127.0.0.1:1", timeout=5)
    for wrong in ("ftp://x", "nonsense"):
        with pytest.raises((InvalidRequest, NodeUnavailable)):
            await connect(wrong, timeout=5)
    with pytest.raises(InvalidRequest, match="timeout"):
        await connect("ws://127.0.0.1:1", timeout=0)


async def test_a_rooted_client_does_not_speak_to_a_dev_grid(local: LocalGrid) -> None:
    """And the other way: `Trust` decides on the greeting, before anything is sent."""
    from grid.crypto.keys import SigningKey

    sent: list[bytes] = []

    class Listening(Transport):
        def __init__(self, inner: Transport) -> None:
            self._inner = inner

        async def send(self, *parts: Buffer) -> None:
            sent.append(b"".join(parts))
            await self._inner.send(*parts)

        async def receive(self) -> Buffer:
            return await self._inner.receive()

        async def close(self, reason: str = "") -> None:
            await self._inner.close(reason)

    ours, theirs = memory_pair()
    serving = asyncio.create_task(local.gateway.serve(theirs))

    async def dial() -> Transport:
        return Listening(ours)

    me = LocalIdentity.create(name="dora", role="client", clock=SystemClock())
    with pytest.raises(AuthenticationFailed, match="--dev"):
        async with Client(dial=dial, me=me, trust=Trust.rooted(SigningKey.generate().public)):
            raise AssertionError
    await serving
    assert not sent


async def test_the_sum_of_single_numbers(local: LocalGrid) -> None:
    async with await local.client() as g:
        nodes = [g.nodes[name] for name in ("alice", "bob", "carol")]
        for value in (torch.tensor(2.5), torch.tensor(3)):
            total = await grid.aio.sum([node.send(value) for node in nodes])
            assert total.shape == () and total.dtype == value.dtype and total == value * 3


async def test_a_failure_is_told_once_with_the_line_of_its_cause(local: LocalGrid) -> None:
    async with await local.client() as g:
        x = g.nodes["alice"].send(torch.ones(3))
        wrong = x[torch.tensor([5])]
        later = wrong + 1
        with pytest.raises(ExecutionFailed, match=r"out of range.*\[at alice: aten\.index\.Tensor, written at .*test_api\.py"):
            await later.get()
        assert (await x.get()).tolist() == [1, 1, 1]


async def test_only_a_host_and_a_port_are_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses are what nodes announce: a path or a user's name in one would have this client ask others for things."""
    dialled: list[str] = []

    async def dial(url: str) -> Transport:
        dialled.append(url)
        return memory_pair()[0]

    monkeypatch.setattr(api, "dial_websocket", dial)
    for wrong in ("127.0.0.1:28493/admin?all=1", "ws://user:pw@host/y?z", "ws://127.0.0.1:1", "u@host:80", "host", "0.0.0.0:80"):
        with pytest.raises(InvalidRequest, match=r"HOST:PORT|nobody can dial"):
            await api._dial_address(wrong)
    await api._dial_address("127.0.0.1:80")
    await api._dial_address("[::1]:80")
    assert dialled == ["ws://127.0.0.1:80", "ws://[::1]:80"]
