"""Whole training steps as plans: loss, gradients and the optimizer's update, at any batch size, step after step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_models import MODELS, OPTIMIZERS, Eager, Tensors, batch, make, start, step_of
from torch import Tensor, nn

from grid.errors import InvalidRequest
from grid.plans.optimizers import SGD, Adam, AdamW
from grid.plans.trace import trace

TRACED_AT = 8
BATCHES = (33, 3, 2, 1)


def same(ours: Tensor, theirs: Tensor, tolerance: float, but: Tensor | None = None) -> bool:
    """Whether no two elements are further apart, those of `but` left out."""
    fits = (ours - theirs.detach()).abs() <= tolerance
    return ours.shape == theirs.shape and bool((fits if but is None else fits | but).all())


PAIRS = [*(("mlp", optimizer) for optimizer in OPTIMIZERS), ("lenet", "sgd"), ("resnet", "sgd"), ("groups", "adamw")]
PAIRS += [("gru", "adam"), ("transformer", "adam"), ("transformer", "adamw")]
"""Every model and every optimizer, some with state and some without; `test_remote_steps` has Adam with all models."""


def test_every_model_takes_steps() -> None:
    assert {name for name, _ in PAIRS} == set(MODELS)


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_steps_in_a_row_are_those_of_torch(name: str, optimizer: str) -> None:
    ours, theirs = OPTIMIZERS[optimizer]
    module = make(name)
    now = start(module, ours)
    plan = trace(step_of(module, ours), *now, *batch(name, TRACED_AT))
    assert plan.ranges[0].least <= 1 and plan.ranges[0].most is None
    eager = Eager(module, theirs)
    tolerance = 1e-5 if optimizer == "sgd" else 1e-4
    for rows in BATCHES:
        x, y = batch(name, rows)
        *after, loss = plan(*now, x, y)
        now = Tensors(*after)
        assert same(loss, eager.step(x, y), 1e-5)
        assert list(now.params) == [parameter for parameter, _ in eager.module.named_parameters()]
        for parameter, value in eager.module.named_parameters():
            assert same(now.params[parameter], value, tolerance, eager.noise(parameter)), parameter
        for buffer, value in eager.module.named_buffers():
            assert same(now.buffers[buffer], value, 1e-5), buffer
    assert not any(value.requires_grad for value in now.params.values())


@pytest.mark.parametrize("name", ["resnet"])
def test_evaluation_with_running_statistics(name: str) -> None:
    module = make(name).eval()
    for buffer in module.buffers():
        buffer.add_(0.25 if buffer.is_floating_point() else 1)
    state = dict(module.state_dict())
    plan = trace(lambda state, x: torch.func.functional_call(module, state, (x,)), state, batch(name, TRACED_AT)[0])
    for rows in BATCHES:
        x, _ = batch(name, rows)
        assert same(plan(state, x), module(x), 1e-5)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_where_a_step_was_traced_does_not_matter(rows: int) -> None:
    ours = OPTIMIZERS["adam"][0]
    module = make("mlp")
    plans = [trace(step_of(module, ours), *start(module, ours), *batch("mlp", traced_at)).id for traced_at in (TRACED_AT, rows)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize(("layers", "both", "batch_first"), [(1, False, False), (2, True, True)])
def test_recurrent_layers(layer: Any, layers: int, both: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    module = layer(8, 3, num_layers=layers, bidirectional=both, batch_first=batch_first)

    def step(params: dict[str, Tensor], x: Tensor) -> Any:
        out, last = torch.func.functional_call(module, params, (x if batch_first else x.transpose(0, 1),))
        loss = out.pow(2).mean() + sum(part.sum() for part in (last if isinstance(last, tuple) else (last,)))
        return out, torch.autograd.grad(loss, list(params.values()))

    params = dict(module.named_parameters())
    plan = trace(step, params, torch.randn(8, 3, 8))
    for rows in (1, 3, 33):
        x = torch.randn(rows, 3, 8)
        ours, theirs = plan(params, x), step(params, x)
        assert same(ours[0], theirs[0], 1e-5)
        assert all(same(a, b, 1e-4) for a, b in zip(ours[1], theirs[1], strict=True))


# ---------------------------------------------------------------- the optimizers


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        (SGD(lr=0.1, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1)),
        (SGD(lr=0.1, momentum=0.8, nesterov=True), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True)),
        (Adam(lr=0.1, betas=(0.8, 0.9), eps=1e-3), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.9), eps=1e-3)),
        (Adam(lr=0.1, weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1)),
        (AdamW(lr=0.1, weight_decay=0.2), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2)),
        (AdamW(weight_decay=0), lambda p: torch.optim.AdamW(p, weight_decay=0)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimizers_are_those_of_torch(ours: Any, theirs: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    params = {"w": torch.randn(4, 3, dtype=dtype), "b": torch.randn((), dtype=dtype)}
    leaves = [value.clone().requires_grad_() for value in params.values()]
    optimizer = theirs(leaves)
    state = ours.init(params)
    for _ in range(5):
        gradients = {name: torch.randn_like(value) for name, value in params.items()}
        params, state = ours.update(params, gradients, state)
        for leaf, gradient in zip(leaves, gradients.values(), strict=True):
            leaf.grad = gradient
        optimizer.step()
        for value, leaf in zip(params.values(), leaves, strict=True):
            assert value.dtype is dtype
            assert same(value, leaf, 1e-6)


def test_a_step_size_that_is_an_argument() -> None:
    adam = Adam()
    params = {"w": torch.ones(3)}
    state = adam.init(params)

    def step(params: Any, state: Any, lr: Tensor) -> Any:
        return adam.update(params, [params["w"] * 2], state, lr=lr)

    plan = trace(step, params, state, torch.tensor(0.1))
    for lr in (0.1, 0.5):
        expected = adam.update(params, [params["w"] * 2], state, lr=lr)[0]["w"]
        assert same(plan(params, state, torch.tensor(lr))[0]["w"], expected, 1e-6)


def test_optimizers_refuse_what_does_not_fit() -> None:
    params = {"w": torch.ones(3), "b": torch.ones(3)}
    with pytest.raises(InvalidRequest, match="1 gradients came for 2 parameters"):
        SGD().update(params, [torch.ones(3)], {})
    with pytest.raises(InvalidRequest, match="names of the parameters"):
        SGD().update(params, {"w": torch.ones(3)}, {})
    with pytest.raises(InvalidRequest, match="lr must be 0 or more"):
        Adam(lr=-1.0)
    with pytest.raises(InvalidRequest, match="betas"):
        Adam(betas=(0.9, 1.0))
    with pytest.raises(InvalidRequest, match="nesterov"):
        SGD(nesterov=True)
