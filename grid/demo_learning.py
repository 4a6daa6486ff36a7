"""What the demo computes: column statistics as plans whose results are only ever summed over owners, and logistic regression.

What is written against `Total`, a way of adding up a plan's results over all owners, runs over owners and over pooled rows in the
same lines. The demo trains by a federated job, `Classifier`; on pooled rows, and step by step by sums, `train` does the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from grid.plans.trace import plan

LEARNING_RATE = 1.0


# ---------------------------------------------------------------- what runs at the nodes


@plan
def moments(x: Tensor) -> Tensor:
    """Rows `(n, d)` -> `(1 + 2d,)`: their number, the sum of each column, the sum of its squares."""
    x = x.double()
    count = torch.ones_like(x[:, 0]).sum().reshape(1)
    return torch.cat([count, x.sum(0), (x * x).sum(0)])


@plan
def gradient(x: Tensor, y: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows `(n, d)` and classes `(n,)` -> `(d + 2,)`: gradient of the summed loss by weight and bias, and that loss."""
    weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
    logits = ((x - mean) / std) @ weight + bias
    loss = binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="sum")
    by_weight, by_bias = torch.autograd.grad(loss, (weight, bias))
    return torch.cat([by_weight, by_bias, loss.detach().reshape(1)])


@plan
def correct(x: Tensor, y: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows and classes -> `(1,)`: how many rows the model puts into their class."""
    logits = ((x - mean) / std) @ weight + bias
    return ((logits > 0).to(x.dtype) == y.to(x.dtype)).to(x.dtype).sum().reshape(1)


# ---------------------------------------------------------------- the same for any way of adding up


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A logistic regression on standardised features; all `(d,)` but the bias `(1,)`."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.mean, self.std, self.weight, self.bias


class Classifier(nn.Module):
    """A `Model` as a module to be trained: logits of rows `(n, d)` -> `(n,)`. Mean and deviation stay as they are."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.mean = nn.Parameter(model.mean.clone(), requires_grad=False)
        self.std = nn.Parameter(model.std.clone(), requires_grad=False)
        self.weight = nn.Parameter(model.weight.clone())
        self.bias = nn.Parameter(model.bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return ((x - self.mean) / self.std) @ self.weight + self.bias

    def model(self) -> Model:
        """What it has learned."""
        return Model(*(value.detach().clone() for value in (self.mean, self.std, self.weight, self.bias)))


def loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy of logits and classes 0 or 1."""
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction=reduction)


Total = Callable[..., Tensor]
"""`total(plan, *public)`: the sum over all owners of `plan(rows of the owner, *public)`, as a tensor here."""


def fresh_model(total: Total) -> Model:
    """A model of zeros, with the mean and the deviation of each column over all owners' rows."""
    found = total(moments).double()
    count, (sums, squares) = found[0], found[1:].chunk(2)
    mean = sums / count
    std = ((squares - count * mean**2) / (count - 1)).clamp_min(1e-12).sqrt()
    return Model(mean.float(), std.float(), torch.zeros(len(mean)), torch.zeros(1))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step of training: the model after it, and the mean loss before it."""

    model: Model
    loss: float


def train(total: Total, model: Model, rows: int, steps: int) -> Iterator[Step]:
    """Gradient descent over all rows of all owners at once; `rows` is their number."""
    for _ in range(steps):
        found = total(gradient, *model.inputs).float() / rows
        weight = model.weight - LEARNING_RATE * found[:-2]
        bias = model.bias - LEARNING_RATE * found[-2:-1]
        model = dataclasses.replace(model, weight=weight, bias=bias)
        yield Step(model, float(found[-1]))


def pooled_total(features: Tensor, targets: Tensor) -> Total:
    """The same sums from rows in one place, with plain torch."""

    def total(what: Any, *public: Tensor) -> Tensor:
        inputs = (features,) if what is moments else (features, targets, *public)
        found: Tensor = what.function(*inputs)
        return found

    return total


def accuracy(total: Total, model: Model, rows: int) -> float:
    """The share of rows that the model puts into their class."""
    return float(total(correct, *model.inputs)) / rows
