"""What becomes of modules and losses as plans: any that traces, its own gradients, its metrics, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_local_training import SEED, batches
from torch import Tensor, nn
from training_models import classes, plain_training, plans_for, trainer, vectors, weights_of

from grid.errors import InvalidRequest, PlanRejected
from grid.federated.layouts import Layout
from grid.federated.local import Local
from grid.federated.losses import RowSpec, trace_losses
from grid.federated.metrics import averages, names_from
from grid.plans.ir import decode, encode
from grid.plans.trace import trace


class Detached(nn.Module):
    """Half of its output stops the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.body(x)
        out: Tensor = self.head(hidden) + self.head(hidden.detach().tanh())
        return out


class Ungraded(Detached):
    """The same, in a way that no plan knows."""

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.body(x)
        with torch.no_grad():
            stopped = hidden.tanh()
        out: Tensor = self.head(hidden) + self.head(stopped)
        return out


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class StraightThrough(Detached):
    """With a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(Straight.apply(self.body(x)))  # type: ignore[no-untyped-call]
        return out


class Normed(nn.Module):
    """Pictures 6 high of vectors; batch norm over them needs no second row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x[:, None, None, :] + torch.arange(4.0)[None, None, :, None])
        return out


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [Detached, Normed, frozen, tied], ids=lambda make: make.__name__)
def test_modules_train_as_they_do_with_pytorch(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(4)
    model = make()
    plans = plans_for(model)
    x, y = vectors(17), classes(17)
    local = Local(batch_size=4)
    came = weights_of(model, plans.layout)
    trained = trainer(plans, local, x, y).train(came, round=1, seed=SEED)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainable = [value for value in model.parameters() if value.requires_grad]
    plain_training(model, torch.optim.SGD(trainable, lr=0.1), x, y, batches(local, rows=17))
    assert np.abs(came + trained.update - weights_of(model, plans.layout)).max() < 1e-6
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(before[name])
    plans.layout.load_into(model, came + trained.update)
    assert np.array_equal(weights_of(model, plans.layout), came + trained.update)


@pytest.mark.parametrize("make", [Ungraded, StraightThrough], ids=lambda make: make.__name__)
def test_gradients_that_a_plan_cannot_hold_are_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(PlanRejected, match=r"gradient of 'body\.weight' in the plan is not the model's"):
        plans_for(make())


def test_plans_are_the_same_each_time_and_travel() -> None:
    torch.manual_seed(5)
    model = Normed()
    first, second = plans_for(model), plans_for(model)
    assert first.train.id == second.train.id and first.evaluate.id == second.evaluate.id
    assert Layout.of(decode(encode(first.train))) == first.layout
    card = trace_losses(model, F.cross_entropy, RowSpec(shape=(8,)), RowSpec(dtype="i8"))
    assert card.train.id == first.train.id, "a dataset's card is enough"


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, F.one_hot(targets, 3).float())


