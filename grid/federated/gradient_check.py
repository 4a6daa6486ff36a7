"""Whether a loss plan has the gradients that the module has, tried on made-up rows where the plan was traced.

A plan holds what a module computes. What stops or replaces a gradient without computing anything (`torch.no_grad()` around a
part, a `torch.autograd.Function` with a gradient of its own) is not in it, and training would silently be another. `detach` is
in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grid.errors import PlanRejected
from grid.plans.interpret import Compiled
from grid.plans.ir import Plan
from grid.plans.layers import Layers
from grid.plans.surroundings import surroundings_kept
from grid.plans.trees import unflatten
from grid.tensors.buffers import torch_dtype

ROWS = 4

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
LOW_TOLERANCE = 0.2
"""Relative to the length of a parameter's gradient; what this looks for makes all the difference."""


def check_gradients(plan: Plan, function: Callable[..., Any]) -> None:
    """Raise `PlanRejected`, naming the parameter, where a plan's gradients are not those of the function that was traced.

    Nothing is said where the made-up rows give a loss that is not finite, or the function fails on them.
    """
    names = [str(key) for key in plan.takes.children[0].keys]
    with surroundings_kept(function), torch.enable_grad():
        leaves = _made_up(plan, len(names))
        try:
            eager = _gradients(lambda: _called(plan, function, leaves), leaves[: len(names)])
        except PlanRejected:
            raise
        except Exception:
            return
        ours = _gradients(lambda: Compiled(plan).plainly(leaves)[0], leaves[: len(names)])
    if not all(torch.isfinite(one).all() for one in (*eager, *ours)):
        return
    for name, one, other in zip(names, ours, eager, strict=True):
        length = torch.linalg.vector_norm(other.double())
        if torch.linalg.vector_norm((one - other).double()) > TOLERANCE.get(one.dtype, LOW_TOLERANCE) * length + 1e-6:
            raise PlanRejected(
                f"the gradient of {name!r} in the plan is not the model's: something in the model or the loss stops or replaces"
                " gradients (torch.no_grad(), torch.autograd.Function); a plan knows .detach() alone, use that instead"
            )


def _made_up(plan: Plan, trained: int) -> list[Tensor]:
    """Inputs for the plan: small numbers for weights, numbers from 0 to 1 for rows, 0 for what is whole."""
    generator = torch.Generator().manual_seed(0)
    leaves = []
    for index, spec in enumerate(plan.inputs):
        shape = [size if isinstance(size, int) else ROWS for size in spec.sizes]
        dtype = torch_dtype(spec.dtype)
        value = torch.rand(shape, generator=generator).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        leaves.append(((value - 0.5) * 0.6).requires_grad_() if index < trained else value)
    return leaves


def _called(plan: Plan, function: Callable[..., Any], leaves: Sequence[Tensor]) -> Tensor:
    """The function's losses, with dropout as plans have it."""
    with Layers():
        losses: Tensor = function(*unflatten(plan.takes, iter([*leaves])))[0]
    return losses


def _gradients(losses: Callable[[], Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    torch.manual_seed(0)  # for dropout
    found = losses()
    if not found.requires_grad:
        raise PlanRejected("the loss does not depend on the parameters in a way that has a gradient")
    return list(torch.autograd.grad(found.double().mean(), leaves, materialize_grads=True))
