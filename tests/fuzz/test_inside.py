"""Mutated frames inside sessions of peers that have proved who they are: at a node, at a gateway, and at a client.

Each sender is properly joined or has a sealed channel, so its frames reach the handlers. Whatever it says, it is answered,
refused or cut off; the others go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from mutants import Mutator, frames_of_every_type, mutated
from small_node import SmallNode
from watch import Watch
from wires import Counting, Damaging, Mutants, Talk, pour, refused, talk

import grid
from grid.client.api import Client
from grid.clock import SystemClock
from grid.crypto.identity import Expected, LocalIdentity, Trust, join_statement
from grid.gateway.app import Gateway
from grid.rpc.channel import SecureChannel, open_channel
from grid.settings import ClientSettings, NodeSettings, SessionLimits
from grid.tensors.buffers import to_frame
from grid.testing import LocalGrid
from grid.testing.crowd import Crowd, crowd
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.wire.codec import decode
from grid.wire.messages import (
    Announce,
    CloseLink,
    Command,
    Commands,
    DeliverObject,
    DescribeObject,
    ExpectObject,
    FreeObjects,
    GetObject,
    Hello,
    Inline,
    Join,
    LinkCredit,
    LinkData,
    ListNodes,
    Message,
    MoveObject,
    OpenDataset,
    OpenLink,
    PutObject,
    PutPlan,
    Ref,
    RunPlan,
    Search,
    StartSum,
    SumAnnouncement,
    SumShare,
)

LIMITS = SessionLimits()
CLOCK = SystemClock()
ROWS = 40
X = torch.arange(12.0).reshape(4, 3)

LIMITED = NodeSettings(
    max_bytes_per_client=16 << 20, max_op_elements=1 << 18, max_objects_per_client=1000, max_queued_per_client=2000
)
"""Small limits, so that what goes beyond them shows."""

PROBE_EVERY = 20
"""Sessions after which somebody else makes sure that work goes on."""


# ------------------------------------------------------------ at a node


def commands(*run: Command | OpenDataset | RunPlan, tensors: tuple[torch.Tensor, ...] = ()) -> Commands:
    return Commands(first=10, commands=run, tensors=tuple(to_frame(tensor) for tensor in tensors))


def op(name: str, *args: Any, outputs: tuple[int, ...] = (20,), **kwargs: Any) -> Command:
    return Command(op=name, args=list(args), kwargs=kwargs, outputs=outputs)  # type: ignore[arg-type]


def client_messages(other: str) -> list[Message]:
    """What a client says to a node: operations on rows and on its own values, plans, moves, sums."""
    plan = grid.trace(lambda x: ((x - x.mean(0)) / 2).sum(0), torch.zeros(8, 3))
    rows, own, index = Ref(1), Ref(2), Ref(3)
    run = [
        commands(op("aten.mul.Tensor", rows, 2.0), op("aten.sum.dim_IntList", Ref(20), [0], False, outputs=(21,))),
        commands(op("aten.mm.default", own, Inline(0)), tensors=(X.T.contiguous(),)),
        commands(op("aten.select.int", rows, 1, 0), op("aten.view.default", own, [2, 6], outputs=(22,))),
        commands(op("aten.index_select.default", own, 0, index), op("aten.gather.default", own, 1, Ref(4), outputs=(23,))),
        commands(op("aten.add_.Tensor", own, 1.0, outputs=())),
        commands(op("aten.expand.default", own, [4, 3]), op("aten.zeros.default", [3, 4], outputs=(24,))),
        commands(op("aten.cat.default", [own, own], 0), op("aten.native_dropout.default", rows, 0.5, True, outputs=(25, 26))),
        commands(op("aten.convolution.default", Inline(0), Inline(0), None, [1], [0], [1], False, [0], 1), tensors=(X[None],)),
    ]
    return [
        *(GetObject(object=number) for number in (1, 2, 3, 20, 21)),  # type: ignore[arg-type]
        *(DescribeObject(object=number) for number in (1, 2, 20, 30)),  # type: ignore[arg-type]
        *run,
        *opened(),
        PutObject(object=5, tensor=to_frame(X)),  # type: ignore[arg-type]
        FreeObjects(objects=(5, 20)),  # type: ignore[arg-type]
        PutPlan(plan=plan.id, encoding=plan.encoding),
        commands(
            RunPlan(plan=plan.id, inputs=[rows], outputs=(30,)),  # type: ignore[arg-type]
            RunPlan(plan=plan.id, inputs=[Inline(0)], outputs=(31,)),  # type: ignore[arg-type]
            tensors=(X,),
        ),
        MoveObject(object=2, to=other, transfer="t" * 32),  # type: ignore[arg-type]
        ExpectObject(transfer="t" * 32, sender=other, object=6, shape=(4, 3), dtype="f4"),  # type: ignore[arg-type]
        StartSum(sum="s" * 32, roster=(other, other), object=21, fraction_bits=16, deadline_s=0.5),  # type: ignore[arg-type]
    ]


def opened() -> list[Message]:
    """Parts of the dataset, and values of the client's own, as objects 1 to 4."""
    return [
        commands(
            OpenDataset(dataset="d", part="features", object=1, shape=(ROWS, 3), dtype="f4"),  # type: ignore[arg-type]
            OpenDataset(dataset="d", part="targets", object=7, shape=(10,), dtype="i8", blocks=(1,)),  # type: ignore[arg-type]
        ),
        PutObject(object=2, tensor=to_frame(X)),  # type: ignore[arg-type]
        PutObject(object=3, tensor=to_frame(torch.tensor([0, 2]))),  # type: ignore[arg-type]
        PutObject(object=4, tensor=to_frame(torch.zeros(4, 2, dtype=torch.int64))),  # type: ignore[arg-type]
    ]


