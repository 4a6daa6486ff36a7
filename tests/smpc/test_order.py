"""Shuffles are uniform over all orders; sorting gives what numpy does, and shows nothing but the order of a shuffle."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import WireError
from grid.smpc import order
from grid.smpc.kernels import permutations
from grid.smpc.link import Words
from grid.smpc.local import Outcome, run_parties
from grid.smpc.party import Party
from grid.smpc.plain import Plain, completed
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Bits, Shared
from tests.smpc.streams import dealt, fixed_keystreams, unlikely

Integers = npt.NDArray[np.int64]


class Watched(Replicated):
    """Keeps what is opened."""

    opened: list[Words]

    async def open_bits(self, b: Bits) -> Words:
        words = await super().open_bits(b)
        self.opened.append(words)
        return words


def in_order(values: Integers, k: int | None = None, *, largest: bool = False, seed: int = 0) -> list[Integers]:
    """Values and indices, opened, at the first party."""

    async def program(party: Party) -> list[Integers]:
        protocol = Replicated(party)
        x = dealt(values, party.rank)
        if k is None:
            found = await order.sort(protocol, x, descending=largest)
        else:
            found = await order.topk(protocol, x, k, largest=largest)
        return [(await protocol.open(part)).view(np.int64) for part in found]

    return run_parties(program, randomness=fixed_keystreams(seed)).results[0]


def ranks(values: Integers) -> list[int]:
    return np.unique(values @ (values.shape[1] ** np.arange(values.shape[1])), return_counts=True)[1].tolist()


# ---------------------------------------------------------------- shuffles


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_one_permutation_hits_every_order_equally_often_over_all_its_choices(n: int) -> None:
    choices = np.array(list(itertools.product(*(range(place + 1) for place in range(n)))), np.float64)
    words = ((choices + 0.5) / np.arange(1, n + 1) * 2.0**64).astype(np.uint64)  # the middle of each choice's range
    found = np.empty(choices.shape, np.int64)
    permutations.orders(np.r_[words.reshape(-1), np.zeros(permutations.SPARE_WORDS, np.uint64)], found)
    assert ranks(found) == [1] * math.factorial(n)


def test_a_word_that_would_favour_an_order_is_replaced() -> None:
    found = np.empty((1, 3), np.int64)
    spare = np.array([1 << 63], np.uint64)  # 2**64 mod 3 is 1, so the word 0 alone is one too many for the first choice of 3
    permutations.orders(np.r_[np.zeros(3, np.uint64), spare], found)
    again = np.empty((1, 3), np.int64)
    permutations.orders(np.r_[np.zeros(2, np.uint64), spare, spare], again)
    assert (found == again).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_shuffles_are_uniform_over_all_orders(n: int) -> None:
    rows = 100 * math.factorial(n)

    async def program(party: Party) -> Words:
        protocol = Replicated(party)
        return await protocol.open(await protocol.shuffle(dealt(np.tile(np.arange(n), (rows, 1)), party.rank), axis=1))

    found = run_parties(program, randomness=fixed_keystreams(n)).results[2].view(np.int64)
    assert (np.sort(found) == np.arange(n)).all()
    counts = ranks(found)
    assert len(counts) == math.factorial(n)
    assert not unlikely(counts, 100)


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 2), (1, 5), (0,), (3, 0)])
def test_items_move_as_a_whole(shape: tuple[int, ...]) -> None:
    values = np.arange(math.prod(shape)).reshape(shape)

    async def program(party: Party) -> Words:
        protocol = Replicated(party)
        return await protocol.open(await protocol.shuffle(dealt(values, party.rank)))

    found = run_parties(program, randomness=fixed_keystreams(1)).results[0].view(np.int64)
    assert sorted(found.tolist()) == values.tolist()
    assert shape[0] < 7 or found.tolist() != values.tolist()


# ---------------------------------------------------------------- sorting


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (3, 4), (2, 3, 9), (300,), (3, 0), (0, 3)])
@pytest.mark.parametrize("largest", [False, True])
def test_sorts_as_numpy_does_and_keeps_the_order_of_equal_items(shape: tuple[int, ...], largest: bool) -> None:
    for span in (1, 3, 1 << 40):
        values = np.random.default_rng(len(shape)).integers(-span, span, shape)
        expected = np.argsort(-values if largest else values, kind="stable")
        found, indices = in_order(values, largest=largest)
        assert (indices == expected).all()
        assert (found == np.take_along_axis(values, expected, -1)).all()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-(2**59) + 1, 2**59 - 1), min_size=1, max_size=8), st.data(), st.booleans())
def test_topk_is_the_start_of_the_sorted_row(row: list[int], data: st.DataObject, largest: bool) -> None:
    k = data.draw(st.integers(0, len(row)))
    values, indices = in_order(np.array(row), k, largest=largest)
    expected = sorted(range(len(row)), key=lambda i: (-row[i] if largest else row[i], i))[:k]
    assert indices.tolist() == expected
    assert values.tolist() == [row[i] for i in expected]


def test_topk_of_many_looks_at_few_segments() -> None:
    values = np.random.default_rng(3).integers(-(2**30), 2**30, 4000)
    found, indices = in_order(values, 5, largest=True)
    assert (indices == np.argsort(-values, kind="stable")[:5]).all()
    assert (found == np.sort(values)[::-1][:5]).all()


def test_a_k_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 3, not 4"):
        in_order(np.arange(3), 4)


def test_full_comparison_ends_it_after_the_last_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "MAX_LEVELS", 1)
    monkeypatch.setattr(order, "WORTH", 0)
    values = np.random.default_rng(4).integers(0, 50, 120)
    outcome, opened = watched(values[None])
    assert len(opened) == 2
    assert (outcome.results[0] == np.sort(values)).all()


@settings(max_examples=30, deadline=None)
@given(row=st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=2, max_size=40))
def test_a_sort_of_anything_ends(row: list[int]) -> None:
    values, indices = in_order(np.array(row, np.int64))
    assert sorted(indices.tolist()) == list(range(len(row)))
    assert (values == np.array(row)[indices]).all()


class Contradictory(Plain):
    """Of three items each is opened as less than the next, in a circle."""

    async def open_bits(self, b: Bits) -> Words:
        return np.full_like(b.parts[0], 0b010)


def test_comparisons_that_contradict_each_other_end_it() -> None:
    with pytest.raises(WireError, match="contradict"):
        completed(order.sort(Contradictory(), Shared(np.arange(3, dtype=np.uint64))))


# ---------------------------------------------------------------- what sorting shows


def watched(values: Integers) -> tuple[Outcome[Words], list[Words]]:
    """The sorted rows, and all that was opened on the way."""
    seen: list[Words] = []

    async def program(party: Party) -> Words:
        protocol = Watched(party)
        protocol.opened = seen if party.rank == 0 else []
        found = (await order.sort(protocol, dealt(values, party.rank))).values
        return await protocol.open(found)

    return run_parties(program, randomness=fixed_keystreams(9)), seen


FAR = 1 << 61
"""Beyond the domain: differences of such values wrap, and as differences alone they go round in a circle."""


@pytest.mark.parametrize("row", [(5, 5, 5), (1, 2, 3), (3, 1, 2), (4, 4, 0), (FAR, -FAR, 1), (-FAR, 0, 3 * FAR // 2)])
def test_opened_comparisons_are_those_of_a_uniform_order_whatever_the_values_are(row: tuple[int, ...]) -> None:
    rows = 600
    outcome, opened = watched(np.tile(np.array(row), (rows, 1)))
    if max(map(abs, row)) < FAR:
        assert (outcome.results[0] == np.sort(row)).all()
    assert len(opened) == 1  # three items are compared in one level: 1 with 0, 2 with 0, 2 with 1
    bits = np.unpackbits(opened[0].view(np.uint8), bitorder="little")[: 3 * rows].reshape(rows, 3)
    patterns = np.bincount(bits @ (1, 2, 4), minlength=8)
    assert patterns[[2, 5]].tolist() == [0, 0]  # those that no order gives
    assert not unlikely(np.delete(patterns, [2, 5]), rows / 6)
