"""Local training equals plain PyTorch with the same batches, and refuses what it cannot do."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_models import ROWS, classes, mlp, normed, plain_training, plans_for, plans_of, trainer, vectors, weights_of

import grid
from grid.errors import ExecutionFailed, InvalidRequest
from grid.federated.draws import Draws
from grid.federated.local import Local
from grid.federated.losses import trace_losses
from grid.federated.schedules import CosineSchedule
from grid.plans.program import Range

SEED = b"a seed of this node"


def batches(local: Local, round: int = 1, rows: int = ROWS, least: int = 1) -> list[np.ndarray[Any, Any]]:
    found = []
    for epoch in range(local.epochs):
        order = Draws(SEED, round).order(rows, epoch)
        starts = list(range(0, rows, local.batch_size))
        if rows - starts[-1] < least:
            starts.pop()
        found += [order[start:end] for start, end in zip(starts, [*starts[1:], rows], strict=True)]
    return found[: local.max_steps]


@pytest.mark.parametrize(
    ("local", "make", "proximal"),
    [
        (Local(epochs=2, batch_size=16), lambda params: torch.optim.SGD(params, lr=0.1), 0.0),
        (
            Local(epochs=2, batch_size=16, optimizer=grid.SGD(lr=0.05, momentum=0.9, nesterov=True), max_grad_norm=0.5),
            lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
            0.0,
        ),
        (Local(batch_size=7, optimizer=grid.Adam(lr=0.01)), lambda params: torch.optim.Adam(params, lr=0.01), 0.3),
        (
            Local(epochs=3, batch_size=16, max_steps=5, optimizer=grid.AdamW(lr=0.01)),
            lambda params: torch.optim.AdamW(params, lr=0.01),
            0.0,
        ),
    ],
    ids=["sgd", "momentum, clipped", "adam, proximal", "adamw, five steps"],
)
@pytest.mark.parametrize("model", [mlp, normed])
def test_a_round_equals_plain_pytorch(
    local: Local, make: Callable[..., torch.optim.Optimizer], proximal: float, model: Callable[[], nn.Module]
) -> None:
    theirs = model()
    plans = plans_of(model)
    x, y = vectors(), classes()
    came = weights_of(theirs, plans.layout)
    trained = trainer(plans, local, x, y).train(came, round=1, seed=SEED, proximal=proximal)
    rows = batches(local, least=2 if model is normed else 1)
    norm = local.max_grad_norm
    plain_training(theirs, make(theirs.parameters()), x, y, rows, proximal=proximal, max_grad_norm=norm)
    assert trained.examples == ROWS
    assert np.abs(came + trained.update - weights_of(theirs, plans.layout)).max() < 1e-6


def test_a_schedule_changes_the_step_size() -> None:
    model = mlp()
    plans = plans_of(mlp)
    local = Local(batch_size=10, schedule=CosineSchedule(length=4, warmup=2, over="steps"))
    x, y = vectors(), classes()
    came = weights_of(model, plans.layout)
    trained = trainer(plans, local, x, y).train(came, round=3, seed=SEED)
    rates = [0.1 / 3, 0.2 / 3, 0.1, 0.1 * (1 + np.cos(np.pi / 4)) / 2, 0.05]
    plain_training(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, batches(local, round=3), rates=rates)
    assert np.abs(came + trained.update - weights_of(model, plans.layout)).max() < 1e-6


def test_metrics_are_those_of_the_weights_that_came() -> None:
    model = normed()
    plans = plans_of(normed)
    assert plans.metrics == ("loss", "accuracy")
    x, y = vectors(), classes()
    trained = trainer(plans, Local(), x, y).train(weights_of(model, plans.layout), round=1, seed=SEED)
    model.eval()
    outputs = model(x).detach()
    assert trained.metrics[0] == pytest.approx(float(nn.functional.cross_entropy(outputs, y, reduction="sum")), rel=1e-5)
    assert trained.metrics[1] == float((outputs.argmax(1) == y).sum())


def test_a_last_batch_of_one_row_joins_the_one_before_where_there_is_batch_norm() -> None:
    x, y = vectors(33), classes(33)
    for make, least in ((normed, 2), (mlp, 1)):
        model = make()
        plans = plans_of(make)
        local = Local(batch_size=16)
        came = weights_of(model, plans.layout)
        trained = trainer(plans, local, x, y).train(came, round=1, seed=SEED)
        plain_training(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, batches(local, rows=33, least=least))
        assert np.abs(came + trained.update - weights_of(model, plans.layout)).max() < 1e-6
    with pytest.raises(InvalidRequest, match="takes batches of at least 2 rows here, not of 1"):
        trainer(plans_of(normed), Local(batch_size=1), x, y)


@pytest.mark.parametrize(("rows", "sizes"), [(33, [23, 10]), (32, [32]), (30, [30]), (46, [23, 23]), (55, [23, 32])])
def test_no_batch_has_fewer_rows_than_owners_ask_for(rows: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss can count a batch's rows, and weigh the smallest so that only it is told."""
    monkeypatch.setattr("grid.federated.trainer.EVALUATED_ROWS", 23)
    model = mlp()
    plans = plans_of(mlp)
    ours = trainer(plans, Local(epochs=2, batch_size=23), vectors(rows), classes(rows), least=10)
    seen: list[int] = []
    for compiled in (ours._train, ours._evaluate):
        plainly = compiled.plainly
        monkeypatch.setattr(compiled, "plainly", lambda leaves, plainly=plainly: seen.append(len(leaves[-1])) or plainly(leaves))
    ours.train(weights_of(model, plans.layout), round=1, seed=SEED, metrics=False)
    assert seen == [*sizes, *sizes]
    assert ours.evaluate(weights_of(model, plans.layout)).examples == sum(seen[2 * len(sizes) :]) == rows
    assert min(seen) >= 10


