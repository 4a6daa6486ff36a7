"""What a pointer operation costs. Prints JSON lines.

* `pointer_op_client`: microseconds of this side for one operation, against an outbox that only takes the commands;
* `pointer_op_end_to_end`: commands a second through a whole grid in this process: gateway, sealed channel, node, labels.

    python -m benchmarks.pointers [--operations 20000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from grid.client.modules import send
from grid.client.shapes import Shapes
from grid.client.tensors import RemoteTensor, adopt
from grid.ids import ObjectId
from grid.testing import LocalGrid
from grid.wire.messages import Command, TensorFrame


class Spot:
    """Where nothing is."""

    name = "nowhere"
    id = "nowhere"


class Recorder:
    """An outbox that takes commands and does nothing with them."""

    def __init__(self) -> None:
        self.shapes = Shapes()
        self.place = Spot()
        self.count = 0
        self.new_id: Callable[[], ObjectId] = itertools.count(1).__next__  # type: ignore[assignment]
        self._waiting: collections.deque[Any] = collections.deque(maxlen=1024)
        self._freed: collections.deque[ObjectId] = collections.deque(maxlen=1024)
        self.free = self._freed.append

    def emit(self, command: Command, tensors: Sequence[TensorFrame], place: Any) -> None:
        self.count += 1
        self._waiting.append((command, tensors, place))

    def put(self, value: torch.Tensor) -> RemoteTensor:
        return adopt(self, self.new_id(), value.shape, value.dtype)  # type: ignore[arg-type]


def timed(function: Callable[[], None], repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs, after one that does not count."""
    function()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return found


def report(workload: str, seconds: Sequence[float], operations: int, **more: Any) -> None:
    """One JSON line. `seconds` are of `operations` operations."""
    median = statistics.median(seconds)
    line = {
        "workload": workload,
        "seconds_median": round(median, 6),
        "seconds_min": round(min(seconds), 6),
        "us_per_operation": round(median / operations * 1e6, 3),
        "operations_per_second": round(operations / median),
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        **more,
    }
    print(json.dumps(line), flush=True)


def client_side(operations: int, repeats: int) -> None:
    """Operations on a recorder: add, mm, view, and a whole training step of an MLP with Adam."""
    outbox = Recorder()
    x = outbox.put(torch.zeros(8, 8))
    cases: dict[str, Callable[[], object]] = {
        "add": lambda: x + x,
        "mm": lambda: x @ x,
        "view": lambda: x.view(64),
        "scale": lambda: x * 0.5,
    }
    for name, function in cases.items():

        def many(function: Callable[[], object] = function) -> None:
            for _ in range(operations):
                function()

        report("pointer_op_client", timed(many, repeats), operations, op=name)
    here = torch.nn.Sequential(torch.nn.Linear(13, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    model = send(here, outbox.put)
    optimizer = torch.optim.Adam(model.parameters())
    features, targets = outbox.put(torch.zeros(8, 13)), outbox.put(torch.zeros(8, 1))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(features), targets).backward()
        optimizer.step()

    step()
    before = outbox.count
    step()
    commands = outbox.count - before
    steps = max(1, operations // commands)

    def steps_in_a_row() -> None:
        for _ in range(steps):
            step()

    report("pointer_op_client", timed(steps_in_a_row, repeats), commands * steps, op="mlp step with Adam", commands=commands)


def end_to_end(operations: int, repeats: int) -> None:
    """Commands through a whole grid over memory."""
    with LocalGrid(nodes=1) as local:
        g = local.client()
        node = next(iter(g.nodes.values()))
        x = node.send(torch.zeros(8, 8))

        def many() -> None:
            y = x
            for _ in range(operations):
                y = y + x
            y.get()

        report("pointer_op_end_to_end", timed(many, repeats), operations, op="add")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--client-only", action="store_true", help="leave out the whole grid")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    client_side(chosen.operations, chosen.repeats)
    if not chosen.client_only:
        end_to_end(chosen.operations, chosen.repeats)


if __name__ == "__main__":
    main()
