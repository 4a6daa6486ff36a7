"""A grid with a root key, set up with the command line as SECURITY.md and the README say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import grid
from grid.demo_processes import Processes
from grid.demo_processes import processes as started_processes

pytestmark = pytest.mark.process


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with started_processes(tmp_path) as running:
        yield running


def run(*arguments: str, code: int = 0, **environment: str) -> dict[str, object]:
    """One `grid` command with --json to its end: what it printed, or the error that it ended with."""
    command = [sys.executable, "-m", "grid", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment)
    assert done.returncode == code, done.stderr
    printed = json.loads(done.stdout or done.stderr)
    return {"list": printed} if isinstance(printed, list) else printed


def test_members_enrol_work_and_are_put_out(processes: Processes, tmp_path: Path) -> None:
    key = tmp_path / "root.key"
    made = run("root", "init", "--root", str(key))
    assert key.stat().st_mode & 0o777 == 0o600
    arguments = ["gateway", "--root", str(made["root"]), "--state", str(tmp_path / "gateway"), "--listen", "127.0.0.1:0"]
    processes.start("gateway", arguments)
    url = processes.ready("gateway")["url"]

    token = run("enroll", "alice", "--role", "node", "--root", str(key), "--gateway", url)["token"]
    node = ["node", "alice", "--gateway", url, "--state", str(tmp_path / "alice"), "--listen", "127.0.0.1:0"]
    processes.start("alice", [*node, "--join", str(token)])
    processes.ready("alice")

    mine = run("enroll", "carla", "--role", "client", "--root", str(key), "--gateway", url)["token"]
    home = tmp_path / "home"
    with grid.connect(url, token=str(mine), home=home) as client:
        assert client.nodes["alice"].send(torch.ones(2)).sum().get() == 2.0
    # The keys are kept: the token is needed once.
    with grid.connect(url, home=home) as client:
        x = client.nodes["alice"].send(torch.ones(2))
        assert x.get().tolist() == [1.0, 1.0]
        (listed,) = run("ls", "--gateway", url, GRID_HOME=str(home))["list"]
        assert (listed["name"], listed["dataset_count"]) == ("alice", 0)
        assert run("datasets", "--search", "anything", "--gateway", url, GRID_HOME=str(home))["list"] == []

        with pytest.raises(grid.AuthenticationFailed):
            grid.connect(url, home=tmp_path / "stranger")
        refused = run("ls", "--gateway", url, code=4, GRID_HOME=str(tmp_path / "stranger"))
        assert refused["error"]["code"] == "authentication"

        told = run("revoke", "alice", "--root", str(key), "--gateway", url)
        assert told["told"] == url
        with pytest.raises((grid.AuthenticationFailed, grid.NodeUnavailable)):
            x.get()
        with pytest.raises(grid.NotFound):
            client.nodes["alice"]
    processes["alice"].terminate()
    processes["alice"].wait(30)
    processes.start("alice again", node)
    assert processes["alice again"].wait(60) == 4
    assert "revoked" in (tmp_path / "alice again.log").read_text()


def test_a_node_keeps_its_identity_over_a_restart(processes: Processes, tmp_path: Path) -> None:
    processes.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
    url = processes.ready("gateway")["url"]
    arguments = ["node", "alice", "--gateway", url, "--dev", "--state", str(tmp_path / "state")]
    processes.start("first", arguments)
    before = processes.ready("first")["id"]
    processes["first"].terminate()
    assert processes["first"].wait(30) == 0
    processes.start("second", arguments)
    assert processes.ready("second")["id"] == before
