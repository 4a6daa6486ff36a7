"""Secure aggregation at party level: with losses in any leg the sum is exact in the ring, or the round ends with an error."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import AuthenticationFailed, InvalidRequest, QuorumLost, ReleaseDenied, WireError
from grid.federated.secagg import opening, party
from grid.federated.secagg.graph import degree_and_threshold, majority
from grid.federated.secagg.server import Server
from grid.ids import PeerId
from tests.federated.cohort import Cohort, believe, identity, ring_sum, terms_for


def members(count: int) -> list:
    return [identity(number) for number in range(count)]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("count", [3, 4, 10])
def test_the_sum_is_exact(count: int, bits: int) -> None:
    cohort = Cohort(terms_for(count, bits=bits), members(count))
    vectors = cohort.vectors()
    cohort.exchange()
    survivors = cohort.give(vectors)
    cohort.agree(survivors)
    assert np.array_equal(cohort.open(survivors), ring_sum(vectors.values(), cohort.terms))


def test_vectors_longer_than_a_block_and_not_a_multiple_of_it() -> None:
    cohort = Cohort(terms_for(3, size=70_001), members(3))
    vectors = cohort.vectors()
    before = {peer: vector.copy() for peer, vector in vectors.items()}
    cohort.exchange()
    survivors = cohort.give(vectors)
    cohort.agree(survivors)
    assert np.array_equal(cohort.open(survivors), ring_sum(vectors.values(), cohort.terms))
    assert all(np.array_equal(before[peer], vectors[peer]) for peer in vectors), "a node's own vector was changed"


@st.composite
def rounds(draw: st.DrawFn) -> tuple[int, int | None, int, list[set[int]]]:
    """A cohort's size, degree (None: complete), width, and who answers in legs 2, 3 and 4, each a part of those before."""
    count = draw(st.integers(3, 9))
    degree = draw(st.one_of(st.none(), st.integers(2, count - 1).filter(lambda degree: degree * count % 2 == 0)))
    present = set(range(count))
    legs = []
    for _ in range(3):
        lost = draw(st.sets(st.sampled_from(sorted(present)), max_size=min(2, len(present)))) if present else set()
        present = present - lost
        legs.append(present)
    return count, degree, draw(st.sampled_from([32, 64])), legs


