"""A federated job over real processes: the gateway and a node are killed in the middle and come back, its client goes away, and
another one takes the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_services import run

import grid
from grid.demo_data import OWNERS, split, write_folders
from grid.demo_processes import Processes
from grid.demo_processes import processes as started_processes

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

ROUNDS = 16


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with started_processes(tmp_path) as running:
        yield running


def model() -> torch.nn.Module:
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 2))


def test_a_job_outlives_its_gateway_its_client_and_a_node(processes: Processes, tmp_path: Path) -> None:
    data = split()
    folders = write_folders(tmp_path, data)
    gateway = ["gateway", "--dev", "--state", str(tmp_path / "gateway-state"), "--listen"]
    processes.start("gateway", [*gateway, "127.0.0.1:0"])
    url: str = processes.ready("gateway")["url"]

    def start(owner: str) -> None:
        state = str(tmp_path / f"{owner}-state")
        processes.start(owner, ["node", owner, "--dev", "--gateway", url, "--data", str(folders[owner]), "--state", state])

    for owner in OWNERS:
        start(owner)
    for owner in OWNERS:
        processes.ready(owner)

    with grid.connect(url) as client:
        job = client.train(
            model(),
            loss=torch.nn.functional.cross_entropy,
            datasets=client.search("#breast-cancer", "#train"),
            rounds=ROUNDS,
            local=grid.Local(epochs=20, optimizer=grid.SGD(lr=0.05)),
            min_nodes=3,
            deadline=60.0,
            name="tumours",
        )
        reports = iter(job)
        assert next(reports).nodes == 3
        processes.kill("gateway")
        processes.start("gateway", [*gateway, url.removeprefix("ws://")])
        processes.ready("gateway")
        assert [next(reports).round for _ in range(3)] == [2, 3, 4]
    processes.kill("bob")
    start("bob")
    processes.ready("bob")

    followed = run("jobs", job.id[:8], "--json", "--gateway", url)
    told = [json.loads(line) for line in followed.stdout.splitlines()]
    assert [one["round"] for one in told] == [*range(1, ROUNDS + 1), ROUNDS], followed.stderr
    assert all(one["nodes"] == 3 for one in told)

    with grid.connect(url) as other:
        learned = other.job(job.id).result(into=model()).eval()
        test = data.pooled("test")
        found = float((learned(test.features).argmax(1) == test.targets).float().mean())
        assert found > 0.93
