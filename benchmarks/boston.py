"""Boston Housing, the demonstration that older designs were measured with: 408 rows, batches of 8, 10 epochs, four linear layers.

Three ways to train the same network on the same batches in the same order: PyTorch here, unmodified PyTorch on remote
tensors, and one plan call for each step. The rows are a private dataset of a node: `release = "aggregate"`, blocks of 8 rows.
Which rows a block holds is the node's secret, so the local run has blocks of its own, and the losses are compared, not weights.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import grid
from benchmarks.measure import Measured, timed
from benchmarks.running import Running

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "BostonHousing.csv"
ROWS, BATCH, EPOCHS, RATE = 408, 8, 10, 0.01
STEPS = ROWS // BATCH * EPOCHS

DESCRIPTION = f"""
description = "Boston Housing, standardised"
file = "boston.csv"
tags = ["#boston"]
target = "medv"
[policy]
release = "aggregate"
plans = "any"
min_rows = {BATCH}
max_elements = 10_000_000
"""


def write_dataset(folder: Path) -> None:
    """The first 408 rows, standardised, as a dataset folder of a node."""
    with DATA.open(newline="") as file:
        names, *rows = list(csv.reader(file))
    values = torch.tensor([[float(cell) for cell in row] for row in rows[:ROWS]], dtype=torch.float64)
    values = (values - values.mean(0)) / values.std(0)
    with (folder / "boston.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([[repr(cell) for cell in row] for row in values.tolist()])
    (folder / "boston.toml").write_text(DESCRIPTION)


def network() -> nn.Sequential:
    """13-32-24-16-1 with ReLU; always the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1)
    )  # fmt: skip


def train(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """SGD on the squared error: the same lines for local and for remote tensors."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for x, y in batches:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()


def measure(running: Running) -> Iterator[Measured]:
    """The three rows; `ratio` is to local PyTorch."""
    dataset = running.direct.search("#boston")[0]
    features, targets = local_rows()

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(model(features), targets))

    def local() -> nn.Module:
        model = network()
        train(model, local_batches(features, targets))
        return model

    here = timed("boston_local", local)
    yield here
    expected = loss(local())
    alice = running.direct.nodes["alice"]

    def remote_batches() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in range(EPOCHS):
            for x, y in dataset.batches(BATCH, shuffle=True, seed=epoch):
                yield x, y.unsqueeze(1)

    def by_pointers() -> nn.Module:
        model = alice.send(network())
        train(model, remote_batches())
        trained: nn.Module = model.get()
        return trained

    error = abs(loss(by_pointers()) - expected)
    counters = running.counters()
    found = timed("boston_pointers", by_pointers, counters=counters, rounds=len(list(network().parameters())), loss_off=error)
    yield with_ratio(found, here)
    step = training_step()

    def by_plan() -> nn.Module:
        model = network()
        parameters = {name: alice.send(value.detach()) for name, value in model.named_parameters()}
        for epoch in range(EPOCHS):
            for x, y in dataset.batches(BATCH, shuffle=True, seed=epoch):
                parameters = step(parameters, x, y)
        model.load_state_dict({name: value.get() for name, value in parameters.items()})
        return model

    error = abs(loss(by_plan()) - expected)
    found = timed("boston_plan", by_plan, counters=counters, rounds=len(list(network().parameters())), loss_off=error)
    yield with_ratio(found, here)


def with_ratio(found: Measured, base: Measured) -> Measured:
    """The measurement with its ratio to another."""
    return Measured(found.workload, found.seconds, found.repeats, {**found.facts, "ratio": round(found.median / base.median, 2)})


def training_step() -> grid.Plan:
    """One SGD step as a plan: parameters and a batch in, parameters out."""
    model = network()

    def step(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        loss = F.mse_loss(functional_call(model, parameters, (x,)), y.unsqueeze(1))
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return {name: p - RATE * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}

    return grid.trace(step, dict(model.named_parameters()), torch.zeros(BATCH, 13), torch.zeros(BATCH))


def local_rows() -> tuple[Tensor, Tensor]:
    """Features and targets, standardised as the node's."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1 : ROWS + 1]
    values = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    values = ((values - values.mean(0)) / values.std(0)).float()
    return values[:, :-1].contiguous(), values[:, -1:].contiguous()


def local_batches(features: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """51 batches of 8 rows an epoch, shuffled."""
    for epoch in range(EPOCHS):
        order = list(range(ROWS // BATCH))
        random.Random(epoch).shuffle(order)
        for block in order:
            rows = slice(block * BATCH, (block + 1) * BATCH)
            yield features[rows], targets[rows]
