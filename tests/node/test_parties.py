"""Three parties by themselves, in this process and in processes of their own: one suite for both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from grid.clock import SystemClock
from grid.errors import GridError, NodeUnavailable, NotFound, QuorumLost, QuotaExceeded, WireError
from grid.ids import CommitteeId, ObjectId, PeerId
from grid.node.committees import deal
from grid.node.party import LocalParties, LocalParty, Parties, PartyPort
from grid.node.party_messages import Begin, Dealt, LinkKeys, ShareOffer
from grid.node.party_process import ProcessParties, ProcessParty
from grid.settings import NodeSettings
from grid.transport.pipes import pipe
from grid.wire.messages import (
    Command,
    ExpectShare,
    FreeShares,
    GetShare,
    Message,
    Ok,
    OwnerRule,
    Ref,
    SecureCommands,
    ShareInput,
)

COMMITTEE = CommitteeId("0" * 32)
X = np.array([3, 5, 8], np.uint64)


class User:
    """A committee's ear. It ends the party that cannot go on, as a committee does."""

    port: PartyPort

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.broken: dict[int, GridError] = {}
        self.over: asyncio.Future[GridError] = asyncio.get_running_loop().create_future()

    def party_ready(self) -> None:
        self.ready.set()

    def lane_broken(self, place: int, error: GridError) -> None:
        self.broken[place] = error

    def party_over(self, error: GridError) -> None:
        if not self.over.done():
            self.over.set_result(error)
            self.port.end(error)


class Three:
    """Three parties with links between them. `steal`: there is no third, and the test has its sockets to party 0 and 1."""

    def __init__(self, parties: Parties, *, deadline_s: float = 20.0, clients: int = 2, steal: bool = False) -> None:
        self.users = [User() for _ in range(3)]
        self.ports: list[PartyPort] = []
        self.number = [0] * clients
        keys = [secrets.token_bytes(16) for _ in range(4)]
        links: list[dict[int, tuple[Any, LinkKeys]]] = [{}, {}, {}]
        for one, other in ((0, 1), (1, 2), (2, 0)):
            ends = pipe()
            there, back = secrets.token_bytes(32), secrets.token_bytes(32)
            links[one][other] = (ends[0], LinkKeys(rank=other, sending=there, receiving=back))
            links[other][one] = (ends[1], LinkKeys(rank=one, sending=back, receiving=there))
        self.stolen = [links[2][0][0], links[2][1][0]] if steal else []
        for rank in range(2 if steal else 3):
            port = self.users[rank].port = parties.open(self.users[rank])
            begin = Begin(
                rank=rank,
                names=("alice", "bob", "carol"),
                clients=clients,
                deadline_s=deadline_s,
                own=keys[rank],
                following=keys[(rank + 1) % 3],
                common=keys[3],
                links=tuple(link for _, link in links[rank].values()),
                limits=(1 << 20, 1 << 34, 100_000, 1 << 20, 1 << 40, 1000),
            )
            port.begin(begin, {peer: end for peer, (end, _) in links[rank].items()})
            self.ports.append(port)

    async def ready(self) -> Three:
        for user, _ in zip(self.users, self.ports, strict=False):
            await user.ready.wait()
        return self

    async def ask(self, make: Callable[[int, int], Any], place: int = 0) -> list[Any]:
        """The same numbered request to all; errors in place of answers."""
        self.number[place] += 1
        asks: list[Awaitable[Message]] = []
        for rank, port in enumerate(self.ports):
            try:
                asks.append(port.submit(place, make(rank, self.number[place])))
            except GridError as error:
                asks.append(_failed(error))
        async with asyncio.timeout(30):
            return await asyncio.gather(*asks, return_exceptions=True)

    async def share(self, object_id: int, values: np.ndarray[Any, Any], place: int = 0) -> list[Any]:
        return await self.ask(inputs(object_id, values), place)

    async def run(self, op: str, *args: Any, output: int, place: int = 0) -> list[Any]:
        command = Command(op=op, args=list(args), kwargs={}, outputs=(ObjectId(output),))
        return await self.ask(lambda _, number: SecureCommands(committee=COMMITTEE, first=number, commands=(command,)), place)

    async def reveal(self, object_id: int, place: int = 0) -> Any:
        wanted = ObjectId(object_id)
        replies = await self.ask(lambda _, number: GetShare(committee=COMMITTEE, number=number, object=wanted), place)
        if not all(isinstance(reply, ShareOffer) for reply in replies):
            return replies
        assert len({reply.owners for reply in replies}) == 1
        return sum(np.frombuffer(reply.words, np.uint64) for reply in replies)

    async def works(self, place: int = 0) -> bool:
        """Whether x * x comes out."""
        base = 1000 + 10 * self.number[place]
        await self.share(base, X, place)
        await self.run("aten.mul.Tensor", Ref(base), Ref(base), output=base + 1, place=place)
        return bool(np.array_equal(await self.reveal(base + 1, place), X * X))


