"""What one step costs beside the memory of its results: operations, and memory that it uses on the way.

Products, convolutions and attention count 2 for each multiplication with addition, as `torch.utils.flop_counter` does (tests
compare). What else takes longer than its elements are many is listed in `_COSTS`; all other operations count 1 for each element
read or written, and views nothing. The figures are for limits: they are to be right within a small factor, never too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from grid.tensors.ops import Bound

Results = Sequence[Tensor]


def flops(bound: Bound, results: Results) -> int:
    """Operations of a call that is no view."""
    cost = _COSTS.get(bound.op.base)
    return touched(bound, results) + (0 if cost is None else cost(bound, results))


def touched(bound: Bound, results: Results) -> int:
    """Elements read and written."""
    return sum(tensor.numel() for tensor in bound.tensors()) + sum(result.numel() for result in results)


def workspace(bound: Bound, results: Results) -> int:
    """Bytes that are in use within the step alone."""
    name = bound.op.base
    if name in ("sort", "topk", "kthvalue", "median", "nanmedian", "mode", "isin"):
        return 16 * touched(bound, ())
    if name not in ("convolution", "convolution_backward") or bound["input"].dtype is torch.float32:
        return 0
    weight, source = bound["weight"], bound["input"]  # the unfolded input, which kernels for other dtypes make
    spatial = results[0].shape[2:] if name == "convolution" else bound["grad_output"].shape[2:]
    return int(source.shape[0] * math.prod(weight.shape[1:]) * math.prod(spatial) * source.element_size())


def _product(bound: Bound, results: Results) -> int:
    """Each element of the result sums over the last dimension of the left factor, the last but one tensor."""
    left = list(bound.tensors())[-2]
    return int(2 * results[0].numel() * (left.shape[-1] if left.dim() else 1))


def _convolution(bound: Bound, results: Results) -> int:
    return _convolved(bound, results[0])


def _convolution_backward(bound: Bound, results: Results) -> int:
    return int(_convolved(bound, bound["grad_output"]) * sum(bound["output_mask"][:2]))


def _convolved(bound: Bound, output: Tensor) -> int:
    """Every position of the input, where transposed, or else of the output, meets the whole kernel once."""
    places = bound["input"] if bound["transposed"] else output
    return 2 * int(places.shape[0] * math.prod(places.shape[2:]) * bound["weight"].numel())


def _attention(bound: Bound, results: Results) -> int:
    """Scores, and values summed by them."""
    query, key, value = bound["query"], bound["key"], bound["value"]
    pairs = 2 * math.prod(query.shape[:-1]) * key.shape[-2]
    return int(pairs * (query.shape[-1] + value.shape[-1]))


def _attention_backward(bound: Bound, results: Results) -> int:
    """Scores once more, and gradients of scores, values, queries and keys."""
    query, key, value = bound["query"], bound["key"], bound["value"]
    pairs = 2 * math.prod(query.shape[:-1]) * key.shape[-2]
    return int(pairs * (3 * query.shape[-1] + 2 * value.shape[-1]))


def _pooled(bound: Bound, results: Results) -> int:
    """Each position of the smaller side looks at its window."""
    window = math.prod(bound["kernel_size"]) if "kernel_size" in bound.op.index else 1
    small = bound["grad_output"] if bound.op.base.endswith("backward") else results[0]
    return int(small.numel() * window)


def _matrix(times: int) -> Callable[[Bound, Results], int]:
    """Decompositions of matrices: `times` n^3 for each."""

    def cost(bound: Bound, results: Results) -> int:
        matrix = next(bound.tensors())
        return int(times * matrix.numel() * max(matrix.shape[-2:])) if matrix.dim() > 1 else 0

    return cost


def _sorted(bound: Bound, results: Results) -> int:
    elements = touched(bound, ())
    return elements * elements.bit_length()


def _pairs(bound: Bound, results: Results) -> int:
    """Every element with every other."""
    one, other = (tensor.numel() for tensor in list(bound.tensors())[:2])
    return one * other


_COSTS: Mapping[str, Callable[[Bound, Results], int]] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot"), _product),
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    **{
        f"{kind}_pool{n}d{suffix}": _pooled
        for kind, n, suffix in (
            *(("avg", n, back) for n in (2, 3) for back in ("", "_backward")),
            *(("max", n, back) for n in (2, 3) for back in ("_with_indices", "_with_indices_backward")),
        )
    },
    **dict.fromkeys(("_linalg_svd", "_linalg_eigh"), _matrix(30)),
    **dict.fromkeys(("_linalg_solve_ex", "linalg_inv_ex", "linalg_qr"), _matrix(4)),
    **dict.fromkeys(("linalg_cholesky_ex", "_linalg_det", "_linalg_slogdet", "linalg_lu_factor_ex"), _matrix(1)),
    **dict.fromkeys(("linalg_lu_solve", "linalg_solve_triangular", "cholesky_solve"), _matrix(2)),
    **dict.fromkeys(("sort", "topk", "kthvalue", "median", "nanmedian", "mode"), _sorted),
    "isin": _pairs,
}
"""Operation without its overload -> operations beside one for each element that it touches."""
