"""Write the golden plans of this version of grid: plans, inputs and results, which every later version must load and run.

    python tests/plans/golden/make.py 0.1

Files that are there are never written again: they were made by the version in their name, and that is what they are for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from step_models import OPTIMIZERS, batch, make, start, step_of  # noqa: E402

from grid.plans.trace import trace  # noqa: E402


def training(name: str, optimizer: str) -> tuple[Callable[..., Any], Sequence[Any]]:
    module, chosen = make(name), OPTIMIZERS[optimizer][0]
    return step_of(module, chosen), (*start(module, chosen), *batch(name, 8))


def many_kinds() -> tuple[Callable[..., Any], Sequence[Any]]:
    """Constants, sizes, dtypes, several results, keys and values, a batch with a limit."""
    scale = torch.tensor([1.0, -2.0, 0.5])

    def function(x: Tensor, extra: dict[str, Any]) -> Any:
        n = x.shape[0]
        best = (x.view(n, 3) * scale + extra["b"]).max(1)
        classes = F.one_hot(best.indices, 3).to(torch.int32)
        parts = [x.double().sum(0) / (2 * n - 1), x.half(), x > 0, None, 3]
        return {"best": best, 2: classes, "parts": parts, "half": x if n > 4 else -x}

    return function, (torch.linspace(-1, 1, 24).view(8, 3), {"b": torch.ones(3), "k": "text"})


def recurrent() -> tuple[Callable[..., Any], Sequence[Any]]:
    torch.manual_seed(0)
    module = nn.LSTM(3, 2, batch_first=True)
    return lambda x: module(x)[0], (torch.linspace(-1, 1, 8 * 4 * 3).view(8, 4, 3),)


GOLDEN: dict[str, Callable[[], tuple[Callable[..., Any], Sequence[Any]]]] = {
    "mlp-adam": lambda: training("mlp", "adam"),
    "resnet-sgd": lambda: training("resnet", "sgd"),
    "transformer-adamw": lambda: training("transformer", "adamw"),
    "groups-sgd": lambda: training("groups", "sgd"),
    "many-kinds": many_kinds,
    "lstm": recurrent,
}


def main(version: str) -> None:
    for name, example in GOLDEN.items():
        path = HERE / f"{version}-{name}.plan"
        if path.exists():
            continue
        function, arguments = example()
        plan = trace(function, *arguments)
        plan.save(path)
        leaves = plan.leaves_of(tuple(arguments))
        values = {f"in{at}": leaf.detach().numpy() for at, leaf in enumerate(leaves)}
        results = {f"out{at}": result.numpy() for at, result in enumerate(plan._compiled(leaves))}
        np.savez_compressed(path.with_suffix(".npz"), id=np.array(str(plan.id)), **values, **results)


if __name__ == "__main__":
    main(sys.argv[1])
