"""What tracing takes in, and that plans give what eager PyTorch gives, at any batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plan_models import (
    BATCHES,
    TRACED_AT,
    assert_plan_is,
    assert_same,
    classes,
    cnn,
    gradient_of,
    mlp,
    numbers,
    pictures,
    vectors,
)
from torch import Tensor, nn
from torch.func import functional_call

from grid.errors import InvalidRequest
from grid.plans.trace import trace


@pytest.mark.parametrize(("model", "inputs"), [(mlp, vectors), (cnn, pictures)])
def test_forward_pass_at_any_batch(model: Callable[[], nn.Module], inputs: Callable[[int], Tensor]) -> None:
    module = model()
    params = dict(module.named_parameters())

    def forward(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, params, (x,))

    plan = trace(forward, params, inputs(TRACED_AT))
    assert_plan_is(plan, forward, *[(params, inputs(rows)) for rows in BATCHES])


@pytest.mark.parametrize("traced_at", [1, 2, 8, 33])
@pytest.mark.parametrize(("model", "inputs"), [(mlp, vectors), (cnn, pictures)])
def test_gradients_at_any_batch(model: Callable[[], nn.Module], inputs: Callable[[int], Tensor], traced_at: int) -> None:
    module = model()
    params = dict(module.named_parameters())
    step = gradient_of(module)
    plan = trace(step, params, inputs(traced_at), classes(traced_at))
    assert_plan_is(plan, step, *[(params, inputs(rows), classes(rows)) for rows in BATCHES])


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.cross_entropy, classes),
        (lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0])), classes),
        (lambda o, y: F.nll_loss(F.log_softmax(o, 1), y), classes),
        (F.mse_loss, numbers),
        (F.l1_loss, numbers),
        (F.huber_loss, numbers),
        (F.smooth_l1_loss, numbers),
        (F.binary_cross_entropy_with_logits, numbers),
        (lambda o, y: F.binary_cross_entropy(o.sigmoid(), y), numbers),
        (lambda o, y: F.kl_div(o.log_softmax(1), y.softmax(1), reduction="batchmean"), numbers),
        (lambda o, y: F.cross_entropy(o, y, reduction="none").mean(), classes),
    ],
)
def test_losses(loss: Callable[..., Tensor], targets: Callable[[int], Tensor]) -> None:
    module = mlp()
    params = dict(module.named_parameters())
    step = gradient_of(module, loss)
    plan = trace(step, params, vectors(TRACED_AT), targets(TRACED_AT))
    assert_plan_is(plan, step, *[(params, vectors(rows), targets(rows)) for rows in BATCHES])


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.GELU(),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.ZeroPad2d(1),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.ConvTranspose2d(4, 4, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_picture_models(layer: nn.Module) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    step = gradient_of(module)
    plan = trace(step, tensors, pictures(TRACED_AT), classes(TRACED_AT))
    for rows in BATCHES:
        assert_same(plan(tensors, pictures(rows), classes(rows)), step(tensors, pictures(rows), classes(rows)))


def test_transformer_and_recurrent_layers() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    module = nn.Sequential(encoder, nn.Flatten(), nn.Linear(8 * 8, 3))
    params = dict(module.named_parameters())
    step = gradient_of(module)

    def sequences(rows: int) -> Tensor:
        return torch.randn(rows, 8, 8, generator=torch.Generator().manual_seed(rows))

    plan = trace(step, params, sequences(TRACED_AT), classes(TRACED_AT))
    assert_plan_is(plan, step, *[(params, sequences(rows), classes(rows)) for rows in BATCHES])

    recurrent = nn.GRU(8, 5, batch_first=True)
    plan = trace(lambda x: recurrent(x)[0][:, -1], sequences(TRACED_AT))
    assert_plan_is(plan, lambda x: recurrent(x)[0][:, -1], *[(sequences(rows),) for rows in BATCHES])


def test_a_module_can_be_the_function() -> None:
    module = mlp()
    plan = trace(module, vectors(TRACED_AT))
    assert plan.name == "Sequential"
    assert len(plan.constants) == 4
    assert_plan_is(plan, module, *[(vectors(rows),) for rows in BATCHES])


def test_statistics_of_a_batch() -> None:
    def statistics(x: Tensor) -> dict[str, Any]:
        z = (x - x.mean(0)) / (x.std(0) + 1e-6)
        parts = (x.sum(0), [x.var(), x.softmax(1).log().mean()])
        return {"z": z, "cov": z.T @ z / x.shape[0], "parts": parts, "none": None, "k": 3}

    plan = trace(statistics, vectors(TRACED_AT))
    assert_plan_is(plan, statistics, *[(vectors(rows),) for rows in (2, 3, 33)])


def test_sizes_in_arithmetic() -> None:
    def function(x: Tensor) -> Tensor:
        n = x.shape[0]
        return x * (n * n - 3 * n + 1) + torch.arange(n)[:, None] + n // 3 + n % 5 + x.numel() / 7

    plan = trace(function, vectors(TRACED_AT))
    assert_plan_is(plan, function, *[(vectors(rows),) for rows in BATCHES])


def test_an_optimizer_as_a_pure_function() -> None:
    module = mlp()
    params = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in params.items()}

    def step(params: dict[str, Tensor], velocity: dict[str, Tensor], x: Tensor, y: Tensor) -> Any:
        loss = F.cross_entropy(functional_call(module, params, (x,)), y)
        gradients = torch.autograd.grad(loss, list(params.values()))
        velocity = {name: 0.9 * v + g for (name, v), g in zip(velocity.items(), gradients, strict=True)}
        return {name: p - 0.1 * velocity[name] for name, p in params.items()}, velocity, loss

    plan = trace(step, params, velocity, vectors(TRACED_AT), classes(TRACED_AT))
    ours, theirs = (params, velocity), (params, velocity)
    for rows in (8, 3, 33, 1):
        *ours_next, _ = plan(*ours, vectors(rows), classes(rows))
        *theirs_next, _ = step(*theirs, vectors(rows), classes(rows))
        assert_same(tuple(ours_next), tuple(theirs_next))
        ours = tuple(ours_next)
        theirs = tuple({name: value.detach().requires_grad_() for name, value in part.items()} for part in theirs_next)


def test_torch_func_grad() -> None:
    def gradient(w: Tensor, x: Tensor) -> Tensor:
        return torch.func.grad(lambda w: (x @ w).pow(2).mean())(w)

    w = nn.Parameter(torch.randn(8, 2))
    plan = trace(gradient, w, vectors(TRACED_AT))
    assert_plan_is(plan, gradient, *[(w, vectors(rows)) for rows in BATCHES])


def test_backward_leaves_the_closed_over_module_as_it_was() -> None:
    module = mlp()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def step(x: Tensor, y: Tensor) -> list[Tensor]:
        module.zero_grad()
        F.cross_entropy(module(x), y).backward()
        return [p.grad for p in module.parameters()]

    plan = trace(step, vectors(TRACED_AT), classes(TRACED_AT))
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert_plan_is(plan, step, *[(vectors(rows), classes(rows)) for rows in BATCHES])


def test_tensors_closed_over_become_constants() -> None:
    scale = torch.arange(1.0, 9.0)

    def function(x: Tensor) -> Tensor:
        return x * scale + torch.tensor([0.5]) + torch.tensor(2.0).item()

    plan = trace(function, vectors(TRACED_AT))
    assert_plan_is(plan, function, (vectors(3),))
    expected = function(vectors(3))
    scale.zero_()
    assert_same(plan(vectors(3)), expected)


def test_a_result_that_is_a_constant_can_be_written_to_without_harm() -> None:
    constant = torch.ones(3)
    plan = trace(lambda x: (constant, constant[:2], x), vectors(TRACED_AT))
    first, view, _ = plan(vectors(2))
    first.zero_()
    view.zero_()
    assert torch.equal(plan(vectors(2))[0], torch.ones(3))
    assert torch.equal(plan(vectors(2))[1], torch.ones(2))


def test_writes_inside_the_function_are_lowered() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = 0
        y[:, 1] = y.sum(1)
        y.relu_().add_(1)
        y[1:] *= 2
        return y.masked_fill_(y > 3, 0.0)

    plan = trace(function, vectors(TRACED_AT))
    assert not [step.op for step in plan.steps if step.op.split(".")[1].endswith("_")]
    assert_plan_is(plan, function, *[(vectors(rows),) for rows in BATCHES])


def test_a_written_argument_keeps_its_value_for_the_caller() -> None:
    def function(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    plan = trace(function, vectors(TRACED_AT))
    x = vectors(3)
    assert_same(plan(x), (vectors(3) + 1) * 2)
    assert torch.equal(x, vectors(3))


def test_batch_norm_in_training_gives_new_statistics_back() -> None:
    module = nn.BatchNorm1d(8)
    state = {name: value.clone() for name, value in module.state_dict().items()}

    def function(state: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(module, state, (x,)), state

    plan = trace(function, state, vectors(TRACED_AT))
    assert int(module.num_batches_tracked) == 0
    for rows in (2, 3, 33):
        assert_same(plan(state, vectors(rows)), function({name: value.clone() for name, value in state.items()}, vectors(rows)))
    assert int(state["num_batches_tracked"]) == 0


def test_dropout_is_one_step_whose_mask_is_drawn_at_each_run() -> None:
    plan = trace(lambda x: F.dropout(x, 0.5), torch.ones(TRACED_AT, 8))
    assert [step.op for step in plan.steps] == ["aten.native_dropout.default"]
    torch.manual_seed(0)
    first, second = plan(torch.ones(33, 8)), plan(torch.ones(33, 8))
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert trace(lambda x: F.dropout(x, 0.5, False), torch.ones(TRACED_AT, 8)).steps == ()


def test_a_plain_matrix_has_its_size_fixed_and_the_batch_stays_free() -> None:
    plan = trace(lambda x, w: x @ w, vectors(TRACED_AT), torch.randn(8, 3))
    assert [spec.sizes for spec in plan.inputs] == [("n0", 8), (8, 3)]
    assert_plan_is(plan, lambda x, w: x @ w, *[(vectors(rows), torch.randn(8, 3)) for rows in BATCHES])


def test_equal_sizes_are_found_and_checked() -> None:
    plan = trace(lambda x, y: x * y, vectors(TRACED_AT), vectors(TRACED_AT))
    assert [spec.sizes for spec in plan.inputs] == [("n0", 8), ("n0", 8)]
    with pytest.raises(InvalidRequest, match="y must have as many rows as x, which has 4, not 5"):
        plan(vectors(4), vectors(5))


def test_a_branch_on_the_batch_limits_the_plan() -> None:
    plan = trace(lambda x: x * 2 if x.shape[0] > 4 else -x, vectors(TRACED_AT))
    assert plan.ranges[0].least == 5
    assert plan.ranges[0].most is None
    with pytest.raises(InvalidRequest, match="x must have at least 5 rows, not 4"):
        plan(vectors(4))
    evenness = trace(lambda x: x if x.shape[0] % 2 == 0 else -x, vectors(TRACED_AT))
    assert (evenness.ranges[0].least, evenness.ranges[0].most) == (8, 8)


def test_pieces_of_the_batch_limit_the_plan() -> None:
    plan = trace(lambda x: x.chunk(2), vectors(TRACED_AT))
    assert plan.ranges[0].least == 3
    assert_plan_is(plan, lambda x: x.chunk(2), *[(vectors(rows),) for rows in (3, 8, 33)])
    assert_plan_is(trace(lambda x: x[:4], vectors(TRACED_AT)), lambda x: x[:4], *[(vectors(rows),) for rows in BATCHES])
    assert_plan_is(trace(lambda x: x.view(2, -1), vectors(TRACED_AT)), lambda x: x.view(2, -1), (vectors(2),), (vectors(34),))


def test_the_length_as_a_number_fixes_the_batch() -> None:
    plan = trace(lambda x: x / len(x), vectors(TRACED_AT))
    assert plan.inputs[0].sizes == (8, 8)
    with pytest.raises(InvalidRequest, match="size 8 in dimension 0, not 3"):
        plan(vectors(3))


def test_tracing_does_not_care_about_modes_around_it() -> None:
    module = mlp()
    params = dict(module.named_parameters())
    step = gradient_of(module)
    arguments = (params, vectors(TRACED_AT), classes(TRACED_AT))
    plan = trace(step, *arguments)
    with torch.no_grad():
        assert trace(step, *arguments).id == plan.id
    with torch.inference_mode():
        assert trace(step, *arguments).id == plan.id
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trace(step, *arguments).id == plan.id


def test_inputs_that_are_not_row_major() -> None:
    plan = trace(lambda x: x.view(-1) * 2, vectors(TRACED_AT))
    transposed = torch.randn(8, 5).t()
    assert_same(plan(transposed), transposed.reshape(-1) * 2)
