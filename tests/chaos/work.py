"""What the clients of a chaos run do: work whose right answers are known, again and again, until they are told to settle.

    python -m tests.chaos.work URL NAME SEED STEADY|FAULTY

Prints a JSON object for each piece of work: {"work", "outcome", "s"}, where the outcome is "right", "wrong: ..." or the code
of a `GridError`. Anything else that is raised ends the process with a traceback. After a line on standard input it does each
piece until it is right, and ends with {"settled": {dataset: elements received}}.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random

import torch

import grid
from grid.client.blocking import Client
from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.rpc.hop import dial_gateway
from grid.settings import ClientSettings
from grid.testing.faults import Faults, FaultyTransport
from grid.transport.base import Transport
from tests.chaos.data import COLUMNS, NODES, rows_of

FAULTS = Faults(delay=0.05, reorder=0.002, repeat=0.002, truncate=0.001, flip=0.001, drop=0.002, cut=0.002, spare=20)
TIMEOUT_S = 15.0
SETTLE_S = 90.0


class Wrong(Exception):
    """An answer that is not the right one."""


class Absent(Exception):
    """The gateway lists no such node or dataset at present."""


@grid.plan
def spread(x: torch.Tensor) -> torch.Tensor:
    return ((x - x.mean(0)) ** 2).mean(0)


@grid.plan
def total(x: torch.Tensor) -> torch.Tensor:
    return x.sum(0)


def check(got: torch.Tensor, right: torch.Tensor, tolerance: float) -> None:
    if got.shape != right.shape or not torch.allclose(got, right, rtol=0, atol=tolerance):
        raise Wrong(f"{got.tolist()} in place of {right.tolist()}")


class Worker:
    """One client and what it can do. `received` counts elements of each node's dataset that have come."""

    def __init__(self, client: Client, rng: Random) -> None:
        self.client = client
        self.rng = rng
        self.received: Counter[str] = Counter()
        self.work: Mapping[str, Callable[[], None]] = {
            "statistics": self.statistics,
            "plan": self.plan,
            "put and get": self.put_and_get,
            "sum": self.sum,
            "sum of datasets": self.sum_of_datasets,
        }

    def dataset(self, node: str) -> grid.Dataset:
        found = [one for one in self.client.search("#chaos", f"#{node}") if one.node.name == node]
        if len(found) != 1:
            raise Absent(node)
        return found[0]

    def statistics(self) -> None:
        node = self.rng.choice(NODES)
        got = self.dataset(node).features.mean(0).get()
        self.received[node] += COLUMNS
        check(got, rows_of(node).mean(0), 1e-4)

    def plan(self) -> None:
        node = self.rng.choice(NODES)
        got = spread(self.dataset(node).features).get()
        self.received[node] += COLUMNS
        check(got, rows_of(node).var(0, unbiased=False), 1e-2)

    def put_and_get(self) -> None:
        value = torch.arange(float(self.rng.choice([10, 1000, 300_000])))
        place = self.client.nodes.get(self.rng.choice(NODES))
        if place is None:
            raise Absent
        remote = place.send(value)
        for _ in range(5):
            remote = remote + 1
        check(remote.get(), value + 5, 0)

    def sum(self) -> None:
        values = [torch.full((100,), float(self.rng.randint(-50, 50))) for _ in NODES]
        places = [self.client.nodes.get(node) for node in NODES]
        if None in places:
            raise Absent
        got = grid.sum([place.send(value) for place, value in zip(places, values, strict=True)])
        check(got, torch.stack(values).sum(0), 1e-3)

    def sum_of_datasets(self) -> None:
        parts = [total(self.dataset(node).features) for node in NODES]
        got = grid.sum(parts)
        self.received.update(dict.fromkeys(NODES, COLUMNS))
        check(got, torch.stack([rows_of(node).sum(0) for node in NODES]).sum(0), 1e-2)

    def do(self, name: str) -> bool:
        """One piece of work, and what came of it on stdout."""
        began = time.monotonic()
        try:
            self.work[name]()
            outcome = "right"
        except Wrong as wrong:
            outcome = f"wrong: {wrong}"
        except Absent:
            outcome = "absent"
        except grid.GridError as error:
            outcome = error.code
        print(json.dumps({"work": name, "outcome": outcome, "s": round(time.monotonic() - began, 3)}), flush=True)
        return outcome == "right"


def connect(url: str, name: str, seed: int, faulty: bool) -> Client:
    """A client; a faulty one has a bad network between itself and the gateway. Waits for a gateway that is not there yet."""
    clock, numbers = SystemClock(), Random(seed)
    dial = dial_gateway(url)

    async def dial_faulty() -> Transport:
        return FaultyTransport(await dial(), seed=numbers.getrandbits(32), faults=FAULTS, clock=clock)

    settings = ClientSettings(timeout_s=TIMEOUT_S)
    while True:
        try:
            if not faulty:
                return grid.connect(url, settings=settings)
            me = LocalIdentity.create(name=name, role="client", clock=clock)
            return Client(dial=dial_faulty, me=me, trust=Trust.dev(), settings=settings)
        except grid.GridError:
            time.sleep(0.2)


def main() -> int:
    url, name, seed, kind = sys.argv[1:]
    torch.set_num_threads(1)
    settle = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), settle.set()), daemon=True).start()
    with connect(url, name, int(seed), kind == "FAULTY") as client:
        worker = Worker(client, Random(int(seed)))
        while not settle.is_set():
            worker.do(worker.rng.choice(list(worker.work)))
        deadline = time.monotonic() + SETTLE_S
        for work in worker.work:
            while not worker.do(work):
                if time.monotonic() > deadline:
                    print(json.dumps({"work": work, "outcome": "wrong: it never settled", "s": SETTLE_S}), flush=True)
                    return 1
    print(json.dumps({"settled": worker.received}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
