"""MNIST over ten nodes: every strategy beside training on all images in one place, on equal parts and on two digits a node.

    python examples/federated_mnist.py               # a few minutes; needs MNIST's ten thousand test images in ../shared/data
    python examples/federated_mnist.py --processes

Explained in docs/tutorial/17-federated-mnist.md, with the table that it prints.
"""

from __future__ import annotations

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
from grid.federated.strategy import Strategy

NODES, TRAINED, CLASSES = 10, 8000, 10
NAMES = [f"node-{number}" for number in range(NODES)]
POLICY = {"release": "aggregate", "min_rows": 10}

LR = 0.1
LOCAL = grid.Local(epochs=1, batch_size=32, optimizer=grid.SGD(lr=LR))
"""One pass over a node's 800 images in a round, as centralised training makes one pass over all 8,000."""


STRATEGIES = {
    "FedAvg": grid.FedAvg(),
    "FedAvgM": grid.FedAvgM(lr=1.0, momentum=0.5),
    "FedProx": grid.FedProx(mu=0.01),
    "FedAdam": grid.FedAdam(lr=0.01),
    "FedYogi": grid.FedYogi(lr=0.01),
    "FedAdagrad": grid.FedAdagrad(lr=0.03),
}
"""Their numbers were chosen once, for both ways of dealing out together, out of two or three each, by accuracy on the last
thousand of the 8,000 images, with the rest to train on. The test images had no part in it."""


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


DEALT = {"equal": ("equal parts", equal_parts), "two": ("two digits a node", two_digits)}


def run(
    *,
    rounds: int = 20,
    trained: int = TRAINED,
    strategies: Mapping[str, Strategy] = STRATEGIES,
    plot: Path = Path("federated_mnist.png"),
    in_processes: bool = False,
) -> dict[str, Any]:
    """How good is each strategy's model, beside that of all images in one place?"""
    if not IMAGES.exists():
        print(f"there is no {IMAGES.name} in {DATA}: nothing to train on")
        return {}
    x, y = digits()
    mine, test = (x[:trained], y[:trained]), (x[TRAINED:], y[TRAINED:])
    rows = {tag: deal(mine[1]) for tag, (_, deal) in DEALT.items()}
    nodes = {
        name: {tag: {"features": mine[0][own[at]], "targets": mine[1][own[at]], "policy": POLICY} for tag, own in rows.items()}
        for at, name in enumerate(NAMES)
    }
    curves: dict[str, dict[str, learning.Curve]] = {}
    tested: dict[str, dict[str, float]] = {}
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        for tag, (title, _) in DEALT.items():
            for name, strategy in strategies.items():
                job = client.train(
                    perceptron(),
                    loss=cross_entropy,
                    datasets=sorted(client.search(f"#{tag}"), key=lambda one: one.node.name),
                    rounds=rounds,
                    local=LOCAL,
                    strategy=strategy,
                    seed=0,
                    name=f"{name}, {title}",
                )
                model = job.result()
                curves.setdefault(title, {})[name] = [(at, one.metrics["accuracy"]) for at, one in enumerate(job.reports)]
                tested.setdefault(name, {})[title] = learning.accuracy(model, *test)
    models = list(learning.epochs(perceptron(), *mine, lr=LR, count=rounds))
    central = [(at, learning.accuracy(one, *mine)) for at, one in enumerate([perceptron(), *models])]
    for title, lines in curves.items():
        lines[learning.PLAIN] = central
        tested.setdefault(learning.PLAIN, {})[title] = learning.accuracy(models[-1], *test)
    print(f"test images right after {rounds} rounds, {rounds} passes for centralised training:\n")
    print(learning.table(tested))
    learning.picture(plot, curves, x="rounds, or passes", y="accuracy on the images trained on")
    return {"tested": tested, "curves": curves}


if __name__ == "__main__":
    main(run)