def with_reduction(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.mse_loss(outputs, F.one_hot(targets, 3).float(), reduction=reduction)


LOSSES: list[tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = [
    (F.cross_entropy, F.cross_entropy),
    (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
    (functools.partial(F.cross_entropy, reduction="sum"), functools.partial(F.cross_entropy, reduction="sum")),
    (squared, squared),
    (with_reduction, squared),
]


@pytest.mark.parametrize(("loss", "theirs"), LOSSES, ids=["function", "module", "sum", "scalar", "own reduction"])
def test_losses_are_those_of_a_batch(loss: Any, theirs: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(6)
    model = nn.Linear(8, 3)
    plans = plans_for(model, loss)
    x, y = vectors(9), classes(9)
    local = Local(batch_size=9)
    came = weights_of(model, plans.layout)
    trained = trainer(plans, local, x, y).train(came, round=1, seed=SEED)
    plain_training(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, batches(local, rows=9), loss=theirs)
    assert np.abs(came + trained.update - weights_of(model, plans.layout)).max() < 1e-6


def test_metrics_of_numbers() -> None:
    torch.manual_seed(7)
    model = nn.Linear(8, 1)
    y = torch.randn(9, generator=torch.Generator().manual_seed(1))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square()

    plans = trace_losses(model, loss, vectors(9), y)
    assert plans.metrics == ("loss", "mean_absolute_error", "mean_squared_error")
    found = trainer(plans, Local(), vectors(9), y).evaluate(weights_of(model, plans.layout))
    errors = model(vectors(9))[:, 0].detach() - y
    square, size = float(errors.square().mean()), float(errors.abs().mean())
    expected = {"loss": square, "mean_absolute_error": size, "mean_squared_error": square}
    assert averages(plans.metrics, found.metrics, found.examples) == pytest.approx(expected)


def test_accuracy_of_one_logit() -> None:
    model = nn.Linear(8, 1)
    y = classes(9) % 2
    plans = trace_losses(
        model, lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs[:, 0], targets.float()), vectors(9), y
    )
    found = trainer(plans, Local(), vectors(9), y).evaluate(weights_of(model, plans.layout))
    assert found.metrics[1] == float(((model(vectors(9))[:, 0] > 0) == (y > 0)).sum())


def test_only_the_metrics_that_are_asked_for_and_that_make_sense() -> None:
    assert plans_for(nn.Linear(8, 3), metrics=[]).metrics == ("loss",)
    assert names_from(["accuracy", "loss"]) == ("loss", "accuracy")
    for wrong in (["recall"], ["loss", "loss"], "loss", [7], ["accuracy"] * 99):
        with pytest.raises(InvalidRequest):
            names_from(wrong)
    with pytest.raises(PlanRejected, match="accuracy is for targets that are classes"):
        trace_losses(nn.Linear(8, 1), F.mse_loss, vectors(), vectors()[:, :1], ["accuracy"])


def test_what_is_no_loss_or_no_model_is_refused() -> None:
    with pytest.raises(PlanRejected, match="neither one number nor one for each row"):
        plans_for(nn.Linear(8, 3), lambda outputs, y: outputs.sum(0))
    with pytest.raises(PlanRejected, match="no floating-point tensor"):
        plans_for(nn.Linear(8, 3), lambda outputs, y: y.sum())
    with pytest.raises(PlanRejected, match="in a way that has a gradient"):
        plans_for(nn.Linear(8, 3), lambda outputs, y: outputs.detach().sum())
    with pytest.raises(InvalidRequest, match="nothing to train"):
        plans_for(nn.Flatten())
    with pytest.raises(InvalidRequest, match=r"torch\.nn\.Module"):
        plans_for(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="batches of any size"):
        plans_for(nn.Sequential(nn.Linear(8, 3), nn.Unflatten(0, (2, 4)), nn.Flatten(0, 1)))


def test_a_plan_that_is_right_for_some_batches_alone_gets_those() -> None:
    class Differs(nn.Linear):
        """Does something else where there are fewer than three rows."""

        def forward(self, input: Tensor) -> Tensor:
            out = super().forward(input)
            return out if input.shape[0] > 2 else out * 2

    torch.manual_seed(8)
    model = Differs(8, 3)
    plans = plans_for(model)
    came = weights_of(model, plans.layout)
    local = Local(batch_size=4)
    trained = trainer(plans, local, vectors(10), classes(10)).train(came, round=1, seed=SEED)
    rows = batches(local, rows=10, least=3)
    assert [len(one) for one in rows] == [4, 6]
    plain_training(model, torch.optim.SGD(model.parameters(), lr=0.1), vectors(10), classes(10), rows)
    assert np.abs(came + trained.update - weights_of(model, plans.layout)).max() < 1e-6
    with pytest.raises(InvalidRequest, match="batches of at least 3 rows"):
        trainer(plans, Local(batch_size=2), vectors(10), classes(10))


def test_a_plan_that_is_no_loss_plan_has_no_layout() -> None:
    with pytest.raises(InvalidRequest, match="no loss plan"):
        Layout.of(trace(lambda x: x + 1, torch.zeros(3)))
    for dtype in (torch.int64, torch.float16, torch.bfloat16):
        with pytest.raises(InvalidRequest, match="not float32 or float64"):
            Layout.of(trace(lambda p, b, x, y: x, {"w": torch.zeros(2, dtype=dtype)}, {}, torch.zeros(3), torch.zeros(3)))


def test_weights_of_another_size_or_dtype_are_refused() -> None:
    layout = plans_for(nn.Linear(8, 3)).layout
    assert layout.size == 27 and layout.dtype == np.float32
    for wrong in (np.zeros(26, np.float32), np.zeros(27), np.zeros((27, 1), np.float32)):
        with pytest.raises(InvalidRequest, match="27 elements of float32"):
            layout.unflatten(wrong)
    with pytest.raises(InvalidRequest, match="not the one that was traced"):
        layout.flatten(nn.Linear(7, 3).state_dict())
