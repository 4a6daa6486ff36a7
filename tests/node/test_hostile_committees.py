"""Committees under attack: raw messages of hostile clients and nodes, parties that die, stall or send garbage."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import torch
from node_mesh import CLOCK, Mesh, RawClient, client, dataset, dial_party, mesh

from grid.client.share_requests import telling
from grid.crypto.envelope import seal
from grid.crypto.identity import LocalIdentity
from grid.crypto.prg import ring_elements
from grid.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    NodeUnavailable,
    NotFound,
    OpNotSupported,
    QuorumLost,
    QuotaExceeded,
    ReleaseDenied,
    WireError,
)
from grid.ids import CommitteeId, ObjectId, PeerId, random_id
from grid.node import party_links
from grid.node.committee import KIND
from grid.node.committees import deal
from grid.smpc.agreement import Statement, Terms
from grid.smpc.party import STEPS
from grid.store.memory import MemoryStore
from grid.tensors.buffers import to_frame
from grid.transport.base import Transport
from grid.transport.websocket import serve_websocket
from grid.wire.messages import (
    CloseCommittee,
    Command,
    Commands,
    CommitteeBytes,
    CommitteeLink,
    CommitteeOver,
    CommitteeReady,
    CommitteeStatement,
    DealShare,
    DescribeObject,
    ErrorInfo,
    ExpectShare,
    FreeShares,
    GetObject,
    GetShare,
    Inline,
    MoveObject,
    MoveShares,
    OfferShares,
    Ok,
    OpenCommittee,
    Ref,
    SecureCommands,
    ShareInput,
    ShareObject,
    ShareValue,
    TransferId,
)

NAMES = ("alice", "bob", "carol")
LIMITS = (1 << 20, 1 << 30, 1000, 1 << 20, 1 << 40, 1000)


@dataclasses.dataclass
class Trio:
    """One client's committee, in raw messages. `numbers` are each node's next."""

    raw: dict[str, RawClient]
    committee: CommitteeId
    number: int = 0

    @property
    def roster(self) -> tuple[PeerId, ...]:
        return tuple(self.raw[name].node.id for name in NAMES)

    async def ask(self, make: Callable[[int, int], Any]) -> list[Any]:
        """The same numbered request to all three; errors in place of answers."""
        self.number += 1
        asks = [self.raw[name].request(make(rank, self.number)) for rank, name in enumerate(NAMES)]
        return await asyncio.gather(*asks, return_exceptions=True)

    async def share(self, object_id: int, values: np.ndarray[Any, Any], shape: tuple[int, ...] | None = None) -> list[Any]:
        (s0, s1), rest = deal(values.astype(np.uint64))
        parts = ((s0, s1), (s1, rest), (rest, s0))

        def make(rank: int, number: int) -> ShareInput:
            return ShareInput(
                committee=self.committee,
                number=number,
                object=ObjectId(object_id),
                dtype="i8",
                shape=values.shape if shape is None else shape,
                first=parts[rank][0],
                second=parts[rank][1],
            )

        return await self.ask(make)

    async def run(self, op: str, *args: Any, output: int, tensors: tuple[Any, ...] = ()) -> list[Any]:
        command = Command(op=op, args=list(args), kwargs={}, outputs=(ObjectId(output),))
        common = {"committee": self.committee, "commands": (command,), "tensors": tensors}
        return await self.ask(lambda rank, number: SecureCommands(first=number, **common))

    async def reveal(self, object_id: int) -> np.ndarray[Any, Any] | list[Any]:
        replies = await self.ask(
            lambda rank, number: GetShare(committee=self.committee, number=number, object=ObjectId(object_id))
        )
        if not all(isinstance(reply, ShareValue) for reply in replies):
            return replies
        for rank in range(3):
            assert hashlib.sha256(replies[rank].words).digest() == replies[rank - 1].digest
        return sum(np.frombuffer(reply.words, np.uint64) for reply in replies)  # type: ignore[return-value]


def opening(raw: dict[str, RawClient], who: tuple[PeerId, ...], deadline_s: float = 20.0) -> OpenCommittee:
    roster = tuple(raw[name].node.id for name in NAMES)
    return OpenCommittee(committee=CommitteeId(random_id()), roster=roster, clients=who, deadline_s=deadline_s)


def share_of(trio: Trio, number: int, name: int) -> GetShare:
    return GetShare(committee=trio.committee, number=number, object=ObjectId(name))


async def dealt_parts(trio: Trio, object_id: int, values: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Share a value, and give its three components."""
    (s0, s1), rest = deal(values)
    parts = ((s0, s1), (s1, rest), (rest, s0))

    def make(rank: int, number: int) -> ShareInput:
        first, second = parts[rank]
        common = {"committee": trio.committee, "number": number, "object": ObjectId(object_id)}
        return ShareInput(dtype="i8", shape=values.shape, first=first, second=second, **common)

    assert kinds(await trio.ask(make)) == {Ok}
    return [ring_elements(seed, values.size).view(np.uint64) for seed in (s0, s1)] + [np.frombuffer(rest, np.uint64)]


def opening_of(trio: Trio, raw: dict[str, RawClient], who: tuple[PeerId, ...]) -> OpenCommittee:
    """What another client says to take part."""
    return dataclasses.replace(opening(raw, who), committee=trio.committee)


async def opened(raw: dict[str, RawClient], who: tuple[PeerId, ...], deadline_s: float = 20.0) -> Trio:
    message = opening(raw, who, deadline_s)
    await asyncio.gather(*(raw[name].request(message) for name in NAMES))
    return Trio(raw, message.committee)


