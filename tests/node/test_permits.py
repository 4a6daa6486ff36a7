"""Who may open what a committee computed of rows: permits, and everything that is none, by raw messages of all kinds of peers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from node_mesh import CLOCK, Mesh, RawClient, dataset, mesh
from test_hostile_committees import NAMES, Trio, hostile, kinds, me_of, opened, sessions, until, works

from grid.crypto.envelope import seal
from grid.crypto.identity import LocalIdentity
from grid.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    ReleaseDenied,
    WireError,
)
from grid.ids import CommitteeId, ObjectId, PeerId, SumId, TransferId, random_id
from grid.node import openings
from grid.node.committees import deal
from grid.node.party import LocalParty
from grid.node.party_messages import Begin
from grid.node.permits import KIND, PERMIT_S, sign, verify
from grid.plans.trace import trace
from grid.policy.gate import Gate
from grid.smpc.keystreams import ALL, OWN, Keys, Keystreams
from grid.wire.messages import (
    AskPermit,
    Command,
    DeliverShare,
    ExpectObject,
    ExpectShare,
    GetObject,
    GetShare,
    GivenRows,
    OfferShares,
    Ok,
    Opening,
    OwnerRule,
    Permit,
    Ref,
    RowsBehind,
    SecureCommands,
    ShareInput,
    ShareObject,
    ShareValue,
)

ROWS = 20
SHAPE = (ROWS, 2)


@pytest.fixture
async def made() -> AsyncIterator[Mesh]:
    """dave has rows under a rule, and is no party; alice, who is one, too; carol has public ones."""
    private, public = dataset(ROWS, 2, release="aggregate"), dataset(ROWS, 2, release="open")
    async with mesh({"alice": [private], "bob": [], "carol": [public], "dave": [private]}) as nodes:
        yield nodes


@pytest.fixture
async def raw(made: Mesh) -> AsyncIterator[dict[str, RawClient]]:
    async with sessions(made) as found:
        yield found


@pytest.fixture
async def trio(raw: dict[str, RawClient]) -> Trio:
    return await opened(raw, (me_of(raw),))


async def shared(trio: Trio, owner: str, object_id: int) -> None:
    """Have the features of an owner's dataset dealt."""
    source = trio.raw[owner]
    rows = await source.open("d")
    deal = ShareObject(
        committee=trio.committee, roster=trio.roster, source=ObjectId(int(rows)), object=ObjectId(object_id)
    )
    expect = lambda rank, number: ExpectShare(  # noqa: E731
        committee=trio.committee, number=number, owner=source.node.id, object=ObjectId(object_id), dtype="f4", shape=SHAPE
    )
    replies, _ = await asyncio.gather(trio.ask(expect), source.request(deal))
    assert kinds(replies) == {Ok}


async def open_to(
    trio: Trio, node: str, object_id: int, *, shape: Sequence[int] = SHAPE, roster: Sequence[PeerId] | None = None
) -> list[Any]:
    """Ask for a result to be opened to a node; the replies of the parties. The value is object 700 there."""
    target, transfer = trio.raw[node], TransferId(random_id())
    expected = tuple(trio.roster if roster is None else roster)
    await target.request(
        ExpectObject(
            transfer=transfer, sender=expected[0], object=ObjectId(700), shape=tuple(shape), dtype="f4", roster=expected
        )
    )
    return await trio.ask(
        lambda rank, number: GetShare(
            committee=trio.committee,
            number=number,
            object=ObjectId(object_id),
            recipient=target.node.id,
            transfer=transfer,
        )
    )


# ---------------------------------------------------------------- the permit itself

OWNER = LocalIdentity.create(name="dave", role="node", clock=CLOCK)
ASKED = AskPermit(
    opening=Opening(
        committee=CommitteeId("c" * 32),
        client=PeerId("client"),
        number=7,
        object=ObjectId(3),
        recipient=PeerId("client"),
        plan="1" * 64,
        dtype="f4",
        shape=(2, 3),
    ),
    rules=(OwnerRule(dataset="d", release="aggregate", part="features"),),
)


