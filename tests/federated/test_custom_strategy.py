"""A strategy of the user's own: a few lines, the same as the built-in one, and limits that a hostile one runs into."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import grid
from grid.errors import ExecutionFailed, GridError, InvalidRequest, PlanRejected, QuotaExceeded
from grid.federated.custom import CustomStrategy, StrategyLimits
from grid.federated.custom_messages import BeginStrategy
from grid.federated.custom_process import checked
from grid.federated.strategies import FedAvgM, strategy_from_plain

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are the kernel's")

WEIGHTS = np.arange(5, dtype=np.float32)
UPDATE = np.linspace(-1, 1, 5)


def momentum(weights: Any, mean_update: Any, state: Any) -> Any:
    velocity = 0.9 * state["velocity"] + mean_update
    return weights + velocity, {"velocity": velocity}


def test_it_does_what_its_function_does_and_outlives_its_process() -> None:
    ours, theirs = CustomStrategy(momentum, state=["velocity"], mu=0.5), FedAvgM()
    state, expected = ours.start(5), theirs.start(5)
    weights, wanted = WEIGHTS, WEIGHTS
    for round in (1, 2, 3):
        if round == 2:
            assert ours._process is not None
            os.kill(ours._process._process.pid, signal.SIGKILL)
            with pytest.raises(ExecutionFailed, match="has ended"):
                ours.apply(weights, UPDATE, state, round)
        weights, state = ours.apply(weights, UPDATE, state, round)
        wanted, expected = theirs.apply(wanted, UPDATE, expected, round)
        assert weights.dtype == np.float32 and np.allclose(weights, wanted)
        assert np.allclose(state["velocity"], expected["velocity"])
    with pytest.raises(ExecutionFailed, match="not finite"):
        ours.apply(weights, np.full(5, np.inf), state, 4)
    assert ours._process is not None
    process = ours._process._process
    del ours
    gc.collect()
    assert process.returncode is not None, "what nobody closed is ended as well"


def test_it_travels_as_plain_values_and_a_plan() -> None:
    ours = CustomStrategy(momentum, state={"velocity": 2.0}, mu=0.5)
    assert ours.proximal == 0.5 and len(str(ours.to_plain())) < 1000
    assert strategy_from_plain(ours.to_plain(), ours.plan) == ours
    assert strategy_from_plain(ours.to_plain(), b"nonsense") != ours


def slow(weights: Any, mean_update: Any, state: Any) -> Any:
    table = mean_update[:, None] * mean_update[None, :]
    for _ in range(60):
        table = table @ table
    return weights + table.sum(0), {}


def test_a_plan_that_takes_too_long_is_ended() -> None:
    vector = np.zeros(1500)
    limited = CustomStrategy(slow, limits=StrategyLimits(seconds=0.3))
    limited.start(1500)
    with pytest.raises(QuotaExceeded, match=r"longer than 0\.3 s"):
        limited.apply(vector, vector, {}, 1)
    limited.close()


def begun(strategy: CustomStrategy, size: int = 5, **limits: int) -> BeginStrategy:
    allowed = {"max_elements": 1 << 28, "max_bytes": 4 << 30, "max_steps": 2000, **limits}
    return BeginStrategy(plan=strategy.plan, size=size, state=len(strategy.names), **allowed)


@pytest.mark.parametrize(
    ("size", "limits", "told"),
    [
        (1500, {"max_elements": 1_000_000}, "2250000 elements; at most 1000000"),
        (1500, {"max_bytes": 1 << 20}, "bytes at one time"),
        (15, {"max_steps": 30}, "steps; at most 30"),
    ],
)
def test_plans_over_a_limit_are_refused_before_they_run(size: int, limits: dict[str, int], told: str) -> None:
    with pytest.raises(PlanRejected, match=told):
        checked(begun(CustomStrategy(slow), size, **limits))


def test_plans_that_are_no_strategies_are_refused() -> None:
    assert len(checked(begun(CustomStrategy(momentum, state=["velocity"]))).outputs) == 2
    other = grid.trace(lambda x: x + 1, torch.zeros(3))
    shorter = CustomStrategy(lambda weights, mean_update, state: (weights[1:], {}))
    narrower = CustomStrategy(lambda weights, mean_update, state: (weights.float(), {}))
    fewer = CustomStrategy(CustomStrategy(momentum, state=["velocity"]).plan)
    for strategy, told in (
        (CustomStrategy(other), "does not take"),
        (fewer, "does not take"),
        (CustomStrategy(b"nonsense"), "plan"),
        (shorter, "another size"),
        (narrower, "another size or dtype"),
    ):
        with pytest.raises(GridError, match=told):
            checked(begun(strategy))


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "custom", "state": ["a"], "values": []},
        {"kind": "custom", "state": ["a", "a"], "values": [0, 0]},
        {"kind": "custom", "state": ["a b"], "values": [0]},
        {"kind": "custom", "state": ["a"], "values": [float("nan")]},
        {"kind": "custom", "state": [f"a{at}" for at in range(17)], "values": [0] * 17},
        {"kind": "custom", "state": 7, "values": 7},
        {"kind": "custom", "mu": "1"},
        {"kind": "custom", "limits": {}},
    ],
)
def test_hostile_descriptions_are_refused(data: Any) -> None:
    with pytest.raises(InvalidRequest):
        strategy_from_plain(data, b"plan")


def test_a_function_that_is_no_plan_names_its_line() -> None:
    def chooses(weights: Any, mean_update: Any, state: Any) -> Any:
        return (weights if mean_update.sum() > 0 else mean_update), state

    with pytest.raises(PlanRejected, match=r"torch\.where"):
        CustomStrategy(chooses)
    with pytest.raises(PlanRejected, match="names velocity"):
        CustomStrategy(lambda weights, mean_update, state: (weights, {}), state=["velocity"])


def test_a_gateway_loads_no_torch_for_strategies() -> None:
    code = (
        "import sys; from grid.federated.strategies import strategy_from_plain as read;"
        "read({'kind': 'custom'}, b'x'); read({'kind': 'krum'}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
