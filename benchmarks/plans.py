"""Time of a plan's call over the same call in eager PyTorch, on this machine. One JSON line for each case.

    OMP_NUM_THREADS=1 python -m benchmarks.plans

`ratio` is plan over eager, the smaller the better; each is the best of several rounds, one thread. A forward pass is
compared without gradients recorded, a step with `torch.autograd.grad`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from grid.plans.shapes import dry_run
from grid.plans.trace import trace

ROUNDS = 15
ROUND_S = 0.05


def best_us(call: Callable[[], object]) -> float:
    """Microseconds of one call: the best mean of some rounds."""
    started = time.perf_counter()
    call()
    count = max(1, int(ROUND_S / max(time.perf_counter() - started, 1e-6)))
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - started) / count)
    return min(times) * 1e6


def gradients(module: nn.Module) -> Callable[..., Any]:
    """Loss gradients of a module as a function of its parameters."""

    def step(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Any:
        loss = F.cross_entropy(functional_call(module, params, (x,)), y)
        return torch.autograd.grad(loss, list(params.values()))

    return step


def report(name: str, rows: int, eager: Callable[[], object], planned: Callable[[], object], **more: float) -> None:
    """Measure both and print the line."""
    eager_us, plan_us = best_us(eager), best_us(planned)
    figures = {"eager_us": round(eager_us, 1), "plan_us": round(plan_us, 1), "ratio": round(plan_us / eager_us, 3)}
    print(json.dumps({"benchmark": "plan-call", "case": name, "rows": rows, **figures, **more}))


def main() -> None:
    """Run all cases."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {
        "mlp": (nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)), (784,)),
        "cnn": (nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1152, 10)), (1, 28, 28)),
    }
    for name, (module, shape) in models.items():
        params = dict(module.named_parameters())
        for rows in (1, 64):
            x, y = torch.randn(rows, *shape), torch.randint(0, 10, (rows,))
            forward = trace(module, x)
            with torch.no_grad():
                report(f"{name} forward", rows, lambda m=module, x=x: m(x), lambda p=forward, x=x: p(x))
            step = gradients(module)
            started = time.perf_counter()
            plan = trace(step, params, x, y)
            trace_ms = round((time.perf_counter() - started) * 1e3, 1)
            shapes = [tuple(leaf.shape) for leaf in plan.leaves_of((params, x, y))]
            per_step = round(best_us(lambda p=plan, s=shapes: dry_run(p, s)) / len(plan.steps), 1)
            report(
                f"{name} gradients",
                rows,
                lambda f=step, p=params, x=x, y=y: f(p, x, y),
                lambda f=plan, p=params, x=x, y=y: f(p, x, y),
                trace_ms=trace_ms,
                dry_run_us_per_step=per_step,
                steps=len(plan.steps),
            )


if __name__ == "__main__":
    main()
