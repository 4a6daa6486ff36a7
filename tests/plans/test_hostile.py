"""Hostile plans: every one is refused, with the reason, before anything of it runs; and costs its reader next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grid.client import connection
from grid.errors import ExecutionFailed, PlanRejected
from grid.plans.ir import Plan, decode
from grid.plans.program import InputSpec, Program, Range, Step
from grid.plans.shapes import check_limits
from grid.plans.trace import trace
from grid.plans.trees import LEAF, Tree
from grid.tensors.ops import Meta
from grid.testing import LocalGrid
from grid.wire.messages import Ref

HERE = Path(__file__).parent
LIMITS = {"max_elements": 1 << 28, "max_bytes": 1 << 30, "max_flops": 10**12, "max_steps": 500}


def plan_of(*steps: tuple[str, list[Any]], kwargs: tuple[tuple[str, Any], ...] = ()) -> Plan:
    """A plan of one input (n0, 4) in which each step gives one value, 1, 2, ... in turn."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    made = tuple(Step(op, frozen(args), kwargs, (at,)) for at, (op, args) in enumerate(steps, 1))
    inputs, ranges = (InputSpec("f4", ("n0", 4)),), (Range(),)
    return Plan.of(Program("hostile", ("x",), Tree("tuple", (LEAF,)), inputs, ranges, (), made, (len(steps),), LEAF))


def doubling(times: int) -> list[tuple[str, list[Any]]]:
    """Each step twice as long as the one before: a bomb of few bytes."""
    return [("aten.cat.default", [[Ref(at), Ref(at)]]) for at in range(times)]


