"""First-layer gradient inversion: the same attack on one row's gradient, where it works, and on what a secure sum gives.

For a layer `x @ W.T + b` the gradient by `W[i]` is the row times the gradient by `b[i]`, so their quotient is the row itself
(Geiping et al. 2020, proposition 3.1). Over many rows the quotient is a weighted mean of them, and no row. SECURITY.md says
where this protection ends: a crafted layer, and `plans = "any"`.
"""

from __future__ import annotations

import torch
from torch import Tensor

import grid
from grid.testing import LocalGrid

ROWS, FEATURES, HIDDEN = 20, 8, 16
NODES = ("alice", "bob", "carol")


def invert(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """Candidates for rows, one for each hidden unit that has a gradient: `(units, features)`."""
    active = bias_gradient.abs() > 1e-9
    return weight_gradient[active] / bias_gradient[active, None]


def distance(candidates: Tensor, rows: Tensor) -> float:
    """How near the best candidate comes to any row, relative to that row's length."""
    return float((torch.cdist(candidates.double(), rows.double()) / rows.double().norm(dim=1)).min())


def loss(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, head: Tensor) -> Tensor:
    hidden = torch.relu(x @ weight.T + bias)
    return torch.nn.functional.binary_cross_entropy_with_logits(hidden @ head, y, reduction="sum")


@grid.plan
def gradient(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
    by_weight, by_bias = torch.autograd.grad(loss(x, y, weight, bias, head), [weight, bias])
    return by_weight, by_bias


def test_inversion_works_on_a_rows_gradient_and_fails_on_a_sum() -> None:
    torch.manual_seed(3)
    rows = {name: torch.randn(ROWS, FEATURES) for name in NODES}
    classes = {name: torch.randint(0, 2, (ROWS,)).float() for name in NODES}
    layer = (torch.randn(HIDDEN, FEATURES), torch.randn(HIDDEN), torch.randn(HIDDEN))

    one = gradient(rows["alice"][:1], classes["alice"][:1], *layer)
    assert distance(invert(*one), rows["alice"]) < 1e-4

    nodes = {name: {"patients": {"features": rows[name], "targets": classes[name], "tags": ["#p"]}} for name in NODES}
    with LocalGrid(nodes=nodes) as local:
        found = local.client().search("#p")
        parts = [gradient(dataset.features, dataset.targets, *layer) for dataset in found]
        summed = [grid.sum([part[at] for part in parts]) for at in (0, 1)]
    pooled = gradient(torch.cat([*rows.values()]), torch.cat([*classes.values()]), *layer)
    assert torch.allclose(summed[0], pooled[0], atol=1e-4)  # it is the gradient, and the attack is the same
    assert distance(invert(*summed), torch.cat([*rows.values()])) > 0.2