def node_messages(other: str) -> list[Message]:
    """What a node says to another."""
    return [
        DeliverObject(transfer="t" * 32, tensor=to_frame(X), datasets=("d",)),  # type: ignore[arg-type]
        SumAnnouncement(sum="s" * 32, envelope=b"\x93\xa1a\xa1b\xa1c"),  # type: ignore[arg-type]
        SumShare(sum="s" * 32, tensor=to_frame(torch.zeros(3, dtype=torch.int64))),  # type: ignore[arg-type]
    ]


class Place:
    """Alice, a node with a dataset, and somebody who makes sure that she is well."""

    def __init__(self, local: LocalGrid, good: Any, tasks: asyncio.TaskGroup) -> None:
        self._local = local
        self._good = good
        self._tasks = tasks
        self.node = local.node("alice")
        self.other = str(local.node("bob").id)
        self._dataset: Any = None

    async def warm_up(self) -> None:
        """Have what lasts as long as the nodes do, such as their session with each other."""
        await self.probe()
        alice, bob = self._good.nodes["alice"], self._good.nodes["bob"]
        moved = await alice.send(X).move(bob)
        assert torch.equal(await moved.get(), X)

    async def probe(self) -> None:
        """Work of another client goes on as before."""
        async with asyncio.timeout(20):
            if self._dataset is None:
                (self._dataset,) = await self._good.search()
            means = await self._dataset.features.mean(0).get()
        assert torch.equal(means, torch.ones(3))

    @asynccontextmanager
    async def session(self, me: LocalIdentity) -> AsyncIterator[Talk]:
        """A session over a sealed channel, of which we write the frames."""
        ours, theirs = memory_pair()
        there = Counting(theirs)
        served = self._tasks.create_task(self.node.serve(there))
        channel: SecureChannel = await open_channel(
            ours,
            me=me,
            trust=Trust.dev(),
            expect=Expected(id=self.node.id, role="node"),
            grid=self._local.gateway.grid,
            limits=LIMITS,
            clock=CLOCK,
        )
        async with talk(channel, there) as made:
            yield made
        await served


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    parts = {"features": torch.ones(ROWS, 3), "targets": torch.arange(ROWS) % 2}
    async with asyncio.TaskGroup() as tasks, LocalGrid({"alice": {"d": parts}, "bob": {}}, node=LIMITED) as local:
        good = await local.client()
        yield Place(local, good, tasks)


async def pour_into_node(
    role: str, setup: Sequence[Message], sensible: Callable[[str], list[Message]], count: int, seed: int
) -> None:
    me = LocalIdentity.create(name="mallory", role=role, clock=CLOCK)
    async with place() as there:
        await there.warm_up()
        async with there.session(me) as session:  # what a first session keeps for good is there before anything is counted
            for message in setup:
                assert await session.ask(message)
        mutator = mutated(frames_of_every_type(), sensible(there.other), seed)
        mutants, taken, sessions = Mutants(mutator), 0, 0
        async with Watch(f"a node, from a {role}, {mutator}"):
            while taken < count:
                async with there.session(me) as session:
                    for message in setup:
                        await session.ask(message)
                    taken += await pour(mutants, session, min(count - taken, 100))
                sessions += 1
                if sessions % PROBE_EVERY == 0:
                    await there.probe()
        await there.probe()


@pytest.mark.fuzz("clients")
@pytest.mark.timeout(1500)
async def test_a_node_answers_or_refuses_a_clients_mutated_frames(count: int, seed: int) -> None:
    await pour_into_node("client", opened(), client_messages, count, seed + 2)


@pytest.mark.fuzz("nodes")
@pytest.mark.timeout(1500)
async def test_a_node_answers_or_refuses_another_nodes_mutated_frames(count: int, seed: int) -> None:
    await pour_into_node("node", (), node_messages, count, seed + 3)


# ------------------------------------------------------------ at a gateway


def member_messages(other: str) -> list[Message]:
    """What a member says to a gateway. Link 1 is open."""
    from grid.testing.crowd import make_dataset

    return [
        Announce(datasets=(make_dataset(), make_dataset("second")), address="127.0.0.1:9000"),
        Announce(datasets=()),
        ListNodes(),
        Search(tags=("#demo",), offset=0, limit=10),
        OpenLink(link=3, to=other),  # type: ignore[arg-type]
        *(LinkData(link=1, frame=bytes(size)) for size in (0, 100, 60_000)),  # type: ignore[arg-type]
        LinkCredit(link=1, amount=1000),  # type: ignore[arg-type]
        CloseLink(link=3),  # type: ignore[arg-type]
    ]