def inputs(object_id: int, values: np.ndarray[Any, Any]) -> Callable[[int, int], ShareInput]:
    """A value in shares, for the party of a rank under a number."""
    (s0, s1), rest = deal(values)
    parts = ((s0, s1), (s1, rest), (rest, s0))

    def make(rank: int, number: int) -> ShareInput:
        first, second = parts[rank]
        return ShareInput(
            committee=COMMITTEE,
            number=number,
            object=ObjectId(object_id),
            dtype="i8",
            shape=values.shape,
            first=first,
            second=second,
        )

    return make


async def _failed(error: GridError) -> Message:
    raise error


def kinds(replies: list[Any]) -> set[type]:
    return {type(reply) for reply in replies}


async def off_loop(work: Callable[[], list[Any]]) -> list[Any]:
    return await asyncio.to_thread(work)


class Ground:
    """Where parties run. The nursery takes seconds to start, so it serves all tests on one loop."""

    def __init__(self, parties: Parties, stack: contextlib.AsyncExitStack) -> None:
        self._parties, self._stack = parties, stack

    async def three(self, **more: Any) -> Three:
        made = Three(self._parties, **more)
        for end in made.stolen:
            self._stack.callback(end.close)
        for port in made.ports:
            self._stack.callback(port.end, NodeUnavailable("the test is over"))
        return await made.ready()


@contextlib.asynccontextmanager
async def grounds(kind: type[PartyPort]) -> AsyncIterator[Ground]:
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Any, name: str) -> None:
        tasks.add(asyncio.get_running_loop().create_task(work, name=name))

    settings = NodeSettings(max_process_bytes=256 << 20)
    parties = LocalParties(settings, SystemClock()) if kind is LocalParty else ProcessParties(settings, spawn)
    await parties.prepare(off_loop)
    try:
        async with contextlib.AsyncExitStack() as stack:
            yield Ground(parties, stack)
    finally:
        await parties.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def worker_pid(port: PartyPort) -> int:
    assert isinstance(port, ProcessParty) and port._worker is not None
    return port._worker.pid


# ---------------------------------------------------------------- what both do alike


@pytest.mark.parametrize("kind", [LocalParty, ProcessParty])
async def test_parties_keep_their_promises(kind: type[PartyPort]) -> None:
    """One test: a nursery takes seconds to start."""
    async with grounds(kind) as ground:
        three = await ground.three()
        await two_clients_compute_and_do_not_meet(three)
        await a_dealt_value_brings_its_owners(three)
        await a_lane_that_breaks_is_told_and_the_other_goes_on(await ground.three())
        await what_ends_a_lane_ends_what_waits_in_it(await ground.three(deadline_s=1.0))
        await more_than_may_wait_ends_the_lane(await ground.three())
        for make in (garbage_that_does_not_open, a_frame_longer_than_any_memory, an_end_in_the_middle):
            await a_hostile_socket_ends_the_link(await ground.three(steal=True), make)
        await a_party_that_says_nothing_is_lost(await ground.three(steal=True, deadline_s=2.0))


