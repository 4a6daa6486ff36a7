"""Sessions of a real node in real processes: what its user sees of a limit, and that nothing outlives the node."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

import grid
from grid.demo_processes import Processes
from grid.demo_processes import processes as started_processes

pytestmark = pytest.mark.process

LIMITS = ["--max-command-s", "2", "--kill-grace-s", "1"]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with started_processes(tmp_path) as running:
        yield running


def start(processes: Processes, tmp_path: Path) -> str:
    """A gateway and the node alice with the dataset `numbers`; the gateway's URL."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "numbers.csv").write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(40)))
    policy = 'release = "aggregate"\nplans = "any"\nmin_rows = 10\nmax_elements = 100\n'
    (folder / "numbers.toml").write_text(f'file = "numbers.csv"\ntags = ["#numbers"]\n[policy]\n{policy}')
    processes.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
    url = str(processes.ready("gateway")["url"])
    processes.start("alice", ["node", "alice", "--gateway", url, "--data", str(folder), "--dev", *LIMITS])
    processes.ready("alice")
    return url


def test_a_limit_is_told_with_the_users_line_and_work_goes_on_in_the_same_session(processes: Processes, tmp_path: Path) -> None:
    url = start(processes, tmp_path)
    with grid.connect(url) as client, grid.connect(url) as other:
        alice = client.nodes["alice"]
        kept, others = alice.send(torch.ones(2)), other.nodes["alice"].send(torch.ones(2))
        (numbers,) = client.search("#numbers")
        assert numbers["x"].mean().get().item() == 19.5

        wide = alice.send(torch.ones(1, 1)).expand(9000, 9000)
        product = wide @ wide
        with pytest.raises(grid.QuotaExceeded, match=r"max_command_s.*connect again.*test_workers\.py"):
            product.get()
        with pytest.raises(grid.QuotaExceeded, match="max_command_s"):
            kept.get()
        assert torch.equal((others * 2).get(), torch.full((2,), 2.0))
        assert numbers["x"].mean().get().item() == 19.5
        assert torch.equal((alice.send(torch.ones(2)) * 2).get(), torch.full((2,), 2.0))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_node(processes: Processes, tmp_path: Path, number: signal.Signals) -> None:
    url = start(processes, tmp_path)
    with grid.connect(url) as client, grid.connect(url) as other:
        for one in (client, other):
            one.nodes["alice"].send(torch.ones(2)).get()
        wide = other.nodes["alice"].send(torch.ones(1, 1)).expand(9000, 9000)
        product = wide @ wide
        node = psutil.Process(processes["alice"].pid)
        inside = node.children(recursive=True)
        assert len(inside) == 3  # the nursery and two workers, one of which is at work
        node.send_signal(number)
        _, alive = psutil.wait_procs([node, *inside], timeout=10)
        assert not alive
        with pytest.raises(grid.NodeUnavailable):
            product.get()
