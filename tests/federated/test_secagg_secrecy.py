"""What leaves a node is recorded, and the node's vector is looked for in it: with masks it is nowhere, without them it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from grid.federated.secagg import masks
from grid.federated.secagg.masks import Vector
from grid.ids import PeerId
from tests.federated.cohort import Cohort, identity, ring_sum, terms_for

SIZE = 20_000


def recorded(bits: int) -> tuple[dict[PeerId, Vector], dict[PeerId, Vector], bytes, Vector]:
    """A round of four nodes, one of which is lost after its input: plain vectors, masked ones, all that left nodes, the sum."""
    cohort = Cohort(terms_for(4, size=SIZE, bits=bits), [identity(number) for number in range(4)])
    quantiser = cohort.terms.quantiser
    random = np.random.default_rng(11)
    plain = {peer: quantiser.encode(random.uniform(-1, 1, SIZE), 10 + at) for at, peer in enumerate(cohort.parties)}
    left = list(cohort.announce())
    for peer, one in cohort.parties.items():
        shares = one.share(cohort.server.roster())
        cohort.server.add_shares(peer, shares)
        left += shares.values()
    masked = {}
    for peer in list(plain)[:3]:
        masked[peer] = cohort.parties[peer].masked(cohort.server.shares_for(peer), plain[peer])
        cohort.server.add_input(peer, masked[peer])
        left.append(masked[peer].tobytes())
    survivors = cohort.server.survivors()
    consents = cohort.agree(survivors)
    left += consents.values()
    for peer in survivors:
        shares = cohort.parties[peer].reveal(consents)
        cohort.server.add_reveal(peer, shares)
        left += shares.values()
    return plain, masked, b"".join(left), cohort.server.result()


def pieces(vector: Vector) -> Iterator[bytes]:
    """Runs of 8 coordinates, all over the vector."""
    for start in range(0, len(vector) - 8, 500):
        yield vector[start : start + 8].tobytes()


@pytest.mark.parametrize("bits", [32, 64])
def test_no_vector_of_a_node_is_in_what_leaves_it(bits: int) -> None:
    plain, masked, left, total = recorded(bits)
    for peer, vector in plain.items():
        assert not any(piece in left for piece in pieces(vector))
        if peer not in masked:
            continue
        assert np.count_nonzero(masked[peer] == vector) < 3
        ones = np.unpackbits(masked[peer].view(np.uint8).reshape(SIZE + 2, -1), axis=1).mean(axis=0)
        assert np.abs(ones - 0.5).max() < 0.03  # eight standard deviations
    survivors = list(masked)
    width = plain[survivors[0]].dtype
    assert np.array_equal(total, sum((plain[peer] for peer in survivors), np.zeros(len(total), width)))
    for left_out in survivors:  # two of three, as well as one, are as random
        part = [peer for peer in survivors if peer != left_out]
        found = sum((masked[peer] for peer in part), np.zeros(len(total), width))
        wanted = sum((plain[peer] for peer in part), np.zeros(len(total), width))
        assert np.count_nonzero(found == wanted) < 3


@pytest.mark.parametrize("bits", [32, 64])
def test_with_the_masks_switched_off_the_same_search_finds_them(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "apply", lambda *_: None)
    plain, masked, left, _ = recorded(bits)
    for peer, vector in plain.items():
        assert all(piece in left for piece in pieces(vector)) == (peer in masked)


def test_the_same_vector_twice_leaves_as_different_bytes() -> None:
    """Another attempt with fresh keys: nothing of the first says anything of the second."""
    first, second = (recorded(32) for _ in range(2))
    for peer, vector in first[1].items():
        assert np.count_nonzero(vector == second[1][peer]) < 3


def test_a_lost_nodes_input_that_came_too_late_stays_masked() -> None:
    """Its mask key is put together from shares; its own mask, whose seed nobody reveals, still hides its vector."""
    cohort = Cohort(terms_for(4, size=SIZE), [identity(number) for number in range(4)])
    vectors = cohort.vectors()
    cohort.exchange()
    late = list(vectors)[3]
    survivors = cohort.give({peer: vectors[peer] for peer in list(vectors)[:3]})
    masked = cohort.parties[late].masked(cohort.server.shares_for(late), vectors[late])
    cohort.agree(survivors)
    total = cohort.open(survivors)
    assert np.array_equal(total, ring_sum((vectors[peer] for peer in survivors), cohort.terms))
    # All masks of pairs, as the gateway can now make them, taken off:
    roster = cohort.server._roster
    assert roster is not None
    key = cohort.parties[late]._mask
    seeds = {peer: masks.pair_seed(key, late, roster[peer].mask, peer, roster.digest) for peer in survivors}
    plus = [seed for peer, seed in seeds.items() if masks.sign_of(late, peer) > 0]
    masks.apply(masked, [seed for seed in seeds.values() if seed not in plus], plus)
    assert np.count_nonzero(masked == vectors[late]) < 3
    masks.apply(masked, [], [masks.own_seed(cohort.parties[late]._seed, late, roster.digest)])
    assert np.array_equal(masked, vectors[late]), "nothing but the own mask was left"
