"""Robust strategies against cases worked out by hand, and against nodes that lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid.errors import InvalidRequest
from grid.federated.robust import PIECE, Krum, Median, Robust, TrimmedMean, clipped
from grid.federated.strategies import strategy_from_plain

WIDE = 1e6
"""A clip norm that clips nothing here."""


def vectors(*rows: Sequence[float]) -> list[Any]:
    return [np.array(row, dtype=np.float32) for row in rows]


def combined(strategy: Robust, updates: list[Any]) -> Any:
    return strategy.combine(updates, [1.0] * len(updates))


def test_the_median_of_each_coordinate() -> None:
    updates = vectors([1, 40], [2, 20], [9, 30])
    assert combined(Median(clip_norm=WIDE), updates).tolist() == [2, 30]
    assert combined(Median(clip_norm=WIDE), [*updates, *vectors([5, 0])]).tolist() == [3.5, 25]


def test_the_trimmed_mean_leaves_out_both_ends() -> None:
    updates = vectors([0, 5], [1, 6], [2, 7], [9, -9], [3, 100])
    assert combined(TrimmedMean(share=0.2, clip_norm=WIDE), updates).tolist() == [2, 6]
    assert combined(TrimmedMean(share=0.3, clip_norm=WIDE), updates).tolist() == [2, 6], "two of five at each end"
    with pytest.raises(InvalidRequest, match="4 updates are too few"):
        combined(TrimmedMean(share=0.5), updates[:4])


def test_krum_takes_the_update_whose_neighbours_are_nearest() -> None:
    """n = 5, f = 1: two nearest each. Scores: 1 + 2 = 3 for (1, 0); 1 + 5 for (0, 0); 2 + 5 for (2, 1); more for the others."""
    updates = vectors([0, 0], [1, 0], [2, 1], [3, 4], [50, 50])
    assert combined(Krum(byzantine=1, clip_norm=WIDE), updates).tolist() == [1, 0]
    assert combined(Krum(byzantine=1, keep=2, clip_norm=WIDE), updates).tolist() == [0.5, 0]
    with pytest.raises(InvalidRequest, match=r"4 updates are too few for Krum\(byzantine=1\), which needs 5"):
        combined(Krum(byzantine=1), updates[:4])


def test_updates_are_clipped_first() -> None:
    assert np.allclose(clipped(vectors([3, 4], [0, 1], [30, 40]), 5.0), [[3, 4], [0, 1], [3, 4]])
    assert np.allclose(clipped(vectors([3, 4], [0, 1], [30, 40]), None), [[3, 4], [0, 1], [3, 4]]), "the median length is 5"


def test_what_is_not_finite_is_left_out() -> None:
    updates = vectors([1, 1], [1, 3], [1, 2], [np.nan, 0], [np.inf, 0])
    assert combined(Median(clip_norm=WIDE), updates).tolist() == [1, 2]
    with pytest.raises(InvalidRequest, match="no updates"):
        combined(Median(), vectors([np.nan, 0]))


@pytest.mark.parametrize("strategy", [Median(), TrimmedMean(share=0.3), Krum(byzantine=3)], ids=lambda one: one.kind)
@given(st.integers(0, 2**32 - 1), st.floats(-1e6, 1e6))
def test_three_liars_among_ten_move_the_result_little(strategy: Robust, seed: int, lie: float) -> None:
    """Honest updates lie within 1 of one another in each coordinate; so does the result, wherever the liars are."""
    rng = np.random.default_rng(seed)
    honest = [(5 + rng.uniform(-0.5, 0.5, 20)).astype(np.float32) for _ in range(7)]
    liars = [np.full(20, lie, dtype=np.float32) * rng.uniform(0.5, 1) for _ in range(3)]
    found = combined(strategy, [*honest, *liars])
    assert np.abs(found - 5).max() < 1.5
    mean = np.mean([*honest, *liars], axis=0)
    assert np.abs(mean - 5).max() > 1.5 or abs(lie) < 1000, "a plain mean goes along with them"


def test_vectors_longer_than_a_piece_are_taken_whole() -> None:
    rng = np.random.default_rng(3)
    updates = [rng.normal(size=PIECE + 7).astype(np.float32) for _ in range(5)]
    assert np.allclose(combined(Median(clip_norm=WIDE), updates), np.median(updates, axis=0))
    best = combined(Krum(byzantine=1, clip_norm=WIDE), updates)
    assert any(np.array_equal(best, update) for update in updates)


def test_they_say_that_they_need_single_updates() -> None:
    for strategy in (Median(), TrimmedMean(), Krum()):
        assert strategy.needs_single and strategy_from_plain(strategy.to_plain()) == strategy
        weights, _ = strategy.apply(np.ones(2, dtype=np.float32), np.array([1.0, 2.0]), {}, 1)
        assert weights.tolist() == [2, 3] and weights.dtype == np.float32