@asynccontextmanager
async def member(grid: Crowd, me: LocalIdentity) -> AsyncIterator[Talk]:
    """A member's connection to the gateway, of which we write the frames."""
    ours, theirs = memory_pair()
    there = Counting(theirs)
    served = grid.tasks.create_task(grid.gateway.serve(there))
    hello = decode(await ours.receive()).message
    assert isinstance(hello, Hello) and hello.greeting is not None
    async with talk(ours, there) as made:
        nonce = bytes(32)
        statement = join_statement(hello.greeting, nonce, me.card)
        await made.ask(Join(card=me.card, nonce=nonce, signature=me.sign(statement)))
        yield made
    await served


@pytest.mark.fuzz("members")
@pytest.mark.timeout(1500)
async def test_a_gateway_answers_or_refuses_a_members_mutated_frames(count: int, seed: int) -> None:
    me = LocalIdentity.create(name="mallory", role="node", clock=CLOCK)
    async with crowd() as grid:
        good, other = await grid.peer("good"), await grid.peer("other")
        async with member(grid, me):
            pass
        mutator = mutated(frames_of_every_type(), member_messages(other.id), seed + 4)
        mutants, taken, sessions = Mutants(mutator), 0, 0
        async with Watch(f"a gateway, from a member, {mutator}"):
            while taken < count:
                async with member(grid, me) as session:
                    await session.ask(OpenLink(link=1, to=other.id))  # type: ignore[arg-type]
                    taken += await pour(mutants, session, min(count - taken, 100))
                while not other.offers.empty():
                    link, _ = other.offers.get_nowait()
                    await link.close()
                sessions += 1
                if sessions % PROBE_EVERY == 0:
                    await works(good, other)
        await works(good, other)


async def works(one: Any, other: Any) -> None:
    """Two other members are still there for each other."""
    async with asyncio.timeout(20):
        mine, theirs = await one.open(other)
        await mine.send(b"hello")
        assert await theirs.receive() == b"hello"
        await mine.close()
        await theirs.close()


# ------------------------------------------------------------ at a client


@pytest.mark.fuzz("answers")
@pytest.mark.timeout(1500)
async def test_a_client_takes_a_nodes_and_a_gateways_mutated_answers_for_what_they_are(count: int, seed: int) -> None:
    mutator, damaged, number = Mutator(frames_of_every_type(), seed + 5), 0, 0
    async with crowd() as grid:
        await (await grid.peer("alice")).announce()
        me = LocalIdentity.create(name="ann", role="client", clock=CLOCK)
        await ask_a_gateway(grid.gateway, me, mutator, random.Random(0), spare=1000, tasks=grid.tasks)
        await ask_a_node(mutator, random.Random(0), spare=1000)
        async with Watch(f"a client, {mutator}"):
            while damaged < count:
                rng = random.Random(f"{seed}/{number}")
                spare = rng.choice((0, 1, 2, 2, 2))
                damaged += await ask_a_gateway(grid.gateway, me, mutator, rng, spare=spare, tasks=grid.tasks)
                for _ in range(4):
                    damaged += await ask_a_node(mutator, rng, spare=rng.choice((0, 1, 1, 1)))
                number += 1
    assert number


async def ask_a_gateway(
    gateway: Gateway, me: LocalIdentity, mutator: Mutator, rng: random.Random, *, spare: int, tasks: asyncio.TaskGroup
) -> int:
    """A client looks around at a gateway whose answers are damaged. How many were."""
    wires: list[Damaging] = []

    async def dial() -> Transport:
        ours, theirs = memory_pair()
        wires.append(Damaging(theirs, mutator, rng, spare))
        tasks.create_task(gateway.serve(wires[-1]))
        return ours

    client = Client(dial=dial, me=me, trust=Trust.dev(), settings=ClientSettings(timeout_s=0.3, session=IMPATIENT), clock=CLOCK)

    async def look_around() -> None:
        try:
            await client.__aenter__()
            for _ in range(3):
                await refused(client.refresh())
                await refused(client.search())
        finally:
            await client.close()

    await refused(look_around())
    return sum(wire.damaged for wire in wires)


IMPATIENT = SessionLimits(handshake_s=0.3, request_s=0.3)


async def ask_a_node(mutator: Mutator, rng: random.Random, *, spare: int) -> int:
    """A client works at a node whose answers are damaged. How many were."""
    wires: list[Damaging] = []

    def wrap(transport: Transport) -> Transport:
        wires.append(Damaging(transport, mutator, rng, spare))
        return wires[-1]

    node = SmallNode(wrap=wrap)
    connection = node.connection()
    serving = asyncio.create_task(node.serve())

    async def work() -> None:
        x = connection.put(X, None)  # type: ignore[arg-type]
        y = (x @ x.T).sum(0)
        for value in (x, y, y + 1):
            await refused(connection.read(value, 0.3))

    try:
        await refused(work())
    finally:
        serving.cancel()
        await asyncio.wait([serving])
    return sum(wire.damaged for wire in wires)
