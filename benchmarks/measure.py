"""How workloads are timed, and how a measurement is printed: one JSON line, the same keys for each."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROC = Path("/proc")


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Times of several runs of a workload, each of `repeats` units; `facts` are of one unit and go into the line as they are."""

    workload: str
    seconds: list[float]
    repeats: int = 1
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds of one unit."""
        return statistics.median(self.seconds) / self.repeats

    def line(self) -> dict[str, Any]:
        """The printed form. `rounds`: answers that a unit waits for; fractions where many units share one."""
        return {
            "workload": self.workload,
            "seconds_median": round(self.median, 9),
            "seconds_min": round(min(self.seconds) / self.repeats, 9),
            **{"bytes_sent": 0, "rounds": 0, "max_abs_error": 0.0, **self.facts},
            "machine": machine(),
            "commit": commit(),
        }


class Counters:
    """What grows while a workload runs: bytes that the client sent, processor seconds of processes, by name.

    `roots` are processes: whatever they start counts as theirs.
    """

    def __init__(self, roots: Mapping[str, int], bytes_sent: Callable[[], int] = lambda: 0) -> None:
        self._roots = roots
        self._bytes_sent = bytes_sent

    def read(self) -> dict[str, float]:
        """The counters now."""
        found = {"bytes_sent": float(self._bytes_sent()), "client": time.process_time()}
        if PROC.is_dir():
            found |= processor_seconds(self._roots)
        return found


def processor_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """Processor seconds that each process and all below it have used until now, as Linux counts them."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for stat in PROC.glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            tasks = stat.parent.glob("task/*/schedstat")
            seconds[int(stat.parent.name)] = sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        except OSError:  # it ended while we looked
            continue
    names = {pid: name for name, pid in roots.items()}
    found = dict.fromkeys(roots, 0.0)
    for pid, used in seconds.items():
        above = pid
        while above not in names and above in parents:
            above = parents[above]
        if above in names:
            found[names[above]] += used
    return found


def timed(
    workload: str,
    run: Callable[[], object],
    *,
    runs: int = 7,
    repeats: int = 1,
    counters: Counters | None = None,
    **facts: Any,
) -> Measured:
    """Time `run`, which does `repeats` units, `runs` times after one that does not count."""
    run()
    before = counters.read() if counters is not None else {}
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    if counters is not None:
        used = {name: (value - before[name]) / runs / repeats for name, value in counters.read().items()}
        facts["bytes_sent"] = round(used.pop("bytes_sent"))
        facts["cpu_seconds"] = {name: round(value, 9) for name, value in used.items()}
    return Measured(workload, seconds, repeats, facts)


def report(measured: Measured) -> None:
    """Print the line."""
    print(json.dumps(measured.line()), flush=True)


def skipped(workload: str, why: str) -> None:
    """Print a line that says why a workload was left out."""
    print(json.dumps({"workload": workload, "skipped": why, "machine": machine(), "commit": commit()}), flush=True)


@functools.cache
def machine() -> str:
    """Processor, cores and system, in a line."""
    lines = (PROC / "cpuinfo").read_text().splitlines() if (PROC / "cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return f"{model} x {len(models) or '?'}, {platform.system()}, Python {platform.python_version()}"


@functools.cache
def commit() -> str:
    """The commit that was measured, with a + where the tree has changes; "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()
