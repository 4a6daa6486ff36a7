"""Training on shares beside plain PyTorch, same batches: whole steps as plans, on a grid of real processes. Prints JSON lines.

    python -m benchmarks.training [OPTIMIZER ...] [--steps 300]

Each line: {workload, seconds_median (of a step), max_abs_error, loss, plain_loss, reduction, steps, ...}. `max_abs_error` is the
largest difference of the losses of one step, divided by the batch's size where they are sums; `loss` and `plain_loss` are the
means over all rows at the end. The network is (64, 32, 10) with ReLU, the data scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import grid
from benchmarks.measure import Measured, report
from benchmarks.running import NODES, running_grid

BATCH = 32
OPTIMIZERS: Mapping[str, tuple[Any, str]] = {
    "sgd": (grid.SGD(lr=0.5), "mean"),
    "sgd_of_sums": (grid.SGD(lr=0.5 / BATCH), "sum"),
    "momentum": (grid.SGD(lr=0.05, momentum=0.9), "mean"),
    "momentum_of_sums": (grid.SGD(lr=0.05 / BATCH, momentum=0.9), "sum"),
    "adam": (grid.Adam(lr=3e-3), "mean"),
    "adam_of_sums": (grid.Adam(lr=3e-3), "sum"),
}
"""Optimizer, and how losses of a batch are put together."""

BOUNDS = {"mean": 0.05, "sum": 0.01}
"""What the losses of a step may differ by."""


def digits() -> tuple[Tensor, Tensor]:
    """Pictures (1797, 64) from 0 to 1, and classes as one-hot rows, in an order of their own."""
    found = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.data / 16, dtype=torch.float32)[order], one_hot(torch.tensor(found.target), 10).float()[order]


def train(trio: Any, name: str, steps: int) -> Measured:
    """One optimizer."""
    optimizer, reduction = OPTIMIZERS[name]
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    there = dict(trio.share(plain).named_parameters())
    here = dict(copy.deepcopy(plain).named_parameters())

    @grid.plan
    def step(params: Any, state: Any, x: Tensor, y: Tensor) -> Any:
        loss = cross_entropy(torch.func.functional_call(plain, params, (x,)), y, reduction=reduction)
        return *optimizer.update(params, torch.autograd.grad(loss, list(params.values())), state), loss

    states = [optimizer.init(here), optimizer.init(here)]
    x, y = digits()
    asked: list[tuple[Any, Tensor]] = []
    seconds: list[float] = []
    for number in range(steps):
        rows = torch.arange(number * BATCH, (number + 1) * BATCH) % len(x)
        given = trio.share(x[rows]), trio.share(y[rows])
        started = time.perf_counter()
        there, states[0], loss = trio.run(step, there, states[0], *given)
        opened = loss.reveal()
        seconds.append(time.perf_counter() - started)
        here, states[1], wanted = step(here, states[1], x[rows], y[rows])
        asked.append((opened, wanted))
    count = BATCH if reduction == "sum" else 1
    ends = [{key: value.reveal() for key, value in there.items()}, here]
    losses = [float(cross_entropy(torch.func.functional_call(plain, end, (x,)), y)) for end in ends]
    return Measured(
        f"train_{name}",
        seconds,
        facts={
            "max_abs_error": max(float((one - other).detach().abs()) for one, other in asked) / count,
            "bound": BOUNDS[reduction],
            "loss": round(losses[0], 5),
            "plain_loss": round(losses[1], 5),
            "reduction": reduction,
            "steps": steps,
        },
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description="Training on shares beside PyTorch.")
    parser.add_argument("optimizers", nargs="*", metavar="OPTIMIZER", help=f"by default all: {', '.join(OPTIMIZERS)}")
    parser.add_argument("--steps", type=int, default=300)
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.optimizers) - set(OPTIMIZERS)
    if unknown:
        parser.error(f"there is no optimizer {', '.join(sorted(unknown))}")
    with running_grid() as running, running.direct.committee(*NODES) as trio:
        for name in chosen.optimizers or OPTIMIZERS:
            report(train(trio, name, chosen.steps))


if __name__ == "__main__":
    main(sys.argv[1:])
