"""The parts of secure aggregation: shares of secrets, graphs, masks, terms; and that they take any bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import secrets

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.crypto.keys import AgreementKey
from grid.crypto.prg import keystream
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, WireError
from grid.federated.secagg import masks, shamir
from grid.federated.secagg.graph import TABLE, Graph, degree_and_threshold, is_sound, majority
from grid.federated.secagg.opening import Opening
from grid.federated.secagg.server import Server
from grid.federated.secagg.statements import Terms, read_keys
from grid.ids import PeerId
from tests.federated.cohort import Cohort, believe, identity, party, terms_for

# ---------------------------------------------------------------- Shamir


def share_of(value: int) -> bytes:
    return value.to_bytes(32, "little")


def test_shares_of_a_polynomial_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """1234 + 166 x + 94 x^2, the usual example, and a line that wraps around the prime."""
    coefficients = iter([94, 166])
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(coefficients))
    shares = shamir.split(share_of(1234), [1, 2, 3, 4, 5, 6], 3)
    assert [int.from_bytes(share, "little") for share in shares.values()] == [1494, 1942, 2578, 3402, 4414, 5614]
    assert shamir.combine({2: share_of(1942), 4: share_of(3402), 5: share_of(4414)}) == share_of(1234)
    coefficients = iter([shamir.PRIME - 1])
    assert shamir.split(share_of(1), [1, 2], 2) == {1: share_of(0), 2: share_of(shamir.PRIME - 1)}


def test_the_prime_is_the_one_of_curve_25519() -> None:
    assert shamir.PRIME == 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFED
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in (2, 3, 5, 7))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, shamir.PRIME - 1), st.sets(st.integers(1, 1000), min_size=1, max_size=12), st.data())
def test_any_threshold_of_shares_gives_the_secret_and_fewer_do_not(secret: int, points: set[int], data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, len(points)))
    shares = shamir.split(share_of(secret), sorted(points), threshold)
    chosen = data.draw(st.permutations(sorted(points)))
    assert shamir.combine({point: shares[point] for point in chosen[:threshold]}) == share_of(secret)
    assert shamir.combine(shares) == share_of(secret)
    if threshold > 1:
        assert shamir.combine({point: shares[point] for point in chosen[: threshold - 1]}) != share_of(secret)


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """Whatever two shares of three say, one third share makes any secret of them."""
    shares = shamir.split(shamir.random_secret(), [1, 2, 3], 3)
    for secret in (0, 1, shamir.PRIME - 1):
        # The line through the secret at 0 and the two shares, at 3: 3 b - 3 a + s.
        a, b = (int.from_bytes(shares[point], "little") for point in (1, 2))
        third = (secret - 3 * a + 3 * b) % shamir.PRIME
        assert shamir.combine({1: shares[1], 2: shares[2], 3: share_of(third)}) == share_of(secret)


def test_what_is_no_share() -> None:
    for data in (b"", bytes(31), bytes(33), b"\xff" * 32, share_of(shamir.PRIME)):
        with pytest.raises(WireError):
            shamir.element(data)
    for points, threshold in (([1, 2], 3), ([1, 1], 2), ([0, 1], 2), ([1], 0)):
        with pytest.raises(ValueError):
            shamir.split(bytes(32), points, threshold)


def test_a_secret_is_an_x25519_key_as_it_is() -> None:
    secret = shamir.random_secret()
    shares = shamir.split(secret, [1, 2, 3], 2)
    assert AgreementKey(shamir.combine({1: shares[1], 3: shares[3]})).public == AgreementKey(secret).public


# ---------------------------------------------------------------- graphs


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.data())
def test_each_graph_is_regular_mutual_and_connected(count: int, data: st.DataObject) -> None:
    degree = data.draw(st.integers(1 if count == 2 else 2, count - 1).filter(lambda degree: degree * count % 2 == 0))
    peers = [PeerId(f"peer{number}") for number in range(count)]
    graph = Graph(peers, degree, data.draw(st.binary(min_size=32, max_size=32)))
    seen = {peers[0]}
    for peer in peers:
        neighbours = graph.neighbours(peer)
        assert len(set(neighbours)) == degree and peer not in neighbours
        assert all(peer in graph.neighbours(other) for other in neighbours)
        assert graph.holders(peer) == tuple(sorted({peer, *neighbours}))
    for _ in peers:
        seen |= set(itertools.chain.from_iterable(graph.neighbours(peer) for peer in seen))
    assert seen == set(peers)


def test_another_seed_gives_other_neighbours_and_the_order_of_peers_none() -> None:
    peers = [PeerId(f"peer{number}") for number in range(50)]
    first, same, other = (Graph(order, 4, seed) for order, seed in ((peers, b"a"), (peers[::-1], b"a"), (peers, b"b")))
    assert all(first.neighbours(peer) == same.neighbours(peer) for peer in peers)
    assert sum(first.neighbours(peer) == other.neighbours(peer) for peer in peers) < 5


@pytest.mark.parametrize("count, degree", [(5, 3), (5, 5), (3, 4), (0, 1)])
def test_graphs_that_do_not_exist(count: int, degree: int) -> None:
    with pytest.raises(InvalidRequest):
        Graph([PeerId(f"peer{number}") for number in range(count)], degree, b"")


def test_the_table_of_degrees_and_thresholds() -> None:
    assert [degree_and_threshold(count) for count in (2, 3, 4, 10, 100)] == [(1, 2), (2, 3), (3, 3), (9, 7), (99, 67)]
    assert degree_and_threshold(1000) == (98, 54)
    assert degree_and_threshold(1000, 0.1) == (45, 26)
    assert degree_and_threshold(1000, 0.33) == (280, 147)
    assert degree_and_threshold(101, 0.33) == (100, 68)
    assert degree_and_threshold(999, 0.1) == (46, 26)
    for count in range(2, 1001):
        for tolerance in TABLE:
            degree, threshold = degree_and_threshold(count, tolerance)
            assert degree * count % 2 == 0
            assert is_sound(count, degree, threshold) == (tolerance >= 0.2 or degree == count - 1)
            assert 2 * threshold > degree and not is_sound(count, degree, threshold - 1)
    for count in (0, 1, 1001):
        with pytest.raises(InvalidRequest):
            degree_and_threshold(count)
        assert not is_sound(count, count - 1, majority(count))


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("size", [0, 1, 1000, (masks.BLOCK_BYTES // 4) * 2 + 3])
def test_masks_are_the_keystreams_of_their_seeds(dtype: str, size: int) -> None:
    seeds = [bytes([number]) * 32 for number in range(3)]
    expected = [np.frombuffer(keystream(seed, size * np.dtype(dtype).itemsize), dtype) for seed in seeds]
    vector = np.arange(size).astype(dtype)
    start = vector.copy()
    masks.apply(vector, seeds[:2], seeds[2:])
    assert np.array_equal(vector, start + expected[0] + expected[1] - expected[2])
    masks.apply(vector, seeds[2:], seeds[:2])
    assert np.array_equal(vector, start)


def test_both_nodes_of_a_pair_derive_one_mask_that_nobody_else_does() -> None:
    one, two, three = (AgreementKey.generate() for _ in range(3))
    a, b, c = PeerId("a"), PeerId("b"), PeerId("c")
    context = bytes(32)
    seed = masks.pair_seed(one, a, two.public, b, context)
    assert seed == masks.pair_seed(two, b, one.public, a, context)
    others = [
        masks.pair_seed(one, a, three.public, c, context),
        masks.pair_seed(one, a, two.public, c, context),
        masks.pair_seed(one, a, two.public, b, b"c" * 32),
        masks.derive(one.agree(two.public), context, "grid sealed share 1", a, b),
    ]
    assert seed not in others and len(set(others)) == 4
    assert masks.sign_of(a, b) == -masks.sign_of(b, a) == 1
    with pytest.raises(AuthenticationFailed):
        masks.pair_seed(one, a, bytes(32), b, context)


# ---------------------------------------------------------------- terms, and any bytes


def test_terms_survive_their_encoding_and_each_number_counts() -> None:
    terms = terms_for(5, bits=64)
    assert Terms.decode(terms.encode()) == terms
    changes = [{"round": 2}, {"attempt": 3}, {"job": "x"}, {"model": bytes(32)}, {"degree": 3}, {"threshold": 5}]
    others = [dataclasses.replace(terms, **change) for change in changes]  # type: ignore[arg-type]
    others += [terms_for(5), terms_for(5, size=9, bits=64)]
    assert len({one.digest for one in [terms, *others]}) == len(others) + 1
    assert all(Terms.decode(one.encode()) == one for one in others)


def test_terms_out_of_bounds() -> None:
    good = msgpack.unpackb(terms_for(5).encode())
    bad = {
        0: [0, 1, 3, "1", None], 1: ["j" * 129, 5, b"job"], 2: [-1, True, 2.0, 1 << 40], 4: [-1, True, 1 << 40],
        5: [b"", bytes(31), "m" * 32], 6: [0, 11, -1, True], 7: [31, 64, "32"], 8: [0, 1001], 9: [0, -3, 1001],
        10: [None, [], {}],
    }  # fmt: skip
    for place, values in bad.items():
        for value in values:
            with pytest.raises(WireError):
                Terms.decode(msgpack.packb([*good[:place], value, *good[place + 1 :]]))
    numbers = {0: [-1, 1 << 40], 1: [65, -1], 2: [33, True], 3: [0.0, float("nan"), float("inf"), 1, -1.0]}
    numbers |= {4: [0, 1 << 47, 10**6], 5: [0, 1 << 41], 6: [0, 1001]}
    for place, values in numbers.items():
        for value in values:
            changed = [*good[10][:place], value, *good[10][place + 1 :]]
            with pytest.raises(WireError):
                Terms.decode(msgpack.packb([*good[:10], changed]))


hostile = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=9), st.binary(max_size=40)
        ),
        lambda inner: st.one_of(st.lists(inner, max_size=10), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
        max_leaves=12,
    ).map(msgpack.packb),
)


def flipped(data: st.DataObject, good: bytes) -> bytes:
    """`good` cut, lengthened, or with some bytes changed."""
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else changed)


@settings(deadline=None, max_examples=150)
@given(hostile, st.data())
def test_any_bytes_in_any_leg_are_an_answer_or_a_named_error(noise: bytes, data: st.DataObject) -> None:
    cohort = _fresh()
    roster = cohort.announce()
    me = identity(0).id
    server, one = cohort.server, cohort.parties[me]
    bad = data.draw(st.one_of(st.just(noise), st.just(None))) or flipped(data, data.draw(st.sampled_from(roster)))
    _only_ours(lambda: Terms.decode(noise))
    _only_ours(lambda: Terms.decode(flipped(data, cohort.terms.encode())))
    _only_ours(lambda: read_keys(bad, cohort.terms, believe))
    _only_ours(lambda: Server(cohort.terms).add_keys(me, bad))
    _only_ours(lambda: party(identity(0), cohort.terms).share([bad, *roster[1:]]))
    _only_ours(lambda: Server.from_bytes(bad))
    _only_ours(lambda: Opening.from_bytes(bad))
    peers = data.draw(st.lists(st.one_of(st.sampled_from(sorted(cohort.parties)), st.text(max_size=30)), max_size=5))
    given = {PeerId(peer): bad for peer in peers}
    vectors = cohort.vectors()
    for peer, other in cohort.parties.items():
        shares = other.share(roster)
        _only_ours(lambda peer=peer: server.add_shares(peer, given))  # type: ignore[misc]
        server.add_shares(peer, shares)
    _only_ours(lambda: one.masked(given, vectors[me]))
    _only_ours(lambda: one.masked({peer: noise for peer in cohort.parties if peer != me}, vectors[me]))
    survivors = cohort.give(vectors)
    _only_ours(lambda: one.consent([PeerId(peer) for peer in peers]))
    _only_ours(lambda: server.add_consent(me, bad))
    consents = cohort.agree(survivors)
    _only_ours(lambda: one.reveal({**consents, me: bad}))
    _only_ours(lambda: one.reveal(given))
    _only_ours(lambda: server.add_reveal(me, given))
    _only_ours(lambda: server.add_reveal(me, dict.fromkeys(survivors, bad)))
    kept = server.to_bytes()
    _only_ours(lambda: Opening.from_bytes(flipped(data, one.opening.to_bytes())))
    _only_ours(lambda: Server.from_bytes(flipped(data, kept)))


def _fresh() -> Cohort:
    return Cohort(terms_for(3), [identity(number) for number in range(3)])


def _only_ours(act: object) -> None:
    try:
        act()  # type: ignore[operator]
    except GridError:
        pass


def test_a_commitment_hides_by_its_secret_alone() -> None:
    """Nothing but the hash of 32 random bytes is announced: no share, no seed."""
    one = party(identity(0), terms_for(3))
    blob = one.keys()
    assert all(secret not in blob for secret in (one._seed, one._mask.seed, one._cipher.seed))
    assert hashlib.sha256(one._seed).digest() not in blob
