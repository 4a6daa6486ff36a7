"""The shapes that are worked out here are those that torch gives, to the last stride."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_samples import SAMPLES

from grid.errors import InvalidRequest
from grid.tensors import quick
from grid.tensors.ops import OPS, Bound, Meta, ask_torch, bind, infer


def answers(bound: Bound) -> tuple[Any, Any]:
    """What is worked out here (once everything is learned), and torch's answer; an error counts as one."""
    found: list[Any] = []
    for ask in (infer, infer, ask_torch):
        try:
            found.append([Meta.of(result) for result in ask(bound)])
        except InvalidRequest as error:
            found.append(error.message)
    assert found[0] == found[2]
    return found[1], found[2]


def others(values: list[Any]) -> Iterator[list[Any]]:
    """The same arguments in other dtypes, and in arrangements that are not dense."""
    for change in (torch.Tensor.double, torch.Tensor.bfloat16, torch.Tensor.long, torch.Tensor.bool, arranged):
        yield [change(value) if isinstance(value, torch.Tensor) else value for value in values]


def arranged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


@pytest.mark.parametrize("name", OPS)
def test_every_operation(name: str) -> None:
    args, kwargs = SAMPLES[name]()
    for values in (args, *others(args)):
        with contextlib.suppress(InvalidRequest):
            ours, theirs = answers(bind(OPS[name], values, kwargs))
            assert ours == theirs


def test_most_of_a_training_step_is_worked_out_here() -> None:
    known = [op for op in OPS.values() if op.base in quick._RULES]
    for op in known:
        args, kwargs = SAMPLES[op.name]()
        found = quick.quick(bind(op, args, kwargs), ask_torch)
        assert found is not None or op.name in ("aten.sum.default", "aten.mean.default", "aten.mean.dim"), op.name


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.float16])
OPERAND = st.one_of(
    st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), SHAPES, DTYPES),
    st.sampled_from([True, 2, 0.5]),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["add", "mul", "div", "pow", "eq", "maximum", "bitwise_and", "atan2"]), OPERAND, OPERAND)
def test_broadcasting_and_promotion(base: str, one: Any, other: Any) -> None:
    for overload in ("Tensor", "default", "Tensor_Tensor"):
        op = OPS.get(f"aten.{base}.{overload}")
        if op is not None:
            with contextlib.suppress(InvalidRequest):
                ours, theirs = answers(bind(op, [one, other], {}))
                assert ours == theirs
