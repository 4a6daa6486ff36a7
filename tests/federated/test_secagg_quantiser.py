"""Updates as ring elements: nearest levels, exact sums, nothing that wraps around."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import InvalidRequest, ReleaseDenied
from grid.federated.secagg.quantiser import BLOCK, FIRST_CLIP, MAX_METRIC, Aggregate, Quantiser, Range, choose
from tests.federated.cohort import ring_sum, terms_for


def total(vectors: list, quantiser: Quantiser) -> Aggregate:
    terms = dataclasses.replace(terms_for(3), size=quantiser.length, quantiser=quantiser)
    return quantiser.decode(ring_sum(vectors, terms))


def test_a_vector_by_hand() -> None:
    quantiser = Quantiser(size=6, metrics=1, bits=32, clip=2.0, levels=10, largest_weight=5, cohort=3)
    update = np.array([0.0, 0.29, -0.31, 2.0, 3.3, -9.0], np.float32)  # steps of 0.2 / 3, the range from -10 / 3 to 10 / 3
    vector = quantiser.encode(update, 3, np.array([-1.5]))
    signed = vector.view("<i4").tolist()
    assert vector.dtype == np.dtype("<u4")
    assert signed == [0, 4, -5, 30, 49, -50, 3, 1, 0, -24, 0, 0, 0]  # -1.5 x 2**20 = -24 x 2**16
    aggregate = total([vector, vector], quantiser)
    assert np.allclose(aggregate.mean_update * 3, [0, 0.8, -1.0, 6, 9.8, -10])
    assert (aggregate.weight, aggregate.clipped, aggregate.metric_sums.tolist()) == (6, 2, [-3.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [32, 64])
def test_the_mean_is_exact_to_a_part_of_a_level(dtype: type, bits: int) -> None:
    random = np.random.default_rng(3)
    size, weights = 2 * BLOCK + 5, [3, 500, 0, 77]
    known = Range(1.0, 1e-3) if bits == 32 else None
    quantiser = choose(size, len(weights), 500, known, metrics=2)
    assert quantiser.bits == bits
    updates = [random.uniform(-1, 1, size).astype(dtype) for _ in weights]
    metrics = [np.array([weight * 0.7, -1e9 * weight]) for weight in weights]
    vectors = [quantiser.encode(*one) for one in zip(updates, weights, metrics, strict=True)]
    aggregate = total(vectors, quantiser)
    expected = sum(weight * update.astype(np.float64) for weight, update in zip(weights, updates, strict=True)) / sum(weights)
    rounded = quantiser.step * len(weights) / sum(weights) / 2
    assert np.abs(aggregate.mean_update - expected).max() <= rounded * (1 + 1e-6) + 1e-15
    assert aggregate.weight == sum(weights) and aggregate.clipped == 0
    assert np.allclose(aggregate.metric_sums, sum(metrics), rtol=0, atol=len(weights) * 2.0**-21)


@settings(deadline=None, max_examples=80)
@given(
    cohort=st.integers(1, 1000),
    largest=st.integers(1, 1 << 24),
    clip=st.floats(1e-30, 1e30),
    coarsest=st.floats(0, 1e30),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_the_largest_sum_there_can_be_does_not_wrap_around(
    cohort: int, largest: int, clip: float, coarsest: float, sign: float
) -> None:
    """Every node at the end of the range, or beyond it, with the largest weight."""
    quantiser = choose(3, cohort, largest, Range(clip, coarsest), metrics=1)
    inside = clip * (1 - 1e-12)  # the end itself may come to lie beyond, by rounding
    vector = quantiser.encode(np.array([inside, -inside, 1e35]) * sign, largest, np.array([MAX_METRIC * sign]))
    aggregate = quantiser.decode(vector * quantiser.dtype.type(cohort))
    assert np.allclose(aggregate.mean_update, np.array([clip, -clip, clip]) * sign, rtol=1e-11)
    assert aggregate.weight == largest * cohort and aggregate.clipped == cohort
    assert np.allclose(aggregate.metric_sums, MAX_METRIC * sign * cohort)


def test_what_training_that_diverged_gives_is_refused() -> None:
    quantiser = choose(BLOCK + 2, 3, 10, metrics=1)
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, BLOCK + 1):
            update = np.zeros(BLOCK + 2, np.float32)
            update[place] = bad
            with pytest.raises(InvalidRequest, match="diverged"):
                quantiser.encode(update, 1, np.zeros(1))


def test_a_metric_that_is_no_number_at_one_node_is_none_of_the_sum() -> None:
    """The others' parts are not told either, and the other metrics stand."""
    quantiser = choose(1, 3, 10, metrics=2)
    for bad in (np.nan, np.inf, -np.inf, 2 * MAX_METRIC):
        vectors = [quantiser.encode(np.zeros(1), 1, np.array(metrics)) for metrics in ([1.5, 2.5], [bad, -1.0], [3.0, 4.0])]
        sums = total(vectors, quantiser).metric_sums
        assert np.isnan(sums[0]) and sums[1] == 5.5


