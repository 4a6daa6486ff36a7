"""The op table: every operation runs, its shape rule tells the truth, and received arguments are fitted or refused."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_samples import SAMPLES, WRITTEN
from torch import Tensor

from grid.errors import InvalidRequest, OpNotSupported
from grid.tensors import table
from grid.tensors.bounds import measure
from grid.tensors.ops import OPS, Bound, Meta, bind, flatten, infer, lookup, op_of, portable, shapes
from grid.tensors.rules import ROW_RULES
from grid.wire.messages import DType, MemoryFormat

aten = torch.ops.aten


@pytest.mark.parametrize("name", OPS)
def test_the_shape_rule_is_what_the_operation_does(name: str) -> None:
    args, kwargs = SAMPLES[name]()
    bound = bind(OPS[name], args, kwargs)
    announced = [(tuple(meta.shape), meta.dtype) for meta in measure(bound)]
    made = [(tuple(result.shape), result.dtype) for result in flatten(bound.run())]
    assert made == announced


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.rule == "batch_norm" and "training" in op.index])
def test_batch_norm_saves_nothing_in_evaluation(name: str) -> None:
    args, kwargs = SAMPLES[name]()
    args[OPS[name].index["training"]] = False
    if "running_mean" not in OPS[name].index:
        with pytest.raises(InvalidRequest, match="running_mean"):
            measure(bind(OPS[name], args, kwargs))
        return
    bound = bind(OPS[name], args, kwargs)
    assert [result.shape for result in measure(bound)] == [result.shape for result in flatten(bound.run())]


def test_every_name_of_the_table_exists_and_has_rule_and_bounds() -> None:
    names = [name for names in table.RULES.values() for name in names.split()]
    assert len(OPS) == len(names)
    assert {op.rule for op in OPS.values()} == set(ROW_RULES)
    assert {name for names in table.BOUNDS.values() for name in names.split()} <= set(names)
    assert {f"aten.{name}" for name in WRITTEN} <= set(OPS)


def test_what_an_operation_writes_is_known() -> None:
    for op in OPS.values():
        in_place = op.base.endswith("_") or op.name.endswith(".out")
        hidden = op.name.removeprefix("aten.") in table.HIDDEN_WRITES
        assert bool(op.mutates) == (in_place or hidden or op.name == "aten._native_batch_norm_legit.default"), op.name
        assert not (op.plannable and op.mutates)


def test_hidden_writes_are_those_that_happen() -> None:
    """Every operation is run on its sample, and exactly the arguments that changed are declared."""
    for name, op in OPS.items():
        args, kwargs = SAMPLES[name]()
        bound = bind(op, args, kwargs)
        before = copy.deepcopy(bound.values)
        bound.run()
        changed = {p.name for p, old, new in zip(op.parameters, before, bound.values, strict=True) if not _same(old, new)}
        assert changed <= set(op.mutates), name


def arrangements(x: Tensor) -> list[Tensor]:
    """The same values in other arrangements of memory: transposed, with gaps that hold something else, channels last."""
    if not x.dim() or not x.numel():
        return [x] * 5
    gaps = torch.full([2 * length for length in x.shape], 77).to(x.dtype)
    spaced = gaps[tuple(slice(1, None, 2) for _ in x.shape)]
    spaced.copy_(x)
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    swapped = x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x
    inner = x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 4 else x
    last = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    return [spaced, turned, swapped, inner, last]


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.rule not in ("random", "draw", "dropout") and not op.unfilled])
def test_the_arrangement_of_memory_does_not_change_a_result(name: str) -> None:
    """Several of torch's kernels read an operand as if it were dense, and so what lies in memory behind it."""
    args, kwargs = SAMPLES[name]()
    bound = bind(OPS[name], args, kwargs)
    expected = [result.clone() for result in flatten(Bound(bound.op, copy.deepcopy(bound.values)).run())]
    tensors = [at for at, value in enumerate(bound.values) if isinstance(value, Tensor)]
    for at in [*[[one] for one in tensors], tensors]:
        for which in range(5):
            values = list(copy.deepcopy(bound.values))
            for one in at:
                values[one] = arrangements(values[one])[which]
            other = Bound(bound.op, tuple(values))
            with contextlib.suppress(InvalidRequest):  # a view of memory that cannot be viewed so, a target with gaps
                measure(other)
                torch.testing.assert_close(flatten(other.run()), expected, equal_nan=True)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return torch.equal(old, new)
    if isinstance(old, list):
        return all(_same(a, b) for a, b in zip(old, new, strict=True))
    return True


def test_nothing_that_reaches_other_memory_is_there() -> None:
    for base in ("as_strided", "set_", "resize_", "_reshape_alias", "unfold", "_local_scalar_dense", "nonzero", "masked_select"):
        assert not any(op.base.startswith(base) for op in OPS.values())


def test_an_unknown_operation_is_refused_with_advice() -> None:
    with pytest.raises(OpNotSupported, match=r"use `torch\.where"):
        lookup("aten.nonzero.default")
    with pytest.raises(OpNotSupported, match="__import__"):
        lookup("__import__")
    with pytest.raises(OpNotSupported):
        lookup("aten.mm.default\0")
    with pytest.raises(OpNotSupported):
        op_of(aten.nonzero.default)


