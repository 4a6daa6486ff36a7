"""Each strategy against its paper's update, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid.errors import InvalidRequest
from grid.federated.strategies import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
    strategy_from_plain,
)
from grid.federated.strategy import mean_of
from grid.federated.with_buffers import with_buffers

WEIGHTS = np.array([1.0, -2.0], dtype=np.float32)
FIRST = np.array([0.3, -0.4])
SECOND = np.array([0.1, 0.2])


def two_rounds(strategy: Strategy) -> list[Any]:
    state = strategy.start(2)
    one, state = strategy.apply(WEIGHTS, FIRST, state, 1)
    two, state = strategy.apply(one, SECOND, state, 2)
    assert one.dtype == two.dtype == np.float32
    assert np.array_equal(WEIGHTS, np.array([1.0, -2.0], dtype=np.float32))
    return [one, two]


def test_fedavg_adds_the_mean_update() -> None:
    assert np.allclose(two_rounds(FedAvg()), [[1.3, -2.4], [1.4, -2.2]])
    assert np.allclose(two_rounds(FedAvg(lr=0.5)), [[1.15, -2.2], [1.2, -2.1]])


def test_fedprox_is_fedavg_with_a_term_for_the_nodes() -> None:
    assert np.allclose(two_rounds(FedProx(mu=0.1)), two_rounds(FedAvg()))
    assert FedProx(mu=0.1).proximal == 0.1 and FedAvg().proximal == 0.0


def test_fedavgm_keeps_a_velocity() -> None:
    """v1 = (0.3, -0.4); v2 = 0.9 v1 + (0.1, 0.2) = (0.37, -0.16)."""
    assert np.allclose(two_rounds(FedAvgM()), [[1.3, -2.4], [1.67, -2.56]])


def test_fedadam_is_algorithm_2() -> None:
    """m1 = 0.1 (0.3, -0.4); v1 = 0.99 * 0.25 + 0.01 (0.09, 0.16) = (0.2484, 0.2491).

    m2 = 0.9 m1 + 0.1 (0.1, 0.2) = (0.037, -0.016); v2 = 0.99 v1 + 0.01 (0.01, 0.04) = (0.246016, 0.247009).
    """
    one = [1 + 0.1 * 0.03 / (0.2484**0.5 + 0.5), -2 - 0.1 * 0.04 / (0.2491**0.5 + 0.5)]
    two = [one[0] + 0.1 * 0.037 / (0.246016**0.5 + 0.5), one[1] - 0.1 * 0.016 / (0.247009**0.5 + 0.5)]
    assert np.allclose(two_rounds(FedAdam(tau=0.5)), [one, two])


def test_fedyogi_is_algorithm_2() -> None:
    """v1 = 0.25 - 0.01 (0.09, 0.16) = (0.2491, 0.2484); v2 = v1 - 0.01 (0.01, 0.04) = (0.249, 0.248)."""
    one = [1 + 0.1 * 0.03 / (0.2491**0.5 + 0.5), -2 - 0.1 * 0.04 / (0.2484**0.5 + 0.5)]
    two = [one[0] + 0.1 * 0.037 / (0.249**0.5 + 0.5), one[1] - 0.1 * 0.016 / (0.248**0.5 + 0.5)]
    assert np.allclose(two_rounds(FedYogi(tau=0.5)), [one, two])


def test_fedadagrad_is_algorithm_2() -> None:
    """v1 = 0.25 + (0.09, 0.16) = (0.34, 0.41); v2 = v1 + (0.01, 0.04) = (0.35, 0.45); no momentum."""
    one = [1 + 0.1 * 0.3 / (0.34**0.5 + 0.5), -2 - 0.1 * 0.4 / (0.41**0.5 + 0.5)]
    two = [one[0] + 0.1 * 0.1 / (0.35**0.5 + 0.5), one[1] + 0.1 * 0.2 / (0.45**0.5 + 0.5)]
    assert np.allclose(two_rounds(FedAdagrad(tau=0.5)), [one, two])


def test_second_moments_grow_where_updates_are_larger_than_them() -> None:
    """Yogi's sign: v = tau^2 = 1e-6 is below 0.09, so v1 = 1e-6 + 0.01 * 0.09."""
    _, state = FedYogi().apply(WEIGHTS, FIRST, FedYogi().start(2), 1)
    assert np.allclose(state["square"], [1e-6 + 0.0009, 1e-6 + 0.0016])


def test_the_mean_is_weighted() -> None:
    assert np.allclose(mean_of([FIRST, SECOND], [3, 1]), [0.25, -0.25])
    with pytest.raises(InvalidRequest, match="no updates"):
        mean_of([], [])


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(lr=0.5),
        FedAvgM(momentum=0.5),
        FedProx(mu=1),
        FedAdam(betas=(0.5, 0.75)),
        FedYogi(tau=0.1),
        FedAdagrad(lr=2),
    ],
)
def test_strategies_travel_as_plain_values(strategy: Strategy) -> None:
    assert strategy_from_plain(strategy.to_plain()) == strategy


def test_buffers_are_averaged_whatever_the_strategy_does() -> None:
    """With momentum a running variance of 0.1 would become -0.08 here."""
    weights = np.array([1.0, 0.1], dtype=np.float32)
    strategy = with_buffers(FedAvgM(), 1)
    state = strategy.start(2)
    for round, update in ((1, [0.5, -0.1]), (2, [0.5, 0.01])):
        weights, state = strategy.apply(weights, np.array(update), state, round)
    assert np.allclose(weights, [1 + 0.5 + 0.95, 0.01]) and weights.dtype == np.float32
    again = strategy_from_plain(strategy.to_plain())
    assert again.to_plain() == strategy.to_plain() and again.kind == "fedavgm" and not again.needs_single
    assert with_buffers(FedAvg(), 0) == FedAvg() == strategy_from_plain({"kind": "fedavg", "buffers": 0})
    for wrong in (-1, 1 << 50, 0.5, None):
        with pytest.raises(InvalidRequest):
            strategy_from_plain({"kind": "fedavg", "buffers": wrong})
    with pytest.raises(InvalidRequest, match="one to train"):
        strategy.start(1)
    robust = strategy_from_plain({"kind": "median", "clip_norm": 1e6, "buffers": 1})
    assert robust.needs_single and robust.combine([FIRST, SECOND, SECOND], [1, 1, 1]).tolist() == SECOND.tolist()


scalars = st.none() | st.booleans() | st.floats() | st.sampled_from([0, -1, 1 << 70, 10**400, 0.5, "0.5", b"", [], {}])
hostile = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from(["kind", "lr", 7, b""]), scalars, max_size=3)


@given(st.sampled_from(["fedavg", "fedavgm", "fedadam", "?"]), st.dictionaries(st.sampled_from(["lr", "tau"]), hostile))
def test_hostile_strategies_are_refused_or_sound(kind: str, values: dict[str, Any]) -> None:
    try:
        found = strategy_from_plain({"kind": kind, **values})
    except InvalidRequest:
        return
    assert 0 < found.lr <= 1e6  # type: ignore[attr-defined]


@given(hostile)
def test_anything_else_is_no_strategy(data: Any) -> None:
    with pytest.raises(InvalidRequest):
        strategy_from_plain(data)
