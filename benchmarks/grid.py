"""What a grid costs over real processes on loopback, sealed end to end, through the public API. Prints JSON lines.

    python -m benchmarks.grid [WORKLOAD ...]

Each line: {workload, seconds_median, seconds_min, bytes_sent, rounds, max_abs_error, ..., machine, commit}, of one unit (one
command, one request, one training run). `bytes_sent` is what the client sent, sealed; `cpu_seconds` is the processor time of
each process. Figures are of one run on one machine, with other things perhaps going on: compare lines of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import grid
from benchmarks import boston
from benchmarks.crowd import gateway_memory_per_idle_node
from benchmarks.measure import Measured, report, skipped, timed
from benchmarks.running import NODES, Running, running_grid

COMMANDS = 4000
REQUESTS = 300
BULK_BYTES = 10_000_000
PLAN_CALLS = 30


def pointer_command(running: Running) -> Iterator[Measured]:
    """One pipelined operation on a small tensor, end to end."""
    for how, client in running.both():
        x = client.nodes["alice"].send(torch.ones(4))

        def run(x: Tensor = x) -> Tensor:
            y = x
            for _ in range(COMMANDS):
                y = y + x
            value: Tensor = y.get()  # type: ignore[attr-defined]
            return value

        error = float((run() - (COMMANDS + 1)).abs().max())
        counters = running.counters(client)
        rounds = round(1 / COMMANDS, 6)
        yield timed(f"pointer_command_{how}", run, repeats=COMMANDS, counters=counters, rounds=rounds, max_abs_error=error)


def small_request(running: Running) -> Iterator[Measured]:
    """A round trip: get() of four numbers."""
    for how, client in running.both():
        x = client.nodes["alice"].send(torch.ones(4))

        def run(x: Tensor = x) -> None:
            for _ in range(REQUESTS):
                x.get()  # type: ignore[attr-defined]

        error = float((x.get() - 1).abs().max())  # type: ignore[attr-defined]
        counters = running.counters(client)
        yield timed(f"small_request_{how}", run, repeats=REQUESTS, counters=counters, rounds=1, max_abs_error=error)


def bulk(running: Running) -> Iterator[Measured]:
    """Ten megabytes from the client to a node, until the node has them and has answered."""
    value = torch.randn(BULK_BYTES // 4)
    for how, client in running.both():
        alice = client.nodes["alice"]
        there = alice.send(value)
        error = float((there.get() - value).abs().max())
        del there

        def run(alice: Any = alice) -> None:
            alice.send(value)[:1].get()

        found = timed(f"bulk_1e7_{how}", run, runs=15, counters=running.counters(client), rounds=1, max_abs_error=error)
        yield Measured(found.workload, found.seconds, 1, {**found.facts, "gb_per_s": round(BULK_BYTES / found.median / 1e9, 3)})


def mlp() -> nn.Module:
    """784-128-10."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    """LeNet as in the secure rows: two convolutions, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def plan(running: Running) -> Iterator[Measured]:
    """Forward passes as plans at a node, calls in a row, beside calling the same module here; `ratio` is between the two."""
    for name, make, shape in (("mlp_b128", mlp, (128, 784)), ("cnn_b64", cnn, (64, 1, 28, 28))):
        torch.manual_seed(0)
        module = make()
        data = torch.randn(shape)
        forward = grid.trace(module, data)
        x = running.direct.nodes["alice"].send(data)

        def run_module(module: nn.Module = module, data: Tensor = data) -> Tensor:
            with torch.no_grad():
                for _ in range(PLAN_CALLS):
                    y = module(data)
            return y

        def run_plan(forward: grid.Plan = forward, x: Tensor = x) -> None:
            for _ in range(PLAN_CALLS):
                y = forward(x)
            y[:1].get()

        error = float((forward(x).get() - run_module()).abs().max())
        here = timed(f"module_{name}", run_module, repeats=PLAN_CALLS, runs=11)
        yield here
        rounds = round(1 / PLAN_CALLS, 6)
        counters = running.counters()
        found = timed(
            f"plan_{name}", run_plan, repeats=PLAN_CALLS, runs=11, counters=counters, rounds=rounds, max_abs_error=error
        )
        yield boston.with_ratio(found, here)


def secure_sum(running: Running) -> Iterator[Measured]:
    """The sum of three nodes' tensors."""
    for size, name in ((100, "1e2"), (1_000_000, "1e6")):
        values = [torch.randn(size) for _ in NODES]
        tensors = [running.direct.nodes[node].send(value) for node, value in zip(NODES, values, strict=True)]
        error = float((grid.sum(tensors) - sum(values)).abs().max())

        def run(tensors: list[Tensor] = tensors) -> Tensor:
            return grid.sum(tensors)

        yield timed(f"sum_{name}x3", run, counters=running.counters(), rounds=1, max_abs_error=error)


def idle_nodes(_: Running) -> Iterator[Measured]:
    """Memory of a gateway of its own for each of a thousand idle nodes; the seconds: until they have come and sat still."""
    started = time.perf_counter()
    facts = asyncio.run(gateway_memory_per_idle_node())
    yield Measured("gateway_memory_per_idle_node", [time.perf_counter() - started], facts=facts)


WORKLOADS: Mapping[str, Callable[[Running], Iterator[Measured]]] = {
    "pointer_command": pointer_command,
    "small_request": small_request,
    "bulk": bulk,
    "plan": plan,
    "boston": boston.measure,
    "secure_sum": secure_sum,
    "idle_nodes": idle_nodes,
}
"""Name -> workload."""


def measurements(names: list[str]) -> Iterator[Measured]:
    """The measurements of the workloads that were asked for, all of them without names."""
    with tempfile.TemporaryDirectory(prefix="grid-bench-data-") as folder:
        data = Path(folder) if boston.DATA.exists() else None
        if data is not None:
            boston.write_dataset(data)
        with running_grid(data) as running:
            for name, workload in WORKLOADS.items():
                if names and name not in names:
                    continue
                if workload is boston.measure and data is None:
                    skipped("boston", f"there is no {boston.DATA.name} in ../shared/data")
                else:
                    yield from workload(running)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("workload", nargs="*", choices=[*WORKLOADS, []], help="default: all")
    torch.set_num_threads(1)  # as the nodes have it
    for measured in measurements(parser.parse_args().workload):
        report(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
