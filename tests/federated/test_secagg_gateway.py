"""A gateway that does not keep to the protocol: what it tries, each node refuses, and the message names the rule."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity
from grid.errors import AuthenticationFailed, InvalidRequest, ReleaseDenied, WireError
from grid.federated.secagg.graph import degree_and_threshold
from grid.federated.secagg.statements import Terms, read_keys, sign_keys
from grid.ids import PeerId
from tests.federated.cohort import Cohort, Names, believe, identity, party, terms_for

ALICE, BOB, CAROL, DAVE = (identity(number).id for number in range(4))


def cohort_of(count: int, **changes: object) -> Cohort:
    return Cohort(terms_for(count, **changes), [identity(number) for number in range(count)])  # type: ignore[arg-type]


def refused(rule: str, act: Callable[[], object]) -> str:
    """That `act` is refused by this rule; the message."""
    with pytest.raises(ReleaseDenied) as caught:
        act()
    assert caught.value.details["rule"] == rule
    assert f"(rule {rule})" in caught.value.message and caught.value.details["instead"]
    return caught.value.message


# ---------------------------------------------------------------- keys and rosters


def test_swapped_keys() -> None:
    """The gateway puts its own keys in Bob's place, to read the shares for him and to know the masks with him."""
    cohort = cohort_of(3)
    alice, bob, carol = cohort.announce()
    mallory = identity(9)
    mine = sign_keys(mallory, identity(1).card, cohort.terms, cipher=b"c" * 32, mask=b"m" * 32, commitment=b"h" * 32)
    for false in (mine, bob[:-1] + bytes([bob[-1] ^ 1])):
        for one in cohort.parties.values():
            with pytest.raises(AuthenticationFailed):
                one.share([alice, false, carol])
    # Under its own name it is a member like another, whom the owner's trust admits or not.

    def only_enrolled(card: bytes) -> object:
        if card == mallory.card:
            raise AuthenticationFailed("not enrolled under this grid's root")
        return believe(card)

    strict = party(identity(0), cohort.terms, verify=only_enrolled)
    own = sign_keys(mallory, mallory.card, cohort.terms, cipher=b"c" * 32, mask=b"m" * 32, commitment=b"h" * 32)
    with pytest.raises(AuthenticationFailed, match="not enrolled"):
        strict.share([strict.keys(), own, bob])


def test_a_client_or_the_gateway_is_no_member() -> None:
    cohort = cohort_of(3)
    roster = list(cohort.announce())
    gateway = LocalIdentity.create(name="gate", role="gateway", clock=SystemClock())
    own = sign_keys(gateway, gateway.card, cohort.terms, cipher=b"c" * 32, mask=b"m" * 32, commitment=b"h" * 32)
    with pytest.raises(AuthenticationFailed, match="only nodes"):
        cohort.parties[believe_id(roster[0], cohort.terms)].share([*roster[:2], own])


def test_another_key_of_ours() -> None:
    """Keys that this node signed for the same terms before it was started anew."""
    cohort = cohort_of(3)
    old = party(identity(0), cohort.terms).keys()
    roster = [old if believe_id(blob, cohort.terms) == ALICE else blob for blob in cohort.announce()]
    with pytest.raises(AuthenticationFailed, match="does not hold the keys that this node sent"):
        cohort.parties[ALICE].share(roster)


def believe_id(blob: bytes, terms: Terms) -> PeerId:
    return read_keys(blob, terms, believe).id


def test_a_member_twice_and_a_copied_key() -> None:
    cohort = cohort_of(3)
    alice, bob, _ = cohort.announce()
    with pytest.raises(AuthenticationFailed, match="twice"):
        cohort.parties[believe_id(alice, cohort.terms)].share([alice, bob, bob])
    stolen = read_keys(bob, cohort.terms, believe)
    copy = sign_keys(identity(5), identity(5).card, cohort.terms, cipher=b"c" * 32, mask=stolen.mask, commitment=b"h" * 32)
    with pytest.raises(AuthenticationFailed, match="the same key"):
        cohort.parties[believe_id(alice, cohort.terms)].share([alice, bob, copy])


def test_too_small_a_cohort() -> None:
    cohort = cohort_of(3)
    roster = cohort.announce()
    message = refused("secagg.cohort", lambda: cohort.parties[ALICE].share(roster[:2]))
    assert "2 nodes are fewer than this node's minimum" in message and "3 nodes or more" in message
    picky = party(identity(0), cohort.terms, minimum=4)
    refused("secagg.cohort", lambda: picky.share([picky.keys(), *roster[1:]]))


