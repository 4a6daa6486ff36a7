"""Shares that are wrong in leg 4: they are found, left out and told whose they were, as long as enough right ones are there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import AuthenticationFailed
from grid.federated.secagg import decoding, shamir
from grid.federated.secagg.graph import majority
from grid.federated.secagg.shares import OF_OWN_SEED, revealed
from grid.federated.secagg.unmasking import Unmasking, blame
from grid.ids import PeerId
from tests.federated.cohort import Cohort, identity, ring_sum, terms_for


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_secret_is_found_beside_as_many_wrong_shares_as_promised(data: st.DataObject) -> None:
    count = data.draw(st.one_of(st.integers(3, 14), st.integers(15, 60)))
    threshold = data.draw(st.integers(2, count))
    points = data.draw(st.permutations(range(1, count + 1)))
    secret = shamir.random_secret()
    shares = shamir.split(secret, points, threshold)
    wrong = set(data.draw(st.lists(st.sampled_from(points), unique=True, max_size=count - threshold)))
    for point in wrong:
        shares[point] = shamir.random_secret()
    tried: list[bytes] = []

    def fits(found: bytes) -> bool:
        tried.append(found)
        return found == secret

    found = decoding.recover(shares, threshold, fits)
    if math.comb(count, threshold) <= decoding.TRIES or 2 * len(wrong) <= count - threshold:
        assert found is not None
    if found is not None:
        assert found[0] == secret
        assert found[1] == wrong or (not found[1] and not wrong & set(points[:threshold]))
    assert len(tried) <= decoding.TRIES + 2


def test_shares_that_no_secret_is_behind_are_given_up() -> None:
    for count in (4, 60):
        shares = {point: shamir.random_secret() for point in range(1, count + 1)}
        assert decoding.recover(shares, majority(count), lambda secret: False) is None
        assert decoding.recover(dict.fromkeys(shares, bytes(32)), majority(count), lambda secret: False) is None


def test_who_is_to_blame() -> None:
    a, b, c, d = (PeerId(name) for name in "abcd")
    assert blame([], 4) == ()
    assert blame([(a, d), (b, d), (c, d), (d, d)], 4) == ((d,),)
    assert blame([(a, b), (a, c)], 5) == ((a,),)
    assert blame([(a, d)], 4) == ((a, d),) and blame([(d, d)], 4) == ((d,),)
    assert blame([(a, d), (b, d), (a, b)], 5) == ((d,), (a, b))
    assert blame([(a, d), (b, d)], 7) == ((a, d), (b, d))  # two of seven may have agreed to deal d wrong shares


def opened(cohort: Cohort, liars: list[PeerId], owners: int = 1000) -> np.ndarray:
    """The sum, where liars reveal noise in place of their shares of so many owners."""
    consents = cohort.server.consents()
    for peer in cohort.server.survivors():
        shares = cohort.parties[peer].reveal(consents)
        if peer in liars:
            noise = {owner: shares[owner][:1] + shamir.random_secret() for owner in sorted(shares)[:owners]}
            shares = {**shares, **noise}
        cohort.server.add_reveal(peer, shares)
    return cohort.server.result()


def closed(count: int, degree: int | None = None) -> tuple[Cohort, dict[PeerId, np.ndarray]]:
    sparse = {} if degree is None else {"sound": lambda *_: True, "minimum": 2}
    cohort = Cohort(terms_for(count, degree=degree), [identity(number) for number in range(count)], **sparse)
    vectors = cohort.vectors()
    cohort.exchange()
    cohort.agree(cohort.give(vectors))
    return cohort, vectors


@pytest.mark.parametrize(("count", "degree", "lying"), [(4, None, 1), (10, None, 3), (17, None, 2), (20, 10, 2)])
def test_a_sum_opens_though_nodes_reveal_garbage_and_they_are_named(count: int, degree: int | None, lying: int) -> None:
    cohort, vectors = closed(count, degree)
    liars = sorted(cohort.parties)[:lying]
    assert np.array_equal(opened(cohort, liars), ring_sum(vectors.values(), cohort.terms))
    assert sorted(cohort.server.blamed) == [(liar,) for liar in liars]


def test_each_try_to_open_a_sum_goes_on_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one secret that is not to be had makes the gateway look for all others again at each answer."""
    looked: list[int] = []
    recover = decoding.recover
    monkeypatch.setattr(decoding, "recover", lambda *args: looked.append(1) or recover(*args))
    cohort, vectors = closed(10)
    owner = sorted(cohort.parties)[-1]
    consents, survivors = cohort.server.consents(), cohort.server.survivors()
    for number, peer in enumerate(survivors):
        shares = cohort.parties[peer].reveal(consents)
        if number < 2:
            shares[owner] = revealed(OF_OWN_SEED, shamir.random_secret())
        cohort.server.add_reveal(peer, shares)
        if number in (6, 7):
            for _ in range(2):
                with pytest.raises(AuthenticationFailed, match="do not give the secret"):
                    cohort.server.result()
    assert len(looked) == 10 + 1, "nine were found, and one looked for each time that there was more to see"
    assert np.array_equal(cohort.server.result(), ring_sum(vectors.values(), cohort.terms))
    assert len(looked) == 10 + 2
    assert len(cohort.server.blamed) == 2 and all(owner in one for one in cohort.server.blamed)


def test_who_is_to_blame_is_looked_for_in_so_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    is_wrong = Unmasking._is_wrong
    cohort, vectors = closed(17)
    monkeypatch.setattr("grid.federated.secagg.unmasking.MOST_PAIRS", 20)
    monkeypatch.setattr(Unmasking, "_is_wrong", lambda *args: looked.append(1) or is_wrong(*args))
    liars = sorted(cohort.parties)[:2]
    assert np.array_equal(opened(cohort, liars), ring_sum(vectors.values(), cohort.terms))
    assert len(looked) == 20
    assert all(set(one) & set(liars) for one in cohort.server.blamed) and cohort.server.blamed


def test_of_one_wrong_share_two_nodes_are_told() -> None:
    cohort, vectors = closed(5)
    first, second, *_ = sorted(cohort.parties)
    assert np.array_equal(opened(cohort, [second], owners=1), ring_sum(vectors.values(), cohort.terms))
    assert cohort.server.blamed == ((first, second),)


def test_of_one_that_deals_wrong_shares_to_a_third_each_of_them_is_told_and_nobody_named_alone() -> None:
    """It could as well be that those three agreed to say so."""
    cohort, vectors = closed(10)
    owner = sorted(cohort.parties)[0]
    consents = cohort.server.consents()
    for number, peer in enumerate(cohort.server.survivors()):
        shares = cohort.parties[peer].reveal(consents)
        if number in (1, 2, 3):
            shares[owner] = revealed(OF_OWN_SEED, shamir.random_secret())
        cohort.server.add_reveal(peer, shares)
    assert np.array_equal(cohort.server.result(), ring_sum(vectors.values(), cohort.terms))
    assert len(cohort.server.blamed) == 3 and all(len(one) == 2 and owner in one for one in cohort.server.blamed)


def test_a_sum_that_too_many_lie_about_is_not_to_be_had() -> None:
    cohort, _ = closed(4)
    with pytest.raises(AuthenticationFailed, match="without 3 right ones this sum can't be opened"):
        opened(cohort, sorted(cohort.parties)[:2])
    assert not cohort.server.blamed
