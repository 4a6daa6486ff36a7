"""Training on shares, over a grid, beside the same steps in plain torch: unmodified modules, losses and optimizers, and plans."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grid
from benchmarks import training
from grid.testing import LocalGrid

X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
HOT = F.one_hot(torch.arange(24) % 10, 10).float()
BATCH = 8


@pytest.fixture(scope="module")
def trio() -> Iterator[Any]:
    with LocalGrid(nodes=3) as local, local.client().committee("alice", "bob", "carol") as made:
        yield made


def network() -> nn.Sequential:
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 10))
    first = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, nn.Conv2d(4, 8, 3), nn.GELU(), nn.AvgPool2d(2), *head)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield from zip(X.split(BATCH), HOT.split(BATCH), strict=True)


def apart(shared: nn.Module, plain: nn.Module) -> float:
    """The largest difference of a parameter or buffer."""
    pairs = zip(shared.state_dict().items(), plain.state_dict().items(), strict=True)
    return max(float((one - other).abs().max()) for (_, one), (_, other) in pairs)


def test_unmodified_torch_trains_a_network_on_shares(trio: Any) -> None:
    plain = network()
    shared = trio.share(plain)
    losses: list[tuple[Any, Any]] = []
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9) for module in (shared, plain)]
    for x, hot in batches():
        pair = (F.cross_entropy(shared(trio.share(x)), trio.share(hot)), F.cross_entropy(plain(x), hot))
        for loss, optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(pair)
    assert all(abs(one.reveal() - other.detach()) < 2e-3 for one, other in losses)
    assert apart(shared.reveal(), plain) < 5e-3


def test_gradients_add_up_over_backward_passes(trio: Any) -> None:
    plain = nn.Linear(64, 10)
    shared = trio.share(plain)
    for module, give in ((shared, trio.share), (plain, lambda x: x)):
        for x, hot in batches():
            F.mse_loss(module(give(x.flatten(1))), give(hot)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.1, foreach=False)
    assert (shared.weight.grad.reveal() - plain.weight.grad).abs().max() < 1e-4


def test_a_training_step_is_a_plan_on_shares(trio: Any) -> None:
    model = network()
    optimizer = grid.SGD(lr=0.1, momentum=0.9)

    @grid.plan
    def step(params: Any, buffers: Any, state: Any, x: Any, hot: Any) -> Any:
        out = torch.func.functional_call(model, (params, buffers), (x,))
        loss = F.cross_entropy(out, hot)
        gradients = torch.autograd.grad(loss, list(params.values()))
        params, state = optimizer.update(params, gradients, state)
        return params, buffers, state, loss

    plain = copy.deepcopy(model)
    module = trio.share(model)
    here = [dict(plain.named_parameters()), dict(plain.named_buffers())]
    there = [dict(module.named_parameters()), dict(module.named_buffers())]
    here.append(optimizer.init(here[0]))
    there.append(optimizer.init(there[0]))
    for number, (x, hot) in enumerate(batches()):
        *there, there_loss = trio.run(step, *there, trio.share(x), trio.share(hot), check=number == 0)
        *here, loss = step(*here, x, hot)
        assert abs(there_loss.reveal() - loss.detach()) < 2e-3
    for name, value in here[0].items():
        assert (there[0][name].reveal() - value).abs().max() < 5e-3, name


def test_a_check_names_the_step_of_training_that_would_overflow(trio: Any) -> None:
    @grid.plan
    def step(w: Any, x: Any, y: Any) -> Any:
        loss = F.mse_loss(x @ w, y, reduction="sum")
        return w - 0.1 * torch.autograd.grad(loss, w)[0]

    w, x, y = (trio.share(torch.full(shape, 3000.0)) for shape in ((3, 1), (50, 3), (50, 1)))
    with pytest.raises(grid.InvalidRequest, match=r"product may overflow.*test_training_on_shares\.py"):
        trio.run(step, w.requires_grad_(), x, y, check=True)


@pytest.mark.parametrize("name", ["momentum_of_sums", "adam"])
def test_losses_stay_beside_those_of_plain_torch(trio: Any, name: str) -> None:
    """The first of the 300 steps that the benchmark takes."""
    found = training.train(trio, name, 8).facts
    assert found["max_abs_error"] < found["bound"] / 5
    assert abs(found["loss"] - found["plain_loss"]) < found["bound"] / 5


@pytest.mark.parametrize(
    "kind",
    [torch.optim.Adam, functools.partial(torch.optim.Adam, amsgrad=True), torch.optim.RMSprop, torch.optim.Adagrad],
    ids=["Adam", "amsgrad", "RMSprop", "Adagrad"],
)
def test_unmodified_optimizers_divide_by_roots_of_small_squares(trio: Any, kind: Any) -> None:
    sizes = torch.tensor([1e-4, 1e-3, 0.01, 0.1, 1.0, 0.0])
    weights = [nn.Parameter(trio.share(torch.ones(6))), nn.Parameter(torch.ones(6))]
    for one in weights:
        optimizer = kind([one], lr=0.01)
        for factor in (1.0, 1.5, 0.5):
            optimizer.zero_grad()
            (one * (trio.share(sizes) if one is weights[0] else sizes) * factor).sum().backward()
            optimizer.step()
    off = (weights[0].reveal() - weights[1].detach()).abs()
    assert off[0] < 0.015 and off[1:].max() < 2e-3 and off[-1] == 0  # the first is 26 roundings
