"""A chaos run: a gateway, three nodes and clients as processes, of which some are killed, frozen and started again at random.

Every answer that a client gets must be right or a `GridError`, in bounded time; and at the end, when everything is healed,
all must work again, no process is left, no log has a traceback, and each node's memory has counted every element that any
client received.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from grid.demo_processes import Processes, processes
from grid.store.sqlite import SqliteStore
from tests.chaos.data import NODES, write

SERVICES = ("gateway", *NODES)
CLIENTS = {"ann": "STEADY", "ben": "STEADY", "cy": "FAULTY"}
SLOWEST_S = 60.0
"""No piece of work may take longer, whatever goes wrong: calls have deadlines of 15 s."""

SETTLED_S = 120.0
STOP_S = 30.0
REPOSITORY = Path(__file__).parent.parent.parent


@dataclasses.dataclass
class Report:
    """What a run has seen. `faults` is what was done, `outcomes` what clients got, `problems` what must not be."""

    seed: int
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    right: Counter[str] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    slowest_s: float = 0.0

    def facts(self) -> dict[str, Any]:
        return dict(vars(self))


class Worker:
    """A client process, and a thread that reads what it says."""

    def __init__(self, name: str, url: str, seed: int, kind: str, folder: Path, report: Report) -> None:
        self.name = name
        self.settled: dict[str, int] | None = None
        self._report = report
        self._expected_dead = False
        with (folder / f"{name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.work", url, name, str(seed), kind],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.endswith("\n"):
                return  # killed in the middle of it
            said = json.loads(line)
            if "settled" in said:
                self.settled = said["settled"]
                continue
            self._report.outcomes[said["outcome"].partition(":")[0]] += 1
            self._report.slowest_s = max(self._report.slowest_s, said["s"])
            if said["outcome"] == "right":
                self._report.right[said["work"]] += 1
            if said["outcome"].startswith("wrong") or said["s"] > SLOWEST_S:
                self._report.problems.append(f"{self.name}: {said}")

    def settle(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        try:
            code = self.process.wait(SETTLED_S)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0 or self.settled is None:
            self._report.problems.append(f"{self.name} did not settle (exit code {code})")
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Chaos:
    """The services and clients of one run, and what is done to them."""

    def __init__(self, running: Processes, folder: Path, seed: int) -> None:
        self.running = running
        self.folder = folder
        self.rng = Random(seed)
        self.report = Report(seed)
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"ws://{self.address}"
        self.workers: dict[str, Worker] = {}
        self.heals: list[tuple[float, str, Callable[[], None]]] = []
        self.unready: set[str] = set()
        self._started = 0

    # ------------------------------------------------------------ starting

    def start(self, service: str) -> None:
        state = ["--state", str(self.folder / service)]
        if service == "gateway":
            arguments = ["gateway", "--dev", "--listen", self.address, *state]
        else:
            listen = ["--listen", "127.0.0.1:0"] if service != "carol" else []
            data = str(self.folder / f"{service}-data")
            arguments = ["node", service, "--dev", "--gateway", self.url, "--data", data, *listen, *state]
        self.running.start(service, arguments)
        self.unready.add(service)

    def start_worker(self, name: str) -> None:
        self._started += 1
        seed = self.report.seed * 1000 + self._started
        self.workers[name] = Worker(name, self.url, seed, CLIENTS[name], self.folder, self.report)

    def start_all(self) -> None:
        for node in NODES:
            write(self.folder / f"{node}-data", node)
        for service in SERVICES:
            self.start(service)
        self.wait_ready()
        for name in CLIENTS:
            self.start_worker(name)

    def wait_ready(self) -> None:
        for service in sorted(self.unready, key=SERVICES.index):
            self.running.ready(service)
        self.unready.clear()

    # ------------------------------------------------------------ faults

    def run(self, seconds: float, pace_s: float) -> None:
        """Faults of random kinds for `seconds`, one each `pace_s` or so; those that were begun are healed at the end."""
        end, due = time.monotonic() + seconds, time.monotonic()
        while (now := time.monotonic()) < end:
            self._heal(now)
            if now >= due:
                self._fault(now, pace_s)
                due = now + self.rng.expovariate(1 / pace_s)
            time.sleep(0.02)
        self._heal(float("inf"))

    def _heal(self, now: float) -> None:
        for heal in [one for one in self.heals if one[0] <= now]:
            self.heals.remove(heal)
            heal[2]()

    def _fault(self, now: float, pace_s: float) -> None:
        ill = {name for _, name, _ in self.heals}
        healthy = [name for name in (*SERVICES, *CLIENTS) if name not in ill]
        name = self.rng.choice(healthy)
        if name in CLIENTS:
            self._kill_worker(name)
            return
        if self.rng.random() < 0.6:
            self.report.faults[f"killed {name}"] += 1
            self.running.kill(name)
            self.unready.discard(name)
            self.heals.append((now + self.rng.uniform(0, pace_s), name, lambda: self.start(name)))
        else:
            self.report.faults[f"froze {name}"] += 1
            process = self.running[name]
            process.send_signal(signal.SIGSTOP)
            frozen_s = self.rng.choice([0.5, 2.0, 12.0])  # the last is more than peers' patience
            self.heals.append((now + frozen_s, name, lambda: process.send_signal(signal.SIGCONT)))

    def _kill_worker(self, name: str) -> None:
        """A client that dies has received values that nobody knows of; the nodes have counted at least what others received."""
        self.report.faults[f"killed client {name}"] += 1
        self.workers[name].kill()
        self.start_worker(name)

    # ------------------------------------------------------------ the end

    def settle(self) -> Counter[str]:
        """All is healed: everything works again. Gives the elements of each dataset that the last clients received."""
        self.wait_ready()
        for worker in self.workers.values():
            worker.settle()
        received: Counter[str] = Counter()
        for worker in self.workers.values():
            worker.finish()
            received.update(worker.settled or {})
        return received

    def check_ledgers(self, received: Counter[str]) -> None:
        for node in NODES:
            store = SqliteStore(self.folder / node / "store.sqlite")
            state = store.load("numbers")
            store.close()
            counted = state.elements if state is not None else 0
            if counted < received[node]:
                self.report.problems.append(f"{node} has counted {counted} elements, and clients received {received[node]}")

    def check_logs(self) -> None:
        for name in (*SERVICES, *CLIENTS):
            log = (self.folder / f"{name}.log").read_text(errors="replace")
            for bad in ("Traceback", "never retrieved", "never awaited"):
                if bad in log:
                    self.report.problems.append(f"{name}.log has {bad!r}: ...{log[log.index(bad) : log.index(bad) + 3000]}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def chaos(folder: Path, *, seed: int, seconds: float, pace_s: float) -> Report:
    """One run. What must not be is in `problems` of the report."""
    with processes(folder, stop_s=STOP_S) as running:
        run = Chaos(running, folder, seed)
        try:
            run.start_all()
            run.run(seconds, pace_s)
            received = run.settle()
        finally:
            for worker in run.workers.values():
                worker.kill()
        started = {name: running[name] for name in SERVICES}
    for name, process in started.items():
        if process.returncode != 0:
            run.report.problems.append(f"{name} did not end cleanly at SIGTERM: exit code {process.returncode}")
    run.check_ledgers(received)
    run.check_logs()
    return run.report
