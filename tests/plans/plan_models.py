"""Functions and models that the plan tests trace, and comparison with eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from grid.plans.ir import is_tensor
from grid.plans.trees import flatten

TRACED_AT = 8
"""Rows of every example. Pictures are 8 high, too: a batch of 8 must not be taken for a height of 8."""

BATCHES = (1, 2, 3, 8, 33)


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def cnn() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)
    )


def vectors(rows: int) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))


def pictures(rows: int) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(rows))


def classes(rows: int) -> Tensor:
    return torch.randint(0, 3, (rows,), generator=torch.Generator().manual_seed(rows))


def numbers(rows: int) -> Tensor:
    return torch.rand(rows, 3, generator=torch.Generator().manual_seed(rows))


def gradient_of(module: nn.Module, loss: Callable[..., Tensor] = F.cross_entropy) -> Callable[..., Any]:
    """A function of parameters, inputs and targets that gives the loss and all gradients."""

    def step(params: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Any]:
        value = loss(functional_call(module, params, (x,)), y)
        trained = {name: p for name, p in params.items() if p.requires_grad}
        gradients = torch.autograd.grad(value, list(trained.values()))
        return {"loss": value, "gradients": dict(zip(trained, gradients, strict=True))}

    return step


def assert_same(ours: Any, eager: Any, tolerance: float = 1e-5) -> None:
    """Both have the same structure, shapes and dtypes, and values within the tolerance."""
    our_leaves, our_tree = flatten(ours, is_tensor)
    their_leaves, their_tree = flatten(eager, is_tensor)
    assert our_tree == their_tree
    for one, other in zip(our_leaves, their_leaves, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert torch.allclose(one.double(), other.detach().double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_plan_is(plan: Any, function: Callable[..., Any], *calls: Sequence[Any]) -> None:
    """The plan gives what the function gives, for each of these argument lists."""
    for arguments in calls:
        assert_same(plan(*arguments), function(*arguments))