@settings(deadline=None, max_examples=60)
@given(rounds())
def test_with_losses_in_any_leg_the_sum_is_exact_or_there_is_none(case: tuple[int, int | None, int, list[set[int]]]) -> None:
    """And there is one whenever enough are left."""
    count, degree, bits, legs = case
    nodes = members(count)
    cohort = Cohort(terms_for(count, bits=bits, degree=degree), nodes, minimum=2, sound=lambda *_: True)
    giving, agreeing, revealing = ([nodes[number].id for number in sorted(leg)] for leg in legs)
    vectors = {peer: vector for peer, vector in cohort.vectors().items() if peer in giving}
    cohort.exchange()
    graph, threshold = cohort.server._graph, cohort.terms.threshold
    assert graph is not None

    def enough(present: list[PeerId]) -> bool:
        return all(len(set(graph.holders(peer)) & set(present)) >= threshold for peer in cohort.parties)

    expected = enough(giving) and min(len(giving), len(agreeing)) >= majority(count) and enough(revealing)
    try:
        cohort.give(vectors)
        cohort.agree(agreeing)
        total = cohort.open(revealing)
    except QuorumLost:
        assert not expected
    else:
        assert expected
        assert np.array_equal(total, ring_sum(vectors.values(), cohort.terms))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_changed_share_gives_the_exact_sum_or_where_all_are_needed_an_error(data: st.DataObject) -> None:
    nodes = members(4)
    cohort = Cohort(terms_for(4), nodes)
    vectors = cohort.vectors()
    cohort.exchange()
    lost = data.draw(st.sampled_from([None, 3]))
    survivors = cohort.give({peer: vector for peer, vector in vectors.items() if lost is None or peer != nodes[lost].id})
    consents = cohort.agree(survivors)
    liar = data.draw(st.sampled_from(survivors))
    place = data.draw(st.integers(8, 8 * 32 - 1))  # not the kind
    for peer in survivors:
        shares = cohort.parties[peer].reveal(consents)
        if peer == liar:
            owner = data.draw(st.sampled_from(sorted(shares)))
            changed = bytearray(shares[owner])
            changed[place // 8] ^= 1 << place % 8
            shares = {**shares, owner: bytes(changed)}
        cohort.server.add_reveal(peer, shares)
    try:
        total = cohort.server.result()
    except AuthenticationFailed as error:
        assert "do not give the secret" in error.message and lost is not None
    else:
        assert np.array_equal(total, ring_sum((vectors[peer] for peer in survivors), cohort.terms))


def test_a_node_that_shares_out_a_wrong_secret_is_found_out() -> None:
    cohort = Cohort(terms_for(3), members(3))
    vectors = cohort.vectors()
    liar = cohort.parties[identity(1).id]
    liar._seed = bytes(32)  # not what it has committed itself to
    cohort.exchange()
    survivors = cohort.give(vectors)
    cohort.agree(survivors)
    with pytest.raises(AuthenticationFailed, match="node1"):
        cohort.open(survivors)


def test_nodes_lost_before_leg_2_are_left_out_by_another_attempt() -> None:
    nodes = members(5)
    first = Cohort(terms_for(5), nodes)
    roster = first.announce()
    for me in nodes[:4]:
        first.server.add_shares(me.id, first.parties[me.id].share(roster))
    with pytest.raises(QuorumLost, match="sent no shares") as caught:
        first.server.shares_for(nodes[0].id)
    assert caught.value.details["node"] == nodes[4].id
    second = Cohort(terms_for(4, attempt=1), nodes[:4])
    vectors = second.vectors()
    second.exchange()
    second.agree(second.give(vectors))
    assert np.array_equal(second.open(vectors), ring_sum(vectors.values(), second.terms))


def test_every_leg_answers_a_repeated_question_with_its_first_answer() -> None:
    cohort = Cohort(terms_for(4), members(4))
    vectors = cohort.vectors()
    cohort.exchange()
    me = identity(0).id
    one, server = cohort.parties[me], cohort.server
    assert one.share(server.roster()[::-1]) == one.share(server.roster())
    first = one.masked(server.shares_for(me), vectors[me])
    again = one.masked(server.shares_for(me), vectors[me] + 1)
    assert np.array_equal(first, again), "another vector under the same masks would show the difference"
    survivors = cohort.give(vectors)
    assert one.consent(survivors) == one.consent(survivors[::-1])
    consents = cohort.agree(survivors)
    assert one.reveal(consents) == one.reveal(consents)
    for peer in survivors:  # answers that come twice count once
        server.add_input(peer, vectors[peer])
        server.add_reveal(peer, cohort.parties[peer].reveal(consents))
        server.add_reveal(peer, cohort.parties[peer].reveal(consents))
    assert np.array_equal(server.result(), ring_sum(vectors.values(), cohort.terms))


@pytest.mark.parametrize("leg", [2, 3, 4])
def test_a_gateway_that_was_killed_goes_on_from_what_it_kept(leg: int) -> None:
    cohort = Cohort(terms_for(4), members(4))
    vectors = cohort.vectors()
    cohort.exchange()
    survivors = cohort.give({peer: vectors[peer] for peer in list(vectors)[:3]})
    if leg > 2:
        cohort.agree(survivors)
    if leg > 3:
        cohort.server.add_reveal(survivors[0], cohort.parties[survivors[0]].reveal(cohort.server.consents()))
    kept = cohort.server.to_bytes()
    cohort.server = Server.from_bytes(kept, verify=believe)
    assert cohort.server.survivors() == survivors
    assert cohort.server.to_bytes() == kept
    cohort.agree(survivors)
    total = cohort.open(survivors)
    assert np.array_equal(total, ring_sum((vectors[peer] for peer in survivors), cohort.terms))


def test_a_node_that_was_killed_answers_leg_4_from_what_it_kept() -> None:
    """Before it has answered, and after it: the same shares, under the same rules."""
    cohort = Cohort(terms_for(3), members(3))
    vectors = cohort.vectors()
    cohort.exchange()
    survivors = cohort.give(vectors)
    consents = cohort.agree(survivors)
    me, memory = survivors[0], cohort.memories[survivors[0]]
    kept = cohort.parties.pop(me).opening.to_bytes()
    again = opening.Opening.from_bytes(kept)
    with pytest.raises(ReleaseDenied, match=r"secagg\.consent"):
        again.reveal({}, memory)
    first = again.reveal(consents, memory)
    assert opening.Opening.from_bytes(kept).reveal({}, memory) == first
    cohort.server.add_reveal(me, first)
    assert np.array_equal(cohort.open(cohort.parties), ring_sum(vectors.values(), cohort.terms))
    with pytest.raises(WireError):
        opening.Opening.from_bytes(kept[:-1])


def test_signed_integers_of_the_same_width_are_inputs_as_they_travel() -> None:
    cohort = Cohort(terms_for(3), members(3))
    vectors = cohort.vectors()
    cohort.exchange()
    for peer, vector in vectors.items():
        masked = cohort.parties[peer].masked(cohort.server.shares_for(peer), vector)
        cohort.server.add_input(peer, np.frombuffer(masked.tobytes(), "<i4"))
    survivors = cohort.server.survivors()
    cohort.agree(survivors)
    assert np.array_equal(cohort.open(survivors), ring_sum(vectors.values(), cohort.terms))


def test_a_real_graph_above_a_hundred_nodes() -> None:
    """104 nodes of which 20 are lost after they shared: all legs, k-regular. Cheap, since few of them really check the rest."""
    count = 104
    degree, threshold = degree_and_threshold(count)
    assert (degree, threshold) == (98, 54)
    terms = dataclasses.replace(terms_for(count), degree=degree, threshold=threshold)
    cohort = Cohort(terms, members(count))
    vectors = cohort.vectors()
    with pytest.MonkeyPatch.context() as patch:  # 104 x 104 signatures: each is checked once here
        known = {one.keys(): None for one in cohort.parties.values()}
        read = {blob: party.read_keys(blob, terms, believe) for blob in known}
        patch.setattr(party, "read_keys", lambda blob, *_: read[blob])
        patch.setattr(opening, "check_signature", lambda *_: None)
        cohort.exchange()
        survivors = cohort.give(dict(list(vectors.items())[:84]))
        cohort.agree(survivors)
        total = cohort.open(survivors[:80])
    assert np.array_equal(total, ring_sum((vectors[peer] for peer in survivors), cohort.terms))


# ---------------------------------------------------------------- what the server refuses


def test_the_server_takes_no_answer_out_of_turn_or_of_a_stranger() -> None:
    cohort = Cohort(terms_for(3), members(3))
    stranger = identity(7).id
    server, me = cohort.server, identity(0).id
    with pytest.raises(InvalidRequest, match="not fixed"):
        server.shares_for(me)
    with pytest.raises(AuthenticationFailed, match="sent the keys of"):
        server.add_keys(stranger, cohort.parties[me].keys())
    cohort.exchange()
    with pytest.raises(InvalidRequest, match="roster is fixed"):
        server.add_keys(me, cohort.parties[me].keys())
    vectors = cohort.vectors()
    for refused in (
        lambda: server.add_shares(stranger, {}),
        lambda: server.add_input(stranger, vectors[me]),
        lambda: server.add_consent(me, bytes(64)),
        lambda: server.add_reveal(me, {}),
        server.to_bytes,
    ):
        with pytest.raises(InvalidRequest):
            refused()
    with pytest.raises(QuorumLost, match="0 of 3 inputs"):
        server.survivors()


def test_the_server_refuses_answers_of_a_wrong_form() -> None:
    cohort = Cohort(terms_for(4), members(4))
    cohort.exchange()
    vectors = cohort.vectors()
    server, me = cohort.server, identity(0).id
    for bad in (vectors[me][:-1], vectors[me].astype("<u8"), vectors[me].astype("<f4"), vectors[me].reshape(1, -1)):
        with pytest.raises(WireError):
            server.add_input(me, bad)
    with pytest.raises(WireError):
        server.add_shares(me, {})
    survivors = cohort.give({peer: vectors[peer] for peer in list(vectors)[:3]})
    with pytest.raises(InvalidRequest, match="sum is closed"):
        server.add_input(list(vectors)[3], vectors[me])
    with pytest.raises(AuthenticationFailed):
        server.add_consent(survivors[0], bytes(64))
    with pytest.raises(QuorumLost):
        server.consents()
    consents = cohort.agree(survivors)
    good = cohort.parties[survivors[0]].reveal(consents)
    lost = next(peer for peer in vectors if peer not in survivors)
    for owner, share in (
        (lost, b"s" + good[lost][1:]),
        (survivors[1], b"k" + good[survivors[1]][1:]),
        (lost, good[lost][:-1]),
        (lost, b"k" + b"\xff" * 32),
    ):
        with pytest.raises(WireError):
            server.add_reveal(survivors[0], {**good, owner: share})
    with pytest.raises(WireError):
        server.add_reveal(survivors[0], {peer: share for peer, share in good.items() if peer != lost})
    with pytest.raises(QuorumLost):
        server.result()


def test_a_cohort_of_two_is_for_owners_who_say_so() -> None:
    nodes = members(2)
    refused = Cohort(terms_for(2), nodes)
    with pytest.raises(ReleaseDenied, match=r"secagg\.cohort"):
        refused.exchange()
    cohort = Cohort(terms_for(2), nodes, minimum=2)
    vectors = cohort.vectors()
    cohort.exchange()
    survivors = cohort.give(vectors)
    cohort.agree(survivors)
    assert np.array_equal(cohort.open(survivors), ring_sum(vectors.values(), cohort.terms))
