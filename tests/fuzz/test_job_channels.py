"""Mutated frames inside sealed job channels: from a client and from a node to a gateway, and from a gateway to a node.

Beside frames, what is signed is mutated and signed again: a job's spec, and the plans that it names. Whatever is said, it is
answered, refused or cut off, and honest jobs are carried out meanwhile and afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
from mutants import Mutator, frame_of, frames_of_every_type, mutated, replaced
from watch import Watch
from wires import Counting, Damaging, Mutants, Talk, pour, refused, talk

from grid.client.training import Order
from grid.clock import SystemClock
from grid.crypto.cards import GATEWAY
from grid.crypto.envelope import MAX_ENVELOPE_BYTES, seal
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import GridError, WireError
from grid.federated.spec import KIND
from grid.ids import GridId, JobId, PeerId, random_id
from grid.rpc.channel import accept_channel, open_channel
from grid.rpc.job_channel import job_channel
from grid.rpc.peer import Peer
from grid.rpc.reconnect import Backoff
from grid.settings import GatewaySettings, SessionLimits
from grid.testing import LocalGrid
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.wire.codec import decode
from grid.wire.jobs import CancelJob, EndJob, FetchWeights, JobList, JobWeights, ListJobs, StartJob, WatchJob
from grid.wire.messages import MESSAGES, Message, TensorFrame
from tests.federated.scripted_nodes import NODE_HANDLERS, ScriptedNode, mean_step, some_nodes
from tests.gateway.job_site import WATCHER_HANDLERS, JobSite, Watcher
from tests.node.job_host import NAMES, Host, Round, made_order, offer, rows_of

LIMITS = SessionLimits()
CLOCK = SystemClock()
SMALL = GatewaySettings(max_job_bytes=1 << 20)
"""A small limit, so that what goes beyond it shows."""

IN_A_SESSION = 40
PROBE_EVERY = 4
"""Sessions after which an honest job is carried out."""


def frames_about_jobs() -> Mapping[str, Sequence[bytes]]:
    """Valid frames of every type of message about jobs, in either direction."""
    return {tag: frames for tag, frames in frames_of_every_type().items() if MESSAGES[tag].__module__ == "grid.wire.jobs"}


def grid_of_three() -> LocalGrid:
    return LocalGrid({name: {"rows": rows_of(seed)} for seed, name in enumerate(NAMES)}, gateway=SMALL)


@asynccontextmanager
async def session_with(
    me: LocalIdentity, dial: Callable[[Counting], None], gateway: PeerId
) -> AsyncIterator[tuple[Transport, Counting]]:
    """A sealed channel to a gateway's coordinator, and what counts the frames that it takes. `dial` is given the far end."""
    ours, theirs = memory_pair()
    there = Counting(theirs)
    dial(there)
    expect, grid = Expected(id=gateway, role=GATEWAY), GridId(gateway)
    channel = await open_channel(ours, me=me, trust=Trust.dev(), expect=expect, grid=grid, limits=LIMITS, clock=CLOCK)
    yield channel, there


# ------------------------------------------------------------ a client, at a gateway


class Asker:
    """An honest client with a session of its own at a gateway, whose jobs come to their end."""

    def __init__(self, local: LocalGrid, peer: Peer, watcher: Watcher, me: LocalIdentity, made: Order) -> None:
        self._local, self._peer, self._watcher, self._me, self._made = local, peer, watcher, me, made

    async def works(self) -> None:
        """A job of one round is carried out by all three nodes."""
        async with asyncio.timeout(60):
            message, job = again(self._made, self._me)
            self._watcher.reports.clear()
            self._watcher.cards.clear()
            await self._peer.request(message)
            await self._peer.request(WatchJob(job=job))
            card = await self._watcher.until(lambda card: card.id == job and card.ended > 0)
            model = await self._peer.request(FetchWeights(job=job))
        assert (card.state, card.round) == ("done", 1), card.text
        assert self._watcher.reports[0].nodes == 3
        assert isinstance(model, JobWeights) and bytes(model.weights.data) != bytes(self._made.message.weights.data)

    async def clear(self) -> None:
        """End all jobs of others, which in a --dev grid anybody may: nothing of them is left at the nodes."""
        async with asyncio.timeout(60):
            while await self._cancel() or self._train():  # noqa: ASYNC110 - no event tells of all this
                await asyncio.sleep(0.01)

    async def _cancel(self) -> bool:
        """Cancel what is under way, and say whether there was anything: an order may have been on its way before."""
        found = await self._peer.request(ListJobs())
        assert isinstance(found, JobList)
        left = [card.id for card in found.jobs if not card.ended]
        for job in left:
            await self._peer.request(CancelJob(job=job))
        return bool(left)

    def _train(self) -> list[str]:
        """Jobs that train at nodes."""
        jobs = [self._local.node(name)._jobs for name in NAMES]
        return [job for one in jobs if one is not None for job in one._trainers._open]


