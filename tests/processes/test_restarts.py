"""Gateway and node are killed in the middle of work, and started again: what goes on, what is lost, and what is said of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_services import data_folder, run

import grid
from grid.client.blocking import Client
from grid.demo_processes import Processes
from grid.demo_processes import processes as started_processes
from grid.settings import ClientSettings, SessionLimits

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

PATIENCE_S = 60.0


class Services:
    """A gateway with a state folder, and node alice, which may be killed and started again."""

    def __init__(self, running: Processes, folder: Path) -> None:
        self.running = running
        self.folder = folder
        self.gateway = ["gateway", "--dev", "--state", str(folder / "gateway")]
        running.start("gateway", [*self.gateway, "--listen", "127.0.0.1:0"])
        self.url: str = running.ready("gateway")["url"]
        self.gateway += ["--listen", self.url.removeprefix("ws://")]
        data, state = str(data_folder(folder / "data")), str(folder / "alice")
        where = ["--gateway", self.url, "--listen", "127.0.0.1:0"]
        self.alice = ["node", "alice", "--dev", "--data", data, "--state", state, *where]
        self.start("alice")

    def start(self, name: str) -> None:
        self.running.start(name, self.gateway if name == "gateway" else self.alice)
        self.running.ready(name)

    def listed(self) -> list[tuple[str, str, list[str]]]:
        nodes = json.loads(run("ls", "--json", "--gateway", self.url).stdout)
        return [(node["name"], node["state"], node["datasets"]) for node in nodes]

    def client(self, *, direct: bool = False, lease_s: float = PATIENCE_S) -> Client:
        session = SessionLimits(lease_s=lease_s)
        return grid.connect(self.url, settings=ClientSettings(direct=direct, reconnect_s=PATIENCE_S, session=session))


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with started_processes(tmp_path) as running:
        yield Services(running, tmp_path)


class Later:
    """A call in a thread: its result, or what it raised, and the seconds that it took."""

    def __init__(self, call: object) -> None:
        self.error: BaseException | None = None
        self.value: object = None
        self._call = call
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._call()  # type: ignore[operator]
        except BaseException as error:
            self.error = error
        self.seconds = time.monotonic() - self._began

    def join(self) -> Later:
        self._thread.join(2 * PATIENCE_S)
        assert not self._thread.is_alive()
        return self


def until_it_works(call: object) -> object:
    """The call's result; its errors must be retryable, until it works."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()  # type: ignore[operator]
        except grid.GridError as error:
            assert isinstance(error, (grid.NodeUnavailable, grid.NotFound)) and time.monotonic() < deadline, error
            time.sleep(0.05)


def test_work_goes_on_when_the_gateway_is_killed_and_comes_back(services: Services) -> None:
    direct, relayed, hasty = services.client(direct=True), services.client(), services.client(lease_s=0)
    with direct, relayed, hasty:
        kept = {client: client.nodes["alice"].send(torch.arange(5.0)) for client in (direct, relayed, hasty)}
        assert all(x.sum().get() == 10 for x in kept.values())

        services.running.kill("gateway")
        assert (kept[direct] + 1).get().tolist() == [1, 2, 3, 4, 5]  # no gateway, no matter
        lost = Later(lambda: (kept[hasty] + 1).get()).join()
        assert isinstance(lost.error, grid.NodeUnavailable) and lost.error.retryable and lost.seconds < 10
        assert "alice" in lost.error.message and "remote values are gone" in lost.error.message
        waiting = Later(lambda: (kept[relayed] + 1).get())  # begun without a gateway, done with the next one
        services.start("gateway")
        result = waiting.join()
        assert result.error is None and torch.equal(result.value, torch.arange(1.0, 6.0))  # type: ignore[arg-type]
        assert (kept[relayed] * 2).get().tolist() == [0, 2, 4, 6, 8]  # the values are still there

        for client in (direct, relayed, hasty):
            assert "alice" in client.nodes
            assert until_it_works(lambda client=client: client.search("#numbers")[0].name if client.search("#numbers") else 1 / 0)
            assert client.nodes["alice"].send(torch.ones(2)).sum().get() == 2
        with pytest.raises(grid.NodeUnavailable):
            (kept[hasty] + 1).get()


def test_what_a_killed_node_kept_is_said_to_be_gone_and_new_work_works(services: Services) -> None:
    with services.client() as client:
        x = client.nodes["alice"].send(torch.arange(5.0))
        (numbers,) = client.search("#numbers")
        assert numbers.features.mean(0).get().tolist() == [19.5]

        services.running.kill("alice")
        assert services.listed() == [("alice", "offline", ["numbers"])]
        services.running.kill("gateway")
        services.start("gateway")
        assert services.listed() == [("alice", "offline", ["numbers"])]  # the new gateway knows it from the old one
        assert client.search("#numbers") == []
        (gone,) = client.search("#numbers", offline=True)
        assert (gone.node.name, gone.node.state) == ("alice", "offline") and "offline since" in repr(gone.node)

        waiting = Later(lambda: (x + 1).get())
        services.start("alice")
        lost = waiting.join()
        assert isinstance(lost.error, grid.NodeUnavailable) and "remote values are gone" in lost.error.message
        (again,) = client.search("#numbers")
        assert again.features.mean(0).get().tolist() == [19.5]