def test_two_members_of_one_organisation() -> None:
    twins = [identity(0), identity(1, "org0"), identity(2)]
    cohort = Cohort(terms_for(3), twins)
    message = refused("secagg.organisation", cohort.exchange)
    assert "node0" in message and "node1" in message
    allowed = Cohort(terms_for(3), twins, allow_same_organisation=True)
    allowed.exchange()
    unnamed = Cohort(terms_for(3), [identity(number, "") for number in range(3)])
    unnamed.exchange()  # cards of a grid without a root say nothing about organisations


@pytest.mark.parametrize("degree, threshold", [(2, 2), (3, 2), (3, 1), (2, 3)])
def test_a_weak_graph(degree: int, threshold: int) -> None:
    cohort = cohort_of(4)
    assert degree_and_threshold(4) == (3, 3)
    cohort = Cohort(dataclasses.replace(cohort.terms, degree=degree, threshold=threshold), [identity(n) for n in range(4)])
    refused("secagg.graph", cohort.exchange)


def test_a_ring_that_could_overflow() -> None:
    terms = terms_for(4)
    small = dataclasses.replace(terms, quantiser=dataclasses.replace(terms.quantiser, cohort=3))
    cohort = Cohort(small, [identity(number) for number in range(4)])
    blobs = [one.keys() for one in cohort.parties.values()]
    refused("secagg.overflow", lambda: cohort.parties[ALICE].share(blobs))


# ---------------------------------------------------------------- models, rounds, replays


@pytest.mark.parametrize(
    "change", [{"model": bytes(32)}, {"round": 2}, {"attempt": 1}, {"job": "other"}], ids=["model", "round", "attempt", "job"]
)
def test_different_terms_for_different_nodes(change: dict[str, object]) -> None:
    """A model made for Alice alone would show her update as the one that differs. Keys of an earlier attempt are as useless."""
    cohort = cohort_of(3)
    other = Cohort(dataclasses.replace(cohort.terms, **change), [identity(number) for number in range(3)])  # type: ignore[arg-type]
    mixed = [other.parties[ALICE].keys(), cohort.parties[BOB].keys(), cohort.parties[CAROL].keys()]
    for one in (other.parties[ALICE], cohort.parties[BOB]):
        with pytest.raises(AuthenticationFailed, match="another round, attempt, model or graph"):
            one.share(mixed)


def test_different_rosters_for_different_nodes() -> None:
    """Alice is told of Dave's first keys, the others of his second: no share opens, and no signature of hers counts there."""
    cohort = cohort_of(4)
    roster = list(cohort.announce())
    dave = party(identity(3), cohort.terms)
    other = [dave.keys() if believe_id(blob, cohort.terms) == DAVE else blob for blob in roster]
    to_alice = {peer: cohort.parties[peer].share(roster)[ALICE] for peer in (BOB, CAROL)}
    to_alice[DAVE] = dave.share(other)[ALICE]
    cohort.parties[ALICE].share(other)
    with pytest.raises(AuthenticationFailed, match="was not sealed by it"):
        cohort.parties[ALICE].masked(to_alice, cohort.vectors()[ALICE])


def test_shares_from_others_than_the_neighbours() -> None:
    cohort = cohort_of(4)
    cohort.exchange()
    vector = cohort.vectors()[ALICE]
    shares = cohort.server.shares_for(ALICE)
    alice = cohort.parties[ALICE]
    refused("secagg.neighbours", lambda: alice.masked({peer: shares[peer] for peer in (BOB, CAROL)}, vector))
    refused("secagg.neighbours", lambda: alice.masked({**shares, PeerId("x" * 26): shares[BOB]}, vector))
    refused("secagg.neighbours", lambda: alice.masked({**shares, ALICE: shares[BOB]}, vector))


def test_chosen_neighbours_in_a_regular_graph() -> None:
    """The graph follows from all keys: handing Alice the shares of others than her two neighbours does not make them that."""
    nodes = [identity(number) for number in range(6)]
    cohort = Cohort(terms_for(6, degree=2), nodes, sound=lambda *_: True)
    cohort.exchange()
    graph = cohort.server._graph
    assert graph is not None
    neighbours = set(graph.neighbours(ALICE))
    others = [me.id for me in nodes if me.id not in neighbours | {ALICE}][:2]
    false = {peer: next(iter(cohort.parties[peer].share(cohort.server.roster()).values())) for peer in others}
    refused("secagg.neighbours", lambda: cohort.parties[ALICE].masked(false, cohort.vectors()[ALICE]))


