"""What is refused before it runs: too much, and what a kernel would read, divide or crash on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grid.errors import InvalidRequest
from grid.tensors.bounds import OutOfBoundsError, examine, measure
from grid.tensors.ops import bind, lookup


def x(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def i(*values: int) -> torch.Tensor:
    return torch.tensor(values)


CONV = [[1, 1], [0, 0], [1, 1], False, [0, 0], 1]
POOL = [[2, 2], [2, 2], [0, 0], [1, 1], False]
POOL3 = [[2, 2, 2], [], [0, 0, 0], [1, 1, 1], False]

TOO_MUCH: list[tuple[str, list[Any]]] = [
    ("zeros.default", [[10**12]]),
    ("zeros.default", [[10**6, 10**6]]),
    ("expand.default", [x(1), [10**10]]),
    ("repeat.default", [x(4), [10**9]]),
    ("arange.default", [1e12]),
    ("arange.default", [float("inf")]),
    ("linspace.default", [0.0, 1.0, 10**11]),
    ("eye.default", [10**6]),
    ("randperm.default", [10**12]),
    ("tril_indices.default", [1 << 40, 1 << 40]),
    ("mm.default", [x(1, 1).expand(1 << 20, 1), x(1, 1).expand(1, 1 << 20)]),
    ("constant_pad_nd.default", [x(4), [10**10, 10**10]]),
    ("convolution.default", [x(1, 1, 4, 4), x(1, 1, 2, 2), None, [1, 1], [10**6, 10**6], [1, 1], False, [0, 0], 1]),
    ("convolution.default", [x(1, 1, 4, 4), x(1, 1, 2, 2), None, [1, 1], [0, 0], [10**12, 1], False, [0, 0], 1]),
    ("upsample_nearest2d.default", [x(1, 1, 4, 4), [10**6, 10**6]]),
    ("split.Tensor", [x(1).expand(10**6), 1]),
    ("unbind.int", [x(1).expand(10**6)]),
    ("histc.default", [x(4), 10**12, 0, 1]),
    ("new_empty_strided.default", [x(1), [2, 2], [10**9, 1]]),
    ("new_empty_strided.default", [x(1), [2, 2], [0, 1]]),
    ("cat.default", [[x(1)] * 5000]),
    ("embedding_dense_backward.default", [x(2, 3), i(0, 1), 10**10, -1, False]),
]


@pytest.mark.parametrize(("name", "args"), TOO_MUCH, ids=lambda value: value if isinstance(value, str) else "")
def test_too_much_is_refused_before_anything_is_made(name: str, args: list[Any]) -> None:
    with pytest.raises(InvalidRequest):
        measure(bind(lookup(f"aten.{name}"), args, {}))


def test_repeated_elements_count() -> None:
    bound = bind(lookup("aten.expand.default"), [x(1), [1000]], {})
    measure(bound, 1000)
    with pytest.raises(InvalidRequest, match="1000 elements; one operation may make 999"):
        measure(bound, 999)


MISFITS: list[tuple[str, list[Any]]] = [
    ("native_layer_norm_backward.default", [x(9, 4), x(9, 4), [4], x(1, 1), x(1, 1), None, None, [True, False, False]]),
    ("native_layer_norm_backward.default", [x(9, 4), x(9, 4), [4], x(9, 1), x(9, 1), None, None, [True, True, False]]),
    ("native_layer_norm_backward.default", [x(1, 4), x(9, 4), [4], x(9, 1), x(9, 1), None, None, [True, False, False]]),
    ("native_group_norm.default", [x(2, 4, 3), None, None, 200, 400, 300, 2, 1e-5]),
    ("native_group_norm.default", [x(2, 4, 3), None, None, 2, 4, 3, 0, 1e-5]),
    ("native_group_norm_backward.default", [x(2, 4, 3), x(2, 4, 3), x(1, 1), x(1, 1), None, 2, 4, 3, 2, [True, False, False]]),
    ("native_batch_norm_backward.default", [x(4, 9), x(4, 9), None, None, None, x(1), x(1), True, 1e-5, [True, True, True]]),
    ("native_batch_norm.default", [x(4, 9), None, None, x(1), x(1), False, 0.1, 1e-5]),
    ("native_batch_norm.default", [x(4, 9), None, None, None, None, False, 0.1, 1e-5]),
    ("_adaptive_avg_pool2d_backward.default", [x(1, 1, 2, 2), x(6, 6, 4, 4)]),
    ("_adaptive_avg_pool2d_backward.default", [x(6, 2, 2, 2), x(6, 2, 4, 0)]),
    ("avg_pool2d_backward.default", [x(1, 1, 1, 1), x(6, 6, 4, 4), [2, 2], [], [0, 0], False, True, None]),
    ("max_pool2d_with_indices_backward.default", [x(1, 1, 2, 2), x(9, 9, 4, 4), *POOL, i(0).expand(1, 1, 2, 2)]),
    ("_adaptive_avg_pool3d_backward.default", [x(1, 1, 2, 2, 2), x(6, 6, 4, 4, 4)]),
    ("_adaptive_avg_pool3d_backward.default", [x(2, 3, 4, 4, 4), x(2, 3, 0, 4, 4)]),
    ("avg_pool3d.default", [x(1, 1, 4, 4, 4), [0, 2, 2]]),
    ("avg_pool3d.default", [x(1, 1, 4, 4, 4), [2, 2, 2], [0, 1, 1]]),
    ("avg_pool3d.default", [x(1, 1, 4, 4, 4), [2, 2, 2], [1, 1, 1], [5, 5, 5]]),
    ("max_pool3d_with_indices.default", [x(1, 1, 4, 4, 4), [2, 2, 2], [1, 1, 1], [-1, 0, 0]]),
    ("avg_pool3d_backward.default", [x(1, 1, 1, 1, 1), x(6, 6, 4, 4, 4), [2, 2, 2], [], [0, 0, 0], False, True, None]),
    ("max_pool3d_with_indices_backward.default", [x(1, 1, 2, 2, 2), x(9, 9, 4, 4, 4), *POOL3, i(0).expand(1, 1, 2, 2, 2)]),
    ("diag_embed.default", [x(3), 1 << 40]),
    ("isin.Tensor_Tensor", [x(3)]),
    ("reflection_pad2d_backward.default", [x(1, 1, 6, 6), x(6, 6, 4, 4), [1, 1, 1, 1]]),
    ("glu_backward.default", [x(1, 1), x(40, 40), 1]),
    ("_softmax_backward_data.default", [x(2, 2), x(20, 20), 1, torch.float32]),
    ("_log_softmax_backward_data.default", [x(60, 8), x(1, 8), 1, torch.float32]),
    ("_log_softmax_backward_data.default", [x(2, 0, 4), x(), 0, torch.float32]),
    ("_adaptive_avg_pool2d_backward.default", [x(2, 3, 4, 4), x(2, 3, 0, 4)]),
    ("_scaled_dot_product_flash_attention_for_cpu.default", [x(2, 2, 4, 4), x(2, 2, 0, 4), x(2, 2, 0, 4)]),
    ("convolution_backward.default", [x(1, 1, 2, 2), x(4, 3, 8, 8), x(5, 3, 3, 3), [5], *CONV, [True, True, True]]),
    ("_scaled_dot_product_flash_attention_for_cpu.default", [x(6, 2, 0, 4)] * 3),
    ("_scaled_dot_product_flash_attention_for_cpu_backward.default", [x(2, 2, 6, 4)] * 5 + [x(1, 1, 1), 0.0, False]),
    ("smooth_l1_loss_backward.default", [i(1), i(2), i(3), 2, 1e-310]),
    ("binary_cross_entropy_backward.default", [x(6, 1, 4), x(6, 4), x(6, 4), None, 0]),
    ("mse_loss.default", [x(2), x(2), -100]),
    ("upsample_nearest2d.default", [x(1, 1, 4, 4), [8, 8], 1e-310, 1e-310]),
    ("linalg_lu_solve.default", [x(3, 3), torch.ones(2, dtype=torch.int32), x(3, 1)]),
    ("nll_loss_backward.default", [x(), x(4, 3), i(0, 1, 2), None, 1, -100, x()]),
    ("addmm.default", [x(6, 6), x(1, 2), x(2, 6)]),
    ("select_backward.default", [x(3), [6, 6], 0, 0]),
    ("select_scatter.default", [x(6, 6), x(1), 0, 0]),
    ("index_put.default", [x(3, 3), [i(0, 1)], x(4, 2, 3)]),
    ("index.Tensor", [x(3), [torch.tensor([True, False, True])]]),
    ("scatter_add.default", [x(3, 3), 0, torch.zeros(3, 5, dtype=torch.long), x(3, 5)]),
    ("searchsorted.Tensor", [x(3), x(3), False, False, None, i(9, 9, 9)]),
    ("maximum.out", [x(3, 2), x(2), x(2)]),
    ("minimum.out", [x(3), x(1), x(0)]),
    ("_foreach_add_.Scalar", [[x(3), x(1).expand(3)], 1.0]),
]


@pytest.mark.parametrize(("name", "args"), MISFITS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_kernel_would_take_on_trust_is_refused(name: str, args: list[Any]) -> None:
    kwargs = {}
    op = lookup(f"aten.{name}")
    if len(args) > op.positional:
        kwargs = {p.name: value for p, value in zip(op.parameters[op.positional :], args[op.positional :], strict=False)}
    with pytest.raises(InvalidRequest):
        measure(bind(op, args[: op.positional], kwargs))


VALUES: list[tuple[str, list[Any]]] = [
    ("index.Tensor", [x(3), [i(3)]]),
    ("index.Tensor", [x(3), [i(-4)]]),
    ("index_select.default", [x(3), 0, i(-1)]),
    ("index_put_.default", [x(3), [i(0, 99)], x(2)]),
    ("index_add.default", [x(3), 0, i(10**9), x(1)]),
    ("gather.default", [x(3), 0, i(3)]),
    ("scatter.value", [x(3), 0, i(3), 1.0]),
    ("embedding.default", [x(3, 2), i(10**9)]),
    ("embedding_dense_backward.default", [x(2, 3), i(0, -5), 5, -1, False]),
    ("nll_loss_forward.default", [x(2, 3), i(0, 3), None, 1, -100]),
    ("max_pool2d_with_indices_backward.default", [x(1, 1, 2, 2), x(1, 1, 4, 4), *POOL, i(10**7).expand(1, 1, 2, 2)]),
    ("max_pool3d_with_indices_backward.default", [x(1, 1, 2, 2, 2), x(1, 1, 4, 4, 4), *POOL3, i(64).expand(1, 1, 2, 2, 2)]),
    ("bernoulli_.Tensor", [x(2), x(2) * 2]),
    ("linalg_lu_solve.default", [x(2, 2), torch.tensor([1, 9], dtype=torch.int32), x(2, 1)]),
]


@pytest.mark.parametrize(("name", "args"), VALUES, ids=lambda value: value if isinstance(value, str) else "")
def test_values_out_of_range_are_found(name: str, args: list[Any]) -> None:
    bound = bind(lookup(f"aten.{name}"), args, {})
    measure(bound)
    with pytest.raises(OutOfBoundsError):
        examine(bound)


@pytest.mark.parametrize("other", [-1, i(-1)], ids=["number", "tensor"])
def test_the_division_that_stops_a_processor(other: Any) -> None:
    name = "aten.div.Scalar_mode" if isinstance(other, int) else "aten.div.Tensor_mode"
    with pytest.raises(OutOfBoundsError):
        examine(bind(lookup(name), [i(-(2**63)), other], {"rounding_mode": "trunc"}))
    examine(bind(lookup(name), [i(5), other], {"rounding_mode": "trunc"}))


def test_ignored_classes_are_in_range() -> None:
    examine(bind(lookup("aten.nll_loss_forward.default"), [x(2, 3), i(0, -100), None, 1, -100], {}))


def test_memory_that_repeats_is_not_written() -> None:
    with pytest.raises(InvalidRequest, match="clone it first"):
        measure(bind(lookup("aten.zero_.default"), [x(1).expand(3)], {}))
