"""Rounds of a job between real processes, through the public API: a gateway, nodes, a client, sealed channels over loopback.

A model of so many parameters takes one real step a round at each node, of an arithmetic that costs next to nothing. So what is
measured is the round: the model out, keys, shares and masked updates in, the sum, and what is written to disk for a restart.
Seconds are the gateway's own, from asking the nodes to the new model; the first round, which compiles and opens what later ones
use, counts for itself. The floor is a WebSocket gateway that only sums.

`bytes_sent` is what gateway and nodes sent each other in the last round, before it was sealed; `rounds` the answers of each node
that a round waits for. `max_abs_error` lays the last model beside that of the same rounds done here: the same trainer on the same
rows, whose updates are averaged in float64 without masks or quantising. So it is what the sums of all rounds were off by,
together, as far as weights of float32 show it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import grid
from benchmarks.measure import Measured, report
from grid.client.blocking import Client
from grid.demo_processes import processes
from grid.federated.losses import trace_losses
from grid.federated.trainer import Trainer

ROWS = 64
LEGS = 5
GOALS = {
    ("fedavg", 10**4, 4): 0.02,
    ("fedavg", 10**6, 4): 0.15,
    ("fedavg", 10**7, 4): 1.6,
    ("fedavg", 10**4, 10): 0.04,
    ("fedavg", 10**6, 10): 0.4,
    ("fedavg", 10**7, 10): 4.0,
    ("secagg", 10**4, 4): 0.06,
    ("secagg", 10**6, 4): 0.25,
    ("secagg", 10**7, 4): 2.2,
    ("secagg", 10**4, 10): 0.12,
    ("secagg", 10**6, 10): 0.5,
    ("secagg", 10**7, 10): 5.0,
}
"""(kind, parameters, nodes) -> seconds a round."""

NAMES = [f"{kind}_{size:.0e}x{nodes}".replace("+0", "") for kind, size, nodes in GOALS]

DESCRIPTION = """
file = "rows.npz"
[policy]
release = "aggregate"
updates = "single"
"""


class Wide(nn.Module):
    """Many parameters, of which each output is the mean times a feature."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] * self.weight.mean()


def rows_of(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features and targets of a node."""
    features = np.random.default_rng(number).standard_normal((ROWS, 4), dtype=np.float32)
    return features, features[:, 0]


@contextlib.contextmanager
def running(nodes: int) -> Iterator[Client]:
    """A client of a gateway that keeps its state, and of so many nodes with rows of their own that keep theirs."""
    with tempfile.TemporaryDirectory(prefix="grid-bench-") as folder, processes(Path(folder)) as started:
        started.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0", "--state", f"{folder}/gateway-state"])
        url = started.ready("gateway")["url"]
        names = [f"node-{number}" for number in range(nodes)]
        for number, name in enumerate(names):
            data = Path(folder) / name
            data.mkdir()
            features, targets = rows_of(number)
            np.savez(data / "rows.npz", features=features, targets=targets)
            (data / "rows.toml").write_text(DESCRIPTION)
            state = ["--state", f"{folder}/{name}-state"]
            started.start(name, ["node", name, "--gateway", url, "--dev", "--data", str(data), *state])
        for name in names:
            started.ready(name)
        with grid.connect(url, timeout=120) as client:
            yield client


def measure(client: Client, kind: str, size: int, nodes: int, rounds: int) -> Measured:
    """One row of the table."""
    local, secure = grid.Local(max_steps=1, batch_size=ROWS, optimizer=grid.SGD(lr=0.05 * size)), kind == "secagg"
    job = client.train(
        Wide(size),
        loss=nn.functional.mse_loss,
        datasets=client.search(),
        rounds=rounds + 1,
        local=local,
        secure=secure,
        evaluate_every=0,
        deadline=600,
    )
    reports: list[Any] = [one for one in job if one.round]
    result = job.result().weight.detach().numpy()
    first, *others = reports[: rounds + 1]
    off = np.abs(result - exactly(size, nodes, rounds + 1, local))
    return Measured(
        f"{kind}_{size:.0e}x{nodes}".replace("+0", ""),
        [one.seconds for one in others],
        1,
        {
            "bytes_sent": others[-1].bytes,
            "rounds": LEGS if secure else 1,
            "max_abs_error": float(off.max()),
            "timed_rounds": rounds,
            "first_round_s": round(first.seconds, 4),
            "goal": GOALS.get((kind, size, nodes)),
            "mean_weight": round(float(result.mean()), 6),
        },
    )


def exactly(size: int, nodes: int, rounds: int, local: grid.Local) -> np.ndarray[Any, Any]:
    """The weights after as many rounds, the nodes' updates averaged in float64."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as at a node: sums in another order are others
    rows = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in map(rows_of, range(nodes))]
    plans = trace_losses(Wide(size), nn.functional.mse_loss, *rows[0])
    trainers = [Trainer(train=plans.train, evaluate=plans.evaluate, local=local, features=x, targets=y) for x, y in rows]
    weights = plans.layout.flatten(Wide(size).state_dict())
    for number in range(1, rounds + 1):
        total = np.zeros(size)
        for trainer in trainers:
            total += trainer.train(weights, round=number, metrics=False).update
        weights = weights + (total / nodes).astype(weights.dtype)
    torch.set_num_threads(threads)
    return weights


def run(chosen: Sequence[str], rounds: int) -> None:
    """Print a line for each row that was chosen, by name; all of them where none was."""
    for nodes in sorted({nodes for _, _, nodes in GOALS}):
        rows = [
            (kind, size)
            for (kind, size, cohort), name in zip(GOALS, NAMES, strict=True)
            if cohort == nodes and (not chosen or name in chosen)
        ]
        if not rows:
            continue
        with running(nodes) as client:
            for kind, size in rows:
                report(measure(client, kind, size, nodes, rounds))