def test_replayed_and_exchanged_shares() -> None:
    cohort, other = cohort_of(3), cohort_of(3, attempt=1)
    cohort.exchange()
    other.exchange()
    shares, old = other.server.shares_for(ALICE), cohort.server.shares_for(ALICE)
    vector = cohort.vectors()[ALICE]
    for false in (
        old,
        {BOB: shares[CAROL], CAROL: shares[BOB]},
        {**shares, BOB: other.parties[ALICE].share(other.server.roster())[BOB]},
    ):
        with pytest.raises(AuthenticationFailed, match="was not sealed by it"):
            other.parties[ALICE].masked(false, vector)
    other.parties[ALICE].masked(shares, vector)  # and nothing of the false ones was kept


def test_a_second_roster_for_one_attempt() -> None:
    cohort = cohort_of(4)
    roster = cohort.announce()
    cohort.parties[ALICE].share(roster)
    dave = party(identity(3), cohort.terms)
    other = [dave.keys() if believe_id(blob, cohort.terms) == DAVE else blob for blob in roster]
    refused("secagg.leg", lambda: cohort.parties[ALICE].share(other))


def test_legs_before_their_turn() -> None:
    cohort = cohort_of(3)
    alice = cohort.parties[ALICE]
    vector = cohort.vectors()[ALICE]
    for act in (lambda: alice.masked({}, vector), lambda: alice.consent([ALICE, BOB, CAROL]), lambda: alice.reveal({})):
        refused("secagg.leg", act)
    cohort.exchange()
    for act in (lambda: alice.consent([ALICE, BOB, CAROL]), lambda: alice.reveal({})):
        refused("secagg.leg", act)


# ---------------------------------------------------------------- survivors and shares


def given() -> Cohort:
    """Four nodes, all inputs given."""
    cohort = cohort_of(4)
    cohort.exchange()
    cohort.give(cohort.vectors())
    return cohort


def test_survivors_that_were_never_members_or_without_this_node() -> None:
    alice = given().parties[ALICE]
    stranger = identity(8).id
    for survivors in (
        [ALICE, BOB, stranger],
        [ALICE, BOB, CAROL, DAVE, stranger],
        [BOB, CAROL, DAVE],
        [ALICE, BOB, CAROL, CAROL],
    ):
        refused("secagg.survivors", lambda survivors=survivors: alice.consent(survivors))


def test_too_few_survivors() -> None:
    message = refused("secagg.cohort", lambda: given().parties[ALICE].consent([ALICE, BOB]))
    assert "2 nodes are fewer than this node's minimum" in message
    cohort = Cohort(terms_for(9), [identity(number) for number in range(9)])
    cohort.exchange()
    cohort.give(cohort.vectors())
    few = [identity(number).id for number in range(6)]
    assert "6 of 9 members are left, and 7 must sign" in refused("secagg.cohort", lambda: cohort.parties[ALICE].consent(few))


def test_other_survivors_than_were_signed() -> None:
    """Fewer are told to a node than the others signed, or the signed set is exchanged afterwards."""
    cohort = given()
    everybody, fewer = [ALICE, BOB, CAROL, DAVE], [ALICE, BOB, CAROL]
    signed = {peer: cohort.parties[peer].consent(everybody) for peer in (BOB, CAROL)}
    alice = cohort.parties[ALICE]
    signed[ALICE] = alice.consent(fewer)
    with pytest.raises(AuthenticationFailed, match="under the survivors that this node signed"):
        alice.reveal(signed)
    refused("secagg.leg", lambda: alice.consent(everybody))
    refused("secagg.consent", lambda: alice.reveal({ALICE: signed[ALICE]}))
    refused("secagg.consent", lambda: alice.reveal({**signed, DAVE: bytes(64)}))


def test_both_shares_of_one_node() -> None:
    """Dave's input came, and Alice is told that he is lost, so that she reveals his mask key; then his seed's share is asked."""
    cohort = given()
    fewer = [ALICE, BOB, CAROL]
    consents = {peer: cohort.parties[peer].consent(fewer) for peer in fewer}
    alice = cohort.parties[ALICE]
    answer = alice.reveal(consents)
    assert {peer: share[:1] for peer, share in answer.items()} == {ALICE: b"s", BOB: b"s", CAROL: b"s", DAVE: b"k"}
    everybody = [*fewer, DAVE]
    refused("secagg.leg", lambda: alice.consent(everybody))
    assert alice.reveal({}) == answer


