"""What labels cost: microseconds that typing adds to an operation, once its verdict is known and when it is not.

Prints one line of JSON. Run it alone on a machine: `OMP_NUM_THREADS=1 python benchmarks/labels.py`.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from grid.policy.labels import Labels
from grid.tensors.bounds import examine
from grid.tensors.ops import bind, flatten, lookup

REPEAT = 2000
ROUNDS = 15


def best_us(function: Callable[[], object]) -> float:
    """The median over rounds of the mean time of one call, in microseconds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(REPEAT):
            function()
        times.append((time.perf_counter() - begin) / REPEAT * 1e6)
    return statistics.median(times)


def cases(labels: Labels) -> dict[str, tuple[str, list[object]]]:
    """Operations of a training step of logistic regression, on rows and on parameters."""
    x = labels.enter(torch.randn(64, 8), labels.dataset_type("d", 64, (64, 8)))
    w = labels.enter(torch.randn(8, 4))
    h = labels.run(lookup("aten.mm.default"), [x, w], {})[0]
    grad = labels.run(lookup("aten.sum.dim_IntList"), [h, [0]], {})[0]
    state = labels.enter(torch.zeros(4))
    return {
        "mm": ("aten.mm.default", [x, w]),
        "relu": ("aten.relu.default", [h]),
        "add": ("aten.add.Tensor", [h, grad]),
        "t": ("aten.t.default", [x]),
        "sum": ("aten.sum.dim_IntList", [h, [0]]),
        "add_": ("aten.add_.Tensor", [state, grad]),
    }


def measure(name: str, args: list[object], labels: Labels) -> dict[str, float]:
    """Time of an operation with labels, bound but without, and of typing alone; and of one whose verdict is not known."""
    op = lookup(name)

    def plain() -> list[Tensor]:
        bound = bind(op, args, {})
        examine(bound)
        return flatten(bound.run())

    def fresh() -> object:
        labels.forget_verdicts()
        return labels.run(op, args, {})

    whole, without = best_us(lambda: labels.run(op, args, {})), best_us(plain)
    return {"with": whole, "without": without, "typing": whole - without, "uncached": best_us(fresh) - without}


def main() -> None:
    torch.set_num_threads(1)
    labels = Labels()
    found = {short: measure(name, args, labels) for short, (name, args) in cases(labels).items()}
    typing = statistics.mean(case["typing"] for case in found.values())
    print(
        json.dumps(
            {
                "benchmark": "labels",
                "typing_cached_us": round(typing, 2),
                "typing_cached_worst_us": round(max(case["typing"] for case in found.values()), 2),
                "typing_uncached_us": round(statistics.mean(case["uncached"] for case in found.values()), 2),
                "cases": {short: {key: round(value, 2) for key, value in case.items()} for short, case in found.items()},
                "machine": platform.machine(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
