"""The demo's learning over three nodes is the learning on pooled rows, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from grid.client.sums import FRACTION_BITS
from grid.demo import node_total
from grid.demo_data import Split, split
from grid.demo_learning import Model, Step, accuracy, fresh_model, gradient, moments, pooled_total, train
from grid.testing import LocalGrid

STEPS = 12
BOUND = 3 * 2.0 ** -(FRACTION_BITS + 1)
"""What `grid.sum` states for three nodes; float64 arithmetic adds less than the slack below."""

SLACK = 1e-10


@pytest.fixture(scope="module")
def data() -> Split:
    return split()


@pytest.fixture(scope="module")
def local(data: Split) -> Iterator[LocalGrid]:
    """The owners' rows in float64, so that the bound of the sum is what is left of the difference."""
    nodes = {
        owner: {"train": {"features": rows.features.double(), "targets": rows.targets, "tags": ["#train"]}}
        for owner, rows in data.train.items()
    }
    with LocalGrid(nodes=nodes) as running:
        yield running


def test_the_summed_gradient_is_the_pooled_one_at_every_step(local: LocalGrid, data: Split) -> None:
    over_nodes = node_total(local.client().search("#train"))
    pooled_rows = data.pooled("train")
    pooled = pooled_total(pooled_rows.features.double(), pooled_rows.targets)
    model = double(fresh_model(pooled))
    largest = 0.0
    for step in train(pooled, model, len(pooled_rows.targets), STEPS):
        found, expected = over_nodes(gradient, *model.inputs), pooled(gradient, *model.inputs)
        assert found.dtype == torch.float64 and found.shape == (32,)
        largest = max(largest, float((found - expected).abs().max()))
        assert largest <= BOUND + SLACK
        model = step.model
    assert largest > 0, "a sum in fixed point cannot be exact: was it one?"


def test_the_summed_moments_are_the_pooled_ones(local: LocalGrid, data: Split) -> None:
    rows = data.pooled("train").features.double()
    found, expected = node_total(local.client().search("#train"))(moments), pooled_total(rows, rows)(moments)
    assert found[0] == len(rows)
    assert torch.all((found - expected).abs() <= BOUND + 1e-12 * expected.abs())


def test_the_pooled_gradient_is_what_autograd_gives_for_the_loss(data: Split) -> None:
    """The plan against an independent way: torch's own modules and `backward`."""
    rows = data.pooled("train")
    total = pooled_total(rows.features.double(), rows.targets)
    model = last(train(total, double(fresh_model(total)), len(rows.targets), 3)).model
    layer = torch.nn.Linear(30, 1).double()
    with torch.no_grad():
        layer.weight.copy_(model.weight[None])
        layer.bias.copy_(model.bias)
    logits = layer((rows.features.double() - model.mean) / model.std)
    loss = torch.nn.BCEWithLogitsLoss(reduction="sum")(logits[:, 0], rows.targets.double())
    loss.backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None
    expected = torch.cat([layer.weight.grad[0], layer.bias.grad, loss.detach().reshape(1)])
    assert torch.allclose(total(gradient, *model.inputs), expected, rtol=1e-9, atol=1e-9)


def test_the_model_is_a_good_one(data: Split) -> None:
    rows, test = data.pooled("train"), data.pooled("test")
    total = pooled_total(rows.features, rows.targets)
    model = last(train(total, fresh_model(total), len(rows.targets), 40)).model
    assert accuracy(pooled_total(test.features, test.targets), model, len(test.targets)) > 0.93


def last(steps: Iterator[Step]) -> Step:
    *_, final = steps
    return final


def double(model: Model) -> Model:
    return Model(*(one.double() for one in model.inputs))