def test_a_permit_is_for_one_result_to_one_recipient() -> None:
    wall = CLOCK.wall()
    good = sign(OWNER, ASKED, wall)
    assert len(verify(good, OWNER.public_key, ASKED, wall)) == 16
    assert verify(good, OWNER.public_key, ASKED, wall) != verify(sign(OWNER, ASKED, wall), OWNER.public_key, ASKED, wall)
    changes: list[dict[str, Any]] = [
        {"committee": CommitteeId("d" * 32)},
        {"client": PeerId("other")},
        {"number": 8},
        {"object": ObjectId(4)},
        {"recipient": PeerId("other")},
        {"plan": "2" * 64},
        {"plan": ""},
        {"dtype": "f8"},
        {"shape": (3, 2)},
        {"call": 6},
        {"given": (GivenRows(node=PeerId("n"), dataset="d", part="features"),)},
    ]
    others = [dataclasses.replace(ASKED, opening=dataclasses.replace(ASKED.opening, **change)) for change in changes]
    for field in ({"dataset": "e"}, {"release": "open"}, {"part": "targets"}):
        others.append(dataclasses.replace(ASKED, rules=(dataclasses.replace(ASKED.rules[0], **field),)))
    others += [dataclasses.replace(ASKED, rules=()), dataclasses.replace(ASKED, rules=ASKED.rules * 2)]
    for other in others:
        with pytest.raises(AuthenticationFailed, match="another result"):
            verify(good, OWNER.public_key, other, wall)


def test_what_is_no_permit_does_not_hold() -> None:
    wall = CLOCK.wall()
    stranger = LocalIdentity.create(name="dave", role="node", clock=CLOCK)
    good = sign(OWNER, ASKED, wall)
    wrong: list[bytes] = [
        sign(stranger, ASKED, wall),
        sign(OWNER, ASKED, wall - PERMIT_S - 301),  # expired
        sign(OWNER, ASKED, wall + 302),  # would last longer than permits do
        seal("grid committee statement 1", b"", OWNER.key),
        seal(KIND, b"", OWNER.key),
        good[:-1],
        good[:-1] + bytes([good[-1] ^ 1]),
        b"",
    ]
    for envelope in wrong:
        with pytest.raises(AuthenticationFailed):
            verify(envelope, OWNER.public_key, ASKED, wall)


# ---------------------------------------------------------------- what opens