def again(made: Order, me: LocalIdentity, **changes: Any) -> tuple[StartJob, JobId]:
    """The same job of somebody else, under an id of its own."""
    job = JobId(random_id())
    spec = dataclasses.replace(made.spec, job=job, client=me.id, **changes)
    return dataclasses.replace(made.message, envelope=spec.sign(me), card=me.card), job


@asynccontextmanager
async def asker(local: LocalGrid, made: Order) -> AsyncIterator[Asker]:
    me, watcher = LocalIdentity.create(name="ann", role="client", clock=CLOCK), Watcher()
    async with job_channel(
        local._inside.dial_jobs,
        me=me,
        trust=Trust.dev(),
        grid=GridId(local.gateway.grid),
        gateway=PeerId(local.gateway.grid),
        handlers=WATCHER_HANDLERS,
        context=watcher,
        limits=LIMITS,
        clock=CLOCK,
    ) as peer:
        yield Asker(local, peer, watcher, me, made)


def signed_mutant(rng: random.Random, made: Order, me: LocalIdentity) -> StartJob:
    """An order with some field of the job changed, or a bit of one of its plans, under a signature that holds."""
    spec: Any = msgpack.unpackb(msgpack.packb(dataclasses.asdict(dataclasses.replace(made.spec, job=JobId(random_id())))))
    spec["client"] = me.id
    message = made.message
    if rng.random() < 0.7:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            changed = replaced(rng, spec)
            spec = changed if len(msgpack.packb(changed)) < MAX_ENVELOPE_BYTES - 1000 else spec
    else:
        which = rng.choice(("train", "evaluate"))
        plan = bytearray(getattr(message, which))
        plan[rng.randrange(len(plan))] ^= 1 << rng.randrange(8)
        spec[which] = hashlib.sha256(plan).hexdigest()
        message = dataclasses.replace(message, **{which: bytes(plan)})  # type: ignore[arg-type]
    if rng.random() < 0.2:
        size = rng.choice((0, 1, message.weights.shape[0], 1000))
        message = dataclasses.replace(message, weights=TensorFrame(dtype="f4", shape=(size,), data=rng.randbytes(4 * size)))
    return dataclasses.replace(message, envelope=seal(KIND, msgpack.packb(spec), me.key), card=me.card)


