"""No party learns anything from the messages of a kernel: all cases of a small ring are looked at, see `enumeration`."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np
import pytest

from grid.smpc.link import Words
from grid.smpc.local import Network, run_parties
from grid.smpc.party import PARTIES, STEPS, Operations, Party, Ring
from grid.smpc.replicated import (
    chunks,
    comparison,
    conversion,
    decomposition,
    equality,
    groups,
    multiplication,
    opening,
    shuffling,
    truncation,
)
from grid.smpc.replicated.chunks import empty_shared
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Shared
from tests.smpc.enumeration import START, Case, Streams, drawn, learns
from tests.smpc.streams import dealt

GROUPED = ("top_bit", "is_zero", "bits 3", "bits 4")
"""Kernels that add groups of planes; with groups of two, trees over them too."""

LATER = 9
"""The number of an operation after those that are looked at."""


def kernel_into(function: Any, *arguments: Any) -> Any:
    """A kernel that writes its result into a place, as one that makes it."""

    async def program(party: Party, operations: Operations, inputs: Sequence[Any]) -> None:
        await function(party, operations, *inputs, *arguments, empty_shared(inputs[-1].size))

    return program


def kernel(function: Any, *arguments: Any) -> Any:
    def program(party: Party, operations: Operations, inputs: Sequence[Any]) -> Awaitable[Any]:
        return function(party, operations, *inputs, *arguments)  # type: ignore[no-any-return]

    return program


async def share(party: Party, operations: Operations, inputs: Sequence[Any]) -> None:
    size, words = inputs[0]
    await opening.share_input(party, operations, 0, (size,), words if party.rank == 0 else None)


async def bit_to_number(party: Party, operations: Operations, inputs: Sequence[Any]) -> None:
    await conversion.bit_to_number(party, operations, inputs[0], empty_shared(64 * inputs[0].words))


def matmul(bits: int) -> Any:
    """A column times a 1 x 1 matrix, which is the same in all cases."""

    async def program(party: Party, operations: Operations, inputs: Sequence[Any]) -> None:
        (x,) = inputs
        await Replicated(party, operations).matmul(x.reshape((-1, 1)), dealt([[3]], party.rank), bits)

    return program


def cases(width: int) -> dict[str, Case]:
    found = {
        "share": Case(share, ("value",)),
        "multiply": Case(kernel(multiplication.multiply), ("ring", "ring")),
        "multiply and add": Case(kernel(multiplication.multiply), ("ring", "ring", "ring")),
        "conjunction": Case(kernel(multiplication.conjunction), ("bits", "bits")),
        "top_bit": Case(kernel(comparison.top_bit), ("ring",)),
        "is_zero": Case(kernel(equality.is_zero), ("ring",)),
        "bit_to_number": Case(bit_to_number, ("bits",)),
        "choose": Case(kernel_into(conversion.choose), ("bits", "ring")),
    }
    for count in range(1, width + 1):
        found[f"bits {count}"] = Case(kernel(decomposition.decompose, count), ("ring",))
    for k in range(1, width):
        found[f"truncate {k}"] = Case(kernel_into(truncation.truncate, k), ("ring",), count_bits=k)
    for k in (1, width - 1):
        found[f"matmul {k}"] = Case(matmul(k), ("ring",), count_bits=k)
        found[f"multiply_truncate {k}"] = Case(kernel_into(truncation.multiply_truncate, k), ("ring", "ring"), count_bits=k)
    return found


@pytest.fixture(autouse=True)
def one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 1 << 40)


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize(("width", "group"), [(4, 4), (4, 2), (5, 4), (6, 3)])
def test_a_view_does_not_depend_on_secrets(width: int, group: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUP", group)
    most = 1 << (22 if width == 4 else 18)  # every secret at width 4
    for name, case in cases(width).items():
        if (width, group) != (4, 2) or name in GROUPED:
            assert not learns(case, width, rank, most), name


@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize("name", cases(4))
def test_a_mask_left_out_shows_in_some_view(name: str, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUP", group)
    case = cases(4)[name]
    purposes = {purpose for _, _, purpose in drawn(case, 4)}
    for purpose in purposes if group == 4 or name in GROUPED else ():
        mutant = dataclasses.replace(case, zeroed=frozenset([purpose]))
        assert any(learns(mutant, 4, rank) for rank in range(3)), purpose


@pytest.mark.parametrize("purpose", [truncation.ALPHA, truncation.BETA, truncation.COUNTS, truncation.MASK])
def test_a_mask_used_twice_shows_in_some_view(purpose: int) -> None:
    async def twice(party: Party, operations: Operations, inputs: Sequence[Any]) -> None:
        for x in inputs:
            await truncation.truncate(party, operations, x, 1, empty_shared(x.size))

    class SameRoles(Operations):
        def take(self) -> int:
            return super().take() * PARTIES + START

    async def program(party: Party, operations: Operations, inputs: Sequence[Any]) -> None:
        await twice(party, SameRoles(), inputs)

    case = Case(program, ("ring", "ring"), count_bits=1)
    assert not any(learns(case, 4, rank) for rank in range(3))
    mutant = dataclasses.replace(case, reused=frozenset([purpose]))
    assert any(learns(mutant, 4, rank) for rank in range(3))


# ---------------------------------------------------------------- shuffle


SAMPLES, SECRETS, UNKNOWN = 16, 1 << 4, 1 << 8
"""Of what the party knows, of what it lacks of two items of 2 bits, and of the masks that it does not know."""


@pytest.mark.parametrize("left_out", [None, shuffling.MASK])
@pytest.mark.parametrize("rank", range(3))
def test_a_view_of_a_shuffle_says_nothing_of_the_items_or_of_the_order(rank: int, left_out: int | None) -> None:
    """The one permutation that the party does not know counts as a secret, as what it lacks of the items does."""
    leaks = []
    for known in ((0, 0), (0, 1), (1, 0), (1, 1)):
        seen = np.concatenate([shuffle_view(rank, known, hidden, left_out) for hidden in range(2)], axis=1)
        leaks.append(bool((seen != seen[:, :1]).any()))
    assert any(leaks) == (left_out is not None)


def shuffle_view(rank: int, known: tuple[int, int], hidden: int, left_out: int | None) -> Words:
    """What a party gets of all cases of a shuffle, (samples, secrets, randomness), the last sorted. `known` and `hidden` say
    which permutations swap: those of the party, and that of the two others."""
    size = SAMPLES * SECRETS * UNKNOWN
    u, q = (np.arange(size) >> shift & count - 1 for shift, count in ((0, UNKNOWN), (8, SECRETS)))
    lacks = (rank + 2) % PARTIES
    rng = np.random.default_rng(sum(known))
    swaps, masks = iter(known), iter([u & 15, u >> 4])
    streams: dict[tuple[int, int, int], Words] = {}

    def sampled() -> Words:
        return np.repeat(rng.integers(0, 4, (2, SAMPLES), np.uint64), SECRETS * UNKNOWN, axis=1)

    def draw(place: tuple[int, int, int], count: int) -> Words:
        component, _, purpose = place
        if place not in streams:
            if purpose == shuffling.PERMUTATION:
                swap = hidden if component == lacks else next(swaps)
                streams[place] = np.full(count, 0 if swap else 1 << 63, np.uint64)
            else:
                mask = two_items(next(masks)) if component == lacks else sampled()
                streams[place] = mask.reshape(-1) * np.uint64(purpose != left_out)
        return streams[place].copy()

    components = [two_items(q) if place == lacks else sampled() for place in range(PARTIES)]

    async def program(party: Party) -> Words:
        x = Shared(*(components[number].reshape(1, 2, size) for number in (party.rank, party.following)))
        shuffled = await shuffling.shuffle(party, Operations(START), x)
        return await opening.open_to_all(party, Operations(LATER), shuffled)

    outcome = run_parties(program, ring=Ring(2), randomness=[Streams(of, draw) for of in range(PARTIES)])
    value = sum(components[1:], components[0]) & np.uint64(3)
    assert (outcome.results[0][0] == (value[::-1] if sum(known) + hidden & 1 else value)).all()
    code = np.zeros(size, np.uint64)
    for _, label, words in sorted(outcome.views[rank], key=lambda message: message[1]):
        if label < LATER * STEPS:
            assert not (words >> np.uint64(2)).any()
            first, second = words.reshape(2, size)
            code = code << np.uint64(4) | first << np.uint64(2) | second
    return np.sort(code.reshape(SAMPLES, SECRETS, UNKNOWN), axis=2)


def two_items(value: Any) -> Words:
    return np.stack([value & 3, value >> 2]).astype(np.uint64)


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("width", [4, 64])
def test_who_opens_a_value_sees_nothing_but_the_value(width: int) -> None:
    """What comes is what the party can compute from the result and its own components."""
    ring = Ring(width)
    components = list(np.random.default_rng(1).integers(0, 1 << 64, (3, 100), np.uint64))  # as local sums leave them
    value = sum(components[1:], components[0]) & ring.mask

    async def program(party: Party) -> Any:
        x = Shared(components[party.rank], components[party.following])
        operations = Operations()
        return await opening.open_to_all(party, operations, x), await opening.open_to_one(party, operations, x, 1)

    outcome = run_parties(program, ring=ring)
    for rank, (to_all, to_one) in enumerate(outcome.results):
        assert (to_all == value).all()
        assert (to_one == value).all() if rank == 1 else to_one is None
        missing = (value - components[rank] - components[(rank + 1) % 3]) & ring.mask
        for _, label, words in outcome.views[rank]:
            expected = missing if label % STEPS == opening.VALUE_STEP else np.frombuffer(opening.digest(missing), np.uint64)
            assert (words == expected).all()
        assert len(outcome.views[rank]) == (4 if rank == 1 else 2)


def test_components_given_to_an_outsider_say_nothing_but_their_sum() -> None:
    """All components of all values at width 3, refreshed with all randomness."""
    width = 3
    place = np.arange(1 << 5 * width)
    q0, q1, *components = ((place >> shift * width & 7).astype(np.uint64) for shift in range(5))
    refreshed = []
    for rank in range(3):
        streams = Streams(rank, lambda place, count: (q0, q1)[place[2] - opening.REFRESH_0].copy())
        party = Party(rank, Network().link(rank), streams, Ring(width))
        refreshed.append(opening.refreshed(party, Operations(), Shared(components[rank], components[(rank + 1) % 3])).parts)
    code = np.zeros(place.size, np.uint64)
    for rank in range(3):
        assert (refreshed[rank][1] == refreshed[(rank + 1) % 3][0]).all()
        code = code << np.uint64(width) | refreshed[rank][0]
    assert code.max() < 1 << 3 * width
    seen = np.sort(code.reshape(-1, 1 << 2 * width), axis=1)
    values = (sum(components[1:], components[0]) & np.uint64(7)).reshape(-1, 1 << 2 * width)[:, 0]
    for value in range(8):
        same = seen[values == value]
        assert (same == same[0]).all()
        assert np.unique(same[0]).size == 1 << 2 * width