def test_arguments_are_fitted_by_position_and_name() -> None:
    x = torch.ones(2, 3)
    bound = bind(lookup("aten.sum.dim_IntList"), [x, [0]], {"keepdim": True, "dtype": DType("f8")})
    assert (bound["dim"], bound["keepdim"], bound["dtype"]) == ([0], True, torch.float64)
    assert bound.run().shape == (1, 3)
    assert bind(lookup("aten.sum.dim_IntList"), [x, 0], {})["dim"] == [0]
    assert bind(lookup("aten.clone.default"), [x], {"memory_format": MemoryFormat("contiguous")}).run().shape == (2, 3)
    assert bind(lookup("aten.mul.Tensor"), [x, 2], {}).run().sum() == 12


BAD: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("aten.mm.default", [torch.ones(2, 3)], {}, "needs the argument 'mat2'"),
    ("aten.mm.default", [torch.ones(2, 3), 3], {}, "must be a tensor"),
    ("aten.mm.default", [torch.ones(2, 3), None], {}, "must be given"),
    ("aten.mm.default", [torch.ones(2, 3)] * 3, {}, "takes 2 arguments by position"),
    ("aten.mm.default", [torch.ones(2, 3), torch.ones(4, 2)], {}, "aten.mm.default"),
    ("aten.mm.default", [torch.ones(2, 3), torch.ones(3, 2)], {"mat2": torch.ones(3, 2)}, "twice"),
    ("aten.relu.default", [torch.ones(2)], {"bogus": 1}, "no argument 'bogus'"),
    ("aten.relu.default", [torch.ones(2)], {7: 1}, "no argument '7'"),
    ("aten.sum.dim_IntList", [torch.ones(2), [0.0]], {}, "must be a whole number"),
    ("aten.sum.dim_IntList", [torch.ones(2), [float("nan")]], {}, "must be a whole number"),
    ("aten.sum.dim_IntList", [torch.ones(2), [[0]]], {}, "must be a whole number"),
    ("aten.sum.dim_IntList", [torch.ones(2), [True]], {}, "must be a whole number"),
    ("aten.sum.dim_IntList", [torch.ones(2), [0] * 5000], {}, "at most 4096"),
    ("aten.select.int", [torch.ones(2), 0, 10**30], {}, "64 bits"),
    ("aten.zeros.default", [[1 << 41]], {}, "2\\*\\*40"),
    ("aten.zeros.default", [[-1]], {}, "aten.zeros.default"),
    ("aten.zeros.default", [[3]], {"device": "cuda"}, "the node decides on 'device'"),
    ("aten.zeros.default", [[3]], {"pin_memory": True}, "the node decides on 'pin_memory'"),
    ("aten.uniform_.default", [torch.ones(2)], {"generator": 3}, "the node decides on 'generator'"),
    ("aten.zeros.default", [[3]], {"dtype": "f4"}, "must be a dtype"),
    ("aten.zeros.default", [[3]], {"dtype": DType("c16")}, "no dtype"),
    ("aten.clone.default", [torch.ones(2)], {"memory_format": MemoryFormat("sparse")}, "memory formats"),
    ("aten.add.Tensor", [torch.ones(2), torch.ones(2)], {"alpha": "1"}, "must be a number"),
    ("aten.stack.default", [torch.ones(2)], {}, "must be a list"),
    ("aten.stack.default", [[1]], {}, "must be a tensor"),
    ("aten.native_dropout.default", [torch.ones(2), True, True], {}, "must be a number"),
    ("aten.native_dropout.default", [torch.ones(2), 0.5, 1], {}, "true or false"),
    ("aten.gelu.default", [torch.ones(2)], {"approximate": "x" * 65}, "short text"),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "says"), BAD)
def test_arguments_that_do_not_fit_are_refused(name: str, args: list[Any], kwargs: dict[Any, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        measure(bind(lookup(name), args, kwargs))


leaf = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.builds(DType, st.text(max_size=4)),
    st.builds(MemoryFormat, st.text(max_size=4)), st.builds(lambda n: torch.ones(n), st.integers(0, 3)),
)  # fmt: skip
tree = st.recursive(leaf, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(st.sampled_from(sorted(OPS)), st.lists(tree, max_size=6), st.dictionaries(st.text(max_size=6), tree, max_size=2))
def test_any_arguments_are_fitted_or_refused(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    try:
        bound = bind(OPS[name], args, kwargs)
    except InvalidRequest as error:
        assert len(error.message) < 300
    else:
        assert len(bound.values) == len(OPS[name].parameters)


def test_a_torch_call_becomes_portable() -> None:
    x = torch.ones(2)
    given = {"dtype": torch.float64, "device": torch.device("cpu"), "layout": torch.strided, "non_blocking": False}
    op, args, kwargs = portable(aten._to_copy.default, (x,), given)
    assert op.name == "aten._to_copy.default"
    assert args[0] is x
    assert kwargs == {"dtype": DType("f8"), "non_blocking": False}
    assert portable(aten.clone.default, (x,), {"memory_format": torch.channels_last})[2] == {"memory_format": "channels_last"}
    with pytest.raises(InvalidRequest):
        portable(aten._to_copy.default, (x,), {"dtype": torch.complex64})


def test_shapes_need_no_memory() -> None:
    (made,) = shapes(lookup("aten.mm.default"), [Meta((1 << 20, 3), (3, 1), torch.float32).make(), torch.ones(3, 1 << 20)], {})
    assert made.shape == (1 << 20, 1 << 20)
    assert made.device.type == "meta"
    assert infer(bind(lookup("aten.zeros.default"), [[1 << 39]], {}))[0].numel() == 1 << 39
