"""How workloads are timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Times of several runs of a workload, each of `repeats` units; `facts` go into the line as they are."""

    workload: str
    seconds: list[float]
    repeats: int = 1
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def timed(workload: str, run: Callable[[], object], *, runs: int = 7, repeats: int = 1, **facts: Any) -> Measured:
    """Time `run`, which does `repeats` units, `runs` times after one that does not count."""
    run()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return Measured(workload, seconds, repeats, facts)