@pytest.mark.fuzz("job clients")
@pytest.mark.timeout(1500)
async def test_a_gateway_answers_or_refuses_a_clients_mutated_frames_about_jobs(count: int, seed: int) -> None:
    async with asyncio.TaskGroup() as tasks, grid_of_three() as local:
        gateway = local.gateway

        def serve(there: Counting) -> None:
            tasks.create_task(gateway.serve_jobs(there))

        made = await made_order(local, rounds=1, min_nodes=3)
        async with asker(local, made) as honest:
            await honest.works()
            taken = sessions = 0
            async with Watch(f"a gateway, from a client about jobs, seed {seed}"):
                while taken < count:
                    rng = random.Random(f"{seed}/{sessions}")
                    me = LocalIdentity.create(name="mallory", role="client", clock=CLOCK)  # nodes count failures by client
                    own, job = again(made, me, rounds=100_000)
                    about = [*(WatchJob(job=job, after=after) for after in (0, 5)), FetchWeights(job=job), CancelJob(job=job)]
                    mutants = Mutants(mutated(frames_about_jobs(), [own, *about, ListJobs()], seed + sessions))
                    async with session_with(me, serve, PeerId(gateway.grid)) as (channel, there), talk(channel, there) as session:
                        await session.ask(own)
                        for _ in range(min(count - taken, IN_A_SESSION) // 2):
                            frame = frame_of(signed_mutant(rng, made, me), session.request_id())
                            taken += await session.tell(frame)
                        taken += await pour(mutants, session, min(count - taken, IN_A_SESSION // 2))
                    sessions += 1
                    await honest.clear()
                    if sessions % PROBE_EVERY == 0:
                        await honest.works()
                await honest.clear()
            await honest.works()


# ------------------------------------------------------------ a node, at a gateway


class Torn(JobSite):
    """A site at which the last node's frames are damaged inside its seal."""

    def __init__(self, nodes: Sequence[ScriptedNode], mutator: Mutator, rng: random.Random) -> None:
        super().__init__(nodes)
        self.wires: list[Damaging] = []
        self._hostile = nodes[-1]
        self._mutator, self._rng = mutator, rng

    @property
    def damaged(self) -> int:
        return sum(wire.damaged for wire in self.wires)

    async def _live(self, node: ScriptedNode) -> None:
        if node is not self._hostile:
            return await super()._live(node)

        def dial(there: Counting) -> None:
            self._tasks.create_task(self.door.serve(there))

        with contextlib.suppress(GridError):
            async with session_with(node.me, dial, self.me.id) as (channel, _):
                self.wires.append(Damaging(channel, self._mutator, self._rng, spare=self._rng.choice((1, 2, 3, 6)), share=0.5))
                async with Peer(
                    self.wires[-1],
                    initiator=True,
                    handlers=NODE_HANDLERS,
                    context=node,
                    limits=LIMITS,
                    clock=CLOCK,
                    name="gateway",
                ) as node.peer:
                    await node.peer.wait_closed()


@pytest.mark.fuzz("job nodes")
@pytest.mark.timeout(1500)
async def test_a_gateway_takes_a_nodes_mutated_answers_for_what_they_are(count: int, seed: int) -> None:
    """Jobs with the hostile node may come to nothing; they do come to an end, and those of the others to the right model."""
    nodes = some_nodes(4)
    start = np.zeros(10, "f4")

    async def works(site: JobSite) -> None:
        spec = site.spec(datasets=tuple((node.id, "rows") for node in nodes[:3]), rounds=2)
        async with asyncio.timeout(60):
            watcher, card = await site.run(spec, start)
        assert (card.state, card.round) == ("done", 2), card.text
        loss = (2 * mean_step(nodes[:3])) ** 2
        assert watcher.reports[-1].metrics == (pytest.approx(loss, rel=1e-5),)

    mutator = Mutator(frames_about_jobs(), seed)
    async with Torn(nodes, mutator, random.Random(seed)) as site:
        await works(site)
        number = 0
        async with Watch(f"a gateway, from a node about jobs, {mutator}"):
            while site.damaged < count:
                spec = site.spec(rounds=2, secure=number % 4 > 0, deadline_s=0.2)
                async with asyncio.timeout(60):
                    _, card = await site.run(spec, start)
                assert card.state in ("done", "failed")
                number += 1
                if number % PROBE_EVERY == 0:
                    await works(site)
        await works(site)


# ------------------------------------------------------------ a gateway, at a node


class At:
    """Alice's job channels, which lead to us instead of to her gateway inside `taken`."""

    def __init__(self, local: LocalGrid) -> None:
        jobs = local.node("alice")._jobs
        assert jobs is not None
        self._local, self._jobs = local, jobs
        self._dialed: deque[tuple[Transport, Counting]] = deque()
        self._came = asyncio.Event()

    async def _dial(self) -> Transport:
        ours, theirs = memory_pair()
        there = Counting(theirs)
        self._dialed.append((ours, there))
        self._came.set()
        return there

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        before = self._jobs._dial, self._jobs._backoff
        self._jobs._dial = self._dial
        self._jobs._backoff = Backoff(CLOCK, random.Random(0), first_s=0.0, most_s=0.0)
        try:
            yield
        finally:
            self._jobs._dial, self._jobs._backoff = before

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Talk]:
        """A session of the gateway that she has joined, of which we write the frames."""
        self._jobs.called()
        while not self._dialed:
            self._came.clear()
            await self._came.wait()
        ours, there = self._dialed.popleft()
        door = self._local.gateway._job_door
        channel = await accept_channel(ours, me=door._me, trust=Trust.dev(), grid=door._grid, limits=LIMITS, clock=CLOCK)
        async with talk(channel, there, first=2) as made:
            yield made


def other_weights(made: Order, number: int) -> Any:
    """A model of its own for each round: over one a node helps to open one sum."""
    return (np.frombuffer(made.message.weights.data, "<f4") + number / 1000).astype("<f4")


@pytest.mark.fuzz("job gateways")
@pytest.mark.timeout(1500)
async def test_a_node_answers_or_refuses_a_gateways_mutated_frames(count: int, seed: int) -> None:
    async with grid_of_three() as local:
        made = await made_order(local, rounds=100)
        host = Host(local)
        await host.call(*NAMES)
        for name in NAMES:
            await host.ask(name, offer(made))
        one = Round(host, made)
        sensible: list[Message] = [offer(made), one.beginning(), one.beginning(with_weights=False)]
        await one.begin()
        sensible.append(one.roster())
        await one.share()
        sensible.append(one.shares("alice"))
        await one.collect()
        sensible.append(one.survivors())
        await one.open()
        sensible += [one.unmasking(), EndJob(job=made.spec.job)]
        mutator = mutated(frames_about_jobs(), sensible, seed)
        mutants, taken = Mutants(mutator), 0
        alice = At(local)
        async with Watch(f"a node, from a gateway, {mutator}"):
            with alice.taken():
                host.peers["alice"].notify(EndJob(job=made.spec.job))
                host.peers["alice"].close_soon()
                while taken < count:
                    async with alice.session() as session:
                        await session.ask(offer(made))
                        await session.ask(one.beginning())
                        taken += await pour(mutants, session, min(count - taken, IN_A_SESSION))
                        await session.tell(frame_of(EndJob(job=made.spec.job)))
            await host.call("alice")
        await host.ask("alice", offer(made))
        assert (await Round(host, made, number=2, weights=other_weights(made, 2)).all()).weight == 120


@pytest.mark.fuzz("job legs")
@pytest.mark.timeout(1500)
async def test_a_node_refuses_the_mutated_legs_of_a_round_and_takes_part_in_the_next(count: int, seed: int) -> None:
    """Each leg comes mutated first, with what this round has so far, and then as it is."""
    async with grid_of_three() as local:
        made = await made_order(local, rounds=100_000)
        host = Host(local)
        await host.call(*NAMES)
        for name in NAMES:
            await host.ask(name, offer(made))
        mutator, rng, sent = Mutator(frames_about_jobs(), seed), random.Random(seed), 0

        async def wrong(message: Message) -> None:
            nonlocal sent
            sent += 1
            with contextlib.suppress(WireError):
                mutant = decode(mutator.of_header(rng, frame_of(message, 1))).message
                await refused(host.peers["alice"].request(mutant, timeout_s=20))

        ended = 0
        async with Watch(f"a node, from a gateway in the legs of a round, {mutator}"):
            number = 0
            while sent < count:
                number += 1
                one = Round(host, made, number=number, weights=other_weights(made, number))
                with contextlib.suppress(GridError):  # a round may be over for her by what was said in between
                    await wrong(one.beginning())
                    await one.begin()
                    await wrong(one.roster())
                    await one.share()
                    await wrong(one.shares("alice"))
                    await one.collect()
                    await wrong(one.survivors())
                    await one.open()
                    ended += 1
        assert ended
        assert (await Round(host, made, number=number + 1, weights=other_weights(made, 0)).all()).weight == 120
