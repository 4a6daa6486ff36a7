"""Secure sums between nodes: lost, slow, lying and repeating nodes. A hostile node here is a real channel with raw messages."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch
from node_mesh import CLOCK, LIMITS, Mesh, RawClient, client, clients, dataset, mesh, secure_sum
from torch import Tensor

from grid.crypto.envelope import seal
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import ExecutionFailed, GridError, InvalidRequest, NodeUnavailable, QuorumLost, ReleaseDenied
from grid.ids import PeerId, PlanId, SumId, random_id
from grid.node.early import MAX_PER_NODE
from grid.node.one_sum import KIND
from grid.plans.trace import trace
from grid.rpc.channel import accept_channel
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.smpc.statement import Statement
from grid.store.memory import MemoryStore
from grid.tensors.buffers import to_frame
from grid.tensors.fixed import NOT_REPRESENTABLE
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.wire.messages import Message, Ref, SumAnnouncement, SumShare

NAMES = ("alice", "bob", "carol")


@pytest.fixture
async def made() -> AsyncIterator[Mesh]:
    async with mesh({name: [dataset(40 + seed, 3, seed)] for seed, name in enumerate(NAMES)}) as nodes:
        yield nodes


@pytest.fixture
async def trio(made: Mesh) -> AsyncIterator[dict[str, RawClient]]:
    async with clients(made) as raw:
        yield raw


async def own_values(trio: dict[str, RawClient], values: list[Tensor]) -> dict[str, Ref]:
    return {name: await raw.put(value) for (name, raw), value in zip(trio.items(), values, strict=True)}


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something has become true; what changes here has no event to wait for."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def until_nothing_is_left(made: Mesh) -> None:
    await until(lambda: not any(node.sums._running or len(node.sums._common.early) for node in made.nodes.values()))


# ---------------------------------------------------------------- what works


@pytest.mark.parametrize("bits", [0, 16, 40])
async def test_the_sum_is_right_to_the_stated_bound(trio: dict[str, RawClient], made: Mesh, bits: int) -> None:
    values = [torch.randn(4, 5, dtype=torch.float64) * 100 for _ in NAMES]
    result, errors = await secure_sum(trio, await own_values(trio, values), bits=bits)
    assert not errors and result is not None
    assert (result - sum(values)).abs().max() <= 3 * 2.0 ** -(bits + 1) + 1e-9
    await until_nothing_is_left(made)


async def test_integers_are_summed_exactly_and_scalars_and_nothing_are_too(trio: dict[str, RawClient]) -> None:
    for shape in ((), (0,), (3, 1)):
        values = [torch.full(shape, value) for value in (2**40, -7, 5)]
        result, errors = await secure_sum(trio, await own_values(trio, values), bits=0)
        assert not errors and result is not None and torch.equal(result.long(), sum(values))


async def test_many_sums_at_once_keep_apart(trio: dict[str, RawClient], made: Mesh) -> None:
    async def one(number: int) -> None:
        values = [torch.full((7,), float(number * factor)) for factor in (1, 10, 100)]
        result, errors = await secure_sum(trio, await own_values(trio, values))
        assert not errors and result is not None and torch.equal(result, torch.full((7,), number * 111.0).double())

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(one(number))
    await until_nothing_is_left(made)


async def test_a_large_value_is_summed_while_heartbeats_go_on(trio: dict[str, RawClient]) -> None:
    values = [torch.randn(1_000_000) for _ in NAMES]
    result, errors = await secure_sum(trio, await own_values(trio, values))
    assert not errors and result is not None
    assert (result - torch.stack(values).double().sum(0)).abs().max() <= 3 * 2.0**-25


async def test_the_operand_is_what_it_was_when_the_sum_was_asked_for(trio: dict[str, RawClient]) -> None:
    refs = await own_values(trio, [torch.ones(2)] * 3)
    name, roster = SumId(random_id()), [raw.node.id for raw in trio.values()]
    asked = [asyncio.ensure_future(raw.start_sum(name, roster, refs[node])) for node, raw in trio.items()]
    await asyncio.sleep(0)  # the requests are on their way
    for node, raw in trio.items():
        await raw.run(torch.ops.aten.mul_.Tensor, refs[node], 1000.0, outputs=0)
    parts = [part.numpy().view("uint64") for part in await asyncio.gather(*asked)]
    assert ((parts[0] + parts[1] + parts[2]) >> 24).tolist() == [3, 3]


# ---------------------------------------------------------------- what is refused


async def test_a_sum_name_is_used_once_at_each_node_even_after_a_failure(trio: dict[str, RawClient]) -> None:
    name = SumId(random_id())
    refs = await own_values(trio, [torch.ones(2)] * 3)
    assert not (await secure_sum(trio, refs, sum_id=name))[1]
    _, errors = await secure_sum(trio, refs, sum_id=name)
    assert len(errors) == 3 and all(isinstance(error, InvalidRequest) for error in errors.values())


@pytest.mark.parametrize("labelled", [False, True])
async def test_a_restarted_node_remembers_the_sums_it_took_part_in(labelled: bool) -> None:
    stores = {name: MemoryStore() for name in NAMES}
    plan = trace(lambda x: x.sum(0), torch.randn(40, 3))
    name = SumId(random_id())
    for attempt in range(2):
        owned = {node: [dataset(seed=seed)] for seed, node in enumerate(NAMES)}
        async with mesh(owned, stores=stores) as made, clients(made) as raw:
            if labelled:
                refs = {node: (await one.plan(plan, await one.open()))[0] for node, one in raw.items()}
            else:
                refs = await own_values(raw, [torch.ones(2)] * 3)
            _, errors = await secure_sum(raw, refs, sum_id=name)
            assert bool(errors) == bool(attempt)
            if attempt:
                assert all(isinstance(error, InvalidRequest) for error in errors.values())


@pytest.mark.parametrize("case", ["twice", "without", "empty", "unknown"])
async def test_rosters_that_are_none_are_refused(trio: dict[str, RawClient], case: str) -> None:
    alice, bob = trio["alice"], trio["bob"]
    ref = await alice.put(torch.ones(1))
    rosters: dict[str, list[PeerId]] = {
        "twice": [alice.node.id, alice.node.id, bob.node.id],
        "without": [bob.node.id],
        "empty": [],
        "unknown": [alice.node.id, PeerId("nobody")],
    }
    error = QuorumLost if case == "unknown" else InvalidRequest
    with pytest.raises(error):
        await alice.start_sum(SumId(random_id()), rosters[case], ref)


async def test_formats_that_do_not_fit_are_refused(trio: dict[str, RawClient]) -> None:
    raw = trio["alice"]
    ref = await raw.put(torch.ones(1))
    for bits, deadline_s in ((49, 10.0), (-1, 10.0), (16, 0.0), (16, -1.0), (16, 1e9)):
        with pytest.raises(InvalidRequest):
            await raw.start_sum(SumId(random_id()), [raw.node.id], ref, bits=bits, deadline_s=deadline_s)


async def test_shapes_that_differ_are_refused_by_name(trio: dict[str, RawClient]) -> None:
    _, errors = await secure_sum(trio, await own_values(trio, [torch.ones(2), torch.ones(3), torch.ones(2)]))
    assert len(errors) == 3
    assert any(error.details.get("rule") == "sum.shape" and "bob" in error.message for error in errors.values())


async def test_a_failed_or_unknown_operand_ends_the_sum_everywhere(trio: dict[str, RawClient], made: Mesh) -> None:
    refs = await own_values(trio, [torch.ones(2)] * 3)
    refs["bob"] = Ref(10**6)
    _, errors = await secure_sum(trio, refs)
    assert errors["bob"].code == "not-found"
    for name in ("alice", "carol"):
        assert isinstance(errors[name], QuorumLost) and errors[name].details["node"] == "bob"
    await until_nothing_is_left(made)


async def test_nan_and_overflow_have_one_text_and_count_where_they_are_private(trio: dict[str, RawClient]) -> None:
    for bad in (float("nan"), 1e30):
        _, errors = await secure_sum(trio, await own_values(trio, [torch.ones(1), torch.tensor([bad]), torch.ones(1)]))
        assert isinstance(errors["bob"], ExecutionFailed) and errors["bob"].message == NOT_REPRESENTABLE
    plan = trace(lambda x: (x.sum(0) - 1e30).log(), torch.randn(40, 3))
    refs = {name: (await raw.plan(plan, await raw.open()))[0] for name, raw in trio.items()}
    _, errors = await secure_sum(trio, refs)
    assert all(error.message == NOT_REPRESENTABLE or isinstance(error, QuorumLost) for error in errors.values())


async def test_in_dev_two_nodes_suffice_and_one_does_not(trio: dict[str, RawClient]) -> None:
    plan = trace(lambda x: x.sum(0), torch.randn(40, 3))
    refs = {name: (await raw.plan(plan, await raw.open()))[0] for name, raw in trio.items()}
    assert not (await secure_sum(trio, {name: refs[name] for name in ("alice", "bob")}))[1]
    refs = {"alice": (await trio["alice"].plan(plan, await trio["alice"].open()))[0]}
    _, errors = await secure_sum(trio, refs)
    assert errors["alice"].details["rule"] == "sum.cohort"


async def test_open_datasets_do_not_hide_the_one_that_is_not() -> None:
    plan = trace(lambda x: x.sum(0), torch.randn(40, 3))
    for closed, refused in (("", False), ("alice", True)):
        policies = {name: {} if name == closed else {"release": "open"} for name in NAMES}
        owned = {name: [dataset(seed=seed, share=True, **policies[name])] for seed, name in enumerate(NAMES)}
        async with mesh(owned) as made, clients(made) as raw:
            refs = {name: (await one.plan(plan, await one.open()))[0] for name, one in raw.items()}
            _, errors = await secure_sum(raw, refs)
            assert bool(errors) == refused
            if closed:
                assert errors[closed].details["rule"] == "sum.cohort"
                state = made.nodes[closed]._custody.gate._store.load("d")
                assert state is not None and state.elements == 0


async def test_a_refusal_by_one_owner_is_told_to_the_client_and_named_at_the_others() -> None:
    owned = {"alice": [dataset()], "bob": [dataset(seed=1, release="deny")], "carol": [dataset(seed=2)]}
    plan = trace(lambda x: x.sum(0), torch.randn(40, 3))
    async with mesh(owned) as made, clients(made) as raw:
        refs = {name: (await one.plan(plan, await one.open()))[0] for name, one in raw.items()}
        _, errors = await secure_sum(raw, refs)
        assert isinstance(errors["bob"], ReleaseDenied)
        for name in ("alice", "carol"):
            assert isinstance(errors[name], QuorumLost) and errors[name].details["node"] == "bob"
            assert "deny" not in errors[name].message  # an owner's rules are for the client alone
        for name in ("alice", "carol"):  # nothing was used up there
            state = made.nodes[name]._custody.gate._store.load("d")
            assert state is not None and state.elements == 0


async def test_a_sum_is_charged_like_any_release_before_shares_leave() -> None:
    owned = {name: [dataset(seed=seed, max_elements=4)] for seed, name in enumerate(NAMES)}
    plan = trace(lambda x: x.sum(0), torch.randn(40, 3))
    async with mesh(owned) as made, clients(made) as raw:
        for attempt in range(2):
            refs = {name: (await one.plan(plan, await one.open()))[0] for name, one in raw.items()}
            _, errors = await secure_sum(raw, refs)
            assert bool(errors) == bool(attempt)
        assert any(error.code == "budget" for error in errors.values())


# ---------------------------------------------------------------- what gets lost


async def test_a_node_that_is_offline_is_named_at_every_node(trio: dict[str, RawClient], made: Mesh) -> None:
    refs = await own_values(trio, [torch.ones(2)] * 3)
    await made.cut("carol")
    roster = [node.id for node in made.nodes.values()]
    name = SumId(random_id())
    asked = [trio[node].start_sum(name, roster, refs[node], deadline_s=15.0) for node in ("alice", "bob")]
    answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
    for answer in answers:
        assert isinstance(answer, QuorumLost) and answer.details["peer"] == made.nodes["carol"].id
    await until_nothing_is_left(made)


async def test_a_node_that_is_lost_on_the_way_is_named_at_every_node(trio: dict[str, RawClient], made: Mesh) -> None:
    refs = await own_values(trio, [torch.ones(2)] * 3)
    assert not (await secure_sum(trio, refs))[1]  # now all are connected
    name, roster = SumId(random_id()), [node.id for node in made.nodes.values()]
    asked = [asyncio.ensure_future(trio[node].start_sum(name, roster, refs[node])) for node in ("alice", "bob")]
    await until(lambda: all(_announcing(made.nodes[node], name) for node in ("alice", "bob")))
    await made.cut("carol")
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(answer, QuorumLost) and answer.details["node"] == "carol"
    await until_nothing_is_left(made)


def _announcing(node: Any, name: SumId) -> bool:
    begun = node.sums._running.get(name)
    return begun is not None and begun.party is not None and len(begun._sessions) == 2


async def test_a_node_that_was_never_asked_is_named_at_the_deadline(trio: dict[str, RawClient], made: Mesh) -> None:
    refs = await own_values(trio, [torch.ones(2)] * 3)
    name, roster = SumId(random_id()), [node.id for node in made.nodes.values()]
    asked = [trio[node].start_sum(name, roster, refs[node], deadline_s=1.0) for node in ("alice", "bob")]
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(answer, QuorumLost) and answer.details["node"] == "carol"
    await until(lambda: not any(node.sums._running for node in made.nodes.values()))
    with pytest.raises(GridError):  # too late: the others have ended it
        await trio["carol"].start_sum(name, roster, refs["carol"], deadline_s=1.0)


async def test_a_client_that_leaves_ends_its_sum_at_every_node(made: Mesh) -> None:
    async with clients(made) as raw:
        refs = await own_values(raw, [torch.ones(2)] * 3)
        name, roster = SumId(random_id()), [node.id for node in made.nodes.values()]
        asked = [
            asyncio.ensure_future(raw[node].start_sum(name, roster, refs[node], deadline_s=300.0)) for node in ("alice", "bob")
        ]
        await until(lambda: all(_announcing(made.nodes[node], name) for node in ("alice", "bob")))
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(answer, GridError)
    await until(lambda: not any(node.sums._running for node in made.nodes.values()))


# ---------------------------------------------------------------- a hostile node


class Hostile:
    """A node of the grid, with a valid card, that sends what it likes."""

    def __init__(self, made: Mesh) -> None:
        self.made = made
        self.me = LocalIdentity.create(name="mallory", role="node", clock=CLOCK)
        self.id = self.me.id
        self.came: asyncio.Queue[tuple[str, Message]] = asyncio.Queue()
        self.peers: dict[str, Peer] = {}
        self.connected = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Hostile]:
        async with asyncio.TaskGroup() as self._tasks:
            self.made.nodes["mallory"] = self  # type: ignore[assignment]
            yield self
            for peer in self.peers.values():
                peer.close_soon()
            del self.made.nodes["mallory"]

    def accept(self, transport: Transport) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self._serve(transport))

    async def _serve(self, transport: Transport) -> None:
        channel = await accept_channel(
            transport, me=self.me, trust=Trust.dev(), grid=self.made.grid, limits=LIMITS, clock=CLOCK, roles=("node",)
        )
        name = channel.peer.name
        note = lambda context, message: self.came.put_nowait((name, message))  # noqa: E731
        handlers = Handlers({SumAnnouncement: note, SumShare: note})
        peer = Peer(channel, initiator=False, handlers=handlers, context=None, limits=LIMITS, clock=CLOCK, name=name)
        async with peer:
            self.peers[name] = peer
            self.connected.set()
            await peer.wait_closed()

    def statement(self, name: SumId, roster: list[PeerId], **changes: Any) -> Statement:
        base = Statement(
            sum=name,
            roster=tuple(roster),
            node=self.id,
            plan=PlanId(""),
            arguments="",
            shape=(2,),
            fraction_bits=24,
            rows=0,
            labelled=False,
            own=False,
            open=False,
            expiry=CLOCK.wall() + 60,
            nonce=secrets.token_bytes(16),
        )
        return dataclasses.replace(base, **changes)

    def announce(self, to: str, statement: Statement, *, by: LocalIdentity | None = None, kind: str = KIND) -> None:
        envelope = seal(kind, statement.encode(), (by or self.me).key)
        self.peers[to].notify(SumAnnouncement(sum=statement.sum, envelope=envelope))


Lie = Callable[[Hostile, SumId, list[PeerId]], None]


def announce_twice(hostile: Hostile, name: SumId, roster: list[PeerId]) -> None:
    for _ in range(2):
        hostile.announce("alice", hostile.statement(name, roster))


def share(tensor: Tensor) -> Lie:
    def lie(hostile: Hostile, name: SumId, roster: list[PeerId]) -> None:
        hostile.announce("alice", hostile.statement(name, roster))
        hostile.peers["alice"].notify(SumShare(sum=name, tensor=to_frame(tensor)))

    return lie


def share_twice(hostile: Hostile, name: SumId, roster: list[PeerId]) -> None:
    share(torch.zeros(2, dtype=torch.long))(hostile, name, roster)
    hostile.peers["alice"].notify(SumShare(sum=name, tensor=to_frame(torch.zeros(2, dtype=torch.long))))


LIES: dict[str, Lie] = {
    "another roster": lambda h, n, r: h.announce("alice", h.statement(n, list(reversed(r)))),
    "another shape": lambda h, n, r: h.announce("alice", h.statement(n, r, shape=(3,))),
    "another's name": lambda h, n, r: h.announce("alice", h.statement(n, r, node=r[0])),
    "yesterday's statement": lambda h, n, r: h.announce("alice", h.statement(n, r, expiry=CLOCK.wall() - 1)),
    "another key": lambda h, n, r: h.announce(
        "alice", h.statement(n, r), by=LocalIdentity.create(name="mallory", role="node", clock=CLOCK)
    ),
    "another kind of envelope": lambda h, n, r: h.announce("alice", h.statement(n, r), kind="grid card 1"),
    "no envelope": lambda h, n, r: h.peers["alice"].notify(SumAnnouncement(sum=n, envelope=b"nothing")),
    "the statement of another sum": lambda h, n, r: h.peers["alice"].notify(
        SumAnnouncement(sum=n, envelope=seal(KIND, h.statement(SumId("other"), r).encode(), h.me.key))
    ),
    "two announcements": announce_twice,
    "a share of another shape": share(torch.zeros(3, dtype=torch.long)),
    "a share of another rank": share(torch.zeros(2, 1, dtype=torch.long)),
    "a share of another dtype": share(torch.zeros(2)),
    "two shares": share_twice,
    "a share before its announcement": lambda h, n, r: h.peers["alice"].notify(
        SumShare(sum=n, tensor=to_frame(torch.zeros(2, dtype=torch.long)))
    ),
    "a withdrawal that blames alice": lambda h, n, r: h.peers["alice"].notify(SumShare(sum=n)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_node_ends_the_sum_before_alices_share_leaves(made: Mesh, lie: str) -> None:
    async with Hostile(made).running() as hostile, client(made, "alice") as raw:
        ref = await raw.put(torch.ones(2))
        name, roster = SumId(random_id()), [raw.node.id, hostile.id]
        asked = asyncio.ensure_future(raw.start_sum(name, roster, ref))
        await asyncio.wait_for(hostile.connected.wait(), 20)
        first = await asyncio.wait_for(hostile.came.get(), 20)
        assert isinstance(first[1], SumAnnouncement)
        LIES[lie](hostile, name, roster)
        with pytest.raises(GridError) as caught:
            await asyncio.wait_for(asked, 20)
        assert "in time" not in caught.value.message  # found out, not waited out
        while not hostile.came.empty():
            message = hostile.came.get_nowait()[1]
            assert isinstance(message, SumShare) and message.tensor is None  # withdrawals only


async def test_announcements_of_sums_that_nobody_asked_for_are_bounded(made: Mesh) -> None:
    async with Hostile(made).running() as hostile, client(made, "alice") as raw:
        ref = await raw.put(torch.ones(2))
        asked = asyncio.ensure_future(raw.start_sum(SumId("first"), [raw.node.id, hostile.id], ref))
        await asyncio.wait_for(hostile.came.get(), 20)  # alice's announcement: her side of this sum has begun
        for number in range(50):  # longer than any statement that is believed
            hostile.peers["alice"].notify(SumAnnouncement(sum=SumId(f"long {number}"), envelope=bytes(1 << 20)))
        for number in range(2000):
            hostile.announce("alice", hostile.statement(SumId(f"flood {number}"), [hostile.id, raw.node.id]))
        hostile.peers["alice"].notify(SumShare(sum=SumId("first")))
        with pytest.raises(QuorumLost):
            await asyncio.wait_for(asked, 20)
        early = made.nodes["alice"].sums._common.early
        assert len(early) == MAX_PER_NODE and not early.take(SumId("long 0"))


async def test_a_client_cannot_send_what_only_nodes_send(trio: dict[str, RawClient]) -> None:
    raw = trio["alice"]
    with pytest.raises(InvalidRequest):
        await raw.request(SumShare(sum=SumId("x")))
    near, far = memory_pair()
    raw.node.accept(far)
    await near.close()
    with pytest.raises(NodeUnavailable):
        await near.receive()
    assert (await raw.get(await raw.put(torch.ones(1)))).item() == 1
    assert Expected(role="node").role == "node"
