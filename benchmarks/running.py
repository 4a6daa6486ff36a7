"""The grid that is measured: a gateway, three nodes and two clients, each a process of its own, over loopback and sealed."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grid
from benchmarks.measure import Counters
from grid.client.blocking import Client
from grid.demo_processes import Processes, processes
from grid.settings import ClientSettings

NODES = ("alice", "bob", "carol")


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A running grid; `direct` is a client that dials nodes themselves, `relayed` one that goes through the gateway."""

    direct: Client
    relayed: Client
    started: Processes

    def both(self) -> Iterator[tuple[str, Client]]:
        yield "direct", self.direct
        yield "relayed", self.relayed

    def counters(self, client: Client | None = None) -> Counters:
        """Counters over all processes and what `client` sends."""
        sent = client or self.direct
        return Counters({name: self.started[name].pid for name in ("gateway", *NODES)}, lambda: sent.bytes_sent)


@contextlib.contextmanager
def running_grid(data: Path | None = None) -> Iterator[Running]:
    """The grid, for as long as the block lasts. `data` is alice's folder of datasets."""
    with tempfile.TemporaryDirectory(prefix="grid-bench-") as folder, processes(Path(folder)) as started:
        started.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
        url = started.ready("gateway")["url"]
        for name in NODES:
            more = ["--data", str(data)] if data is not None and name == "alice" else []
            started.start(name, ["node", name, "--gateway", url, "--dev", "--listen", "127.0.0.1:0", *more])
        for name in NODES:
            started.ready(name)
        with grid.connect(url) as direct, grid.connect(url, settings=ClientSettings(direct=False)) as relayed:
            yield Running(direct, relayed, started)