async def two_clients_compute_and_do_not_meet(three: Three) -> None:
    assert await three.works(0) and await three.works(1)
    assert kinds(await three.share(1, X)) == {Ok}
    assert kinds(await three.run("aten.neg.default", Ref(1), output=2, place=1)) == {NotFound}
    for port in three.ports:
        await port.submit(0, FreeShares(committee=COMMITTEE, number=three.number[0] + 1, objects=(ObjectId(1),)))
    three.number[0] += 1
    assert kinds(await three.reveal(1)) == {NotFound}
    large = np.arange(1 << 20, dtype=np.uint64)
    await three.share(3, large)
    await three.run("aten.mul.Tensor", Ref(3), Ref(3), output=4)
    assert np.array_equal(await three.reveal(4), large * large)


async def a_dealt_value_brings_its_owners(three: Three) -> None:
    (s0, s1), rest = deal(X)
    for rank, (first, second) in enumerate(((s0, s1), (s1, rest), (rest, s0))):
        dealt = Dealt(
            sender=PeerId("dave"),
            object=ObjectId(50),
            dtype="i8",
            shape=X.shape,
            owners=(OwnerRule(dataset="d", release="aggregate"),),
            first=first,
            second=second,
        )
        assert isinstance(await three.ports[rank].deal(0, dealt), Ok)
    expect = ExpectShare(committee=COMMITTEE, number=0, owner=PeerId("dave"), object=ObjectId(50), dtype="i8", shape=X.shape)
    replies = await three.ask(lambda _, number: _numbered(expect, number))
    assert kinds(replies) == {Ok}
    await three.run("aten.neg.default", Ref(50), output=51)
    replies = await three.ask(lambda _, number: GetShare(committee=COMMITTEE, number=number, object=ObjectId(51)))
    for reply in replies:
        (owner,) = reply.owners
        assert (owner.node, owner.rule.dataset, owner.rule.release, reply.made) == ("dave", "d", "aggregate", ("",))


def _numbered(message: ExpectShare, number: int) -> ExpectShare:
    return ExpectShare(
        committee=message.committee,
        number=number,
        owner=message.owner,
        object=message.object,
        dtype=message.dtype,
        shape=message.shape,
    )


async def a_lane_that_breaks_is_told_and_the_other_goes_on(three: Three) -> None:
    await three.share(1, X)
    three.number[0] = 0
    replies = await three.run("aten.neg.default", Ref(1), output=2)
    assert len(three.users[0].broken) == 1 and {type(reply).__name__ for reply in replies} == {"InvalidRequest"}
    assert await three.works(1)


async def what_ends_a_lane_ends_what_waits_in_it(three: Three) -> None:
    make = inputs(1, X)
    for rank in range(2):  # the third is not asked: all that waits for it ends at the deadline, which names it
        await three.ports[rank].submit(0, make(rank, 1))
    command = Command(op="aten.mul.Tensor", args=[Ref(1), Ref(1)], kwargs={}, outputs=(ObjectId(2),))
    asked = [three.ports[rank].submit(0, SecureCommands(committee=COMMITTEE, first=2, commands=(command,))) for rank in range(2)]
    after = [three.ports[rank].submit(0, GetShare(committee=COMMITTEE, number=3, object=ObjectId(2))) for rank in range(2)]
    replies = await asyncio.gather(*asked, *after, return_exceptions=True)
    late = [reply for reply in replies if isinstance(reply, QuorumLost)]
    assert "carol" in str(replies[1]) and all("bob" in str(one) or "carol" in str(one) for one in late)
    for port in three.ports:
        port.end_lane(0, late[0])
        with pytest.raises(QuorumLost):
            port.submit(0, GetShare(committee=COMMITTEE, number=4, object=ObjectId(2)))
    assert await three.works(1)


