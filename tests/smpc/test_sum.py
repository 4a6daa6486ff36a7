"""The secure sum's state machine: events in, effects out; any order of events, every refusal, every loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import AuthenticationFailed, GridError, InvalidRequest, QuorumLost, ReleaseDenied, WireError
from grid.ids import PeerId, PlanId, SumId
from grid.smpc import ring
from grid.smpc.statement import Statement, check_cohort, decode
from grid.smpc.sum import Announce, Authorise, Effect, Fail, Finish, SendShare, SumParty, Withdraw

NAMES = {PeerId("a"): "alice", PeerId("b"): "bob", PeerId("c"): "carol"}
ROSTER = tuple(NAMES)
WALL = 1000.0


def statement(name: str, **changes: object) -> Statement:
    base = Statement(
        sum=SumId("s"),
        roster=ROSTER,
        node=PeerId(name),
        plan=PlanId("p"),
        arguments="h",
        shape=(2,),
        fraction_bits=16,
        rows=40,
        labelled=True,
        own=True,
        open=False,
        expiry=WALL + 60,
        nonce=b"n" * 16,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def party(mine: Statement, value: list[int] | None = None, minimum: int = 3) -> SumParty:
    elements = ring.from_tensor(torch.tensor(value or [1, 2]))
    return SumParty(mine=mine, value=elements, minimum=minimum, deadline=60.0, names=NAMES)


class Room:
    """Three parties and the messages between them, delivered in any order that keeps each sender's own order."""

    def __init__(self, statements: list[Statement], values: list[list[int]], minimum: int = 3) -> None:
        self.statements = {mine.node: mine for mine in statements}
        self.parties = {mine.node: party(mine, value, minimum) for mine, value in zip(statements, values, strict=True)}
        self.queues: dict[tuple[PeerId, PeerId], list[Callable[[SumParty], list[Effect]]]] = {}
        self.results: dict[PeerId, ring.Elements] = {}
        self.errors: dict[PeerId, GridError] = {}
        self.order: list[str] = []
        for node, member in self.parties.items():
            self.carry_out(node, member.start())

    def carry_out(self, node: PeerId, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Announce(to):
                    for peer in to:
                        self.post(node, peer, lambda p, n=node: p.announced(n, self.statements[n], WALL))
                case Authorise(elements, parties):
                    self.order.append(f"authorise {node}")
                    self.post(node, node, lambda p, e=elements, n=parties: p.authorised(ring.split(e, n)))
                case SendShare(to, elements):
                    self.order.append(f"share {node}")
                    self.post(node, to, lambda p, n=node, e=elements: p.shared(n, e))
                case Withdraw(to, error):
                    for peer in to:
                        self.post(node, peer, lambda p, n=node, e=error: p.withdrawn(n, e))
                case Finish(elements):
                    self.results[node] = elements
                case Fail(error):
                    assert node not in self.errors
                    self.errors[node] = error

    def post(self, sender: PeerId, to: PeerId, event: Callable[[SumParty], list[Effect]]) -> None:
        self.queues.setdefault((sender, to), []).append(event)

    def deliver(self, choose: Callable[[int], int]) -> None:
        while waiting := [key for key, events in self.queues.items() if events]:
            sender, to = waiting[choose(len(waiting))]
            self.carry_out(to, self.queues[sender, to].pop(0)(self.parties[to]))


@settings(deadline=None)
@given(st.data())
def test_any_order_of_messages_gives_the_sum_at_nobody_before_every_gate_agreed(data: st.DataObject) -> None:
    values = [[3, -5], [10, 2**62], [-4, 2**62]]
    room = Room([statement(node) for node in ROSTER], values)
    room.deliver(lambda count: data.draw(st.integers(0, count - 1)))
    assert not room.errors and len(room.results) == 3
    total = ring.to_tensor(ring.total(room.results.values(), (2,)))
    assert total.tolist() == [9, 2**63 - 5]
    for node in ROSTER:
        assert room.order.index(f"authorise {node}") < room.order.index(f"share {node}")


REFUSED = {
    "unlabelled operand": ({"labelled": False, "own": False, "rows": 0}, "sum.label"),
    "another's dataset": ({"own": False}, "sum.label"),
    "no rows": ({"rows": 0}, "sum.label"),
    "no plan": ({"plan": PlanId("")}, "sum.plan"),
    "derived arguments": ({"arguments": ""}, "sum.plan"),
    "another plan": ({"plan": PlanId("q")}, "sum.plan"),
    "other arguments": ({"arguments": "i"}, "sum.arguments"),
    "another roster": ({"roster": ("a", "b", "d")}, "sum.roster"),
    "a shorter roster": ({"roster": ("a", "b")}, "sum.roster"),
    "reordered roster": ({"roster": ("b", "a", "c")}, "sum.roster"),
    "another shape": ({"shape": (3,)}, "sum.shape"),
    "another scale": ({"fraction_bits": 17}, "sum.shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_before_any_share(name: str) -> None:
    changes, rule = REFUSED[name]
    mine = party(statement("a"))
    assert mine.start() == [Announce((PeerId("b"), PeerId("c")))]
    effects = mine.announced(PeerId("b"), statement("b", **changes), WALL)
    effects += mine.announced(PeerId("c"), statement("c"), WALL)
    assert [type(effect) for effect in effects] == [Withdraw, Fail]
    error = effects[-1].error  # type: ignore[union-attr]
    assert isinstance(error, ReleaseDenied) and error.details["rule"] == rule and "bob" in error.message
    assert mine.authorised([]) == []


def test_a_secret_and_two_zeros_are_refused_at_the_zeros_too() -> None:
    plain = {"labelled": False, "own": False, "rows": 0, "plan": PlanId(""), "arguments": ""}
    room = Room([statement("a"), statement("b", **plain), statement("c", **plain)], [[7, 7], [0, 0], [0, 0]])
    room.deliver(lambda count: 0)
    assert not room.results and not any(entry.startswith("share") for entry in room.order)
    assert isinstance(room.errors[PeerId("a")], ReleaseDenied)


def test_values_without_labels_need_no_cohort() -> None:
    plain = {"labelled": False, "own": False, "rows": 0, "plan": PlanId(""), "arguments": "", "roster": ("a", "b")}
    room = Room([statement("a", **plain), statement("b", **plain)], [[1, 2], [10, 20]])
    room.deliver(lambda count: 0)
    assert ring.to_tensor(ring.total(room.results.values(), (2,))).tolist() == [11, 22]
    alone = party(statement("a", **{**plain, "roster": ("a",)}))
    (ask,) = alone.start()
    assert isinstance(ask, Authorise)
    (finish,) = alone.authorised(ring.split(ask.elements, ask.parties))
    assert isinstance(finish, Finish) and finish.elements.tolist() == [1, 2]


@pytest.mark.parametrize(("minimum", "size", "allowed"), [(3, 2, False), (3, 3, True), (2, 2, True), (2, 1, False)])
def test_the_cohort_has_a_smallest_size(minimum: int, size: int, allowed: bool) -> None:
    roster = ROSTER[:size]
    mine = party(statement("a", roster=roster), minimum=minimum)
    effects = mine.start()
    if allowed:
        assert effects == [Announce(roster[1:])]
    else:
        (fail,) = effects  # nobody is told anything
        assert isinstance(fail, Fail) and fail.error.details["rule"] == "sum.cohort"


def outcome(statements: list[Statement]) -> str:
    try:
        check_cohort(statements, minimum=3, names=NAMES)
    except ReleaseDenied as denied:
        return str(denied.details["rule"])
    return "allowed"


def test_open_datasets_hide_nobody_and_are_not_counted() -> None:
    """What is public can be taken off the sum, so it is no member of the cohort that the others hide in."""
    secret = [statement(name) for name in "abc"]
    public = [statement(name, open=True) for name in "de"]
    assert outcome([secret[0], *public]) == "sum.cohort"
    assert outcome([*secret[:2], *public]) == "sum.cohort"
    assert outcome([*secret, *public]) == "allowed"
    assert outcome(public) == "allowed"  # nothing to hide
    assert outcome([*secret, statement("d", open=True, plan=PlanId("q"))]) == "sum.plan"
    assert outcome([statement("d", labelled=False, own=False, rows=0, open=True), *secret]) == "sum.label"


def test_a_sum_of_one_secret_with_public_data_is_refused_by_its_owner() -> None:
    statements = [statement("a"), statement("b", open=True), statement("c", open=True)]
    room = Room(statements, [[7, 7], [1, 1], [2, 2]])
    room.deliver(lambda count: 0)
    assert not room.results and not any(entry.startswith("share") for entry in room.order)
    assert room.errors[PeerId("a")].details["rule"] == "sum.cohort"


def test_a_statement_says_whether_its_data_are_open() -> None:
    for value in (True, False):
        assert decode(statement("a", open=value).encode()).open is value
    with pytest.raises(WireError):
        decode(statement("a", open=1).encode())


def test_two_operands_from_one_node_are_no_roster() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        party(statement("a", roster=("a", "a", "b")))
    with pytest.raises(InvalidRequest, match="not in the roster"):
        party(statement("a", roster=("b", "c")))
    with pytest.raises(InvalidRequest):
        party(statement("a", roster=()))


PARTS = ring.split(ring.from_tensor(torch.tensor([1, 2])), 3)


def announced_party() -> SumParty:
    mine = party(statement("a"))
    mine.start()
    mine.announced(PeerId("b"), statement("b"), WALL)
    mine.announced(PeerId("c"), statement("c"), WALL)
    return mine


@pytest.mark.parametrize(
    "changes",
    [{"node": PeerId("c")}, {"sum": SumId("t")}, {"expiry": WALL - 1}],
)
def test_statements_of_others_other_sums_or_yesterday_are_refused(changes: dict[str, object]) -> None:
    mine = party(statement("a"))
    mine.start()
    effects = mine.announced(PeerId("b"), statement("b", **changes), WALL)
    assert isinstance(effects[-1], Fail) and isinstance(effects[-1].error, AuthenticationFailed)


def test_a_second_statement_and_shares_out_of_turn_end_the_sum() -> None:
    elements = numpy.zeros(2, dtype=numpy.uint64)
    mine = party(statement("a"))
    mine.start()
    mine.announced(PeerId("b"), statement("b"), WALL)
    effects = mine.announced(PeerId("b"), statement("b"), WALL)
    assert isinstance(effects[-1], Fail) and isinstance(effects[-1].error, WireError)
    early = party(statement("a"))
    early.start()
    effects = early.shared(PeerId("b"), elements)
    assert isinstance(effects[-1], Fail) and isinstance(effects[-1].error, WireError)
    wrong = announced_party()
    effects = wrong.shared(PeerId("b"), numpy.zeros((2, 1), dtype=numpy.uint64))
    assert isinstance(effects[-1], Fail) and isinstance(effects[-1].error, WireError)
    twice = announced_party()
    twice.shared(PeerId("b"), elements)
    effects = twice.shared(PeerId("b"), elements)
    assert isinstance(effects[-1], Fail) and isinstance(effects[-1].error, WireError)


def test_strangers_change_nothing() -> None:
    mine = announced_party()
    stranger = PeerId("mallory")
    assert mine.announced(stranger, statement("mallory"), WALL) == []
    assert mine.shared(stranger, numpy.zeros(2, dtype=numpy.uint64)) == []
    assert mine.withdrawn(stranger, None) == [] and mine.lost(stranger) == []
    assert mine.state == "authorising"


def test_a_refusal_of_the_gate_reaches_client_and_peers() -> None:
    mine = announced_party()
    denied = ReleaseDenied("no", rule="min_rows")
    assert mine.refused(denied) == [Withdraw((PeerId("b"), PeerId("c")), denied), Fail(denied)]
    other = announced_party()
    effects = other.withdrawn(PeerId("b"), denied)
    error = effects[-1].error  # type: ignore[union-attr]
    assert isinstance(error, QuorumLost) and error.details["node"] == "bob" and "release-denied" in error.message


@pytest.mark.parametrize("stage", ["announcing", "authorising", "sharing"])
def test_a_lost_node_is_named_at_every_stage_and_nothing_is_kept(stage: str) -> None:
    mine = party(statement("a"))
    mine.start()
    if stage != "announcing":
        mine = announced_party()
    if stage == "sharing":
        mine.authorised(PARTS)
    assert mine.state == stage
    withdraw, fail = mine.lost(PeerId("c"))
    assert isinstance(withdraw, Withdraw) and withdraw.to == (PeerId("b"),)
    assert isinstance(fail, Fail) and fail.error.details["node"] == "carol" and "carol" in fail.error.message
    assert mine.over and mine._value is None and mine._own_part is None and not mine._shares
    assert mine.lost(PeerId("b")) == [] and mine.tick(1e9) == [] and mine.refused(fail.error) == []


def test_a_third_nodes_loss_is_passed_on_by_name() -> None:
    mine = announced_party()
    effects = mine.withdrawn(PeerId("b"), QuorumLost("gone", node="carol", peer="c"))
    assert isinstance(effects[-1], Fail) and effects[-1].error.details["node"] == "carol"
    liar = announced_party()  # naming a node outside the roster falls back on the one who said it
    effects = liar.withdrawn(PeerId("b"), QuorumLost("gone", node="dave", peer="d"))
    assert isinstance(effects[-1], Fail) and effects[-1].error.details["node"] == "bob"


def test_the_deadline_names_who_owes_something() -> None:
    mine = party(statement("a"))
    mine.start()
    mine.announced(PeerId("b"), statement("b"), WALL)
    assert mine.tick(59.9) == []
    (_, fail) = mine.tick(60.0)
    assert isinstance(fail, Fail) and fail.error.details["node"] == "carol"
    sharing = announced_party()
    sharing.authorised(PARTS)
    sharing.shared(PeerId("c"), numpy.zeros(2, dtype=numpy.uint64))
    (_, fail) = sharing.tick(60.0)
    assert isinstance(fail, Fail) and fail.error.details["node"] == "bob"


def test_a_node_that_leaves_after_its_share_came_does_not_spoil_the_sum() -> None:
    mine = announced_party()
    mine.authorised(PARTS)
    mine.shared(PeerId("c"), numpy.zeros(2, dtype=numpy.uint64))
    assert mine.lost(PeerId("c")) == []
    (finish,) = mine.shared(PeerId("b"), numpy.zeros(2, dtype=numpy.uint64))
    assert isinstance(finish, Finish)


def test_each_share_alone_is_random_and_differs_between_peers() -> None:
    mine = announced_party()
    shares = [effect.elements.tolist() for effect in mine.authorised(PARTS) if isinstance(effect, SendShare)]
    assert len(shares) == 2 and shares[0] != shares[1] and [1, 2] not in shares


def test_statements_survive_encoding_and_nothing_else_is_one() -> None:
    mine = statement("a", shape=())
    assert decode(mine.encode()) == mine
    for wrong in (b"", b"\xc1", b"\x90", mine.encode()[:-1], mine.encode() + b"\0", statement("a", rows=-1).encode()):
        with pytest.raises(WireError):
            decode(wrong)
    with pytest.raises(WireError):
        decode(dataclasses.replace(mine, nonce=b"short").encode())


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_decoding_a_statement_is_total(data: bytes) -> None:
    try:
        decode(data)
    except WireError:
        return


def test_a_cohort_without_labels_is_never_refused() -> None:
    check_cohort([statement("a", labelled=False, plan=PlanId(""))], minimum=3, names={})