def test_what_does_not_fit_is_refused() -> None:
    quantiser = choose(4, 3, 10, metrics=1)
    for update, weight, metrics in (
        (np.zeros(3), 1, np.zeros(1)),
        (np.zeros(4), 11, np.zeros(1)),
        (np.zeros(4), -1, np.zeros(1)),
        (np.zeros(4), 1, np.zeros(2)),
    ):
        with pytest.raises(InvalidRequest):
            quantiser.encode(update, weight, metrics)
    with pytest.raises(InvalidRequest):
        quantiser.decode(np.zeros(4, "<u8"))
    with pytest.raises(InvalidRequest, match="too large"):
        choose(4, 1000, 1 << 40)


def test_an_evaluation_round_has_no_update() -> None:
    quantiser = choose(0, 3, 100, metrics=2)
    vectors = [quantiser.encode(np.zeros(0, np.float32), weight, np.array([weight * 0.5, 3])) for weight in (10, 20, 100)]
    aggregate = total(vectors, quantiser)
    assert aggregate.mean_update.shape == (0,) and aggregate.next_range() is None
    assert aggregate.weight == 130 and aggregate.metric_sums.tolist() == [65.0, 9.0]


def test_nodes_without_examples_change_nothing() -> None:
    quantiser = choose(2, 3, 100)
    aggregate = total([quantiser.encode(np.ones(2), 0)] * 3, quantiser)
    assert aggregate.mean_update.tolist() == [0, 0] and aggregate.weight == 0


# ---------------------------------------------------------------- the range follows


def test_the_first_round_has_a_huge_range_and_the_next_a_smaller_ring() -> None:
    random = np.random.default_rng(5)
    first = choose(1000, 10, 800)
    assert (first.bits, first.clip) == (64, FIRST_CLIP) and first.step < 1e-7
    update = random.normal(0, 0.01, 1000)
    known = total([first.encode(update, 800)] * 10, first).next_range()
    assert known is not None and known.clip >= 10 * np.abs(update).max()
    second = choose(1000, 10, 800, known)
    assert second.bits == 32 and second.step < 0.01 / 64
    again = total([second.encode(update, 800)] * 10, second)
    assert np.abs(again.mean_update - update).max() <= second.step / 2 * (1 + 1e-9)


def test_coordinates_of_very_different_size_keep_the_larger_ring() -> None:
    """A batch norm's variance moves by 100 where weights move by 0.001: 32 bits would round the weights away."""
    first = choose(1000, 10, 800)
    update = np.full(1000, 1e-3)
    update[:4] = 100.0
    known = total([first.encode(update, 800)] * 10, first).next_range()
    second = choose(1000, 10, 800, known)
    assert second.bits == 64 and second.step < 1e-3 / 64


def test_after_something_was_clipped_the_range_is_unknown_again() -> None:
    tight = choose(4, 3, 10, Range(0.5, 0.1))
    aggregate = total([tight.encode(np.array([0.1, 0.2, 3.0, -4.0]), 10)] * 3, tight)
    assert aggregate.clipped == 6 and aggregate.next_range() is None
    assert choose(4, 3, 10, aggregate.next_range()).clip == FIRST_CLIP


