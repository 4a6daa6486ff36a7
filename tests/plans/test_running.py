"""The interpreter with a meaning of operations passed in, and what a dry run tells before anything runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from plan_models import assert_same, classes, cnn, gradient_of, pictures, vectors
from torch import Tensor
from torch.utils._pytree import tree_leaves

from grid.errors import ExecutionFailed, InvalidRequest, PlanRejected, ReleaseDenied
from grid.plans.interpret import constants_of, local_apply, run
from grid.plans.ir import Plan
from grid.plans.program import Constant, InputSpec, Program, Range, Step
from grid.plans.shapes import check_limits, dry_run, output_metas
from grid.plans.trace import trace
from grid.plans.trees import LEAF, Tree
from grid.tensors.ops import Op
from grid.wire.messages import DType, MemoryFormat, Ref


def by_hand(steps: list[tuple[str, list[Any], tuple[int, ...]]], sizes: tuple[int | str, ...] = ("n0", 4)) -> Plan:
    """A valid plan of one input whose last step's first output is the result."""
    made = tuple(Step(op, tuple(tuple(a) if isinstance(a, list) else a for a in args), (), outs) for op, args, outs in steps)
    result = (made[-1].outputs[0],)
    spec, ranges = InputSpec("f4", sizes), (Range(),) if "n0" in sizes else ()
    return Plan.of(Program("hand", ("x",), Tree("tuple", (LEAF,)), (spec,), ranges, (), made, result, LEAF))


def cnn_step() -> tuple[Plan, list[Tensor], Any]:
    module = cnn()
    params = dict(module.named_parameters())
    step = gradient_of(module)
    plan = trace(step, params, pictures(8), classes(8))
    arguments = (params, pictures(5), classes(5))
    return plan, plan.leaves_of(arguments), step(*arguments)