async def test_a_result_opens_to_the_owner_and_is_decided_on_once(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided: list[Any] = []
    release = Gate.release_on_shares

    def counted(gate: Gate, behind: Any, *rest: Any, **more: Any) -> None:
        decided.append(more)
        release(gate, behind, *rest, **more)

    monkeypatch.setattr(Gate, "release_on_shares", counted)
    await shared(trio, "dave", 1)
    assert kinds(await open_to(trio, "dave", 1)) == {Ok}
    assert [more["own"] for more in decided] == [True]
    dave = trio.raw["dave"]
    with pytest.raises(ReleaseDenied, match="opened the value to this node"):
        await dave.request(GetObject(object=ObjectId(700)))
    described = await dave.describe(700)  # type: ignore[arg-type]
    assert described.datasets == ("opened from shares/dave/d (elsewhere)",) and described.axis == -2


async def test_each_owner_behind_a_result_must_permit_it(trio: Trio) -> None:
    await shared(trio, "dave", 1)
    await shared(trio, "carol", 2)
    await shared(trio, "alice", 3)
    await trio.run("aten.add.Tensor", Ref(1), Ref(2), output=4)
    await trio.run("aten.add.Tensor", Ref(1), Ref(3), output=5)
    assert isinstance(await trio.reveal(2), np.ndarray)  # public rows
    assert kinds(await open_to(trio, "dave", 4)) == {Ok}  # its own, and public ones
    trio.raw["dave"].free(Ref(700))
    for node, why in (("dave", "alice"), ("alice", "dave")):
        replies = await open_to(trio, node, 5)
        assert kinds(replies) == {ReleaseDenied} and all(reply.details["node"] == why for reply in replies)
        trio.raw[node].free(Ref(700))
    for number in (1, 3, 4, 5):
        assert kinds(await trio.reveal(number)) == {ReleaseDenied}
        assert kinds(await open_to(trio, "bob", number)) == {ReleaseDenied}
        trio.raw["bob"].free(Ref(700))


# ---------------------------------------------------------------- clients that try


async def test_a_result_for_a_node_does_not_go_to_the_client(trio: Trio) -> None:
    await shared(trio, "dave", 1)
    dave, me = trio.raw["dave"].node.id, me_of(trio.raw)

    def ask(**fields: Any) -> Callable[[int, int], GetShare]:
        return lambda rank, number: GetShare(committee=trio.committee, number=number, object=ObjectId(1), **fields)

    assert kinds(await trio.ask(ask(recipient=dave))) == {InvalidRequest}
    assert kinds(await trio.ask(ask(transfer=TransferId(random_id())))) == {InvalidRequest}
    assert kinds(await trio.ask(ask(recipient=me, transfer=TransferId(random_id())))) == {ReleaseDenied}
    assert kinds(await trio.ask(ask(recipient=dave, transfer=TransferId(random_id())))) == {NotFound}  # nobody expects it


async def test_a_client_that_asks_parties_for_different_recipients_gets_nothing(trio: Trio) -> None:
    await shared(trio, "dave", 1)
    transfer, dave = TransferId(random_id()), trio.raw["dave"]
    expect = ExpectObject(
        transfer=transfer, sender=trio.roster[0], object=ObjectId(700), shape=SHAPE, dtype="f4", roster=trio.roster
    )
    await dave.request(expect)

    def make(rank: int, number: int) -> GetShare:
        to: dict[str, Any] = {} if rank == 0 else {"recipient": dave.node.id, "transfer": transfer}
        return GetShare(committee=trio.committee, number=number, object=ObjectId(1), **to)

    replies = await trio.ask(make)
    assert kinds(replies) == {ReleaseDenied} and all("do not say the same" in reply.message for reply in replies)


async def test_another_client_cannot_have_a_result_opened_into_its_session(made: Mesh, trio: Trio) -> None:
    await shared(trio, "dave", 1)
    transfer = TransferId(random_id())
    expect = ExpectObject(
        transfer=transfer, sender=trio.roster[0], object=ObjectId(700), shape=SHAPE, dtype="f4", roster=trio.roster
    )
    async with sessions(made) as other:
        await other["dave"].request(expect)
        replies = await trio.ask(
            lambda rank, number: GetShare(
                committee=trio.committee,
                number=number,
                object=ObjectId(1),
                recipient=trio.raw["dave"].node.id,
                transfer=transfer,
            )
        )
        assert kinds(replies) == {WireError}


async def test_shares_are_offered_in_the_clients_own_name_to_another_of_the_list(made: Mesh, trio: Trio) -> None:
    await trio.share(1, np.array([3, 5, 8], np.uint64))
    for change, error in (
        ({"client": PeerId("somebody")}, InvalidRequest),
        ({"to": 0}, InvalidRequest),  # itself
        ({"to": 1}, InvalidRequest),
        ({"to": -1}, InvalidRequest),
        ({"object": ObjectId(9)}, NotFound),
    ):
        fields: dict[str, Any] = {"object": ObjectId(1), "client": me_of(trio.raw), "to": 0, "name": ObjectId(1 << 61), **change}
        message = lambda rank, number, fields=fields: OfferShares(committee=trio.committee, number=number, **fields)  # noqa: E731
        assert kinds(await trio.ask(message)) == {error}
        trio.number -= "client" in change  # which is refused before it reaches the party
    assert await works(trio)


async def test_plans_and_sums_at_a_node_do_not_reach_its_shares(trio: Trio) -> None:
    await trio.share(1, np.array([3, 5, 8], np.uint64))
    double = trace(lambda x: x * 2, torch.zeros(3))
    for name in NAMES:
        (result,) = await trio.raw[name].plan(double, Ref(1))
        with pytest.raises(NotFound):
            await trio.raw[name].get(result)
        with pytest.raises(NotFound):
            await trio.raw[name].start_sum(SumId(random_id()), trio.roster, Ref(1), deadline_s=1.0)
    assert await works(trio)


async def test_no_session_of_a_client_asks_for_permits_or_delivers_shares(trio: Trio) -> None:
    for message in (ASKED, delivery(trio)):
        with pytest.raises(InvalidRequest, match="makes no sense"):
            await trio.raw["dave"].request(message)


# ---------------------------------------------------------------- nodes that try


def asked(trio: Trio, **fields: Any) -> AskPermit:
    """What the parties would ask dave for."""
    opening = Opening(
        committee=trio.committee,
        client=me_of(trio.raw),
        number=90,
        object=ObjectId(1),
        recipient=trio.raw["dave"].node.id,
        plan="",
        dtype="f4",
        shape=SHAPE,
    )
    rules = (OwnerRule(dataset="d", release="aggregate", part="features"),)
    return AskPermit(opening=dataclasses.replace(opening, **fields), rules=rules)


async def test_one_party_alone_gets_no_permit(made: Mesh, trio: Trio) -> None:
    await shared(trio, "dave", 1)
    made.nodes["dave"].permits._wait_s = 0.2
    bob = await hostile(made, "bob", "dave")
    with pytest.raises(DeadlineExceeded):
        await bob.request(asked(trio))
    made.nodes["dave"].permits._wait_s = 60.0
    lone = asyncio.ensure_future(bob.request(asked(trio, number=91)))
    with pytest.raises(ReleaseDenied, match="do not say the same"):
        await (await hostile(made, "carol", "dave")).request(asked(trio, number=91, recipient=me_of(trio.raw)))
    with pytest.raises(ReleaseDenied):
        await lone
    assert kinds(await open_to(trio, "dave", 1)) == {Ok}


async def test_results_that_wait_for_permits_are_counted_by_client(
    made: Mesh, trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grid.node.permits.MAX_WAITING_PER_CLIENT", 3)
    kept, bob = made.nodes["dave"].permits, await hostile(made, "bob", "dave")
    await shared(trio, "dave", 1)
    async with contextlib.AsyncExitStack() as stack:
        lone: list[asyncio.Future[Any]] = []
        for count in (3, 6):
            raw = await stack.enter_async_context(sessions(made))
            theirs = await opened(raw, (me_of(raw),))
            await shared(theirs, "dave", 1)
            lone += [asyncio.ensure_future(bob.request(asked(theirs, number=90 + at))) for at in range(3)]
            await until(lambda count=count: len(kept._asked) == count)  # type: ignore[misc]
            with pytest.raises(QuotaExceeded, match="3 results of this client"):
                await bob.request(asked(theirs, number=95))
        assert kinds(await open_to(trio, "dave", 1)) == {Ok}
        monkeypatch.setattr("grid.node.permits.MAX_WAITING", 6)
        with pytest.raises(QuotaExceeded, match="too many results"):
            await bob.request(asked(trio, number=95))
        for one in lone:
            one.cancel()


async def test_permits_are_for_parties_of_values_that_were_dealt_to_them(made: Mesh, trio: Trio) -> None:
    with pytest.raises(ReleaseDenied, match="remembers no value"):
        await (await hostile(made, "bob", "dave")).request(asked(trio))
    await shared(trio, "dave", 1)
    async with sessions(made) as other:
        for wrong in (asked(trio, client=me_of(other)), asked(trio, committee=CommitteeId(random_id()))):
            with pytest.raises(ReleaseDenied, match="remembers no value"):
                await (await hostile(made, "bob", "dave")).request(wrong)
    strange = [
        dataclasses.replace(asked(trio, number=95 + at), rules=rules)
        for at, rules in enumerate(
            [
                (),
                (OwnerRule(dataset="d", release="open", part="features"),),
                (OwnerRule(dataset="d", release="aggregate", part="targets"),),
                (OwnerRule(dataset="e", release="aggregate", part="features"),),
            ]
        )
    ] + [asked(trio, number=99, shape=(-1,)), asked(trio, number=100, dtype="x9")]
    for message in strange:
        peers = [await hostile(made, name, "dave") for name in NAMES]
        answers = await asyncio.gather(*(peer.request(message) for peer in peers), return_exceptions=True)
        assert kinds(answers) <= {ReleaseDenied, InvalidRequest}, message


async def test_answers_are_kept_within_bounds_and_a_fault_is_an_answer(
    made: Mesh, trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shared(trio, "dave", 1)
    kept = made.nodes["dave"].permits
    monkeypatch.setattr("grid.node.permits.MAX_ANSWERS", 3)
    for count in (1, 2, 3, 3, 3):
        assert kinds(await open_to(trio, "dave", 1)) == {Ok} and len(kept._asked) == count
        trio.raw["dave"].free(Ref(700))

    def fails(gate: Gate, *rest: Any, **more: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Gate, "release_on_shares", fails)
    replies = await open_to(trio, "dave", 1)
    assert kinds(replies) == {GridError} and all("a fault" not in reply.message for reply in replies)


async def refused_if_owner_answers(trio: Trio, made: Mesh, answer: Callable[[PeerId, AskPermit, Any], Any]) -> list[Any]:
    """What the parties say where dave's node answers as `answer` says, given the true permit."""
    permits = made.nodes["dave"].permits
    honest = permits.ask

    async def lying(asker: PeerId, message: AskPermit) -> Permit:
        found = answer(asker, message, await honest(asker, message))
        if isinstance(found, GridError):
            raise found
        return Permit(envelope=found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permits, "ask", lying)
        replies = await open_to(trio, "dave", 1)
    trio.raw["dave"].free(Ref(700))
    return replies


async def test_a_permit_that_does_not_hold_opens_nothing(made: Mesh, trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    await shared(trio, "dave", 1)
    wall, owner, carol = CLOCK.wall(), made.nodes["dave"].me, made.nodes["carol"].me
    before: list[bytes] = []

    def kept(asker: PeerId, message: AskPermit, good: Permit) -> bytes:
        before.append(good.envelope)
        return good.envelope

    assert kinds(await refused_if_owner_answers(trio, made, kept)) == {Ok}
    lies: list[Callable[[PeerId, AskPermit, Any], Any]] = [
        lambda asker, message, good: sign(carol, message, wall),  # of a node that is no owner
        lambda asker, message, good: before[0],  # of the reveal before
        lambda asker, message, good: sign(owner, asked(trio), wall),
        lambda asker, message, good: sign(owner, message, wall - 1000),
        lambda asker, message, good: b"",
    ]
    for lie in lies:
        replies = await refused_if_owner_answers(trio, made, lie)
        assert kinds(replies) == {ReleaseDenied} and all("dave" in reply.message for reply in replies)
    monkeypatch.setattr(openings, "verify", lambda *rest: b"the same nonce  ")
    first = await refused_if_owner_answers(trio, made, lambda asker, message, good: good.envelope)
    second = await refused_if_owner_answers(trio, made, lambda asker, message, good: good.envelope)
    assert kinds(first) == {Ok} and all("used before" in reply.message for reply in second)


async def test_an_owner_that_says_no_to_one_party_keeps_the_result_closed(made: Mesh, trio: Trio) -> None:
    await shared(trio, "carol", 1)  # public: it would open
    permits = made.nodes["carol"].permits
    honest, bob = permits.ask, made.nodes["bob"].id

    async def lying(asker: PeerId, message: AskPermit) -> Permit:
        found = await honest(asker, message)
        if asker == bob:
            raise ReleaseDenied("not to you")
        return found

    permits.ask = lying  # type: ignore[method-assign]
    replies = await trio.reveal(1)
    assert isinstance(replies, list) and [type(reply) for reply in replies] == [ShareValue, ReleaseDenied, ShareValue]
    rows = made.nodes["carol"].datasets["d"].features
    whole = torch.round(rows.double() * 2**18).long().numpy().reshape(-1).view(np.uint64)
    words = [np.frombuffer(reply.words, np.uint64) for reply in replies if isinstance(reply, ShareValue)]
    assert not (words[0] + words[1] == whole).any() and not any((one == whole).any() for one in words)


def delivery(trio: Trio, transfer: str = "t" * 32, words: bytes = bytes(8 * ROWS * 2)) -> DeliverShare:
    behind = (RowsBehind(node=trio.raw["dave"].node.id, dataset="d"),)
    opening = asked(trio).opening
    return DeliverShare(transfer=TransferId(transfer), opening=opening, behind=behind, words=words, digest=bytes(32))


async def test_shares_that_nobody_expects_are_refused(made: Mesh, trio: Trio) -> None:
    dave, transfer = trio.raw["dave"], random_id()
    bob = await hostile(made, "bob", "dave")
    with pytest.raises(NotFound):
        await bob.request(delivery(trio))
    expect = ExpectObject(
        transfer=TransferId(transfer), sender=trio.roster[0], object=ObjectId(700), shape=SHAPE, dtype="f4", roster=trio.roster
    )
    with pytest.raises(InvalidRequest, match="3 different nodes"):
        await dave.request(dataclasses.replace(expect, roster=expect.roster[:2]))
    await dave.request(expect)
    with pytest.raises(WireError, match="size"):
        await bob.request(delivery(trio, transfer, bytes(8)))
    first = asyncio.ensure_future(bob.request(delivery(trio, transfer)))
    await asyncio.sleep(0)
    with pytest.raises(NotFound):
        await bob.request(delivery(trio, transfer))
    others = [await hostile(made, name, "dave") for name in ("alice", "carol")]
    replies = await asyncio.gather(first, *(peer.request(delivery(trio, transfer)) for peer in others), return_exceptions=True)
    assert kinds(replies) == {WireError}  # zeros, and no digest of them
    with pytest.raises(WireError):
        await dave.request(GetObject(object=ObjectId(700)))


async def test_nodes_that_make_a_result_up_do_not_leave_it_with_the_owner(made: Mesh, trio: Trio) -> None:
    dave, transfer, roster = trio.raw["dave"], random_id(), trio.roster
    await dave.request(
        ExpectObject(
            transfer=TransferId(transfer), sender=roster[0], object=ObjectId(700), shape=SHAPE, dtype="f4", roster=roster
        )
    )
    words = bytes(8 * ROWS * 2)
    share = dataclasses.replace(delivery(trio, transfer, words), digest=hashlib.sha256(words).digest())
    peers = [await hostile(made, name, "dave") for name in NAMES]
    replies = await asyncio.gather(*(peer.request(share) for peer in peers), return_exceptions=True)
    assert kinds(replies) == {WireError} and all("never permitted" in reply.message for reply in replies)


@pytest.mark.parametrize("lie", ["words", "digest", "behind", "opening"])
async def test_a_party_that_lies_about_a_result_is_found_out(
    made: Mesh, trio: Trio, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    await shared(trio, "dave", 1)
    party = made.nodes["bob"].committees._common.openings
    honest = party._deliver

    async def lying(recipient: PeerId, share: DeliverShare, deadline_s: float) -> None:
        changed: dict[str, Any] = {
            "words": {"words": bytes([share.words[0] ^ 1]) + bytes(share.words[1:])},
            "digest": {"digest": bytes(32)},
            "behind": {"behind": ()},
            "opening": {"opening": dataclasses.replace(share.opening, plan="1" * 64)},
        }[lie]
        await honest(recipient, dataclasses.replace(share, **changed), deadline_s)

    monkeypatch.setattr(party, "_deliver", lying)
    replies = await open_to(trio, "dave", 1)
    assert kinds(replies) == {WireError}
    if lie in ("words", "digest"):
        assert all("bob" in reply.message for reply in replies)
    with pytest.raises(WireError):
        await trio.raw["dave"].request(GetObject(object=ObjectId(700)))


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize("told", [1, 2, 3])
async def test_shares_that_do_not_fit_together_give_noise(raw: dict[str, RawClient], told: int) -> None:
    """Results would else tell of a component, and of the other two in later ones: together, of the other operand."""
    trio = await opened(raw, (me_of(raw),), deadline_s=2.0)
    values = np.array([3, 5, 8], np.uint64)
    await trio.share(1, values)
    (s0, s1), rest = deal(values)
    more = (np.frombuffer(rest, np.uint64) + np.uint64(1)).tobytes()
    parts = {
        1: ((s0, s1), (s1, more), (rest, s0)),
        2: ((s0, s1), (bytes(32), rest), (rest, s0)),
        3: ((bytes(32), s1), (s1, rest), (rest, s0)),
    }[told]

    def make(rank: int, number: int) -> ShareInput:
        first, second = parts[rank]
        return ShareInput(
            committee=trio.committee, number=number, object=ObjectId(2), dtype="i8", shape=(3,), first=first, second=second
        )

    assert kinds(await trio.ask(make)) == {Ok}
    await trio.run("aten.mul.Tensor", Ref(1), Ref(2), output=3)
    one = Command(op="aten.mul.Tensor", args=[Ref(1), Ref(2)], kwargs={}, outputs=(ObjectId(4),))
    await trio.ask(lambda rank, number: SecureCommands(committee=trio.committee, first=number, commands=(one,)))
    found = []
    for number in (3, 4):
        replies = await trio.ask(
            lambda rank, at, number=number: GetShare(committee=trio.committee, number=at, object=ObjectId(number))
        )
        found.append(sum(np.frombuffer(reply.words, np.uint64) for reply in replies))
    assert (found[0] != found[1]).all()  # the same product: whatever it tells lies under fresh noise
    assert await works(trio)


async def test_no_two_committees_of_the_same_nodes_have_a_key_in_common(
    raw: dict[str, RawClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor has any request of theirs keystreams that another one has, though the client asks both for the same."""
    begun: list[tuple[bytes, bytes, bytes]] = []
    drawn: list[bytes] = []
    start, of_program = LocalParty._start, Keys.of_program

    def started(party: LocalParty, begin: Begin, sockets: Any) -> None:
        begun.append((begin.own, begin.following, begin.common))
        start(party, begin, sockets)

    def programmed(keys: Keys, *rest: Any) -> Keystreams:
        made = of_program(keys, *rest)
        drawn.extend(made.draw(place, 0, 0, 4).tobytes() for place in (OWN, ALL))
        return made

    monkeypatch.setattr(LocalParty, "_start", started)
    monkeypatch.setattr(Keys, "of_program", programmed)
    for _ in range(2):
        assert await works(await opened(raw, (me_of(raw),)))
    assert len(begun) == 6 and len(drawn) == 24  # two committees of three parties; a product and a reveal in each
    for first in (0, 3):
        keys = begun[first : first + 3]
        assert len({one[2] for one in keys}) == 1 and len({key for one in keys for key in one}) == 4
    assert not {key for one in begun[:3] for key in one} & {key for one in begun[3:] for key in one}
    pairs = [set(drawn[at : at + 12]) for at in (0, 12)]
    assert all(len(pair) == 8 for pair in pairs) and not pairs[0] & pairs[1]  # each request: three of pairs, one of all three