X = Ref(0)
TOO_LARGE: dict[str, tuple[list[tuple[str, list[Any]]], str]] = {
    "10^12 elements": ([("aten.ones.default", [[10**6, 10**6]])], "1000000000000 elements"),
    "10^12 elements, uninitialised": ([("aten.new_empty.default", [X, [10**6, 10**6]])], "elements"),
    "expand": ([("aten.expand.default", [X, [10**11, 3, 4]])], "elements"),
    "expand, then copy": ([("aten.expand.default", [X, [10**9, 3, 4]]), ("aten.clone.default", [Ref(1)])], "elements"),
    "broadcast": (
        [
            ("aten.ones.default", [[1 << 14, 1, 1]]),
            ("aten.ones.default", [[1 << 14, 1]]),
            ("aten.add.Tensor", [Ref(1), Ref(2)]),
            ("aten.ones.default", [[1 << 14]]),
            ("aten.add.Tensor", [Ref(3), Ref(4)]),
        ],
        r"step 4 \(aten.add.Tensor\) would give 4398046511104 elements",
    ),
    "repeat": ([("aten.repeat.default", [X, [10**6, 10**6]])], "elements"),
    "doubling": (doubling(60), "elements"),
    "outer product": (
        [("aten.ones.default", [[1 << 20, 1]]), ("aten.t.default", [Ref(1)]), ("aten.mm.default", [Ref(1), Ref(2)])],
        r"step 2 \(aten.mm.default\)",
    ),
    "padding": ([("aten.constant_pad_nd.default", [X, [1 << 35, 0], 0.0])], "step 0"),
    "picture": (
        [("aten.view.default", [X, [1, 1, -1, 4]]), ("aten.upsample_nearest2d.default", [Ref(1), [10**6, 10**6]])],
        "step 1",
    ),
    "numbers": ([("aten.arange.default", [10**12])], "elements"),
    "diagonal": ([("aten.ones.default", [[1 << 18]]), ("aten.diag_embed.default", [Ref(1)])], "elements"),
    "one-hot": ([("aten.ones.default", [[1 << 14, 1 << 15]])], "536870912 elements"),
    "many at once": (
        [*[("aten.ones.default", [[1 << 28]])] * 2, ("aten.add.Tensor", [Ref(1), Ref(2)])],
        "bytes at one time",
    ),
    "work": (
        [("aten.ones.default", [[1 << 13, 1 << 13]]), *[("aten.mm.default", [Ref(at), Ref(1)]) for at in (1, 2)]],
        "operations",
    ),
    "work in windows": (
        [("aten.ones.default", [[1, 1, 4096, 4096]]), ("aten.avg_pool2d.default", [Ref(1), [2048, 2048], [1, 1]])],
        "operations",
    ),
    "steps": ([("aten.neg.default", [Ref(at)]) for at in range(501)], "501 steps; at most 500"),
    "nothing, hugely": (
        [("aten.zeros.default", [[0, 1 << 40, 1 << 40]]), ("aten.neg.default", [Ref(1)]), ("aten.exp.default", [Ref(2)])],
        "step 0",
    ),
    "a huge number": ([("aten.ones.default", [[1 << 40, 1 << 40]])], "step 0"),
    "shapes that do not fit": ([("aten.mm.default", [X, X])], r"step 0 \(aten.mm.default\)"),
    "a dimension that is not there": ([("aten.select.int", [X, 5, 0])], "step 0"),
    "memory of others": ([("aten.slice.Tensor", [X, 0, 0, 1 << 62]), ("aten.select.int", [Ref(1), 0, 99])], "step 1"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_would_be_too_large_is_refused_before_it_runs(name: str) -> None:
    steps, says = TOO_LARGE[name]
    plan = decode(plan_of(*steps).encoding)
    tracemalloc.start()
    try:
        with pytest.raises(PlanRejected, match=says):
            check_limits(plan, [torch.empty(3, 4, device="meta")], **LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "op",
    [
        *("aten.resize_.default", "aten.set_.source_Storage", "aten.as_strided.default", "aten.from_file.default"),
        *("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default", "aten.equal.default"),
        *("aten.rand.default", "aten.bernoulli.default", "aten.add_.Tensor", "aten.copy_.default", "aten._foreach_add_.List"),
        *("aten.record_stream.default", "aten._print.default", "aten.to_sparse.default", "aten.data.default"),
    ],
)
def test_operations_that_no_plan_may_name(op: str) -> None:
    with pytest.raises(PlanRejected, match=r"step 0 \(" + op.replace(".", r"\.")):
        plan_of((op, [X]))


def test_two_thousand_levels() -> None:
    raw = plan_of(("aten.sum.dim_IntList", [X, [12345]])).encoding
    number = bytes([0x91, 0xCD, 0x30, 0x39])
    assert raw.count(number) == 1
    for levels in (5, 500, 2000, 100_000):
        with pytest.raises(PlanRejected):
            decode(raw.replace(number, b"\x91" * levels + b"\x01"))


@pytest.mark.parametrize("op", ["aten.mm.__class__", "aten.mm.default.__call__", "builtins.eval", "torch.load", "sym.__import__"])
def test_names_that_walk_attributes(op: str) -> None:
    raw = plan_of(("aten.neg.default", [X])).encoding
    assert raw.count(b"\xb0aten.neg.default") == 1
    with pytest.raises(PlanRejected):
        decode(raw.replace(b"\xb0aten.neg.default", bytes([0xA0 + len(op)]) + op.encode()))


# ---------------------------------------------------------------- values: indices and classes


BAD_INDICES: dict[str, tuple[Callable[..., Any], Sequence[torch.Tensor]]] = {
    "embedding": (lambda i: torch.nn.functional.embedding(i, torch.ones(5, 2)), [torch.tensor([9, 0])]),
    "index": (lambda i: torch.ones(5, 2)[i], [torch.tensor([0, 5])]),
    "index, negative": (lambda i: torch.ones(5, 2)[i], [torch.tensor([0, -6])]),
    "index_select": (lambda i: torch.ones(5, 2).index_select(0, i), [torch.tensor([10**12, 1])]),
    "gather": (lambda i: torch.ones(2, 3).gather(1, i[:, None]), [torch.tensor([3, 0])]),
    "scatter": (lambda i: torch.zeros(2, 3).scatter(1, i[:, None], 1.0), [torch.tensor([-1, 0])]),
    "scatter_add": (lambda i: torch.zeros(3).scatter_add(0, i, torch.ones(2)), [torch.tensor([3, 0])]),
    "index_add": (lambda i: torch.zeros(3).index_add(0, i, torch.ones(2)), [torch.tensor([-4, 0])]),
    "index_put": (lambda i: torch.zeros(3).index_put((i,), torch.ones(2)), [torch.tensor([1 << 40, 0])]),
    "nll_loss": (lambda i: torch.nn.functional.nll_loss(torch.ones(2, 3), i), [torch.tensor([3, 0])]),
    "cross_entropy": (lambda i: torch.nn.functional.cross_entropy(torch.ones(2, 3), i), [torch.tensor([-2, 0])]),
    "one_hot": (lambda i: torch.nn.functional.one_hot(i, 3), [torch.tensor([3, 0])]),
}


@pytest.fixture(scope="module")
def local() -> Any:
    with LocalGrid(nodes={"alice": {"patients": {"features": torch.randn(40, 4), "targets": torch.zeros(40).long()}}}) as running:
        yield running


@pytest.mark.parametrize("name", BAD_INDICES)
def test_indices_and_classes_are_checked_at_a_node(local: LocalGrid, name: str) -> None:
    function, examples = BAD_INDICES[name]
    alice = local.client().nodes["alice"]
    plan = trace(function, *[torch.zeros_like(example) for example in examples])
    with pytest.raises(ExecutionFailed, match="out of range"):
        result = plan(*[alice.send(example) for example in examples])
        result.get()


def test_hostile_plans_at_a_node_while_others_go_on(local: LocalGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own checks are taken out, as an attacker would; the node's are what counts."""
    attacker, other = local.client(), local.client()
    ds = other.search()[0]
    expected = ds.features.sum(0).get()
    x = attacker.nodes["alice"].send(torch.zeros(3, 4))
    monkeypatch.setattr(connection, "output_metas", lambda plan, leaves: [Meta((1,), (1,), torch.float32)])
    for name in ("10^12 elements", "expand", "doubling", "work in windows"):
        with pytest.raises(PlanRejected, match=r"step|operations"):
            plan_of(*TOO_LARGE[name][0])(x).get()
        assert torch.allclose(ds.features.sum(0).get(), expected)
    assert float((x + 1).get().sum()) == 12


# ---------------------------------------------------------------- fuzz


def test_mutated_plans_are_rejected_without_more_memory() -> None:
    command = [sys.executable, str(HERE / "fuzz_plans.py"), "0", "2000"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert out.returncode == 0, out.stderr[-4000:]
    found = json.loads(out.stdout)
    assert found["rejected"] + found["refused"] + found["accepted"] == 2000
    assert min(found["rejected"], found["refused"], found["accepted"]) > 20
