"""What the clients of a chaos run do: work whose right answers are known, again and again, until they are told to settle.

    python -m tests.chaos.work URL NAME SEED STEADY|FAULTY

Prints a JSON object for each piece of work: {"work", "outcome", "s"}, where the outcome is "right", "wrong: ...", or code and
message of a `GridError`. Anything else that is raised ends the process with a traceback. After a line on standard input it does
each piece until it is right, and ends with {"settled": {dataset: elements received}}.
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
from grid.rpc.job_channel import dial_jobs
from grid.settings import ClientSettings
from grid.testing.faults import Faults, FaultyTransport
from grid.transport.base import Dial, Transport
from tests.chaos.data import COLUMNS, NODES, ROWS, rows_of

FAULTS = Faults(delay=0.05, reorder=0.002, repeat=0.002, truncate=0.001, flip=0.001, drop=0.002, cut=0.002, spare=20)
TIMEOUT_S = 15.0
SETTLE_S = 90.0
ROUNDS = 3
RATE = 1e-3
JOB_DEADLINE_S = 6.0
"""Of one round. A job gives up after four of them."""


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


class Line(torch.nn.Module):
    """The model that is trained, which begins at zero. Gives (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(COLUMNS - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def line_after(rounds: int) -> torch.Tensor:
    """Its weight, (COLUMNS - 1,), after so many steps on the rows of all nodes in one place."""
    rows = torch.cat([rows_of(node) for node in NODES])
    module = Line()
    descent = torch.optim.SGD(module.parameters(), lr=RATE)
    for _ in range(rounds):
        descent.zero_grad()
        torch.nn.functional.mse_loss(module(rows[:, :-1]), rows[:, -1]).backward()  # type: ignore[no-untyped-call]
        descent.step()
    return module.weight.detach()


def check(got: torch.Tensor, right: torch.Tensor, tolerance: float) -> None:
    if got.shape != right.shape or not torch.allclose(got, right, rtol=0, atol=tolerance):
        raise Wrong(f"{got.tolist()} in place of {right.tolist()}")


class Worker:
    """One client and what it can do. `received` counts elements of each node's dataset that have come."""

    def __init__(self, client: Client, rng: Random) -> None:
        self.client = client
        self.rng = rng
        self.received: Counter[str] = Counter()
        self.last = ""
        self.work: Mapping[str, Callable[[], None]] = {
            "statistics": self.statistics,
            "plan": self.plan,
            "put and get": self.put_and_get,
            "sum": self.sum,
            "sum of datasets": self.sum_of_datasets,
            "training": self.training,
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

    def training(self) -> None:
        """Steps over all rows of a node, whose mean over nodes of equal size is a step over all rows there are."""
        found = self.client.search("#lines")
        if len(found) != len(NODES):
            raise Absent
        job = self.client.train(
            Line(),
            loss=torch.nn.functional.mse_loss,
            datasets=found,
            rounds=ROUNDS,
            local=grid.Local(batch_size=ROWS, optimizer=grid.SGD(lr=RATE)),
            min_nodes=len(NODES),
            deadline=JOB_DEADLINE_S,
        )
        got = job.result().weight.detach()
        check(got, line_after(ROUNDS), 1e-3)

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
            outcome = f"{error.code}: {error.message}"
        print(json.dumps({"work": name, "outcome": outcome, "s": round(time.monotonic() - began, 3)}), flush=True)
        self.last = outcome
        return outcome == "right"


def connect(url: str, name: str, seed: int, faulty: bool) -> Client:
    """A client; a faulty one has a bad network between itself and the gateway. Waits for a gateway that is not there yet."""
    clock, numbers = SystemClock(), Random(seed)

    def through_faults(dial: Dial) -> Dial:
        async def dial_faulty() -> Transport:
            return FaultyTransport(await dial(), seed=numbers.getrandbits(32), faults=FAULTS, clock=clock)

        return dial_faulty

    settings = ClientSettings(timeout_s=TIMEOUT_S)
    while True:
        try:
            if not faulty:
                return grid.connect(url, settings=settings)
            me = LocalIdentity.create(name=name, role="client", clock=clock)
            dial, to_jobs = through_faults(dial_gateway(url)), through_faults(dial_jobs(url))
            return Client(dial=dial, dial_jobs=to_jobs, me=me, trust=Trust.dev(), settings=settings)
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
                    never = f"wrong: it never settled, last: {worker.last}"
                    print(json.dumps({"work": work, "outcome": never, "s": SETTLE_S}), flush=True)
                    return 1
    print(json.dumps({"settled": worker.received}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
