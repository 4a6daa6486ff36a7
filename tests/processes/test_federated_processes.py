"""A federated job over real processes: its client goes, a node is killed and comes back, and another client takes the model."""

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

ROUNDS = 12


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with started_processes(tmp_path) as running:
        yield running


def model() -> torch.nn.Module:
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 2))


def test_a_job_outlives_its_client_and_a_killed_node_comes_back(processes: Processes, tmp_path: Path) -> None:
    data = split()
    folders = write_folders(tmp_path, data)
    processes.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "gateway-state")])
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
        assert next(iter(job)).nodes == 3
    processes.kill("bob")
    start("bob")
    processes.ready("bob")

    listed = json.loads(run("jobs", "--json", "--gateway", url).stdout)
    assert [(one["id"], one["name"]) for one in listed] == [(job.id, "tumours")]
    followed = run("jobs", job.id, "--json", "--gateway", url)
    reports = [json.loads(line) for line in followed.stdout.splitlines()]
    assert [one["round"] for one in reports] == [*range(1, ROUNDS + 1), ROUNDS], followed.stderr
    assert all(one["nodes"] == 3 for one in reports)
    assert f"done after round {ROUNDS} of {ROUNDS}" in run("jobs", job.id[:6], "--gateway", url).stdout

    with grid.connect(url) as other:
        learned = other.job(job.id).result(into=model()).eval()
        test = data.pooled("test")
        found = float((learned(test.features).argmax(1) == test.targets).float().mean())
        assert found > 0.93
        told = other.evaluate(learned, other.search("#breast-cancer", "#test"), metrics=["loss", "accuracy"])
        assert abs(told["accuracy"] - found) < 1e-6