def test_both_shares_of_one_node_with_a_restart_between() -> None:
    """A party brought back with all its secrets, as from a copy of the process: the memory refuses what it alone would not."""
    cohort = given()
    fewer, everybody = [ALICE, BOB, CAROL], [ALICE, BOB, CAROL, DAVE]
    before = {peer: copy.copy(one) for peer, one in cohort.parties.items()}
    consents = {peer: cohort.parties[peer].consent(fewer) for peer in fewer}
    cohort.parties[ALICE].reveal(consents)
    again = {peer: before[peer].consent(everybody) for peer in everybody}
    refused("secagg.model", lambda: before[ALICE].reveal(again))


def test_a_restarted_node_has_nothing_to_reveal() -> None:
    cohort = given()
    anew = party(identity(0), cohort.terms, cohort.memories[ALICE])
    anew.keys()
    refused("secagg.leg", lambda: anew.reveal({}))
    with pytest.raises(AuthenticationFailed, match="does not hold the keys that this node sent"):
        anew.share(cohort.server.roster())


def test_a_second_round_on_the_same_model_with_one_node_less() -> None:
    """The difference of the two sums would be Dave's input."""
    cohort = cohort_of(4)
    cohort.exchange()
    again = Cohort(terms_for(3, round=2), [identity(number) for number in range(3)])
    again.memories.update(cohort.memories)
    again.parties = {peer: party(again.members[peer], again.terms, cohort.memories[peer]) for peer in again.members}
    again.exchange()  # begun while the first was still open, so nothing was refused yet
    vectors = cohort.vectors()
    survivors = cohort.give(vectors)
    cohort.agree(survivors)
    cohort.open(survivors)
    for peer, one in again.parties.items():
        shares = again.server.shares_for(peer)
        vector = np.zeros(again.terms.size, "<u4")
        refused("secagg.model", lambda one=one, shares=shares, vector=vector: one.masked(shares, vector))
    restarted = party(identity(0), dataclasses.replace(again.terms, round=3), cohort.memories[ALICE])
    refused("secagg.model", restarted.keys)


def test_two_sums_over_one_model_that_are_both_masked_before_either_is_opened() -> None:
    cohort = cohort_of(4)
    cohort.exchange()
    again = Cohort(terms_for(3, round=2), [identity(number) for number in range(3)])
    again.parties = {peer: party(again.members[peer], again.terms, cohort.memories[peer]) for peer in again.members}
    again.exchange()
    vectors = cohort.vectors()
    for one in (cohort, again):
        one.agree(one.give({peer: vectors[peer] for peer in one.parties}))
    for peer in again.parties:
        again.parties[peer].reveal(again.server.consents())
        refused("secagg.model", lambda peer=peer: cohort.parties[peer].reveal(cohort.server.consents()))


def test_another_model_of_the_same_job_is_another_matter() -> None:
    cohort = given()
    cohort.agree(cohort.server.survivors())
    cohort.open(cohort.server.survivors())
    later = Cohort(terms_for(4, model=bytes(32), round=2), [identity(number) for number in range(4)])
    later.parties = {peer: party(me, later.terms, cohort.memories[peer]) for peer, me in later.members.items()}
    later.exchange()
    later.give(later.vectors())


def test_a_vector_that_does_not_fit_the_terms_is_our_own_mistake() -> None:
    cohort = cohort_of(3)
    cohort.exchange()
    shares = cohort.server.shares_for(ALICE)
    for vector in (np.zeros(3, "<u4"), np.zeros(cohort.terms.size, "<u8"), np.zeros(cohort.terms.size, "<f4")):
        with pytest.raises(InvalidRequest):
            cohort.parties[ALICE].masked(shares, vector)
    with pytest.raises(WireError):
        cohort.parties[ALICE].masked({**shares, BOB: shares[BOB] + b"x"}, cohort.vectors()[ALICE])


def test_names_are_claimed_for_a_job_and_model_only() -> None:
    memory = Names()
    cohort = given()
    cohort.parties[ALICE]._memory = memory
    consents = cohort.agree(cohort.server.survivors())
    assert not memory.taken
    cohort.parties[ALICE].reveal(consents)
    assert len(memory.taken) == 2  # the model, and the sum that was opened over it
