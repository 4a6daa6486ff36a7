"""Operations of a plan, against PyTorch's own count of the same function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from step_models import MODELS, OPTIMIZERS, batch, make, start, step_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grid.plans.flops import _COSTS, flops
from grid.plans.shapes import DryRun, dry_run
from grid.plans.trace import trace
from grid.tensors.ops import OPS, bind, infer

MAIN = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


def counted(function: Callable[..., Any], *args: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return int(counter.get_total_flops())


def products(plan: Any, run: DryRun) -> int:
    """Operations of the steps that PyTorch counts, without one for each element touched."""
    return sum(cost.flops for step, cost in zip(plan.steps, run.steps, strict=True) if step.op.split(".")[1] in MAIN)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "transformer"])
def test_training_steps(name: str) -> None:
    module, optimizer = make(name), OPTIMIZERS["sgd"][0]
    step, arguments = step_of(module, optimizer), (*start(module, optimizer), *batch(name, 64))
    plan = trace(step, *arguments)
    run = plan.dry_runs.of(plan.leaves_of(arguments))
    theirs = counted(step, *arguments)
    assert theirs <= products(plan, run) <= theirs * 1.6
    assert run.flops <= theirs * 4


X, W = torch.randn(16, 8, 12), torch.randn(16, 12, 5)
CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "mm": (torch.mm, (X[0], W[0])),
    "addmm": (torch.addmm, (torch.randn(5), X[0], W[0])),
    "bmm": (torch.bmm, (X, W)),
    "baddbmm": (torch.baddbmm, (torch.randn(16, 8, 5), X, W)),
    "conv1d": (F.conv1d, (torch.randn(4, 6, 20), torch.randn(7, 6, 3))),
    "conv2d": (lambda x, w: F.conv2d(x, w, stride=2), (torch.randn(4, 6, 20, 20), torch.randn(7, 6, 3, 3))),
    "conv3d": (F.conv3d, (torch.randn(2, 3, 8, 8, 8), torch.randn(4, 3, 3, 3, 3))),
    "groups": (lambda x, w: F.conv2d(x, w, groups=2), (torch.randn(4, 6, 9, 9), torch.randn(8, 3, 3, 3))),
    "transposed": (F.conv_transpose2d, (torch.randn(4, 6, 9, 9), torch.randn(6, 5, 3, 3))),
}


@pytest.mark.parametrize("name", CASES)
def test_products_and_convolutions(name: str) -> None:
    function, arguments = CASES[name]
    plan = trace(function, *arguments)
    run = dry_run(plan, [tuple(argument.shape) for argument in arguments])
    touched = sum(argument.numel() for argument in arguments) + function(*arguments).numel()
    assert run.flops == counted(function, *arguments) + touched


def test_attention() -> None:
    q, k = torch.randn(2, 3, 7, 8), torch.randn(2, 3, 9, 8)

    def gradients(q: Tensor, k: Tensor) -> Any:
        return torch.autograd.grad(F.scaled_dot_product_attention(q, k, k).sum(), (q, k))

    q.requires_grad_()
    k.requires_grad_()
    plan = trace(gradients, q, k)
    forward = 2 * (2 * 2 * 3 * 7 * 9 * 8)
    assert forward * 3.5 <= dry_run(plan, [(2, 3, 7, 8), (2, 3, 9, 8)]).flops <= forward * 4.5


def test_every_cost_belongs_to_an_operation() -> None:
    assert set(_COSTS) <= {op.base for op in OPS.values()}


@pytest.mark.parametrize(
    ("op", "args", "least"),
    [
        ("aten.linalg_inv_ex.default", [torch.zeros(100, 100)], 10**6),
        ("aten._linalg_svd.default", [torch.zeros(100, 100)], 10**7),
        ("aten.linalg_cholesky_ex.default", [torch.zeros(2, 50, 50)], 2 * 50**3),
        ("aten.avg_pool2d.default", [torch.zeros(1, 1, 101, 101), [50, 50], [1, 1]], 50**2 * 52**2),
        ("aten.sort.default", [torch.zeros(1000)], 10**4),
    ],
)
def test_what_takes_longer_than_it_is_large(op: str, args: list[Any], least: int) -> None:
    bound = bind(OPS[op], args, {})
    assert flops(bound, infer(bound)) >= least
