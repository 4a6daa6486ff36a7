"""What a grid costs: commands, requests, bulk transfers, plans and sums, over real processes on loopback, sealed end to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch

import grid as grid_package
from benchmarks.measure import Measured, timed
from grid.client.blocking import Client
from grid.demo_processes import Processes
from grid.settings import ClientSettings

NODES = ("alice", "bob", "carol")
COMMANDS = 2000
BULK_BYTES = 10_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """A running grid; `direct` is a client that dials nodes themselves, `relayed` one that goes through the gateway."""

    direct: Client
    relayed: Client

    def both(self) -> Iterator[tuple[str, Client]]:
        yield "direct", self.direct
        yield "relayed", self.relayed


def start(running: Processes) -> Grid:
    """A gateway, three nodes that listen, two clients."""
    running.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
    url = running.ready("gateway")["url"]
    for name in NODES:
        running.start(name, ["node", name, "--gateway", url, "--dev", "--listen", "127.0.0.1:0"])
    for name in NODES:
        running.ready(name)
    return Grid(grid_package.connect(url), grid_package.connect(url, settings=ClientSettings(direct=False)))


def pointer_command(grid: Grid) -> Iterator[Measured]:
    """One pipelined operation on a small tensor, end to end."""
    for how, client in grid.both():
        x = client.nodes["alice"].send(torch.ones(4))

        def run(x: torch.Tensor = x) -> None:
            y = x
            for _ in range(COMMANDS):
                y = y + x
            y.get()  # type: ignore[attr-defined]

        yield timed(f"pointer_command_{how}", run, repeats=COMMANDS)


def small_request(grid: Grid) -> Iterator[Measured]:
    """A round trip: get() of four numbers."""
    for how, client in grid.both():
        x = client.nodes["alice"].send(torch.ones(4))

        def run(x: torch.Tensor = x) -> None:
            for _ in range(100):
                x.get()  # type: ignore[attr-defined]

        yield timed(f"small_request_{how}", run, repeats=100)


def bulk(grid: Grid) -> Iterator[Measured]:
    """Ten megabytes from the client to a node, until the node has them."""
    value = torch.ones(BULK_BYTES // 4)
    for how, client in grid.both():
        alice = client.nodes["alice"]

        def run(alice: object = alice) -> None:
            alice.send(value)[:1].get()  # type: ignore[attr-defined]

        yield timed(f"bulk_1e7_{how}", run, bytes_sent=BULK_BYTES)


def plan(grid: Grid) -> Iterator[Measured]:
    """A forward pass of an MLP as a plan, beside calling the module here."""
    module = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    forward = grid_package.plan(lambda x: module(x))
    data = torch.randn(128, 784)
    x = grid.direct.nodes["alice"].send(data)
    local = timed("module_mlp_b128", lambda: module(data))
    yield local
    expected = module(data).detach()
    error = float((forward(x).get() - expected).abs().max())

    def run() -> None:
        for _ in range(20):
            y = forward(x)
        y[:1].get()

    yield timed("plan_mlp_b128", run, repeats=20, max_abs_error=error)


def secure_sum(grid: Grid) -> Iterator[Measured]:
    """The sum of three nodes' tensors."""
    for size, name in ((100, "1e2"), (1_000_000, "1e6")):
        values = [torch.randn(size) for _ in NODES]
        tensors = [grid.direct.nodes[node].send(value) for node, value in zip(NODES, values, strict=True)]
        error = float((grid_package.sum(tensors) - sum(values)).abs().max())
        yield timed(f"sum_{name}x3", lambda tensors=tensors: grid_package.sum(tensors), max_abs_error=error)


WORKLOADS: Mapping[str, Callable[[Grid], Iterator[Measured]]] = {
    "pointer_command": pointer_command,
    "small_request": small_request,
    "bulk": bulk,
    "plan": plan,
    "secure_sum": secure_sum,
}
"""Name -> workload."""