def me_of(raw: dict[str, RawClient]) -> PeerId:
    return raw["alice"].me.id  # type: ignore[attr-defined, no-any-return]


@contextlib.asynccontextmanager
async def sessions(made: Mesh) -> AsyncIterator[dict[str, RawClient]]:
    me = LocalIdentity.create(name="scientist", role="client", clock=CLOCK)
    async with contextlib.AsyncExitStack() as stack:
        raw = {name: await stack.enter_async_context(client(made, name, me)) for name in made.nodes}
        for one in raw.values():
            one.me = me  # type: ignore[attr-defined]
        yield raw


@pytest.fixture
async def made() -> AsyncIterator[Mesh]:
    own = {name: [] for name in NAMES} | {"dave": [dataset(20, 2, release="aggregate")]}
    async with mesh(own) as nodes:
        yield nodes
        await until(lambda: not any(node.committees.count for node in nodes.nodes.values()))


@pytest.fixture
async def raw(made: Mesh) -> AsyncIterator[dict[str, RawClient]]:
    async with sessions(made) as found:
        yield found


@pytest.fixture
async def trio(raw: dict[str, RawClient]) -> Trio:
    return await opened(raw, (me_of(raw),))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def kinds(replies: Any) -> set[type]:
    return {type(reply) for reply in replies}


X = np.array([3, 5, 8], np.uint64)


async def works(trio: Trio, base: int = 900) -> bool:
    """Whether the committee still computes: x * x."""
    await trio.share(base, X)
    await trio.run("aten.mul.Tensor", Ref(base), Ref(base), output=base + 1)
    return bool((await trio.reveal(base + 1) == X * X).all())


async def test_three_nodes_compute_and_one_reply_alone_says_nothing(trio: Trio) -> None:
    assert await works(trio)
    await trio.share(1, X)
    replies = await trio.ask(lambda rank, number: GetShare(committee=trio.committee, number=number, object=ObjectId(1)))
    components = [np.frombuffer(reply.words, np.uint64) for reply in replies]
    assert not any((component == X).any() for component in components)
    assert (sum(components) == X).all()


async def test_a_component_is_no_object_of_the_session(trio: Trio) -> None:
    await trio.share(1, X)
    alice = trio.raw["alice"]
    for message in (
        GetObject(object=ObjectId(1)),
        DescribeObject(object=ObjectId(1)),
        MoveObject(object=ObjectId(1), to=trio.roster[1], transfer=TransferId(random_id())),
        ShareObject(committee=trio.committee, roster=trio.roster, source=ObjectId(1), object=ObjectId(7)),
    ):
        with pytest.raises(NotFound):
            await alice.request(message)
    command = Command(op="aten.neg.default", args=[Ref(1)], kwargs={}, outputs=(ObjectId(2),))
    await alice.request(Commands(first=1, commands=(command,)))
    with pytest.raises(NotFound):
        await alice.get(Ref(2))
    assert await works(trio)


async def test_one_clients_objects_are_not_there_for_another(made: Mesh, raw: dict[str, RawClient]) -> None:
    async with sessions(made) as other:
        trio = await opened(raw, (me_of(raw), me_of(other)))
        message = OpenCommittee(committee=trio.committee, roster=trio.roster, clients=(me_of(raw), me_of(other)), deadline_s=20)
        await asyncio.gather(*(other[name].request(message) for name in NAMES))
        theirs = Trio(other, trio.committee)
        await trio.share(1, X)
        assert kinds(await theirs.reveal(1)) == {NotFound}
        assert kinds(await theirs.run("aten.neg.default", Ref(1), output=2)) == {NotFound}
        assert kinds(await theirs.reveal(2)) == {NotFound}
        await theirs.share(1, X + np.uint64(1))
        assert (await trio.reveal(1) == X).all() and (await theirs.reveal(1) == X + np.uint64(1)).all()
        assert await works(trio) and await works(theirs)
    assert await works(trio, 920)


async def test_who_names_another_client_uses_up_nothing_of_it(made: Mesh, raw: dict[str, RawClient]) -> None:
    async with sessions(made) as other:
        for _ in range(8):
            await opened(raw, (me_of(raw), me_of(other)))
        with pytest.raises(QuotaExceeded, match="half of max_committees"):
            await opened(raw, (me_of(raw),))
        theirs = await opened(other, (me_of(other), me_of(raw)))
        with pytest.raises(QuotaExceeded, match="half of max_committees"):  # joining counts, too
            joined = dataclasses.replace(opening(raw, (me_of(other), me_of(raw))), committee=theirs.committee)
            await raw["alice"].request(joined)
        assert await works(theirs)


