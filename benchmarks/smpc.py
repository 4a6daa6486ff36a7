"""Secure computation between three nodes, through the public API: real processes, sealed channels. Prints JSON lines.

    python -m benchmarks.smpc [WORKLOAD ...] [--runs 9]

Each line: {workload, seconds_median, seconds_min, bytes_sent, rounds, max_abs_error, goal, lone_seconds, cpu_seconds, ...}.
A run asks for as many calls of one plan as take about `RUN_S`, one after the other, not waiting for each, then for one
element of the last result; its seconds are divided by the calls. `lone_seconds` is the median time of one call asked for
alone, with that element. Inputs are on shares before, results stay there. `bytes_sent` is what one party sends, `rounds` its
longest chain of messages, both as `trio.cost` says, which tests hold against what goes over the wire; `cpu_seconds` is the
processor time of all processes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import grid
from benchmarks.measure import Measured, report
from benchmarks.running import NODES, Running, running_grid
from benchmarks.secure_workloads import GOALS, NAMES, listed, workload

RUN_S = 1.0
MOST_CALLS = 500
LONE_CALLS = 7


def measure(running: Running, trio: Any, name: str, runs: int) -> Measured:
    """One workload."""
    work = workload(name)
    plan = grid.trace(work.function, *work.inputs)
    given = [trio.share(value) for value in work.inputs]

    def call(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            result = listed(trio.run(plan, *given))[0]
        result.reshape(-1)[:1].reveal()
        return time.perf_counter() - started

    error = work.error([one.reveal() for one in listed(trio.run(plan, *given))])
    lone = statistics.median(call(1) for _ in range(LONE_CALLS))
    times = max(1, min(MOST_CALLS, round(RUN_S / (call(10) / 10))))
    counters = running.counters()
    before = counters.read()
    seconds = [call(times) for _ in range(runs)]
    used = {key: value - before[key] for key, value in counters.read().items()}
    used.pop("bytes_sent")
    cost = trio.cost(plan, *given)
    return Measured(
        name,
        seconds,
        times,
        {
            "bytes_sent": cost.bytes_sent,
            "rounds": cost.rounds,
            "max_abs_error": error,
            "goal": GOALS[name],
            "lone_seconds": round(lone, 6),
            "calls": times,
            "cpu_seconds": round(sum(used.values()) / runs / times, 6),
        },
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smpc", description="Secure computation on a grid.")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"by default all: {', '.join(NAMES)}")
    parser.add_argument("--runs", type=int, default=9)
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.workloads) - set(NAMES)
    if unknown:
        parser.error(f"there is no workload {', '.join(sorted(unknown))}")
    with running_grid() as running:
        for name in chosen.workloads or NAMES:
            with running.direct.committee(*NODES) as trio:
                report(measure(running, trio, name, chosen.runs))


if __name__ == "__main__":
    main(sys.argv[1:])
