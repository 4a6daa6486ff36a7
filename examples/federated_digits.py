"""Four hospitals train one model on the digits that each has. The gateway adds up their updates without seeing one of them.

    python examples/federated_digits.py               # everything in this process
    python examples/federated_digits.py --processes   # a gateway and four nodes as processes of their own

Beside it the same training in the clear, with the same seed: plain FedAvg in a dozen lines of PyTorch. Explained in
docs/tutorial/16-federated-digits.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import learning
import torch
from sklearn.datasets import load_digits
from started import main, refusals, started
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import grid
from grid.federated.draws import Draws
from grid.federated.spec import seed_at

NAMES = ("alice", "bob", "carol", "dave")
TEST, EPOCHS, BATCH, LR, SEED = 360, 2, 16, 0.1, 7
MIN_ROWS = 10
POLICY = {"release": "aggregate", "min_rows": MIN_ROWS, "batches": "known"}
"""With known batches the seed alone decides which rows make one, so that plain FedAvg here can take the same."""


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, in an order of no meaning: pixels `(1797, 64)` from 0 to 1, and what they show `(1797,)`."""
    pixels, shown = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(shown)[order]


def perceptron() -> nn.Module:
    """64 pixels, 32 hidden units, ten classes: 2,410 weights, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def batches(rows: int) -> list[int]:
    """How many rows each batch of an epoch has: a rest of fewer than `min_rows` joins the last one."""
    whole, rest = divmod(rows, BATCH)
    return [BATCH] * whole + [rest] if rest >= MIN_ROWS else [BATCH] * (whole - 1) + [BATCH + rest]


def plain(model: nn.Module, parts: Sequence[tuple[Tensor, Tensor]], seeds: Sequence[bytes], rounds: int) -> nn.Module:
    """FedAvg where everything is together. `seeds` are those of the nodes, from which with the round their batches follow."""
    model = copy.deepcopy(model)
    for round in range(1, rounds + 1):
        mean = [torch.zeros_like(weight) for weight in model.parameters()]
        for (x, y), seed in zip(parts, seeds, strict=True):
            own = copy.deepcopy(model)
            optimizer = torch.optim.SGD(own.parameters(), lr=LR)
            for epoch in range(EPOCHS):
                for rows in torch.tensor(Draws(seed, round).order(len(x), epoch)).split(batches(len(x))):
                    optimizer.zero_grad()
                    cross_entropy(own(x[rows]), y[rows]).backward()
                    optimizer.step()
            share = len(x) / sum(len(rows) for rows, _ in parts)
            mean = [total + share * weight.detach() for total, weight in zip(mean, own.parameters(), strict=True)]
        with torch.no_grad():
            for weight, value in zip(model.parameters(), mean, strict=True):
                weight.copy_(value)
    return model


def run(*, rounds: int = 15, plot: Path = Path("federated_digits.png"), in_processes: bool = False) -> dict[str, Any]:
    """How good is the model of all four, and is it that of plain FedAvg?"""
    x, y = digits()
    parts = list(zip(x[TEST:].chunk(len(NAMES)), y[TEST:].chunk(len(NAMES)), strict=True))
    nodes = {
        name: {"digits": {"features": own, "targets": shown, "policy": POLICY}}
        for name, (own, shown) in zip(NAMES, parts, strict=True)
    }
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        found = sorted(client.search("#digits"), key=lambda one: one.node.name)
        job = client.train(
            perceptron(),
            loss=cross_entropy,
            datasets=found,
            rounds=rounds,
            local=grid.Local(epochs=EPOCHS, batch_size=BATCH, optimizer=grid.SGD(lr=LR)),
            strategy=grid.FedAvg(),
            seed=SEED,
            name="digits",
        )
        for report in job:
            right = report.metrics["accuracy"]
            print(f"round {report.round}: {report.nodes} nodes, {report.examples} images, accuracy {right:.3f}")
        model = job.result()
        refused = refusals({"images at their node": lambda: found[0].features.get()})
    seeds = [seed_at(SEED.to_bytes(32, "little"), place) for place in range(len(NAMES))]
    same = plain(perceptron(), parts, seeds, rounds)
    pairs = zip(model.parameters(), same.parameters(), strict=True)
    apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
    right = learning.accuracy(model, x[:TEST], y[:TEST])
    print(f"of {TEST} test images right: {right:.1%}; weights differ from those of plain FedAvg by {apart:.0e} at most")
    curve = [(at, one.metrics["accuracy"]) for at, one in enumerate(job.reports)]
    learning.picture(plot, {"digits over four nodes": {"FedAvg": curve}}, x="rounds", y="accuracy on the nodes' images")
    return {"accuracy": right, "apart": apart, "reports": job.reports, "refused": refused}


if __name__ == "__main__":
    main(run)
