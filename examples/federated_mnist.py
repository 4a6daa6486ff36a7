"""MNIST over ten nodes: every strategy beside training on all images in one place, on equal parts and on two digits a node.

    python examples/federated_mnist.py               # a few minutes; needs MNIST's ten thousand test images in ../shared/data
    python examples/federated_mnist.py --processes

Explained in docs/tutorial/15-federated-learning.md, with the table that it prints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import learning
import torch
from mnist import IMAGES, digits
from started import DATA, main, started
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import grid

NODES, TRAINED, CLASSES = 10, 8000, 10
NAMES = [f"node-{number}" for number in range(NODES)]
POLICY = {"release": "aggregate", "min_rows": 100}

LR = 0.1
LOCAL = grid.Local(epochs=1, batch_size=32, optimizer=grid.SGD(lr=LR))
"""One pass over a node's 800 images in a round, as centralised training makes one pass over all 8,000."""


@dataclasses.dataclass(frozen=True)
class Split:
    """How the images are dealt out, and each strategy with the step sizes that suit that."""

    title: str
    strategies: Mapping[str, grid.Strategy]


SPLITS = {
    "equal": Split(
        "equal parts",
        {
            "FedAvg": grid.FedAvg(),
            "FedAvgM": grid.FedAvgM(lr=1.0, momentum=0.7),
            "FedProx": grid.FedProx(mu=0.01),
            "FedAdam": grid.FedAdam(lr=0.01),
            "FedYogi": grid.FedYogi(lr=0.01),
            "FedAdagrad": grid.FedAdagrad(lr=0.03),
        },
    ),
    "two": Split(
        "two digits a node",
        {
            "FedAvg": grid.FedAvg(),
            "FedAvgM": grid.FedAvgM(lr=1.0, momentum=0.7),
            "FedProx": grid.FedProx(mu=0.01),
            "FedAdam": grid.FedAdam(lr=0.01),
            "FedYogi": grid.FedYogi(lr=0.01),
            "FedAdagrad": grid.FedAdagrad(lr=0.03),
        },
    ),
}


def perceptron() -> nn.Module:
    """784 pixels, 64 hidden units, ten classes: 50,890 weights, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def equal_parts(labels: Tensor) -> list[Tensor]:
    """The numbers of each node's rows: any image may be at any node."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return list(order.chunk(NODES))


def two_digits(labels: Tensor) -> list[Tensor]:
    """The numbers of each node's rows: a half of the images of one digit, and a half of those of the next."""
    halves = [(labels == digit).nonzero()[:, 0].chunk(2) for digit in range(CLASSES)]
    return [torch.cat([halves[digit][0], halves[(digit + 1) % CLASSES][1]]) for digit in range(CLASSES)]