async def more_than_may_wait_ends_the_lane(three: Three) -> None:
    await three.share(1, X)
    port, user = three.ports[0], three.users[0]
    command = Command(op="aten.mul.Tensor", args=[Ref(1), Ref(1)], kwargs={}, outputs=(ObjectId(2),))
    first = port.submit(0, SecureCommands(committee=COMMITTEE, first=2, commands=(command,) * 3))
    many = (command,) * port._settings.max_queued_per_client
    with pytest.raises(QuotaExceeded):
        port.submit(0, SecureCommands(committee=COMMITTEE, first=5, commands=many))
    with pytest.raises(QuotaExceeded):
        await first
    assert isinstance(user.broken[0], QuotaExceeded)
    assert await three.works(1)


def garbage_that_does_not_open(three: Three) -> None:
    three.stolen[0].sendall(bytes(64))


def a_frame_longer_than_any_memory(three: Three) -> None:
    three.stolen[0].sendall(struct.pack("<QQ", 5, 1 << 60))  # the header alone decides


def an_end_in_the_middle(three: Three) -> None:
    three.stolen[0].sendall(bytes(5))
    three.stolen[0].close()


async def a_hostile_socket_ends_the_link(three: Three, attack: Callable[[Three], None]) -> None:
    await three.ports[0].submit(0, inputs(1, X)(0, 1))
    attack(three)
    error = await three.users[0].over
    assert type(error) in (WireError, QuorumLost) and error.details["party"] == 2
    with pytest.raises(type(error)):
        three.ports[0].submit(0, GetShare(committee=COMMITTEE, number=2, object=ObjectId(1)))
    assert (await three.users[1].over).details["party"] == 0  # which has ended its link


async def a_party_that_says_nothing_is_lost(three: Three) -> None:
    over = [user.over for user in three.users[:2]]
    await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)  # who notices first ends, and with it its link to the other
    told = [one.result() for one in over if one.done()]
    assert any(isinstance(one, QuorumLost) and one.details["party"] == 2 and "nothing has come" in one.message for one in told)


# ---------------------------------------------------------------- processes


async def test_processes_that_die_stop_or_take_too_much() -> None:
    async with grounds(ProcessParty) as ground:
        await a_killed_process_is_explained(await ground.three())
        await a_stopped_process_is_named_by_the_others(await ground.three(deadline_s=1.0))
        await one_that_takes_too_much_memory_is_ended(await ground.three())
        assert await (await ground.three()).works()


async def a_killed_process_is_explained(three: Three) -> None:
    await three.share(1, X)
    os.kill(worker_pid(three.ports[1]), signal.SIGKILL)
    error = await three.users[1].over
    assert isinstance(error, NodeUnavailable) and "killed from outside" in error.message
    for rank in (0, 2):
        lost = await three.users[rank].over
        assert isinstance(lost, QuorumLost) and lost.details["party"] in (1, 2 - rank)


async def a_stopped_process_is_named_by_the_others(three: Three) -> None:
    await three.share(1, X)
    pid = worker_pid(three.ports[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        lost = [await three.users[rank].over for rank in (0, 2)]
    finally:
        three.ports[1].end(NodeUnavailable("it was stopped"))
    assert all(isinstance(error, QuorumLost) for error in lost) and 1 in [error.details["party"] for error in lost]


async def one_that_takes_too_much_memory_is_ended(three: Three) -> None:
    """By the limit that makes an allocation fail, or by the watch."""
    large = np.zeros(1 << 20, np.uint64)
    for number in range(1, 40):
        if kinds(await three.share(number, large)) != {Ok}:
            break
    errors = [error for user in three.users for error in user.broken.values()]
    errors += [user.over.result() for user in three.users if user.over.done()]
    assert errors and any(isinstance(error, QuotaExceeded) and "max_process_bytes" in str(error) for error in errors)
