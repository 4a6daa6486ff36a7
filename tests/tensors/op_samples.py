"""One call that works for every operation of the table: `SAMPLES[name]` makes its arguments, positional and by keyword.

Elementwise operations and their like are filled in from their schemas; all others are written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grid.tensors.ops import OPS, Op

Sample = tuple[list[Any], dict[str, Any]]


def r(*shape: int) -> Tensor:
    """Values strictly between 0 and 1, so that logarithms, roots and probabilities are defined."""
    return torch.rand(shape) * 0.8 + 0.1


def k(*shape: int, below: int = 3) -> Tensor:
    return torch.randint(0, below, shape)


def s(*args: Any, **kwargs: Any) -> Callable[[], Sample]:
    """A sample whose tensors are drawn anew, by calling what can be called."""

    def fresh(value: Any) -> Any:
        return [fresh(item) for item in value] if isinstance(value, list) else value() if callable(value) else value

    return lambda: ([fresh(arg) for arg in args], {name: fresh(arg) for name, arg in kwargs.items()})


def t(*shape: int) -> Callable[[], Tensor]:
    return lambda: r(*shape)


def i(*shape: int, below: int = 3) -> Callable[[], Tensor]:
    return lambda: k(*shape, below=below)


def spd() -> Tensor:
    """A well-conditioned symmetric matrix."""
    return torch.eye(3) * 3 + 0.5


def square(name: str, *more: Any, **kwargs: Any) -> dict[str, Callable[[], Sample]]:
    return {name: s(spd, *more, **kwargs)}


X, X3, IMG = t(6, 4), t(6, 4, 2), t(6, 2, 4, 4)
VOL = t(3, 2, 4, 4, 4)
CONV = [[1, 1], [0, 0], [1, 1], False, [0, 0], 1]
BN = [t(2), t(2), t(2), t(2)]
QKV = t(2, 2, 5, 4)

WRITTEN: dict[str, Callable[[], Sample]] = {
    "maximum.out": s(X, X, out=X),
    "minimum.out": s(X, X, out=X),
    "where.self": s(lambda: r(6, 4) > 0.5, X, X),
    "where.Scalar": s(lambda: r(6, 4) > 0.5, 1.0, 2.0),
    "where.ScalarOther": s(lambda: r(6, 4) > 0.5, X, 2.0),
    "where.ScalarSelf": s(lambda: r(6, 4) > 0.5, 1.0, X),
    "masked_fill.Scalar": s(X, lambda: r(6, 4) > 0.5, 0.0),
    "masked_fill.Tensor": s(X, lambda: r(6, 4) > 0.5, t()),
    "masked_fill_.Scalar": s(X, lambda: r(6, 4) > 0.5, 0.0),
    "masked_fill_.Tensor": s(X, lambda: r(6, 4) > 0.5, t()),
    "native_dropout_backward.default": s(X, lambda: r(6, 4) > 0.5, 2.0),
    "log_sigmoid_backward.default": s(X, X, X),
    "_prelu_kernel.default": s(X, t(1, 4)),
    "_prelu_kernel_backward.default": s(X, t(1, 4), X),
    "fill_.Tensor": s(X, t()),
    "nan_to_num.default": s(X, 0.0),
    "polygamma.default": s(1, X),
    "clamp.default": s(X, 0.2, 0.7),
    "clamp_.default": s(X, 0.2, 0.7),
    "clamp.Tensor": s(X, X),
    "clamp_.Tensor": s(X, X),
    "elu_backward.default": s(X, 1.0, 1.0, 1.0, False, X),
    "hardtanh_backward.default": s(X, X, 0.0, 1.0),
    "leaky_relu_backward.default": s(X, X, 0.1, False),
    "softplus_backward.default": s(X, X, 1.0, 20.0),
    "threshold.default": s(X, 0.2, 0.0),
    "threshold_.default": s(X, 0.2, 0.0),
    "threshold_backward.default": s(X, X, 0.0),
    "logit.default": s(X, 1e-6),
    "logit_backward.default": s(X, X, 1e-6),
    "_to_copy.default": s(X, dtype=torch.float64),
    "div.Tensor_mode": s(X, X, rounding_mode="floor"),
    "div_.Tensor_mode": s(X, X, rounding_mode="floor"),
    "div.Scalar_mode": s(X, 2.0, rounding_mode="trunc"),
    "round.decimals": s(X, decimals=1),
    "zeros.default": s([6, 4]),
    "ones.default": s([6]),
    "full.default": s([6], 2.0),
    "scalar_tensor.default": s(2.0),
    "full_like.default": s(X, 1.0),
    "new_zeros.default": s(X, [3]),
    "new_ones.default": s(X, [3]),
    "new_full.default": s(X, [3], 1.0),
    "empty.memory_format": s([6, 4]),
    "new_empty.default": s(X, [3]),
    "new_empty_strided.default": s(X, [3, 2], [1, 3]),
    "arange.default": s(6),
    "arange.start": s(1, 6),
    "arange.start_step": s(1, 6, 2),
    "linspace.default": s(0.0, 1.0, 6),
    "eye.default": s(6),
    "eye.m": s(6, 4),
    "tril_indices.default": s(3, 3),
    "triu_indices.default": s(3, 3),
    "rand.default": s([6]),
    "randn.default": s([6]),
    "randint.default": s(5, [6]),
    "randint.low": s(2, 5, [6]),
    "randperm.default": s(6),
    "randint_like.default": s(X, 5),
    "randint_like.low_dtype": s(X, 2, 5),
    "bernoulli.p": s(X, 0.5),
    "bernoulli_.float": s(X, 0.5),
    "bernoulli_.Tensor": s(X, X),
    "random_.from": s(X, 1, 5),
    "random_.to": s(X, 5),
    "native_dropout.default": s(X, 0.5, True),
    "sum.dim_IntList": s(X, [0]),
    "mean.dim": s(X, [0]),
    "norm.Scalar": s(X, 2),
    "norm.ScalarOpt_dim": s(X, 2, [0]),
    "norm.ScalarOpt_dim_dtype": s(X, 2, [0], False, dtype=torch.float64),
    "logsumexp.default": s(X, [1]),
    "count_nonzero.dim_IntList": s(X, [0]),
    "max.dim": s(X, 1),
    "min.dim": s(X, 1),
    "median.dim": s(X, 1),
    "nanmedian.dim": s(X, 1),
    "prod.dim_int": s(X, 1),
    "any.dim": s(X, 1),
    "any.dims": s(X, [1]),
    "all.dim": s(X, 1),
    "all.dims": s(X, [1]),
    "kthvalue.default": s(X, 2, 1),
    "_softmax.default": s(X, 1, False),
    "_log_softmax.default": s(X, 1, False),
    "_safe_softmax.default": s(X, 1),
    "_softmax_backward_data.default": s(X, X, 1, torch.float32),
    "_log_softmax_backward_data.default": s(X, X, 1, torch.float32),
    "cumsum.default": s(X, 1),
    "cumprod.default": s(X, 1),
    "cummax.default": s(X, 1),
    "cummin.default": s(X, 1),
    "logcumsumexp.default": s(X, 1),
    "sort.stable": s(X, stable=True, dim=1),
    "topk.default": s(X, 2, 1),
    "flip.default": s(X, [1]),
    "roll.default": s(X, [1], [1]),
    "glu.default": s(X, 1),
    "glu_backward.default": s(t(6, 2), X, 1),
    "view.default": s(X, [6, 2, 2]),
    "_unsafe_view.default": s(X, [24]),
    "unsqueeze.default": s(X, 1),
    "squeeze.dim": s(t(6, 1), 1),
    "squeeze.dims": s(t(6, 1, 1), [1, 2]),
    "permute.default": s(X3, [2, 0, 1]),
    "transpose.int": s(X, 0, 1),
    "expand.default": s(t(6, 1), [6, 4]),
    "diagonal.default": s(t(6, 4, 4), 0, 1, 2),
    "diagonal_copy.default": s(t(6, 4, 4), 0, 1, 2),
    "diag_embed.default": s(X),
    "diagonal_backward.default": s(X, [6, 4, 4], 0, 1, 2),
    "slice.Tensor": s(X, 0, 1, 5, 2),
    "select.int": s(X, 1, 2),
    "split.Tensor": s(X, 2, 1),
    "split_with_sizes.default": s(X, [1, 3], 1),
    "unsafe_split.Tensor": s(X, 2, 1),
    "unsafe_split_with_sizes.default": s(X, [1, 3], 1),
    "unbind.int": s(X, 1),
    "index_select.default": s(X, 0, lambda: torch.tensor([0, 2, 5])),
    "index.Tensor": s(X, [None, lambda: torch.tensor([0, -1])]),
    "embedding.default": s(t(5, 3), i(6, 2)),
    "embedding_dense_backward.default": s(t(6, 2, 3), i(6, 2), 5, -1, False),
    "gather.default": s(X, 1, i(6, 2)),
    "scatter.src": s(X, 1, lambda: torch.tensor([[0, 1]] * 6), t(6, 2)),
    "scatter.value": s(X, 1, i(6, 1), 1.0),
    "scatter_.src": s(X, 1, lambda: torch.tensor([[0, 1]] * 6), t(6, 2)),
    "scatter_.value": s(X, 1, i(6, 1), 1.0),
    "scatter_add.default": s(t(3), 0, i(6), t(6)),
    "scatter_add_.default": s(t(3), 0, i(6), t(6)),
    "index_put.default": s(t(3, 4), [i(6)], X, True),
    "index_put_.default": s(t(3, 4), [i(6)], X, True),
    "index_add.default": s(t(3, 4), 0, i(6), X),
    "index_add_.default": s(t(3, 4), 0, i(6), X),
    "index_fill.int_Scalar": s(t(3, 4), 0, i(2), 1.0),
    "index_fill_.int_Scalar": s(t(3, 4), 0, i(2), 1.0),
    "index_copy.default": s(t(3, 4), 0, lambda: torch.tensor([0, 2]), t(2, 4)),
    "index_copy_.default": s(t(3, 4), 0, lambda: torch.tensor([0, 2]), t(2, 4)),
    "select_scatter.default": s(X, t(6), 1, 2),
    "slice_scatter.default": s(X, t(6, 2), 1, 0, 2),
    "select_backward.default": s(t(6), [6, 4], 1, 2),
    "slice_backward.default": s(t(6, 2), [6, 4], 1, 0, 2, 1),
    "cat.default": s([X, X], 1),
    "stack.default": s([X, X], 1),
    "constant_pad_nd.default": s(X, [1, 2], 0.0),
    "repeat.default": s(X, [2, 1]),
    "avg_pool2d.default": s(IMG, [2, 2]),
    "avg_pool2d_backward.default": s(t(6, 2, 2, 2), IMG, [2, 2], [], [0, 0], False, True, None),
    "_adaptive_avg_pool2d.default": s(IMG, [2, 2]),
    "_adaptive_avg_pool2d_backward.default": s(t(6, 2, 2, 2), IMG),
    "max_pool2d_with_indices.default": s(IMG, [2, 2]),
    "max_pool2d_with_indices_backward.default": s(
        t(6, 2, 2, 2), IMG, [2, 2], [], [0, 0], [1, 1], False, i(6, 2, 2, 2, below=16)
    ),
    "adaptive_max_pool2d.default": s(IMG, [2, 2]),
    "adaptive_max_pool2d_backward.default": s(t(6, 2, 2, 2), IMG, i(6, 2, 2, 2, below=16)),
    "avg_pool3d.default": s(VOL, [2, 2, 2]),
    "avg_pool3d_backward.default": s(t(3, 2, 2, 2, 2), VOL, [2, 2, 2], [], [0, 0, 0], False, True, None),
    "_adaptive_avg_pool3d.default": s(VOL, [2, 2, 2]),
    "_adaptive_avg_pool3d_backward.default": s(t(3, 2, 2, 2, 2), VOL),
    "max_pool3d_with_indices.default": s(VOL, [2, 2, 2]),
    "max_pool3d_with_indices_backward.default": s(
        t(3, 2, 2, 2, 2), VOL, [2, 2, 2], [], [0, 0, 0], [1, 1, 1], False, i(3, 2, 2, 2, 2, below=64)
    ),
    "upsample_nearest2d.default": s(IMG, [8, 8]),
    "upsample_nearest2d_backward.default": s(t(6, 2, 8, 8), [8, 8], [6, 2, 4, 4]),
    "upsample_bilinear2d.default": s(IMG, [8, 8], False),
    "upsample_bilinear2d_backward.default": s(t(6, 2, 8, 8), [8, 8], [6, 2, 4, 4], False),
    "reflection_pad2d.default": s(IMG, [1, 1, 1, 1]),
    "reflection_pad2d_backward.default": s(t(6, 2, 6, 6), IMG, [1, 1, 1, 1]),
    "replication_pad2d.default": s(IMG, [1, 1, 1, 1]),
    "replication_pad2d_backward.default": s(t(6, 2, 6, 6), IMG, [1, 1, 1, 1]),
    "mm.default": s(X, t(4, 3)),
    "addmm.default": s(t(3), X, t(4, 3)),
    "bmm.default": s(X3, t(6, 2, 3)),
    "baddbmm.default": s(t(6, 4, 3), X3, t(6, 2, 3)),
    "mv.default": s(X, t(4)),
    "addmv.default": s(t(6), X, t(4)),
    "dot.default": s(t(6), t(6)),
    "vdot.default": s(t(6), t(6)),
    "addr.default": s(X, t(6), t(4)),
    "convolution.default": s(IMG, t(3, 2, 3, 3), t(3), *CONV),
    "convolution_backward.default": s(t(6, 3, 2, 2), IMG, t(3, 2, 3, 3), [3], *CONV, [True, True, True]),
    "native_batch_norm.default": s(IMG, *BN, True, 0.1, 1e-5),
    "_native_batch_norm_legit.default": s(IMG, *BN, True, 0.1, 1e-5),
    "_native_batch_norm_legit.no_stats": s(IMG, t(2), t(2), True, 0.1, 1e-5),
    "_native_batch_norm_legit_no_training.default": s(IMG, *BN, 0.1, 1e-5),
    "_native_batch_norm_legit_functional.default": s(IMG, *BN, True, 0.1, 1e-5),
    "_batch_norm_with_update.default": s(IMG, *BN, 0.1, 1e-5),
    "_batch_norm_with_update_functional.default": s(IMG, *BN, 0.1, 1e-5),
    "_batch_norm_no_update.default": s(IMG, *BN, 0.1, 1e-5),
    "native_batch_norm_backward.default": s(
        IMG, IMG, t(2), t(2), t(2), t(2), t(2), True, 1e-5, [True, True, True]
    ),
    "batch_norm_backward.default": s(
        IMG, IMG, t(2), t(2), t(2), t(2), t(2), True, 1e-5, [True, True, True], lambda: torch.zeros(0, dtype=torch.uint8)
    ),
    "native_layer_norm.default": s(X, [4], t(4), t(4), 1e-5),
    "native_layer_norm_backward.default": s(X, X, [4], t(6, 1), t(6, 1), t(4), t(4), [True, True, True]),
    "native_group_norm.default": s(IMG, t(2), t(2), 6, 2, 16, 1, 1e-5),
    "native_group_norm_backward.default": s(IMG, IMG, t(6, 1), t(6, 1), t(2), 6, 2, 16, 1, [True, True, True]),
    "_scaled_dot_product_flash_attention_for_cpu.default": s(QKV, QKV, QKV),
    "_scaled_dot_product_flash_attention_for_cpu_backward.default": s(
        QKV, QKV, QKV, QKV, QKV, t(2, 2, 5), 0.0, False
    ),
    "nll_loss_forward.default": s(X, i(6), t(4), 1, -100),
    "nll_loss2d_forward.default": s(IMG, i(6, 4, 4, below=2), None, 0, -100),
    "nll_loss_backward.default": s(t(), X, i(6), None, 1, -100, t()),
    "nll_loss2d_backward.default": s(t(), IMG, i(6, 4, 4, below=2), None, 1, -100, t()),
    "huber_loss_backward.default": s(X, X, X, 0, 1.0),
    "smooth_l1_loss_backward.default": s(X, X, X, 0, 1.0),
    "mse_loss_backward.default": s(X, X, X, 0),
    "binary_cross_entropy_backward.default": s(X, X, X, None, 0),
    "soft_margin_loss_backward.default": s(X, X, X, 0),
    "histc.default": s(X, 4, 0.0, 1.0),
    "bucketize.Tensor": s(X, t(3)),
    "isin.Tensor_Tensor": s(i(6, 4), i(2)),
    "bucketize.Scalar": s(0.5, t(3)),
    "searchsorted.Tensor": s(t(3), X),
    "_linalg_solve_ex.default": s(spd, t(3, 2)),
    "_linalg_eigh.default": s(spd),
    "linalg_lu_solve.default": s(spd, lambda: torch.tensor([1, 2, 3], dtype=torch.int32), t(3, 2)),
    "linalg_solve_triangular.default": s(spd, t(3, 2), upper=True),
    "cholesky_solve.default": s(t(3, 2), spd),
    "linalg_qr.default": s(spd),
    "dist.default": s(X, X),
    "_linalg_check_errors.default": s(lambda: torch.zeros((), dtype=torch.int32), "solve", is_matrix=True),
    "_foreach_div_.ScalarList": s([X, t(3)], [2.0, 3.0]),
    "_foreach_addcdiv_.ScalarList": s([X, t(3)], [X, t(3)], [X, t(3)], [2.0, 3.0]),
    "_foreach_mul_.Tensor": s([X, t(3)], t()),
    "_foreach_mul.Tensor": s([X, t(3)], t()),
    "_foreach_lerp_.Scalar": s([X, t(3)], [X, t(3)], 0.5),
}
for _name in "linalg_inv_ex linalg_cholesky_ex _linalg_det _linalg_slogdet _linalg_svd linalg_lu_factor_ex trace".split():
    WRITTEN |= square(f"{_name}.default")


def from_schema(op: Op) -> Sample:
    """Tensors of one shape, one half for numbers, defaults for the rest; whole numbers where bits are worked on."""
    args: list[Any] = []
    for parameter in op.parameters[: op.positional]:
        if parameter.kind == "Tensor":
            args.append(k(6, 4) if op.base.startswith("bitwise") else r(6, 4))
        elif parameter.kind == "List[Tensor]":
            args.append([r(6, 4), r(3)])
        elif parameter.kind == "number":
            args.append(1 if op.base.startswith("bitwise") else 0.5)
        else:
            break
    return args, {}


SAMPLES: dict[str, Callable[[], Sample]] = {
    name: WRITTEN.get(name.removeprefix("aten."), lambda op=op: from_schema(op)) for name, op in OPS.items()  # type: ignore[misc]
}
