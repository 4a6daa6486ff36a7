"""Run workloads and print one JSON line for each: {workload, seconds_median, seconds_min, ..., machine, commit}.

Figures are of one run on one machine, with other things perhaps going on: compare lines of one run, not of two machines.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import grid_speed
from benchmarks.measure import Measured
from grid.demo_processes import processes


def machine() -> str:
    """Processor, cores and system, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return f"{model} x {len(models) or '?'}, {platform.system()}, Python {platform.python_version()}"


def commit() -> str:
    """The commit that was measured, with a + where the tree has changes; "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()


def line(measured: Measured) -> dict[str, Any]:
    """The printed form of one measurement."""
    seconds = [one / measured.repeats for one in measured.seconds]
    return {
        "workload": measured.workload,
        "seconds_median": round(statistics.median(seconds), 9),
        "seconds_min": round(min(seconds), 9),
        **measured.facts,
        "machine": machine(),
        "commit": commit(),
    }


def measurements(names: list[str]) -> Iterator[Measured]:
    """The measurements of the workloads that were asked for, all of them without names."""
    with tempfile.TemporaryDirectory(prefix="grid-bench-") as folder, processes(Path(folder)) as running:
        grid = grid_speed.start(running)
        for name, workload in grid_speed.WORKLOADS.items():
            if not names or name in names:
                yield from workload(grid)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workload", nargs="*", choices=[*grid_speed.WORKLOADS, []], help="default: all")
    for measured in measurements(parser.parse_args().workload):
        print(json.dumps(line(measured)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
