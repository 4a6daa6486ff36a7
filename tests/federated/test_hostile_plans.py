"""Loss plans as an attacker writes them: refused where they come in, or a clear failure, and never a value of a row in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_models import classes, vectors

from grid.errors import ExecutionFailed, GridError, InvalidRequest
from grid.federated.layouts import Layout
from grid.federated.local import Local
from grid.federated.loss_plans import LossPlans
from grid.federated.trainer import Trainer
from grid.plans.ir import Plan
from grid.plans.trace import trace

PARAMS = {"w": torch.zeros(8)}
BUFFERS = {"b": torch.zeros(3)}

Tensors = dict[str, Tensor]


def loss(p: Tensors, b: Tensors, x: Tensor, y: Tensor) -> Tensor:
    return (x @ p["w"] - y).square()


def plan_of(function: Callable[..., Any]) -> Plan:
    return trace(function, PARAMS, BUFFERS, vectors(), classes())


def good_train(p: Tensors, b: Tensors, x: Tensor, y: Tensor) -> Any:
    return loss(p, b, x, y), {"b": b["b"] + 1}


def good_evaluate(p: Tensors, b: Tensors, x: Tensor, y: Tensor) -> Any:
    return {"loss": loss(p, b, x, y).double().sum()}


def trainer(train: Callable[..., Any] = good_train, evaluate: Callable[..., Any] = good_evaluate, **options: Any) -> Trainer:
    rows = {"features": vectors(), "targets": classes(), **options}
    return Trainer(train=plan_of(train), evaluate=plan_of(evaluate), local=Local(batch_size=8), **rows)


WEIGHTS = np.zeros(11, np.float32)


def test_the_plans_that_the_others_are_made_of_work() -> None:
    assert trainer().train(WEIGHTS, round=1, seed=b"1").update[8:].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("train", "told"),
    [
        (lambda p, b, x, y: loss(p, b, x, y), "does not give losses and the buffers"),
        (lambda p, b, x, y: (loss(p, b, x, y), {}), "does not give losses and the buffers"),
        (lambda p, b, x, y: (loss(p, b, x, y), {"b": b["b"], "c": b["b"]}), "does not give losses and the buffers"),
        (lambda p, b, x, y: (loss(p, b, x, y), {"b": x}), "changes the shape or dtype of the buffer 'b'"),
        (lambda p, b, x, y: (loss(p, b, x, y), {"b": b["b"].double()}), "changes the shape or dtype of the buffer 'b'"),
        (lambda p, b, x, y: (x * p["w"], b), "neither one loss nor one for each row"),
        (lambda p, b, x, y: (y, b), "neither one loss nor one for each row"),
        (lambda p, b, x, y: (x[:3] @ p["w"], b), "neither one loss nor one for each row"),
    ],
)
def test_plans_for_training_that_are_none_are_refused_before_they_run(train: Callable[..., Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        trainer(train)


@pytest.mark.parametrize(
    ("evaluate", "told"),
    [
        (lambda p, b, x, y: loss(p, b, x, y).sum(), "no evaluation plan"),
        (lambda p, b, x, y: {}, "no evaluation plan"),
        (lambda p, b, x, y: {"row": x[0, 0]}, "no evaluation plan"),
        (lambda p, b, x, y: {"loss": x.sum(), "row": x[0, 0]}, "there is no metric 'row'"),
        (lambda p, b, x, y: {"loss": x.sum(), "accuracy": x}, "not single numbers"),
        (lambda p, b, x, y: {"loss": x.sum(), "accuracy": [x.sum()]}, "no evaluation plan"),
    ],
)
def test_plans_for_evaluation_that_are_none_are_refused_before_they_run(evaluate: Callable[..., Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        trainer(evaluate=evaluate)


def test_plans_with_other_arguments_are_refused() -> None:
    other = trace(good_train, {"w": torch.zeros(8), "v": torch.zeros(1)}, BUFFERS, vectors(), classes())
    with pytest.raises(InvalidRequest, match="do not take the same arguments"):
        LossPlans.of(other, plan_of(good_evaluate))
    with pytest.raises(InvalidRequest, match="no loss plan"):
        Layout.of(trace(lambda p, b, x: x, PARAMS, BUFFERS, vectors()))
    with pytest.raises(InvalidRequest, match="trains no parameter"):
        Layout.of(trace(lambda p, b, x, y: x, {}, BUFFERS, vectors(), classes()))
    with pytest.raises(InvalidRequest, match="has a name twice"):
        Layout.of(trace(lambda p, b, x, y: x, PARAMS, {"w": torch.zeros(3)}, vectors(), classes()))


def test_a_plan_whose_loss_has_no_gradient_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="has a gradient"):
        trainer(lambda p, b, x, y: (x.sum(1), b)).train(WEIGHTS, round=1)


SECRET = 123457


@pytest.mark.parametrize(
    "train",
    [
        lambda p, b, x, y: (torch.gather(x, 1, y[:, None])[:, 0] * p["w"].sum(), b),
        lambda p, b, x, y: (torch.nn.functional.embedding(y, p["w"][:, None])[:, 0], b),
        lambda p, b, x, y: (x.index_select(1, y).sum(1) * p["w"].sum(), b),
    ],
    ids=["gather", "embedding", "index_select"],
)
def test_an_error_that_depends_on_rows_holds_none_of_their_values(train: Callable[..., Any]) -> None:
    targets = classes()
    targets[11] = SECRET
    with pytest.raises(ExecutionFailed, match=r"failed in step \d+ of the plan") as failure:
        trainer(train, targets=targets).train(WEIGHTS, round=1, metrics=False)
    assert str(SECRET) not in failure.value.message and not failure.value.details


def test_a_loss_that_is_not_finite_is_a_failure_and_no_update() -> None:
    for bad in (lambda p, b, x, y: (loss(p, b, x, y) / 0, b), lambda p, b, x, y: (loss(p, b, x, y), {"b": b["b"] / 0})):
        with pytest.raises(GridError, match="not finite"):
            trainer(bad).train(WEIGHTS, round=1)


def test_rows_are_never_written_to() -> None:
    rows = vectors()
    before = rows.clone()
    trainer(lambda p, b, x, y: (x.mul_(2).add_(1) @ p["w"], b), features=rows).train(WEIGHTS, round=1)
    assert torch.equal(rows, before)
