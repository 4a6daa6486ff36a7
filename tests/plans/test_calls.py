"""Calling plans and traced functions: structures, what is checked, when a function is traced again, remote tensors."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from plan_models import assert_same, mlp, vectors
from torch import Tensor, nn

from grid.errors import ExecutionFailed, InvalidRequest, PlanRejected
from grid.plans.ir import Plan, PlanTarget
from grid.plans.trace import TracedFunction, plan, trace


def mixed(data: dict[str, Any], pair: list[Tensor], factor: float) -> Any:
    return {"sum": data["a"] + data["b"], "pair": (pair[0] * factor, [pair[1], None]), "n": factor}


def test_arguments_and_results_are_structures() -> None:
    data = {"a": torch.randn(8, 2), "b": torch.randn(8, 2)}
    made = trace(mixed, data, [torch.randn(8), torch.randn(3)], 0.5)
    other = OrderedDict(b=torch.randn(8, 2), a=torch.randn(8, 2))
    pair = [torch.randn(5), torch.randn(4)]
    assert_same(made(other, pair, 0.5), mixed(other, pair, 0.5))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (({"a": torch.zeros(8, 2)}, [torch.zeros(8), torch.zeros(3)], 0.5), "data must be a dict with the 2 keys"),
        (({"a": torch.zeros(8, 2), "b": 3}, [torch.zeros(8), torch.zeros(3)], 0.5), r"data\['b'\] must be a tensor, not int"),
        (({"a": torch.zeros(8, 2), "b": torch.zeros(8, 2)}, [torch.zeros(8)], 0.5), "pair must be a list of 2"),
        (({"a": torch.zeros(8, 2), "b": torch.zeros(8, 2)}, [torch.zeros(8), torch.zeros(3)], 0.6), "factor was 0.5"),
        (({"a": torch.zeros(8, 2), "b": torch.zeros(8, 2)}, [torch.zeros(8), torch.zeros(3)]), "takes 3 arguments, 2 came"),
        (({"a": torch.zeros(8, 2), "b": torch.zeros(8, 3)}, [torch.zeros(8), torch.zeros(3)], 0.5), "size 2 in dimension 1"),
        (({"a": torch.zeros(8, 2), "b": torch.zeros(8)}, [torch.zeros(8), torch.zeros(3)], 0.5), "2 dimensions, not 1"),
        (
            ({"a": torch.zeros(8, 2), "b": torch.zeros(8, 2).double()}, [torch.zeros(8), torch.zeros(3)], 0.5),
            "dtype f4, not float64",
        ),
    ],
)
def test_calls_that_do_not_fit(arguments: tuple[Any, ...], says: str) -> None:
    made = trace(mixed, {"a": torch.randn(8, 2), "b": torch.randn(8, 2)}, [torch.randn(8), torch.randn(3)], 0.5)
    with pytest.raises(InvalidRequest, match=says):
        made(*arguments)


def test_named_tuples_come_back_plain() -> None:
    Pair = namedtuple("Pair", "one two")
    made = trace(lambda pair: Pair(pair[0].max(0), pair[1]), Pair(torch.randn(8, 2), torch.randn(8)))
    result = made((torch.randn(4, 2), torch.randn(3)))
    assert type(result) is tuple
    assert type(result[0]) is tuple
    assert result[0][1].dtype == torch.int64


def test_a_failing_step_is_named() -> None:
    made = trace(lambda x, y: (x * 2).gather(1, y), torch.randn(8, 3), torch.zeros(8, 1, dtype=torch.long))
    with pytest.raises(ExecutionFailed, match=r"step 1 \(aten.gather.default\)") as caught:
        made(torch.randn(2, 3), torch.full((2, 1), 7))
    assert caught.value.details == {"step": 1, "op": "aten.gather.default"}
    assert caught.value.__cause__ is not None


def test_results_carry_no_gradient() -> None:
    made = trace(lambda w, x: x @ w, nn.Parameter(torch.randn(8, 2)), vectors(8))
    assert not made(nn.Parameter(torch.randn(8, 2)), vectors(3)).requires_grad


def test_a_traced_function_is_traced_once_for_each_kind_of_arguments() -> None:
    @plan
    def function(x: Tensor, power: int = 2) -> Tensor:
        """Raise to a power."""
        return x**power

    assert isinstance(function, TracedFunction)
    assert function.__doc__ == "Raise to a power."
    assert_same(function(vectors(8)), vectors(8) ** 2)
    for rows in (1, 2, 33):
        assert_same(function(vectors(rows)), vectors(rows) ** 2)
    assert len(function._known) == 1
    assert_same(function(vectors(8), power=3), vectors(8) ** 3)
    assert_same(function(vectors(8).double()), vectors(8).double() ** 2)
    assert_same(function(torch.randn(8)[:0]), torch.empty(0))
    assert len(function._known) == 4
    assert function.trace_for(vectors(8)).id == function.trace_for(vectors(4)).id
    assert function.trace_for(vectors(8)).id != function.trace_for(vectors(4), 3).id


def test_one_number_is_not_another_kind_of_one() -> None:
    function = plan(lambda x, flag: x * flag)
    ids = {function.trace_for(vectors(8), flag).id for flag in (1, 1.0, True)}
    assert len(ids) == 3


def test_sizes_that_the_function_fixes_are_traced_anew() -> None:
    function = plan(lambda x: x / len(x))
    for rows in (8, 3, 33, 8):
        assert_same(function(vectors(rows)), vectors(rows) / rows)


def test_a_module_that_learned_is_traced_anew() -> None:
    module = mlp()
    predict = plan(lambda x: module(x))
    before = predict.trace_for(vectors(8)).id
    assert predict.trace_for(vectors(3)).id == before
    with torch.no_grad():
        module[0].weight.add_(1)
    assert_same(predict(vectors(3)), module(vectors(3)))
    assert predict.trace_for(vectors(3)).id != before


def test_keyword_only_arguments_are_refused() -> None:
    def function(x: Tensor, *, scale: float) -> Tensor:
        return x * scale

    with pytest.raises(InvalidRequest, match="scale can only be given by keyword"):
        plan(function)(vectors(8), scale=2.0)


def test_plans_inside_plans_become_one() -> None:
    @plan
    def centred(x: Tensor) -> Tensor:
        return x - x.mean(0)

    inner = trace(lambda x: x * 2, vectors(8))

    @plan
    def scaled(x: Tensor) -> Tensor:
        return inner(centred(x)) / x.shape[0]

    assert_same(scaled(vectors(5)), (vectors(5) - vectors(5).mean(0)) * 2 / 5)
    assert "aten.mean.dim" in {step.op for step in scaled.trace_for(vectors(5)).steps}


# ---------------------------------------------------------------- remote tensors


class Elsewhere(torch.Tensor):
    """A tensor that must not be computed with here: it only takes plans."""

    _held: Tensor
    calls: list[tuple[str, int]]

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, requires_grad=held.requires_grad)

    def __init__(self, held: Tensor) -> None:
        self._held = held
        self.calls = []

    def run_plan(self, plan: Plan, leaves: Sequence[Any]) -> list[Tensor]:
        self.calls.append((plan.id, len(leaves)))
        held = [leaf._held if isinstance(leaf, Elsewhere) else leaf for leaf in leaves]
        return plan._compiled(held)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} ran on a remote tensor")


def test_remote_tensors_are_traced_by_shape_and_run_where_they_are() -> None:
    held = vectors(9)
    remote = Elsewhere(held)
    assert isinstance(remote, PlanTarget)

    @plan
    def function(x: Tensor, w: Tensor) -> dict[str, Tensor]:
        return {"y": x @ w, "m": x.mean(0)}

    w = torch.randn(8, 2)
    result = function(remote, w)
    assert remote.calls == [(function.trace_for(remote, w).id, 2)]
    assert_same(result, {"y": held @ w, "m": held.mean(0)})
    assert trace(function.function, remote, w).id == trace(function.function, vectors(4), w).id


def test_gradients_of_remote_parameters() -> None:
    w = Elsewhere(torch.randn(8, 2, requires_grad=True))
    made = trace(lambda w, x: torch.autograd.grad((x @ w).pow(2).sum(), w)[0], w, vectors(8))
    x = vectors(3)
    assert_same(made(w, x), 2 * x.T @ (x @ w._held))


def test_a_remote_tensor_that_was_not_passed_is_refused() -> None:
    remote = Elsewhere(vectors(8))
    with pytest.raises(PlanRejected, match="remote tensor that is not among its arguments"):
        trace(lambda x: x + remote, vectors(8))
    with pytest.raises(PlanRejected, match="remote tensor"):
        trace(lambda x: remote, vectors(8))


def test_a_remote_call_that_does_not_fit_is_refused_here() -> None:
    remote = Elsewhere(vectors(8))
    made = trace(lambda x: x * 2, remote)
    with pytest.raises(InvalidRequest, match="size 8"):
        made(Elsewhere(torch.randn(8, 3)))
    assert remote.calls == []
