"""Functions that cannot be plans: the message names the line and says what to write instead."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plan_models import mlp, vectors
from torch import Tensor, nn

from grid.errors import InvalidRequest, PlanRejected
from grid.plans.lower import MAX_CONSTANT_BYTES
from grid.plans.trace import trace

counter = torch.zeros(8)
norm = nn.BatchNorm1d(8)


def branches(x: Tensor) -> Tensor:
    if x.sum() > 0:  # branch by value
        return x
    return -x


def reads_item(x: Tensor) -> Tensor:
    return x * x.sum().item()


def reads_list(x: Tensor) -> Any:
    return x.tolist()


def selects_by_mask(x: Tensor) -> Tensor:
    return x[x > 0]


def finds(x: Tensor) -> Tensor:
    return x.nonzero()


def finds_unique(x: Tensor) -> Tensor:
    return x.unique()


def draws(x: Tensor) -> Tensor:
    return x + torch.randn(8)


def draws_alike(x: Tensor) -> Tensor:
    return x * torch.rand_like(x)


def counts(x: Tensor) -> Tensor:
    counter.add_(1)
    return x + counter


def trains_batch_norm(x: Tensor) -> Tensor:
    return norm(x)


def compares_all_rows(x: Tensor) -> Tensor:
    return torch.cdist(x, x)


def misfits(x: Tensor) -> Tensor:
    return x @ torch.zeros(3, 3)


def fails(x: Tensor) -> Any:
    return {}["missing"]


def leaves_torch(x: Tensor) -> Any:
    return x.numpy()


def wants_device(x: Tensor) -> Tensor:
    return torch.zeros(3, device="meta")


seen: list[Tensor] = []
calls = 0


def keeps(x: Tensor) -> Tensor:
    y = x * 2
    seen.append(y)
    return y


def counts_calls(x: Tensor) -> Tensor:
    global calls
    calls += 1
    return x + calls


def prints(x: Tensor) -> Tensor:
    print(x.sum())
    return x


def formats(x: Tensor) -> str:
    return f"{x.sum():.3f}"


def asks_numpy(x: Tensor) -> Any:
    return torch.from_numpy(np.exp(np.asarray(x)))


def takes_the_largest(x: Tensor) -> Tensor:
    return x[int(x.sum(1).argmax())]


def bins(x: Tensor) -> Tensor:
    return torch.bincount(x.long().flatten())


def encodes(x: Tensor) -> Tensor:
    return F.one_hot(x.long())


def has_no_operation(x: Tensor) -> Tensor:
    return torch.fft.rfft(x).abs()


def steps_an_optimizer(x: Tensor) -> Tensor:
    optimizer = torch.optim.Adam([w := x[0].clone().requires_grad_()])
    optimizer.state[w] = {"step": x[0, 0], "exp_avg": x[0] * 0, "exp_avg_sq": x[0] * 0}
    w.grad = x[1]
    optimizer.step()
    return w.detach()


def has_no_gradient(x: Tensor) -> Any:
    return torch.autograd.grad(x.sum(), x)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (keeps, "changes 'seen', which is not among its arguments.*return the new value"),
        (counts_calls, "changes 'calls'"),
        (prints, "prints a tensor.*return it, and print the result"),
        (formats, "prints a tensor"),
        (asks_numpy, "use PyTorch's functions"),
        (takes_the_largest, "reads a value"),
        (bins, r"x\[:, None\] == torch.arange"),
        (encodes, "num_classes"),
        (has_no_operation, "not an operation that runs remotely"),
        (steps_an_optimizer, "grid.SGD, grid.Adam or grid.AdamW"),
        (has_no_gradient, r"requires_grad_\(\)"),
        (branches, "torch.where"),
        (reads_item, "torch.where"),
        (reads_list, r"reads a value"),
        (selects_by_mask, r"torch.where\(mask"),
        (finds, "depends on values"),
        (finds_unique, "depends on values"),
        (draws, "pass them as an argument"),
        (draws_alike, "random numbers"),
        (counts, "pass it as an argument"),
        (trains_batch_norm, "functional_call"),
        (compares_all_rows, "every row would meet every other row"),
        (misfits, "same reduction dim"),
        (fails, "KeyError"),
        (leaves_torch, "use PyTorch's functions"),
        (wants_device, "leave it out"),
    ],
)
def test_the_message_names_the_line_and_a_way_out(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(PlanRejected, match=says) as caught:
        trace(function, vectors(8))
    first = function.__code__.co_firstlineno
    lines = [f"test_refusals.py:{number}:" for number in range(first, first + 6)]
    assert any(line in caught.value.message for line in lines), caught.value.message


def opens_a_file(x: Tensor) -> Any:
    return open("/nowhere/at/all")


@pytest.mark.parametrize("function", [branches, selects_by_mask, opens_a_file, lambda x: object()])
def test_a_refusal_prints_no_traceback_of_pytorch(function: Callable[..., Any]) -> None:
    with pytest.raises(PlanRejected) as caught:
        trace(function, vectors(8))
    printed = "".join(traceback.format_exception(caught.value))
    assert printed.count("Traceback") == 1 and f"{os.sep}torch{os.sep}" not in printed


def test_refusals_leave_what_was_closed_over_as_it_was() -> None:
    for function in (counts, trains_batch_norm):
        with pytest.raises(PlanRejected):
            trace(function, vectors(8))
    assert torch.equal(counter, torch.zeros(8))
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(8))


def test_gradients_on_top_of_old_ones_are_refused_and_the_old_ones_stay() -> None:
    module = mlp()
    module[0].weight.grad = torch.ones(6, 8)

    def step(x: Tensor) -> Any:
        module(x).sum().backward()
        return [p.grad for p in module.parameters()]

    with pytest.raises(PlanRejected, match=r"torch\.autograd\.grad in place of backward"):
        trace(step, vectors(8))
    assert torch.equal(module[0].weight.grad, torch.ones(6, 8))
    assert module[2].weight.grad is None


def test_constants_are_bounded() -> None:
    large = torch.zeros(MAX_CONSTANT_BYTES // 4 + 1)
    with pytest.raises(PlanRejected, match="pass large ones as arguments"):
        trace(lambda x: x.sum() + large.sum(), vectors(8))


def test_arguments_that_no_plan_takes() -> None:
    with pytest.raises(InvalidRequest, match="functional_call"):
        trace(lambda module, x: module(x), mlp(), vectors(8))
    with pytest.raises(InvalidRequest, match="not object"):
        trace(lambda x: x, object())
    with pytest.raises(InvalidRequest, match="complex"):
        trace(lambda x: x, torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(InvalidRequest, match="dense"):
        trace(lambda x: x, torch.eye(3).to_sparse())


def test_results_that_no_plan_gives() -> None:
    with pytest.raises(PlanRejected, match="not object"):
        trace(lambda x: object(), vectors(8))
    nested: Any = []
    for _ in range(40):
        nested = [nested]
    with pytest.raises(PlanRejected, match="levels deep"):
        trace(lambda x: nested, vectors(8))


def test_tracing_leaves_everything_as_it_was() -> None:
    """Parameters, buffers, gradients, flags, hooks, attributes and the random generator, after an error in the middle, too."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), Counting(), nn.LSTM(4, 2))
    module[0].bias.requires_grad_(False)
    module[0].weight.grad = torch.ones(4, 8)
    module[1].eval()
    module[0].register_forward_hook(lambda module, args, out: out * 2)
    state = dict(module.state_dict())
    params = {name: value for name, value in state.items() if "num_batches" not in name}

    def step(params: dict[str, Tensor], x: Tensor, fail: bool) -> Any:
        module.train()
        module[1].momentum = 0.5
        module[0].weight.requires_grad_(False)
        out = torch.func.functional_call(module, (params, {"1.num_batches_tracked": params["1.running_mean"] * 0}), (x,))
        if fail:
            raise ValueError("now")
        return out[0]

    for fail in (False, True):
        before = picture(module)
        try:
            trace(step, params, vectors(8), fail)
        except PlanRejected:
            assert fail
        assert picture(module) == before
    assert torch.equal(module[0].weight.grad, torch.ones(4, 8))


class Counting(nn.Module):
    """Keeps what it saw in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.extra = x
        return x + self.calls


def picture(module: nn.Module) -> Any:
    parts = []
    for part in module.modules():
        own = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(part).items()}
        parts.append({name: repr(value) for name, value in own.items()})
    flags = [(name, p.requires_grad, p.grad is None, p._version) for name, p in module.named_parameters()]
    return parts, flags, torch.get_rng_state().tolist()
