"""Rounds of a job between real processes, through the public API: a gateway, nodes, a client, sealed channels over loopback.

A model of so many parameters takes one real step a round at each node, of an arithmetic that costs next to nothing. So what is
measured is the round: the model out, keys, shares and masked updates in, the sum, and what is written to disk for a restart.
Seconds are the gateway's own, from asking the nodes to the new model; the first round, which compiles and opens what later ones
use, counts for itself. The floor is a WebSocket gateway that only sums.
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

ROWS = 64
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
        self.weight = nn.Parameter(torch.full((size,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] * self.weight.mean()


@contextlib.contextmanager
def running(nodes: int) -> Iterator[Client]:
    """A client of a gateway that keeps its state, and of so many nodes with rows of their own that keep theirs."""
    with tempfile.TemporaryDirectory(prefix="grid-bench-") as folder, processes(Path(folder)) as started:
        started.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0", "--state", f"{folder}/gateway-state"])
        url = started.ready("gateway")["url"]
        names = [f"node-{number}" for number in range(nodes)]
        for number, name in enumerate(names):
            data, rng = Path(folder) / name, np.random.default_rng(number)
            data.mkdir()
            features = rng.standard_normal((ROWS, 4), dtype=np.float32)
            np.savez(data / "rows.npz", features=features, targets=features[:, 0])
            (data / "rows.toml").write_text(DESCRIPTION)
            state = ["--state", f"{folder}/{name}-state"]
            started.start(name, ["node", name, "--gateway", url, "--dev", "--data", str(data), *state])
        for name in names:
            started.ready(name)
        with grid.connect(url, timeout=120) as client:
            yield client


def measure(client: Client, kind: str, size: int, nodes: int, rounds: int) -> Measured:
    """One row of the table."""
    job = client.train(
        Wide(size),
        loss=nn.functional.mse_loss,
        datasets=client.search(),
        rounds=rounds + 1,
        local=grid.Local(max_steps=1, batch_size=ROWS, optimizer=grid.SGD(lr=0.05 * size)),
        secure=kind == "secagg",
        evaluate_every=0,
        deadline=600,
    )
    reports: list[Any] = [one for one in job if one.round]
    result = job.result()
    first, *others = reports[: rounds + 1]
    moved = float(result.weight.detach().mean())
    return Measured(
        f"{kind}_{size:.0e}x{nodes}".replace("+0", ""),
        [one.seconds for one in others],
        1,
        {
            "rounds": rounds,
            "bytes_a_round": others[-1].bytes,
            "first_round_s": round(first.seconds, 4),
            "goal": GOALS.get((kind, size, nodes)),
            "mean_weight": round(moved, 6),
        },
    )


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
