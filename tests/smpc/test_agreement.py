"""Three nodes agree to be a committee: as lists of events, without I/O."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from grid.errors import AuthenticationFailed, GridError, InvalidRequest, QuorumLost, WireError
from grid.ids import CommitteeId, PeerId
from grid.smpc.agreement import (
    AGREED,
    FAILED,
    Agreed,
    Agreement,
    Announce,
    Contribution,
    Fail,
    Statement,
    Terms,
    Withdraw,
    decode,
)
from grid.smpc.keystreams import Keys

ROSTER = (PeerId("a"), PeerId("b"), PeerId("c"))
TERMS = Terms(CommitteeId("0" * 32), ROSTER, (PeerId("client"),))
NOW, WALL = 10.0, 1000.0


def statement(node: str, terms: Terms = TERMS, expiry: float = WALL + 60) -> Statement:
    own = {"a": (5, 600, 70, 1, 1, 1), "b": (50, 60, 700, 1, 1, 1), "c": (500, 6000, 7, 1, 1, 1)}
    return Statement(terms, PeerId(node), expiry, bytes(16), own.get(node, (1,) * 6))


def agreement(node: str, terms: Terms = TERMS, **more: Any) -> Agreement:
    return Agreement(statement(node, terms), deadline=NOW, names={PeerId("b"): "bob"}, **more)


def announcements(sides: dict[str, Agreement]) -> list[tuple[str, PeerId, Contribution]]:
    found = []
    for node, side in sides.items():
        for effect in side.start():
            assert isinstance(effect, Announce)
            found.append((node, effect.to, effect.contribution))
    return found


def failure(effects: list[Any]) -> GridError:
    withdraw, fail = effects
    assert isinstance(withdraw, Withdraw) and isinstance(fail, Fail) and withdraw.error is fail.error
    return fail.error


CONTRIBUTION = Contribution(bytes(32), bytes(32))


@pytest.mark.parametrize("order", [0, 1, 2, 17, 300, 719])
def test_in_any_order_of_messages_all_three_get_the_keys_of_their_places(order: int) -> None:
    sides = {node: agreement(node) for node in ROSTER}
    keys: dict[str, Keys] = {}
    messages = announcements(sides)
    for sender, to, contribution in list(itertools.permutations(messages))[order]:
        for effect in sides[to].announced(PeerId(sender), statement(sender), contribution, WALL):
            assert isinstance(effect, Agreed)
            keys[to] = effect.keys
            assert effect.limits == (5, 60, 7, 1, 1, 1)
    assert {side.state for side in sides.values()} == {AGREED}
    a, b, c = (keys[node] for node in ROSTER)
    assert (a.following, b.following, c.following) == (b.own, c.own, a.own)
    assert a.common == b.common == c.common
    assert len({a.own, b.own, c.own, a.common}) == 4
    one, other = a.of_program(b"x").draw(1, 5, 0, 8), b.of_program(b"x").draw(0, 5, 0, 8)
    assert (one == other).all() and (b.of_program(b"y").draw(0, 5, 0, 8) != other).all()


def test_only_the_two_of_a_pair_have_the_secrets_of_their_link() -> None:
    own, following, third = (bytes([n]) * 16 for n in range(3))
    first, second = Keys(own, following, bytes(16)), Keys(following, third, bytes(16))
    secrets = {first.of_pair(1, purpose) for purpose in (b"token", b"answer", b"key of what is sent by \0")}
    assert first.of_pair(1, b"token") == second.of_pair(0, b"token") and len(secrets) == 3
    assert first.of_pair(0, b"token") not in secrets and second.of_pair(1, b"token") not in secrets
    with pytest.raises(IndexError):
        first.of_pair(2, b"token")


def test_every_contribution_and_every_term_counts() -> None:
    def keys_of(terms: Terms, changed: Contribution) -> Keys:
        side = agreement("a", terms, random_bytes=lambda count: b"r" * count)
        side.announced(PeerId("b"), statement("b", terms), changed, WALL)
        (effect,) = side.announced(PeerId("c"), statement("c", terms), CONTRIBUTION, WALL)
        assert isinstance(effect, Agreed)
        return effect.keys

    base = keys_of(TERMS, CONTRIBUTION)
    pair = keys_of(TERMS, Contribution(b"p" * 32, bytes(32)))
    assert (pair.own, pair.common) == (base.own, base.common) and pair.following != base.following
    common = keys_of(TERMS, Contribution(bytes(32), b"p" * 32))
    assert (common.own, common.following) == (base.own, base.following) and common.common != base.common
    clients = keys_of(dataclasses.replace(TERMS, clients=(PeerId("other"),)), CONTRIBUTION)
    committee = keys_of(dataclasses.replace(TERMS, committee=CommitteeId("1" * 32)), CONTRIBUTION)
    for other in (clients, committee):
        assert {other.own, other.following, other.common}.isdisjoint({base.own, base.following, base.common})


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (statement("b", dataclasses.replace(TERMS, roster=(ROSTER[0], ROSTER[1], PeerId("d")))), InvalidRequest),
        (statement("b", dataclasses.replace(TERMS, roster=ROSTER[::-1])), InvalidRequest),
        (statement("b", dataclasses.replace(TERMS, clients=(PeerId("client"), PeerId("spy")))), InvalidRequest),
        (statement("b", dataclasses.replace(TERMS, committee=CommitteeId("1" * 32))), InvalidRequest),
        (statement("c"), AuthenticationFailed),
        (statement("b", expiry=WALL - 1), AuthenticationFailed),
    ],
)
def test_a_statement_that_differs_ends_it(said: Statement, error: type[GridError]) -> None:
    side = agreement("a")
    assert type(failure(side.announced(PeerId("b"), said, CONTRIBUTION, WALL))) is error
    assert side.state == FAILED
    assert side.announced(PeerId("c"), statement("c"), CONTRIBUTION, WALL) == []


def test_a_second_statement_and_one_without_contributions_end_it() -> None:
    side = agreement("a")
    assert side.announced(PeerId("b"), statement("b"), CONTRIBUTION, WALL) == []
    assert isinstance(failure(side.announced(PeerId("b"), statement("b"), CONTRIBUTION, WALL)), WireError)
    side = agreement("a")
    assert isinstance(failure(side.announced(PeerId("b"), statement("b"), Contribution(b"", bytes(32)), WALL)), WireError)


def test_a_second_statement_after_the_agreement_ends_it_too() -> None:
    side = agreement("a")
    side.announced(PeerId("b"), statement("b"), CONTRIBUTION, WALL)
    side.announced(PeerId("c"), statement("c"), CONTRIBUTION, WALL)
    assert side.state == AGREED
    assert isinstance(failure(side.announced(PeerId("b"), statement("b"), CONTRIBUTION, WALL)), WireError)


def test_strangers_change_nothing() -> None:
    side = agreement("a")
    assert side.announced(PeerId("d"), statement("d"), CONTRIBUTION, WALL) == []
    assert side.lost(PeerId("d")) == [] and side.withdrawn(PeerId("d"), QuorumLost("")) == []


def test_who_is_missing_is_named() -> None:
    assert failure(agreement("a").lost(PeerId("b"))).details["node"] == "bob"
    assert failure(agreement("a").withdrawn(PeerId("b"), WireError("private"))).details["node"] == "bob"
    for said, named in (("carol", "carol"), ("c", "c"), ("a", "bob"), ("bob", "bob"), (7, "bob")):
        error = failure(agreement("a").withdrawn(PeerId("b"), QuorumLost("private", node=said)))
        assert error.details["node"] == named and "private" not in error.message
    side = agreement("a")
    assert side.tick(NOW - 1) == []
    assert "bob did not answer" in failure(side.tick(NOW)).message
    side = agreement("a")
    side.announced(PeerId("b"), statement("b"), CONTRIBUTION, WALL)
    assert failure(side.tick(NOW)).details["node"] == "c"


@pytest.mark.parametrize(
    "terms",
    [
        Terms(CommitteeId("x" * 32), ROSTER, TERMS.clients),
        Terms(CommitteeId("0" * 31), ROSTER, TERMS.clients),
        Terms(TERMS.committee, ROSTER[:2], TERMS.clients),
        Terms(TERMS.committee, (ROSTER[0], ROSTER[0], ROSTER[1]), TERMS.clients),
        Terms(TERMS.committee, (PeerId("b"), PeerId("c"), PeerId("d")), TERMS.clients),
        Terms(TERMS.committee, ROSTER, ()),
        Terms(TERMS.committee, ROSTER, (PeerId("x"), PeerId("x"))),
        Terms(TERMS.committee, ROSTER, tuple(PeerId(str(number)) for number in range(9))),
    ],
)
def test_terms_that_make_no_committee(terms: Terms) -> None:
    with pytest.raises(InvalidRequest):
        agreement("a", terms)


def test_a_statement_survives_its_encoding_and_nothing_else_does() -> None:
    data = statement("a").encode()
    assert decode(data) == statement("a")
    for damaged in (b"", data[:-1], data + b"x", b"\x00" + data[1:], b"\x97" + data[1:5]):
        with pytest.raises(WireError):
            decode(damaged)