@pytest.mark.parametrize(
    ("spans", "least", "why"),
    [
        ([Range(1, 40), Range(1)], 10, "at least 10 and at most 31 rows here, not of 32"),
        ([Range(1), Range(1, 39)], 21, "at least 21 and at most 39 rows at once, and this node cuts its 50 rows by itself"),
        ([Range(1, 41), Range(1, 50)], 10, ""),
    ],
)
def test_a_plan_that_cannot_take_the_rest_is_refused(
    spans: list[Range], least: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grid.federated.trainer.batch_range", lambda plan: spans.pop(0))
    with pytest.raises(InvalidRequest, match=why) if why else contextlib.nullcontext():
        trainer(plans_of(mlp), Local(batch_size=32), vectors(), classes(), least=least)


@pytest.mark.parametrize(
    ("span", "rows", "sizes"),
    [
        (Range(24), [75], [46, 29]),
        (Range(1, 28), [75], []),
        (Range(1, 29), [75], [23, 23, 29]),
        (Range(12), [60], [23, 23, 14]),
        (Range(), [26, 60], [26, 23, 23, 14]),
        (Range(), [5, 60], [28, 23, 14]),
        (Range(), [60, 0, 5], [23, 23, 19]),
        (Range(), [5, 3, 30], [38]),
    ],
)
def test_a_plan_does_not_choose_where_an_evaluation_is_cut(
    span: Range, rows: list[int], sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that are cut at neighbouring rows would tell the row in between; each dataset is cut by itself."""
    monkeypatch.setattr("grid.federated.trainer.EVALUATED_ROWS", 23)
    spans, total = [Range(1), span], sum(rows)
    monkeypatch.setattr("grid.federated.trainer.batch_range", lambda plan: spans.pop(0))
    with contextlib.nullcontext() if sizes else pytest.raises(InvalidRequest, match="cuts its 75 rows by itself, in pieces of 2"):
        ours = trainer(plans_of(mlp), Local(), vectors(total), classes(total), least=10, parts=rows)
        assert [piece.stop - piece.start for piece in ours._pieces] == sizes
        assert [piece.start for piece in ours._pieces] == [0, *[piece.stop for piece in ours._pieces[:-1]]]


def test_equal_seeds_give_equal_rounds_dropout_included() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    plans = plans_for(model)
    came = weights_of(model, plans.layout)
    ours = trainer(plans, Local(), vectors(), classes())

    def updates(round: int, seed: bytes) -> Any:
        return ours.train(came, round=round, seed=seed).update

    torch.manual_seed(0)
    first = updates(1, SEED)
    torch.manual_seed(1)
    assert np.array_equal(first, updates(1, SEED))
    assert not np.array_equal(first, updates(2, SEED))
    assert not np.array_equal(first, updates(1, b"another"))
    assert not np.array_equal(updates(1, b""), updates(1, b""))


def test_buffers_that_stay_local_do_not_leave_and_are_used_in_the_next_round() -> None:
    model = normed()
    plans = plans_of(normed)
    x, y = vectors() + 3, classes()
    came = weights_of(model, plans.layout)
    ours = trainer(plans, Local(buffers="local"), x, y)
    first = ours.train(came, round=1, seed=SEED)
    assert not first.update[plans.layout.trained :].any() and first.update[: plans.layout.trained].any()
    averaged = trainer(plans, Local(), x, y).train(came, round=1, seed=SEED)
    assert averaged.update[plans.layout.trained :].any()
    assert ours.evaluate(came).metrics[0] != first.metrics[0]


def test_tracing_leaves_the_module_as_it_was() -> None:
    model = normed()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    trace_losses(model, nn.CrossEntropyLoss(), vectors(), classes())
    assert model.training and not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


def test_weights_that_explode_are_refused_without_a_value() -> None:
    model = nn.Sequential(nn.Linear(8, 1))
    plans = trace_losses(model, nn.functional.mse_loss, vectors(), vectors()[:, :1])
    ours = trainer(plans, Local(epochs=50, optimizer=grid.SGD(lr=1e3)), vectors(), vectors()[:, :1])
    with pytest.raises(ExecutionFailed, match="not finite; take a smaller lr"):
        ours.train(weights_of(model, plans.layout), round=1, seed=SEED)


def test_a_row_that_does_not_fit_the_loss_fails_without_its_value() -> None:
    model = mlp()
    plans = plans_of(mlp)
    targets = classes()
    targets[7] = 12
    with pytest.raises(ExecutionFailed) as failure:
        trainer(plans, Local(), vectors(), targets).train(weights_of(model, plans.layout), round=1, seed=SEED)
    assert "12" not in failure.value.message and "step" in failure.value.message