def test_an_update_of_zeros_says_nothing_of_the_range() -> None:
    quantiser = choose(4, 3, 10)
    assert total([quantiser.encode(np.zeros(4), 10)] * 3, quantiser).next_range() is None


def test_large_weights_take_the_larger_ring_or_fewer_levels() -> None:
    known = Range(1.0, 1e-3)
    assert choose(4, 100, 1 << 20, known).bits == 64
    assert choose(4, 10, 1, known).levels == (2**31 - 1) // 10
    assert choose(4, 1000, 1 << 28).levels == (2**63 - 1) // (1000 << 28)


def fit(quantiser: Quantiser, update: np.ndarray) -> str:
    """The reason for which a node refuses a range; "" if it does not."""
    try:
        quantiser.check_fit(update, 7, quantiser.encode(update, 7))
    except ReleaseDenied as denied:
        assert denied.details["rule"] == "secagg.range" and not any(str(value) in denied.message for value in update[:3])
        return denied.message
    return ""


def digits_of(numbers: np.ndarray, weights: list[int]) -> list[np.ndarray]:
    """Whole numbers as sums of multiples of falling weights: of each the nearest multiple, of what is left the next one's."""
    found = []
    for weight in weights:
        found.append(np.rint(numbers / weight))
        numbers = numbers - found[-1] * weight
    return found


def test_a_sum_of_few_levels_cannot_be_taken_apart_by_weights() -> None:
    """Multiples of 20,000, 400 and 10 would be the digits of their sum."""
    random, weights = np.random.default_rng(2), [20_000, 400, 10]
    updates = [random.normal(0, 0.1, 500) for _ in weights]
    quantiser = Quantiser(size=500, metrics=0, bits=64, clip=1.0, levels=60, largest_weight=20_000, cohort=3)
    vectors = []
    for update, weight in zip(updates, weights, strict=True):
        vectors.append(quantiser.encode(update, weight))
        quantiser.check_fit(update, weight, vectors[-1])
        multiples = digits_of(np.rint(update * 60) * weight, [weight])[0]
        assert np.abs(multiples / 60 - update).max() < 0.009  # what rounding first would have told
    summed = total(vectors, quantiser)
    told = digits_of(np.rint(summed.mean_update * summed.weight * 60), weights)
    for update, levels in list(zip(updates, told, strict=True))[1:]:  # the first is nearly all of the sum
        assert abs(np.corrcoef(levels, update)[0, 1]) < 0.2


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 100.0])
def test_a_range_that_tells_updates_apart_is_refused_and_those_that_are_chosen_are_not(scale: float) -> None:
    update = (np.random.default_rng(1).standard_normal(5000) * scale).astype(np.float32)
    update[:3000] = 0  # weights of pixels that are always black
    first = choose(5000, 3, 1000)
    assert first.is_wide and fit(first, update) == ""
    vectors = [first.encode(update, weight) for weight in (7, 8, 9)]
    later = choose(5000, 3, 1000, total(vectors, first).next_range())
    assert later.bits == 32 and fit(later, update) == ""
    loud = update.copy()
    loud[0] = 2.0 * later.clip * later.largest_weight / 7  # what lies beyond is known, and so are the others' parts beside it
    assert "beyond" in fit(later, loud) and fit(first, loud) == ""
    signs = dataclasses.replace(later, clip=scale / 100)  # a sum of these says the sign of each node's coordinates
    assert "beyond" in fit(signs, update)
    thresholds = dataclasses.replace(later, clip=6.0 * scale, levels=1)  # and of these, whose coordinates are large
    assert "coarse" in fit(thresholds, update)
    assert "coarse" in fit(dataclasses.replace(first, clip=scale * 2.0**30, levels=1 << 30), update)
    assert fit(dataclasses.replace(first, size=0), np.zeros(0)) == "" and fit(later, np.zeros(5000)) == ""