def test_run_gives_every_operation_to_apply() -> None:
    plan, leaves, expected = cnn_step()
    seen: list[tuple[str, str]] = []

    def apply(op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        seen.append((op.name, where))
        assert not [arg for arg in [*args, *kwargs.values()] if isinstance(arg, (Ref, torch.dtype, torch.memory_format))]
        return local_apply(op, args, kwargs, where)

    with torch.no_grad():
        results = run(plan, leaves, apply)
    assert_same(results, tree_leaves(expected))
    assert [name for name, _ in seen] == [step.op for step in plan.steps if step.op.startswith("aten.")]
    assert seen[0][1] == f"step 0 ({plan.steps[0].op})"


def test_values_are_dropped_after_their_last_use() -> None:
    plan = trace(lambda x: (x + 1).exp().sum(), vectors(8))
    alive: list[weakref.ref[Tensor]] = []

    def apply(op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        results = local_apply(op, args, kwargs, where)
        gc.collect()
        # Before a step's own values are dropped, only its operand is left of what came before.
        assert sum(ref() is not None for ref in alive) <= 1
        alive.extend(weakref.ref(result) for result in results)
        return results

    run(plan, [vectors(3)], apply)
    assert len(alive) == 3


def test_errors_of_apply_tell_the_step_and_keep_their_class() -> None:
    plan = trace(lambda x: x.exp().sum(), vectors(8))

    def denied(op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        if op.name == "aten.sum.default":
            raise ReleaseDenied("no", rule="r")
        return local_apply(op, args, kwargs, where)

    with pytest.raises(ReleaseDenied, match=r"step 1 \(aten.sum.default\): no") as caught:
        run(plan, [vectors(3)], denied)
    assert caught.value.details == {"step": 1, "op": "aten.sum.default", "rule": "r"}

    def broken(op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        raise RuntimeError("value 42 is private")

    with pytest.raises(ExecutionFailed) as failed:
        run(plan, [vectors(3)], broken)
    assert "42" not in failed.value.message
    assert isinstance(failed.value.__cause__, RuntimeError)


def test_inputs_are_checked_and_made_row_major_by_apply() -> None:
    plan = trace(lambda x: x.view(-1) * 2, vectors(8))
    with pytest.raises(InvalidRequest, match="takes 1 tensors, 2 came"):
        run(plan, [vectors(3), vectors(3)])
    formats: list[Any] = []

    def apply(op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        formats.append(kwargs.get("memory_format"))
        return local_apply(op, args, kwargs, where)

    transposed = torch.randn(8, 5).t()
    assert_same(run(plan, [transposed], apply), [transposed.reshape(-1) * 2])
    assert formats[0] == MemoryFormat("contiguous")


def test_fresh_memory_is_never_seen() -> None:
    plan = by_hand([("aten.new_empty.default", [Ref(0), [1000]], (1,))])
    torch.full((100, 1000), 7.0)
    assert_same(plan(vectors(3)[:, :4]), torch.zeros(1000))
    assert_same(run(plan, [torch.zeros(3, 4)]), [torch.zeros(1000)])


def test_lists_results_that_are_left_out_and_names_as_arguments() -> None:
    def function(x: Tensor) -> Any:
        first, second, *_ = x.unbind(1)
        return torch.stack([first, second]).to(torch.float64), torch.cat([x, x], 1).sum(dtype=torch.float64)

    plan = trace(function, vectors(8))
    assert DType("f8") in {value for step in plan.steps for _, value in step.kwargs if isinstance(value, str)}
    assert_same(plan(vectors(3)), function(vectors(3)))


def test_steps_on_sizes_are_bounded() -> None:
    squared = [("sym.size", [Ref(0), 0], (1,))]
    for value in range(1, 8):
        squared.append(("sym.mul", [Ref(value), Ref(value)], (value + 1,)))
    squared.append(("aten.full.default", [[1], Ref(8)], (9,)))
    plan = by_hand(squared)
    assert_same(plan(torch.zeros(1, 4)), torch.ones(1, dtype=torch.int64))
    with pytest.raises(InvalidRequest, match=r"step 6 \(sym.mul\): a size grows beyond any tensor's"):
        plan(torch.zeros(3, 4))
    sizes = [("sym.size", [Ref(0), 0], (1,)), ("sym.floordiv", [4, Ref(1)], (2,))]
    divided = by_hand([*sizes, ("aten.full.default", [[1], Ref(2)], (3,))])
    with pytest.raises(InvalidRequest, match="divided by zero"):
        divided(torch.zeros(0, 4))


# ---------------------------------------------------------------- dry runs


def test_output_metas_are_those_of_a_run() -> None:
    plan, leaves, _ = cnn_step()
    results = plan._compiled(leaves)
    metas = output_metas(plan, leaves)
    assert [(meta.shape, meta.dtype) for meta in metas] == [(tuple(result.shape), result.dtype) for result in results]


def test_dry_runs_are_kept_by_sizes_of_inputs() -> None:
    plan = trace(lambda x: x @ x.T, vectors(8))
    one = plan.dry_runs.of([vectors(3)])
    assert plan.dry_runs.of([vectors(3)]) is one
    assert plan.dry_runs.of([vectors(4)]).outputs[0].shape == (4, 4)
    with pytest.raises(InvalidRequest, match="size 8"):
        plan.dry_runs.of([torch.zeros(3, 9)])
    with pytest.raises(InvalidRequest, match="dtype"):
        plan.dry_runs.of([vectors(3).double()])


def test_costs_of_steps() -> None:
    plan = trace(lambda x, w: (x @ w).relu().sum(), torch.zeros(8, 4), torch.nn.Parameter(torch.zeros(4, 5)))
    run = dry_run(plan, [(10, 4), (4, 5)])
    mm, relu, total = run.steps
    assert (mm.elements, mm.bytes, mm.flops) == (50, 200, 2 * 10 * 4 * 5 + 40 + 20 + 50)
    assert (relu.elements, relu.bytes, relu.flops) == (50, 200, 100)
    assert (total.elements, total.bytes) == (1, 4)
    assert run.peak_bytes == 400
    assert run.elements == 101


def test_views_and_constants_in_the_peak() -> None:
    constant = torch.zeros(100)
    plan = trace(lambda x: (x.expand(1000, 4) + 0, (x * constant[0])), torch.nn.Parameter(torch.zeros(1, 4)))
    run = dry_run(plan, [(1, 4)])
    assert run.steps[[step.op for step in plan.steps].index("aten.expand.default")].bytes == 0
    assert run.peak_bytes == 400 + 16000 + 16


def test_convolutions_count_operations_and_what_they_unfold() -> None:
    weight = torch.nn.Parameter(torch.zeros(6, 3, 3, 3))
    plan = trace(torch.nn.functional.conv2d, pictures(8), weight)
    run = dry_run(plan, [(2, 3, 8, 8), (6, 3, 3, 3)])
    assert run.flops == 2 * (2 * 6 * 6 * 6) * (3 * 3 * 3) + 2 * 3 * 64 + 6 * 27 + 2 * 6 * 36
    double = trace(torch.nn.functional.conv2d, pictures(8).double(), torch.nn.Parameter(weight.double()))
    assert dry_run(double, [(2, 3, 8, 8), (6, 3, 3, 3)]).peak_bytes == 2 * 6 * 36 * 8 + 2 * 27 * 36 * 8


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([("aten.ones.default", [[1 << 20, 1 << 20]], (1,))], "step 0 .* would give 1099511627776 elements"),
        ([("aten.expand.default", [Ref(0), [1 << 40, 3, 4]], (1,))], "step 0"),
        ([("aten.ones.default", [[1 << 40, 1 << 40]], (1,))], "step 0"),
        ([("aten.ones.default", [[-1]], (1,))], "step 0"),
        ([("aten.mm.default", [Ref(0), Ref(0)], (1,))], r"step 0 \(aten.mm.default\)"),
        ([("aten.unbind.int", [Ref(0), 0], (1, 2))], "3 tensors, and the plan names 2"),
        ([("aten.expand.default", [Ref(0), [1 << 30, 3, 4]], (1,)), ("aten.unbind.int", [Ref(1), 0], (2, 3))], "pieces"),
        ([("aten.select.int", [Ref(0), 0, 5], (1,))], "step 0"),
        ([("sym.size", [Ref(0), 2], (1,)), ("aten.full.default", [[1], Ref(1)], (2,))], r"step 0 \(sym.size\)"),
    ],
)
def test_plans_that_are_refused_before_they_run(steps: list[Any], says: str) -> None:
    plan = by_hand(steps)
    with pytest.raises(PlanRejected, match=says) as caught:
        check_limits(plan, [torch.zeros(3, 4)], max_elements=1 << 28, max_bytes=1 << 30)
    assert "step" in caught.value.details


def test_limits_on_the_whole() -> None:
    plan = by_hand([("aten.ones.default", [[1000, 1000]], (1,)), ("aten.mm.default", [Ref(1), Ref(1)], (2,))])
    inputs = [torch.zeros(3, 4)]
    assert check_limits(plan, inputs, max_elements=10**6, max_bytes=8 * 10**6).flops == 2 * 10**9 + 4 * 10**6
    with pytest.raises(PlanRejected, match="8000000 bytes at one time"):
        check_limits(plan, inputs, max_elements=10**6, max_bytes=8 * 10**6 - 1)
    with pytest.raises(PlanRejected, match="operations"):
        check_limits(plan, inputs, max_elements=10**6, max_bytes=8 * 10**6, max_flops=10**9)
    with pytest.raises(PlanRejected, match="2 steps; at most 1"):
        check_limits(plan, inputs, max_elements=10**6, max_bytes=8 * 10**6, max_steps=1)


def test_constants_are_read_once_and_shared() -> None:
    ones = torch.ones(8)
    plan = trace(lambda x: x + ones, vectors(8))
    assert plan.constants == (Constant("f4", (8,), torch.ones(8).numpy().tobytes()),)
    constants = constants_of(plan)
    assert_same(run(plan, [vectors(3)], constants=constants), [vectors(3) + 1])
    assert torch.equal(constants[0], torch.ones(8))
