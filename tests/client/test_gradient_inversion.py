"""First-layer gradient inversion: the same attack on one row's gradient, where it works, and on what leaves nodes.

The second test does the same to federated training: the update of one node, and everything that leaves it by `g.train`.

For a layer `x @ W.T + b` the gradient by `W[i]` is the row times the gradient by `b[i]`, so their quotient is the row itself
(Geiping et al. 2020, proposition 3.1). Over many rows the quotient is a weighted mean of them, and no row. SECURITY.md says
where this protection ends: a crafted layer, and `plans = "any"`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import grid
from grid.federated.losses import trace_losses
from grid.federated.secagg.quantiser import Quantiser
from grid.federated.secagg.server import Server
from grid.federated.trainer import Trainer
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


# ---------------------------------------------------------------- federated training

IMAGE = 64


def images() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Twenty handwritten digits for each node."""
    digits = load_digits()
    pixels, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    return {name: pixels[at:60:3] for at, name in enumerate(NODES)}, {name: labels[at:60:3] for at, name in enumerate(NODES)}


def network() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(IMAGE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))


def invert_update(update: np.ndarray[Any, Any]) -> Tensor:
    """The attack on an update of `network`: in one step of SGD it is the gradient times a number."""
    vector = torch.from_numpy(np.array(update, np.float64))
    weight, bias = vector[: HIDDEN * IMAGE].reshape(HIDDEN, IMAGE), vector[HIDDEN * IMAGE :][:HIDDEN]
    return invert(weight, bias)


def test_inversion_recovers_an_image_from_an_update_and_nothing_from_what_leaves_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = images()
    loss = nn.functional.cross_entropy
    plans = trace_losses(network(), loss, pixels["alice"], labels["alice"])
    start = plans.layout.flatten(network().state_dict())

    def raw_update(rows: Tensor, classes: Tensor) -> np.ndarray[Any, Any]:
        trainer = Trainer(train=plans.train, evaluate=plans.evaluate, local=grid.Local(), features=rows, targets=classes)
        return trainer.train(start, round=1).update

    alone = invert_update(raw_update(pixels["alice"][:1], labels["alice"][:1]))
    assert distance(alone, pixels["alice"][:1]) < 1e-3, "the attack works on an update by itself"

    left: list[np.ndarray[Any, Any]] = []
    add_input, decode = Server.add_input, Quantiser.decode

    def seen_input(self: Server, peer: Any, vector: Any) -> None:
        """What one node sends, as signed levels: their scale does not matter to the attack."""
        quantiser = self.terms.quantiser
        left.append(np.asarray(vector).view(f"<i{quantiser.bits // 8}")[: quantiser.size].astype(np.float64))
        add_input(self, peer, vector)

    def seen_sum(self: Quantiser, ring_sum: Any) -> Any:
        aggregate = decode(self, ring_sum)
        left.append(aggregate.mean_update)
        return aggregate

    monkeypatch.setattr(Server, "add_input", seen_input)
    monkeypatch.setattr(Quantiser, "decode", seen_sum)
    nodes = {name: {"digits": {"features": pixels[name], "targets": labels[name], "tags": ["#digits"]}} for name in NODES}
    with LocalGrid(nodes=nodes) as local:
        g = local.client()
        job = g.train(network(), loss=loss, datasets=g.search("#digits"), rounds=2, local=grid.Local())
        model = job.result()
    left.append(plans.layout.flatten(model.state_dict()) - start)

    updates = [one for one in left if one.size == len(start)]
    assert len(updates) == 2 * (len(NODES) + 1) + 1
    expected = sum(raw_update(pixels[name], labels[name]) for name in NODES) / len(NODES)
    assert min(float(np.abs(one - expected).max()) for one in updates) < 1e-5, "the sum is what was learned"
    rows = torch.cat([*pixels.values()])
    for one in updates:
        assert distance(invert_update(one), rows) > 0.2
