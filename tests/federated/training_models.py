"""Models, rows and a plain PyTorch loop for the tests of local training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grid.federated.layouts import Layout, Vector
from grid.federated.local import Local
from grid.federated.loss_plans import LossPlans
from grid.federated.losses import trace_losses
from grid.federated.trainer import Trainer

ROWS = 50


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def normed() -> nn.Module:
    """No bias before batch norm: its gradient is nothing but rounding, which Adam makes large."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def vectors(rows: int = ROWS, seed: int = 0) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def classes(rows: int = ROWS, seed: int = 0) -> Tensor:
    return torch.randint(0, 3, (rows,), generator=torch.Generator().manual_seed(seed))


def trainer(plans: LossPlans, local: Local, x: Tensor, y: Tensor, **options: Any) -> Trainer:
    return Trainer(train=plans.train, evaluate=plans.evaluate, local=local, features=x, targets=y, **options)


def weights_of(model: nn.Module, layout: Layout) -> Vector:
    return layout.flatten(model.state_dict())


def plain_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    batches: Sequence[np.ndarray[Any, Any]],
    *,
    loss: Callable[..., Tensor] = F.cross_entropy,
    proximal: float = 0.0,
    max_grad_norm: float | None = None,
    rates: Sequence[float] | None = None,
) -> None:
    """What `Trainer` does, written with torch.nn and torch.optim. Changes the model."""
    model.train()
    start = [value.detach().clone() for value in model.parameters()]
    for at, rows in enumerate(batches):
        if rates is not None:
            for group in optimizer.param_groups:
                group["lr"] = rates[at]
        optimizer.zero_grad()
        value = loss(model(x[rows]), y[rows])
        if proximal:
            moved = [(one - origin).square().sum() for one, origin in zip(model.parameters(), start, strict=True)]
            value = value + proximal / 2 * torch.stack(moved).sum()
        value.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()


@functools.cache
def plans_of(make: Callable[[], nn.Module]) -> LossPlans:
    """The plans of one of these modules with cross entropy; no weights are in them."""
    return plans_for(make())


def plans_for(model: nn.Module, loss: Callable[..., Tensor] = F.cross_entropy, **options: Any) -> LossPlans:
    return trace_losses(model, loss, vectors(), classes(), **options)