async def test_a_committee_that_nobody_uses_ends(
    made: Mesh, raw: dict[str, RawClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    trio = await opened(raw, (me_of(raw),))
    monkeypatch.setattr("grid.node.committee.IDLE_S", 0.2)
    idle = await opened(raw, (me_of(raw),))
    await until(lambda: all(node.committees.count == (name in NAMES) for name, node in made.nodes.items()))
    for name in NAMES:
        with pytest.raises(QuorumLost, match="nothing was asked of it"):
            await raw[name].request(GetShare(committee=idle.committee, number=1, object=ObjectId(1)))
    assert await works(trio)  # begun with more time


async def test_a_client_that_is_not_in_the_list_takes_no_part(made: Mesh, raw: dict[str, RawClient], trio: Trio) -> None:
    await trio.share(1, X)
    async with sessions(made) as spy:
        theirs = Trio(spy, trio.committee)
        own = OpenCommittee(committee=trio.committee, roster=trio.roster, clients=(me_of(raw),), deadline_s=20)
        widened = dataclasses.replace(own, clients=(me_of(raw), me_of(spy)))
        for name in NAMES:
            with pytest.raises(AuthenticationFailed):
                await spy[name].request(own)
            with pytest.raises(InvalidRequest):
                await spy[name].request(widened)
        assert kinds(await theirs.reveal(1)) == {InvalidRequest}
        for name in NAMES:
            spy[name].peer.notify(CloseCommittee(committee=trio.committee))
        assert kinds(await theirs.share(5, X)) == {InvalidRequest}
    with pytest.raises(InvalidRequest):  # nor does a second session of the same client
        await raw["alice"].request(own)
    assert await works(trio)


async def test_rows_under_a_rule_do_not_open_whatever_is_computed_of_them(made: Mesh, trio: Trio) -> None:
    dave = trio.raw["dave"]
    rows = await dave.open("d")
    expect = lambda rank, number: ExpectShare(  # noqa: E731
        committee=trio.committee, number=number, owner=dave.node.id, object=ObjectId(1), dtype="f4", shape=(20, 2)
    )
    deal = ShareObject(committee=trio.committee, roster=trio.roster, source=ObjectId(int(rows)), object=ObjectId(1))
    with pytest.raises(InvalidRequest, match="3 different nodes"):
        await dave.request(dataclasses.replace(deal, roster=deal.roster[:2]))
    await asyncio.gather(trio.ask(expect), dave.request(deal))
    async with client(made, "dave") as stranger:  # who may share rows, but not into the committee of others
        theirs = await stranger.open("d")
        with pytest.raises(InvalidRequest):
            await stranger.request(dataclasses.replace(deal, source=ObjectId(int(theirs)), object=ObjectId(3)))
    async with client(made, "alice") as stranger:
        own = await stranger.put(torch.ones(2))
        with pytest.raises(InvalidRequest):
            await stranger.request(dataclasses.replace(deal, source=ObjectId(int(own)), object=ObjectId(4)))
    assert kinds(await trio.reveal(1)) == {ReleaseDenied}
    await trio.run("aten.mul.Scalar", Ref(1), 0, output=2)
    assert kinds(await trio.reveal(2)) == {ReleaseDenied}
    assert await works(trio)


async def test_a_request_out_of_step_ends_that_clients_work_alone(made: Mesh, raw: dict[str, RawClient]) -> None:
    async with sessions(made) as other:
        who = (me_of(raw), me_of(other))
        trio = await opened(raw, who)
        message = OpenCommittee(committee=trio.committee, roster=trio.roster, clients=who, deadline_s=20)
        await asyncio.gather(*(other[name].request(message) for name in NAMES))
        await trio.share(1, X)
        trio.number = 0  # once more under the same number: keystreams would be used twice
        replies = await trio.run("aten.mul.Tensor", Ref(1), Ref(1), output=2)
        assert kinds(replies) <= {InvalidRequest, QuorumLost}
        assert await works(Trio(other, trio.committee))


async def test_parties_that_are_told_different_things_give_noise_or_an_error(raw: dict[str, RawClient]) -> None:
    trio = await opened(raw, (me_of(raw),), deadline_s=1.0)
    await trio.share(1, X)
    await trio.share(2, X)

    def make(rank: int, number: int) -> SecureCommands:
        args = [Ref(1), Ref(1) if rank else Ref(2)]
        return SecureCommands(
            committee=trio.committee,
            first=number,
            commands=(Command(op="aten.mul.Tensor", args=args, kwargs={}, outputs=(ObjectId(3),)),),
        )

    await trio.ask(make)
    replies = await trio.ask(lambda rank, number: GetShare(committee=trio.committee, number=number, object=ObjectId(3)))
    total = sum(np.frombuffer(reply.words, np.uint64) for reply in replies)
    assert not (total == X * X).any()


@pytest.mark.parametrize("told", [1, 3])
async def test_an_id_that_is_free_at_one_party_alone_gives_noise_or_an_error(raw: dict[str, RawClient], told: int) -> None:
    """It could stand for x + y at one, and for x - y at the others: what a node sends tells which."""
    trio = await opened(raw, (me_of(raw),), deadline_s=1.0)
    await trio.share(1, X)
    await trio.share(2, X)
    await trio.run("aten.add.Tensor", Ref(1), Ref(2), output=3)
    trio.number += 1
    for rank, name in enumerate(NAMES[:told]):
        objects = () if rank else (ObjectId(3),)
        raw[name].peer.notify(FreeShares(committee=trio.committee, number=trio.number, objects=objects))
    replies = await trio.run("aten.sub.Tensor", Ref(1), Ref(2), output=3)
    assert kinds(replies) & {InvalidRequest, QuorumLost} or told == 3
    wanted = ObjectId(1)
    replies = await trio.ask(lambda rank, number: GetShare(committee=trio.committee, number=number, object=wanted))
    if told == 3:
        assert not (sum(np.frombuffer(reply.words, np.uint64) for reply in replies) == X).any()
    else:
        assert kinds(replies) <= {InvalidRequest, QuorumLost}


async def test_offers_that_do_not_fit_together_give_noise(made: Mesh, raw: dict[str, RawClient]) -> None:
    """Two clients together: one offers x at two parties and x + y under the same name at the third, the other multiplies it by a
    secret w. Did the parties' keystreams agree, the result would be off by y times a component of w, or two."""
    async with sessions(made) as others:
        who = (me_of(raw), me_of(others))
        giver = await opened(raw, who)
        taker = Trio(others, giver.committee)
        await asyncio.gather(*(others[name].request(opening_of(giver, raw, who)) for name in NAMES))
        parts = {number: await dealt_parts(trio, number, X) for trio, number in ((giver, 1), (giver, 2), (taker, 3))}
        # 4 is u v' - u' v for one component of both that the client knows: 0 there, and not elsewhere.
        u, v, w = (parts[number] for number in (1, 2, 3))
        y = [v[2] * one - u[2] * other for one, other in zip(u, v, strict=True)]
        assert not y[2].any() and y[0].any() and y[1].any()
        zeros = np.zeros_like(X)
        for output, factors in ((4, (v[2], u[2])), (7, (zeros, zeros))):  # 7 is 0, and comes of the same inputs
            for of, factor in enumerate(factors, 1):
                frame = to_frame(torch.from_numpy(factor.view(np.int64).copy()))
                await giver.run("aten.mul.Tensor", Ref(of), Inline(0), output=10 * output + of, tensors=(frame,))
            await giver.run("aten.sub.Tensor", Ref(10 * output + 1), Ref(10 * output + 2), output=output)
        for odd, name in ((2, 101), (1, 102)):  # the two that hold y's component 2

            def offer(rank: int, number: int, odd: int = odd, name: int = name) -> OfferShares:
                given, place = ObjectId(4 if rank == odd else 7), ObjectId((1 << 62) + name)
                own = dict(committee=giver.committee, number=number, object=given, client=who[0])
                return OfferShares(**own, to=1, name=place, freely=True)

            assert kinds(await giver.ask(offer)) == {Ok}
            taken = ObjectId((1 << 62) + name)

            def take(rank: int, number: int, taken: ObjectId = taken) -> ExpectShare:
                own = dict(committee=taker.committee, number=number, owner=who[0], object=taken)
                return ExpectShare(**own, dtype="i8", shape=X.shape)

            assert kinds(await taker.ask(take)) == {Ok}
            await taker.run("aten.mul.Tensor", Ref(taken), Ref(3), output=name)
            replies = await taker.ask(lambda rank, number, name=name: share_of(taker, number, name))
            total = sum(np.frombuffer(reply.words, np.uint64) for reply in replies)
            leaks = [mine * one for mine in y for one in (*w, w[0] + w[1], w[1] + w[2], w[2] + w[0])]
            assert not any((total == leak).any() or (total == -leak).any() for leak in leaks)


async def test_what_is_too_large_or_of_a_wrong_size_is_refused(trio: Trio) -> None:
    replies = await trio.share(1, X, shape=(4,))
    assert kinds(replies[1:]) == {InvalidRequest}  # the first one has two seeds, which fit any shape
    assert kinds(await trio.share(2, X, shape=(1 << 40,))) == {QuotaExceeded}
    assert kinds(await trio.share(3, X, shape=(-3,))) == {InvalidRequest}
    await trio.share(4, X)
    assert kinds(await trio.run("aten.expand.default", Ref(4), [1 << 40, 3], output=5)) == {QuotaExceeded}
    assert kinds(await trio.run("aten.mul.Tensor", Ref(5), Ref(4), output=6)) == {QuotaExceeded}
    assert kinds(await trio.reveal(6)) == {QuotaExceeded}
    assert kinds(await trio.run("__import__", Ref(4), output=7)) == {OpNotSupported}
    assert await works(trio)


async def test_nodes_with_other_limits_refuse_alike_and_nobody_waits() -> None:
    own = {"alice": {"max_secure_elements": 100}, "bob": {"max_bytes_per_client": 3000}, "carol": {"max_objects_per_client": 5}}
    async with mesh({name: [] for name in NAMES}, own=own) as made, sessions(made) as raw:
        trio = await opened(raw, (me_of(raw),))
        assert kinds(await trio.share(1, np.arange(101, dtype=np.uint64))) == {QuotaExceeded}
        assert kinds(await trio.share(2, np.arange(100, dtype=np.uint64))) == {Ok}
        assert kinds(await trio.run("aten.mul.Tensor", Ref(2), Ref(2), output=3)) == {QuotaExceeded}  # bytes
        assert await works(trio, 900)
        assert kinds(await trio.share(5, X)) == {QuotaExceeded}  # objects, failed ones included
        assert (await trio.reveal(901) == X * X).all()


async def test_a_client_that_asks_only_two_parties_gets_an_error_in_time(raw: dict[str, RawClient]) -> None:
    trio = await opened(raw, (me_of(raw),), deadline_s=0.3)
    await trio.share(1, X)
    command = Command(op="aten.mul.Tensor", args=[Ref(1), Ref(1)], kwargs={}, outputs=(ObjectId(2),))
    message = SecureCommands(committee=trio.committee, first=2, commands=(command,))
    replies = await asyncio.gather(*(raw[name].request(message) for name in NAMES[:2]), return_exceptions=True)
    assert isinstance(replies[1], QuorumLost) and "carol" in str(replies[1])  # the first one has what it needs from the second
    assert await works(await opened(raw, (me_of(raw),)))


async def test_who_waits_for_the_missing_one_is_not_blamed_by_who_waits_for_it(raw: dict[str, RawClient]) -> None:
    trio = await opened(raw, (me_of(raw),), deadline_s=0.3)
    await trio.share(1, X)
    command = Command(op="aten.relu.default", args=[Ref(1)], kwargs={}, outputs=(ObjectId(2),))
    message = SecureCommands(committee=trio.committee, first=2, commands=(command,))
    alice, bob = await asyncio.gather(*(raw[name].request(message) for name in NAMES[:2]), return_exceptions=True)
    assert isinstance(alice, QuorumLost) and isinstance(bob, QuorumLost)
    assert "carol" in (alice.details["node"], bob.details["node"]) and alice.details["node"] != "alice"
    assert telling([("alice", alice), ("bob", bob)]).details["node"] == "carol"
    carol = QuorumLost("", node="carol")
    assert telling([("alice", QuorumLost("", node="bob and carol")), ("bob", carol)]) is carol
    assert telling([("alice", QuorumLost("", node="bob")), ("bob", carol)]) is carol


async def test_too_little_time_to_connect_is_told_as_that(raw: dict[str, RawClient], monkeypatch: pytest.MonkeyPatch) -> None:
    async def lasts(links: party_links.PartyLinks, *_: Any) -> Any:
        links.missing.clear()
        await asyncio.Event().wait()

    monkeypatch.setattr(party_links.PartyLinks, "connect", lasts)
    message = opening(raw, (me_of(raw),), deadline_s=0.5)
    replies = await asyncio.gather(*(raw[name].request(message) for name in NAMES), return_exceptions=True)
    late = [str(reply) for reply in replies if isinstance(reply, DeadlineExceeded)]
    assert late and all("open the committee with more time" in text for text in late)
    assert all("node  " not in str(reply) for reply in replies)


async def test_a_party_that_dies_is_named_to_the_client_and_the_others_serve_on(made: Mesh, raw: dict[str, RawClient]) -> None:
    trio = await opened(raw, (me_of(raw),))
    await trio.share(1, X)
    await made.cut("bob")
    for name in ("alice", "carol"):
        await until(lambda name=name: not made.nodes[name].committees.count)  # type: ignore[misc]
        with pytest.raises(QuorumLost, match="bob"):
            await raw[name].request(GetShare(committee=trio.committee, number=2, object=ObjectId(1)))
        assert torch.equal(await raw[name].get(await raw[name].put(torch.ones(2))), torch.ones(2))


def is_bytes(trio: Trio, message: Any) -> bool:
    return isinstance(message, CommitteeBytes) and message.committee == trio.committee


async def test_a_party_that_stalls_is_named_within_the_deadline(
    made: Mesh, raw: dict[str, RawClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    trio, other = await opened(raw, (me_of(raw),), deadline_s=0.5), await opened(raw, (me_of(raw),))
    await trio.share(1, X)
    hears = made.nodes["carol"].committees.received
    with monkeypatch.context() as patch:
        deaf = lambda sender, message: None if is_bytes(trio, message) else hears(sender, message)  # noqa: E731
        patch.setattr(made.nodes["carol"].committees, "received", deaf)
        replies = await trio.run("aten.relu.default", Ref(1), output=2)
    assert kinds(replies) == {QuorumLost}
    assert kinds(await trio.reveal(1)) == {QuorumLost}  # nothing more comes out of this work
    assert await works(other)


async def test_an_id_is_used_once_even_after_a_restart() -> None:
    stores = {name: MemoryStore() for name in NAMES}
    committee = CommitteeId(random_id())
    for attempt in range(2):
        async with mesh({name: [] for name in NAMES}, stores=stores) as made, sessions(made) as raw:
            message = dataclasses.replace(opening(raw, (me_of(raw),)), committee=committee)
            replies = await asyncio.gather(*(raw[name].request(message) for name in NAMES), return_exceptions=True)
            assert any(isinstance(reply, GridError) for reply in replies) == bool(attempt)


# ---------------------------------------------------------------- hostile nodes


async def hostile(made: Mesh, sender: str, to: str) -> Any:
    """The live session of one node with another, to say anything over."""
    return (await made.nodes[sender].neighbours.session(made.nodes[to].id)).live


async def test_a_node_outside_the_roster_changes_nothing(made: Mesh, trio: Trio) -> None:
    peer = await hostile(made, "dave", "alice")
    who = me_of(trio.raw)
    await trio.share(1, X)
    peer.notify(CommitteeBytes(committee=trio.committee, data=bytes(24), taken=0))
    peer.notify(CommitteeReady(committee=trio.committee, address="127.0.0.1:1"))
    peer.notify(CommitteeLink(committee=trio.committee, direct=True))
    peer.notify(CommitteeOver(committee=trio.committee, error=ErrorInfo(code="quorum-lost", message="")))
    peer.notify(CommitteeOver(committee=trio.committee, error=ErrorInfo(code="quorum-lost", message=""), client=who))
    statement = Statement(Terms(trio.committee, trio.roster, (who,)), made.nodes["dave"].id, CLOCK.wall() + 60, bytes(16), LIMITS)
    envelope = seal(KIND, statement.encode(), made.nodes["dave"].me.key)
    peer.notify(CommitteeStatement(committee=trio.committee, envelope=envelope, pair=bytes(32), common=bytes(32)))
    with pytest.raises(GridError):
        await peer.request(CommitteeBytes(committee=trio.committee, data=b"", taken=0))
    assert await works(trio)


@pytest.mark.parametrize("garbage", ["bytes", "taken", "flood", "link", "ready", "end"])
async def test_garbage_of_a_node_is_an_error_that_names_it(made: Mesh, raw: dict[str, RawClient], garbage: str) -> None:
    trio = await opened(raw, (me_of(raw),))
    await trio.share(1, X)
    peer, name = await hostile(made, "bob", "alice"), trio.committee
    message = {
        "bytes": CommitteeBytes(committee=name, data=bytes(100), taken=0),
        "taken": CommitteeBytes(committee=name, data=b"", taken=1 << 40),
        "flood": CommitteeBytes(committee=name, data=bytes(2 << 20), taken=0),
        "link": CommitteeLink(committee=name, direct=True),
        "ready": CommitteeReady(committee=name, address=""),
        "end": CommitteeBytes(committee=name, data=b"", taken=0, over=True),
    }[garbage]
    peer.notify(message)
    await until(lambda: not made.nodes["alice"].committees.count)
    replies = await trio.run("aten.mul.Tensor", Ref(1), Ref(1), output=2)
    assert kinds(replies) <= {WireError, QuorumLost} and "bob" in str(replies[0])
    assert await works(await opened(raw, (me_of(raw),)))


@pytest.mark.parametrize("garbage", ["size", "early", "place", "huge"])
async def test_garbage_of_a_party_is_an_error_that_names_it_at_once(made: Mesh, raw: dict[str, RawClient], garbage: str) -> None:
    trio = await opened(raw, (me_of(raw),))
    await trio.share(1, X)
    link = made.nodes["bob"].committees._running[trio.committee]._party._work._link  # type: ignore[union-attr]
    label = (2 << 28) * STEPS  # of the first message of request 2
    most = made.nodes["alice"].settings.max_secure_elements
    if garbage == "early":
        for number in range(4):
            link.send(0, label + 10 + number, np.zeros(most, np.uint64))
    else:
        place, count = {"size": (0, 7), "place": (1, 1), "huge": (0, 3 * most)}[garbage]
        link.send(0, (place << 60) + label, np.zeros(count, np.uint64))
    victim = made.nodes["alice"].committees._running[trio.committee]
    if garbage != "size":  # which shows once the words are due
        await until(lambda: victim.error is not None or victim._party._lanes[0].error is not None)  # type: ignore[union-attr]
    replies = await trio.run("aten.mul.Tensor", Ref(1), Ref(1), output=2)
    assert kinds(replies) <= {WireError, QuorumLost, QuotaExceeded} and "bob" in str(replies[0])
    assert await works(await opened(raw, (me_of(raw),)))


async def test_a_statement_that_does_not_hold_ends_the_agreement(made: Mesh, raw: dict[str, RawClient]) -> None:
    who = (me_of(raw),)
    bob, carol = made.nodes["bob"], made.nodes["carol"]
    peer = await hostile(made, "bob", "alice")
    stranger = LocalIdentity.create(name="bob", role="node", clock=CLOCK)
    roster = opening(raw, who).roster

    def said(terms: Terms, node: PeerId = bob.id, key: Any = bob.me.key, expiry_s: float = 60.0) -> bytes:
        return seal(KIND, Statement(terms, node, CLOCK.wall() + expiry_s, secrets.token_bytes(16), LIMITS).encode(), key)

    wrong: list[tuple[Callable[[Terms], bytes], type[GridError]]] = [
        (lambda good: said(dataclasses.replace(good, roster=good.roster[::-1])), InvalidRequest),
        (lambda good: said(dataclasses.replace(good, clients=(*who, PeerId("spy")))), InvalidRequest),
        (lambda good: said(dataclasses.replace(good, committee=CommitteeId(random_id()))), AuthenticationFailed),
        (lambda good: said(good, node=carol.id), AuthenticationFailed),
        (lambda good: said(good, key=stranger.key), AuthenticationFailed),
        (lambda good: said(good, key=carol.me.key), AuthenticationFailed),
        (lambda good: said(good, expiry_s=-1.0), AuthenticationFailed),
        (lambda good: seal("grid sum announcement 1", b"", bob.me.key), AuthenticationFailed),
        (lambda good: seal(KIND, b"", bob.me.key), WireError),
        (lambda good: b"x", AuthenticationFailed),
    ]
    for make, error in wrong:
        good = Terms(CommitteeId(random_id()), roster, who)
        peer.notify(CommitteeStatement(committee=good.committee, envelope=make(good), pair=bytes(32), common=bytes(32)))
        with pytest.raises(error):
            await raw["alice"].request(OpenCommittee(committee=good.committee, roster=roster, clients=who, deadline_s=5.0))
    assert await works(await opened(raw, who))


async def test_a_statement_that_is_said_again_ends_the_committee(made: Mesh, raw: dict[str, RawClient]) -> None:
    who = (me_of(raw),)
    trio = await opened(raw, who)
    bob = made.nodes["bob"]
    statement = Statement(Terms(trio.committee, trio.roster, who), bob.id, CLOCK.wall() + 60, bytes(16), LIMITS)
    envelope = seal(KIND, statement.encode(), bob.me.key)
    peer = await hostile(made, "bob", "alice")
    peer.notify(CommitteeStatement(committee=trio.committee, envelope=envelope, pair=bytes(32), common=bytes(32)))
    await until(lambda: not made.nodes["alice"].committees.count)
    assert kinds(await trio.share(1, X)) <= {WireError, QuorumLost}
    assert await works(await opened(raw, who))


def move(trio: Trio, other: Trio, source: int, **changed: Any) -> Callable[[int, int], MoveShares]:
    """Asks each node of one committee to deal a value on to another one, under the name 70."""
    fields: dict[str, Any] = {"to": other.committee, "roster": other.roster, "name": ObjectId(70), "object": ObjectId(source)}
    return lambda rank, number: MoveShares(committee=trio.committee, number=number, **{**fields, **changed})


def expect(trio: Trio, dealers: tuple[PeerId, ...], name: int = 70) -> Callable[[int, int], ExpectShare]:
    return lambda rank, number: ExpectShare(
        committee=trio.committee,
        number=number,
        owner=dealers[0],
        others=dealers[1:],
        object=ObjectId(name),
        dtype="i8",
        shape=(3,),
    )


async def test_a_value_moves_and_its_components_say_nothing(raw: dict[str, RawClient], trio: Trio) -> None:
    other = await opened(raw, (me_of(raw),))
    await trio.share(1, X)
    assert kinds(await trio.ask(move(trio, other, 1))) == {Ok}
    for rank, name in enumerate(NAMES):  # what is dealt of a component, and the component itself, are random numbers
        waiting = raw[name].node.committees._running[other.committee]._party._work._lanes[0]._dealt  # type: ignore[union-attr]
        assert {key[0] for key in waiting} == set(trio.roster) and rank < 3
        assert not any((np.frombuffer(bytes(one.second), "<u8")[:3] == X).any() for one in waiting.values())
    assert kinds(await other.ask(expect(other, trio.roster))) == {Ok}
    assert (await other.reveal(70) == X).all()
    await other.run("aten.mul.Tensor", Ref(70), Ref(70), output=71)
    assert (await other.reveal(71) == X * X).all() and await works(trio) and await works(other)


async def test_what_depends_on_rows_or_on_another_client_does_not_move(made: Mesh, raw: dict[str, RawClient]) -> None:
    async with sessions(made) as second:
        who = (me_of(raw), me_of(second))
        trio, other = await opened(raw, who), await opened(raw, (me_of(raw),))
        message = OpenCommittee(committee=trio.committee, roster=trio.roster, clients=who, deadline_s=20)
        await asyncio.gather(*(second[name].request(message) for name in NAMES))
        theirs, dave = Trio(second, trio.committee), raw["dave"]
        rows = await dave.open("d")
        dealt = lambda rank, number: ExpectShare(  # noqa: E731
            committee=trio.committee, number=number, owner=dave.node.id, object=ObjectId(1), dtype="f4", shape=(20, 2)
        )
        deal_rows = ShareObject(committee=trio.committee, roster=trio.roster, source=ObjectId(int(rows)), object=ObjectId(1))
        await asyncio.gather(trio.ask(dealt), dave.request(deal_rows))
        await trio.run("aten.sum.default", Ref(1), output=2)
        await trio.run("aten.mul.Scalar", Ref(1), 0, output=3)
        await theirs.share(4, X)
        name = ObjectId((1 << 62) + 5)
        offer = lambda rank, number: OfferShares(  # noqa: E731
            committee=trio.committee, number=number, object=ObjectId(4), client=who[1], to=0, name=name, freely=True
        )
        assert kinds(await theirs.ask(offer)) == {Ok}
        taken = lambda rank, number: ExpectShare(  # noqa: E731
            committee=trio.committee, number=number, owner=who[1], object=name, dtype="i8", shape=(3,)
        )
        assert kinds(await trio.ask(taken)) == {Ok}
        for source in (1, 2, 3, int(name)):
            replies = await trio.ask(move(trio, other, source))
            assert kinds(replies) == {ReleaseDenied} and {reply.details["rule"] for reply in replies} == {"move"}
        assert kinds(await trio.ask(move(trio, other, 99))) == {NotFound}
        assert kinds(await theirs.ask(move(theirs, other, 4))) == {InvalidRequest}, "it takes no part in the other committee"
        # Nor can a node's rows come in as the parts of what is said to move.
        await trio.share(5, X)
        assert kinds(await trio.ask(move(trio, other, 5))) == {Ok}
        await dave.request(dataclasses.replace(deal_rows, committee=other.committee, object=ObjectId(70)))
        replies = await other.ask(expect(other, (trio.roster[0], trio.roster[1], dave.node.id)))
        assert kinds(replies) == {InvalidRequest} and kinds(await other.reveal(70)) == {InvalidRequest}
        assert await works(trio) and await works(other)


async def test_moves_that_do_not_fit_together_give_noise_or_an_error(raw: dict[str, RawClient]) -> None:
    trio, other = await opened(raw, (me_of(raw),)), await opened(raw, (me_of(raw),), deadline_s=0.5)
    await trio.share(1, X)
    await trio.share(2, X)
    assert kinds(await trio.ask(move(trio, other, 1, roster=trio.roster[:2]))) == {InvalidRequest}
    assert kinds(await trio.ask(move(trio, other, 1, to=CommitteeId(random_id())))) == {NotFound}
    for dealers in (trio.roster[:2], (*trio.roster[:2], trio.roster[0]), (*trio.roster, trio.roster[0])):
        assert kinds(await other.ask(expect(other, dealers))) == {InvalidRequest}
    different = lambda rank, number: move(trio, other, 1 if rank else 2)(rank, number)  # noqa: E731
    assert kinds(await trio.ask(different)) == {Ok}
    assert kinds(await other.ask(expect(other, trio.roster))) == {Ok}
    assert not (await other.reveal(70) == X).any(), "two nodes took one value, and the third another: noise"
    assert kinds(await other.ask(expect(other, trio.roster, 71))) == {DeadlineExceeded}
    assert await works(other)


async def test_a_node_that_deals_what_nobody_expects_is_refused(made: Mesh, trio: Trio) -> None:
    peer = await hostile(made, "dave", "alice")
    message = DealShare(
        committee=trio.committee,
        client=me_of(trio.raw),
        object=ObjectId(1),
        dtype="i8",
        shape=(3,),
        owners=(),
        first=bytes(32),
        second=bytes(32),
    )
    await peer.request(message)
    with pytest.raises(InvalidRequest):
        await peer.request(message)
    with pytest.raises(InvalidRequest):
        await peer.request(dataclasses.replace(message, client=PeerId("nobody")))
    with pytest.raises(NotFound):
        await peer.request(dataclasses.replace(message, committee=CommitteeId(random_id())))
    for number in range(2, 100):
        with contextlib.suppress(QuotaExceeded):
            await peer.request(dataclasses.replace(message, object=ObjectId(number)))
    assert kinds(await trio.reveal(1)) == {NotFound}  # what was dealt is no object before the client asks for it
    assert await works(trio)


# ---------------------------------------------------------------- parties that connect directly


@pytest.fixture
async def near() -> AsyncIterator[Mesh]:
    async with mesh({name: [] for name in NAMES}, listen=True) as nodes:
        yield nodes
        await until(lambda: not any(node.committees.count for node in nodes.nodes.values()))


def relayed(made: Mesh, trio: Trio) -> list[bool]:
    """Of each node's links, whether it is relayed."""
    committees = [made.nodes[name].committees._running[trio.committee] for name in NAMES]
    return [link._relay is not None for committee in committees for link in committee._links._links.values()]  # type: ignore[union-attr]


async def test_parties_connect_directly_where_their_nodes_listen(near: Mesh) -> None:
    async with sessions(near) as raw:
        trio = await opened(raw, (me_of(raw),))
        assert relayed(near, trio) == [False] * 6
        assert await works(trio)
        party = near.nodes["bob"].committees._running[trio.committee]._party
        party._work._link._peers[0]._socket.send(bytes(100))  # type: ignore[union-attr]
        await until(lambda: not near.nodes["alice"].committees.count)
        replies = await trio.share(1, X)
        assert kinds(replies) <= {WireError, QuorumLost} and "bob" in str(replies[0])
        assert await works(await opened(raw, (me_of(raw),)))


@pytest.mark.parametrize("address", ["nobody", "silent", "http://127.0.0.1/x", "127.0.0.1:99999", "wrong"])
async def test_parties_are_relayed_where_the_address_is_not_theirs(
    near: Mesh, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(party_links, "DIRECT_S", 0.5)
    over = asyncio.Event()

    async def silent(transport: Transport) -> None:
        await over.wait()

    async def wrong(transport: Transport) -> None:
        await transport.receive()
        await transport.send(bytes(32))

    async with serve_websocket("127.0.0.1", 0, silent if address == "silent" else wrong) as server, sessions(near) as raw:
        there = {"silent": server.port, "wrong": server.port, "nobody": 1}.get(address)
        await near.nodes["carol"].announce_at(address if there is None else f"127.0.0.1:{there}")
        trio = await opened(raw, (me_of(raw),))
        assert sum(relayed(near, trio)) == 4  # both ends of carol's links to the two of lower ranks
        assert await works(trio)
        over.set()


async def test_strangers_at_the_door_of_parties_keep_nobody_out(near: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    node = near.nodes["carol"]
    monkeypatch.setattr(node._strangers, "_most", 8)
    async with contextlib.AsyncExitStack() as stack, sessions(near) as raw:
        for number in range(30):  # some never speak, others show what no party has
            stranger = await stack.enter_async_context(await dial_party(node._address))
            if number % 2:
                await stranger.send(bytes(32))
        await until(lambda: len(node._strangers) <= 8)
        trio = await opened(raw, (me_of(raw),))
        assert await works(trio) and relayed(near, trio) == [False] * 6


@pytest.mark.process
async def test_nodes_explain_how_the_processes_of_their_parties_end_and_serve_on() -> None:
    """Killed, stopped, and grown too large: real processes, one after another, each under a committee of its own."""
    changed = {"processes": True, "max_process_bytes": 128 << 20}
    async with mesh({name: [] for name in NAMES}, settings=changed, listen=True) as made, sessions(made) as raw:

        def process(trio: Trio) -> int:
            party = made.nodes["bob"].committees._running[trio.committee]._party
            return party._worker.pid  # type: ignore[union-attr, no-any-return]

        trio, other = [await opened(raw, (me_of(raw),), deadline_s=60.0) for _ in range(2)]
        assert await works(trio) and await works(other) and relayed(made, trio) == [False] * 6
        os.kill(process(trio), signal.SIGKILL)
        replies = await trio.run("aten.relu.default", Ref(900), output=2)
        await until(lambda: all(node.committees.count == 1 for node in made.nodes.values()))
        replies += await trio.reveal(2)  # type: ignore[operator]
        assert kinds(replies[3:]) == {QuorumLost, NodeUnavailable} and "killed" in str(replies[4])
        assert all("bob" in str(reply) for reply in (replies[3], replies[5]))
        assert await works(other, 910)

        trio = await opened(raw, (me_of(raw),), deadline_s=2.0)
        await trio.share(1, X)
        stopped = process(trio)
        os.kill(stopped, signal.SIGSTOP)
        try:
            replies = await trio.run("aten.relu.default", Ref(1), output=2)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
        assert kinds(replies) == {QuorumLost} and "bob" in str(replies[0]) and "bob" in str(replies[2])

        trio = await opened(raw, (me_of(raw),))
        large = np.zeros(1 << 20, np.uint64)
        for number in range(1, 30):
            replies = await trio.share(number, large)
            if kinds(replies) != {Ok}:
                break
        assert kinds(replies) <= {Ok, QuotaExceeded, QuorumLost} and QuotaExceeded in kinds(replies)
        assert await works(other, 920)
