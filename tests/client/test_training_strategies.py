"""Each strategy through `g.train`, over four nodes of which none has seen more than three of the ten digits."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import grid
from grid.federated.layouts import Vector
from grid.federated.local import Local
from grid.federated.losses import trace_losses
from grid.federated.spec import seed_at
from grid.federated.strategy import Strategy
from grid.federated.trainer import Trainer
from grid.plans.optimizers import SGD
from grid.testing import LocalGrid

cross_entropy = nn.functional.cross_entropy
NAMES = ("alice", "bob", "carol", "dave")
DIGITS = ((0, 1, 2), (3, 4), (5, 6, 7), (8, 9))
ROUNDS, SEED = 7, 5
LOCAL = Local(epochs=1, batch_size=64, optimizer=SGD(lr=0.3))

STRATEGIES: dict[str, tuple[Strategy, float]] = {
    "FedAvg": (grid.FedAvg(), 0.77),
    "FedAvgM": (grid.FedAvgM(momentum=0.5), 0.85),
    "FedProx": (grid.FedProx(mu=0.3), 0.77),
    "FedAdam": (grid.FedAdam(lr=0.1), 0.88),
    "FedYogi": (grid.FedYogi(lr=0.1), 0.88),
    "FedAdagrad": (grid.FedAdagrad(lr=0.1), 0.85),
}
"""Each with the accuracy on all rows that it reaches."""


def parts() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    loaded = load_digits()
    x, y = torch.tensor(loaded.data, dtype=torch.float32) / 16, torch.tensor(loaded.target)
    own = [torch.isin(y, torch.tensor(digits)) for digits in DIGITS]
    return {name: (x[rows], y[rows]) for name, rows in zip(NAMES, own, strict=True)}


PARTS = parts()
X, Y = (torch.cat([part[place] for part in PARTS.values()]) for place in (0, 1))


def model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Linear(64, 10)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    own = {"tags": ["#digits"], "policy": {"release": "aggregate", "batches": "known"}}  # known, to have the same ones here
    nodes = {name: {"digits": {"features": x, "targets": y, **own}} for name, (x, y) in PARTS.items()}
    with LocalGrid(nodes=nodes) as running:
        yield running


def step(name: str, mean: Vector, memory: dict[str, Any]) -> Vector:
    """What the strategy of this name adds to the weights for the mean update, written out from its paper."""
    if name in ("FedAvg", "FedProx"):
        return mean
    if name == "FedAvgM":
        memory["v"] = 0.5 * memory.get("v", 0.0) + mean
        return memory["v"]  # type: ignore[no-any-return]
    beta, tau = 0.0 if name == "FedAdagrad" else 0.9, 1e-3
    m = memory["m"] = beta * memory.get("m", 0.0) + (1 - beta) * mean
    v, square = memory.get("v", tau**2), mean**2
    v = memory["v"] = {
        "FedAdam": 0.99 * v + 0.01 * square,
        "FedYogi": v - 0.01 * square * np.sign(v - square),
        "FedAdagrad": v + square,
    }[name]
    return 0.1 * m / (np.sqrt(v) + tau)  # type: ignore[no-any-return]


@functools.cache
def in_one_place(name: str) -> torch.Tensor:
    """The weights after the same rounds on rows that are all here: nothing is masked, rounded, sent or kept."""
    plans = trace_losses(model(), cross_entropy, *PARTS["alice"])
    trainers = [
        Trainer(train=plans.train, evaluate=plans.evaluate, local=LOCAL, features=x, targets=y) for x, y in PARTS.values()
    ]
    seeds = [seed_at(SEED.to_bytes(32, "little"), place) for place in range(len(trainers))]
    weights = plans.layout.flatten(model().state_dict())
    memory: dict[str, Any] = {}
    for round in range(1, ROUNDS + 1):
        found = [
            one.train(weights, round=round, seed=seed, proximal=0.3 if name == "FedProx" else 0.0, metrics=False)
            for one, seed in zip(trainers, seeds, strict=True)
        ]
        mean = np.sum([one.examples * one.update.astype("f8") for one in found], axis=0) / len(X)
        weights = (weights + step(name, mean, memory)).astype(weights.dtype)
    return torch.from_numpy(weights)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_learns_from_nodes_that_differ(local: LocalGrid, name: str) -> None:
    strategy, reached = STRATEGIES[name]
    client = local.client()
    found = client.search("#digits")
    job = client.train(
        model(), loss=cross_entropy, datasets=found, rounds=ROUNDS, local=LOCAL, strategy=strategy, seed=SEED, evaluate_every=0
    )
    trained = job.result()
    accuracy = float((trained(X).argmax(1) == Y).float().mean())
    weights = torch.cat([trained.weight.detach().flatten(), trained.bias.detach()])
    assert torch.allclose(weights, in_one_place(name), atol=1e-5)
    assert name == "FedAvg" or (weights - in_one_place("FedAvg")).abs().max() > 0.05  # it is a strategy of its own
    assert accuracy >= reached
