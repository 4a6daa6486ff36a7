"""Shapes of results without asking torch, for the operations that programs consist of.

torch's own answer, a run on meta tensors, takes some hundred microseconds for what it takes apart in Python. `quick` answers
where everything is dense and plain, and leaves all else, errors included, to torch. Elementwise operations are broadcast here;
which dtype they give, torch is asked once for each combination of dtypes. The tests compare both answers for the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from grid.tensors.ops import Bound

Results = list[tuple[Sequence[int], torch.dtype]]
Ask = Callable[["Bound"], list[Tensor]]

MAX_LEARNED = 1 << 14
"""Combinations of dtypes that are remembered; when there are more, they start anew."""

FLOATS = (torch.float32, torch.float64)
"""For narrower floats some kernels keep statistics in another dtype."""

_LEARNED: dict[Any, torch.dtype | None] = {}


def quick(bound: Bound, ask: Ask) -> list[Tensor] | None:
    """The results as meta tensors, all dense; None where torch has to say. `ask` is how torch is asked."""
    if bound.op.rule == "elementwise":
        return _elementwise(bound, ask)
    rule = _RULES.get(bound.op.base)
    if rule is None or not (bound.op.rule == "contract" or all(tensor.is_contiguous() for tensor in bound.tensors())):
        return None
    results = rule(bound)
    return None if results is None else [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in results]


def _elementwise(bound: Bound, ask: Ask) -> list[Tensor] | None:
    """One operand has the shape of the result, and the others can be broadcast to it."""
    op = bound.op
    if op.mutates or len(op.call._schema.returns) != 1:
        return None
    whole: torch.Size | None = None
    key: list[Any] = [op.name]
    tensors: list[Tensor] = []
    for value in bound.values:
        if isinstance(value, Tensor):
            if not value.is_contiguous():
                return None
            tensors.append(value)
            key.append((value.dtype, not value.dim()))
            if whole is None or (value.dim(), value.numel()) > (len(whole), whole.numel()):
                whole = value.shape
        elif type(value) is list or value is torch.channels_last:
            return None
        else:
            key.append(type(value) if type(value) in (int, float) else value)
    if whole is None or not all(tensor.shape == whole or _fits(tensor.shape, whole) for tensor in tensors):
        return None
    signature = tuple(key)
    if signature in _LEARNED:
        dtype = _LEARNED[signature]
        return None if dtype is None else [torch.empty(whole, dtype=dtype, device="meta")]
    results = ask(bound)
    if len(_LEARNED) >= MAX_LEARNED:
        _LEARNED.clear()
    plain = len(results) == 1 and results[0].shape == whole and results[0].is_contiguous()
    _LEARNED[signature] = results[0].dtype if plain else None
    return results


def _fits(small: Sequence[int], whole: Sequence[int]) -> bool:
    return all(n in (1, m) for n, m in zip(small[::-1], whole[::-1], strict=False))


def _mm(bound: Bound) -> Results | None:
    return _product(bound["self"], bound["mat2"], None)


def _addmm(bound: Bound) -> Results | None:
    return _product(bound["mat1"], bound["mat2"], bound["self"])


def _product(a: Tensor, b: Tensor, added: Tensor | None) -> Results | None:
    if not (a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and a.dtype is b.dtype and a.is_floating_point()):
        return None
    whole = (a.shape[0], b.shape[1])
    if added is not None and (added.dtype is not a.dtype or added.dim() > 2 or not _fits(added.shape, whole)):
        return None
    return [(whole, a.dtype)]


def _sum(bound: Bound) -> Results | None:
    """Sums and means of floats over dimensions that are named."""
    value, keep = bound["self"], bound["keepdim"]
    rank, dtype = value.dim(), bound["dtype"] or value.dtype
    dims = bound["dim"]
    if not (dims and value.is_floating_point() and dtype is value.dtype and all(-rank <= dim < rank for dim in dims)):
        return None
    gone = {dim % rank for dim in dims}
    if len(gone) != len(dims):
        return None
    shape = [1 if at in gone else size for at, size in enumerate(value.shape) if keep or at not in gone]
    return [(shape, dtype)]


def _softmax(bound: Bound) -> Results | None:
    value = bound["self"]
    fits = value.dtype in FLOATS and not bound["half_to_float"] and -value.dim() <= bound["dim"] < value.dim()
    return [(value.shape, value.dtype)] if fits else None


def _softmax_backward(bound: Bound) -> Results | None:
    grad, output = bound["grad_output"], bound["output"]
    same = grad.shape == output.shape and grad.dtype is output.dtype is bound["input_dtype"] and grad.dtype in FLOATS
    return [(grad.shape, grad.dtype)] if same and -grad.dim() <= bound["dim"] < grad.dim() else None


def _one_dtype(bound: Bound) -> torch.dtype | None:
    dtypes = {tensor.dtype for tensor in bound.tensors()}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(FLOATS) else None


def _layer_norm(bound: Bound) -> Results | None:
    value, dtype = bound["input"], _one_dtype(bound)
    count = value.dim() - len(bound["normalized_shape"])
    if dtype is None or count < 0 or list(value.shape[count:]) != list(bound["normalized_shape"]):
        return None
    saved = [*value.shape[:count], *[1] * len(bound["normalized_shape"])]
    return [(value.shape, dtype), (saved, dtype), (saved, dtype)]


def _group_norm(bound: Bound) -> Results | None:
    value, dtype = bound["input"], _one_dtype(bound)
    n, c, groups = bound["N"], bound["C"], bound["group"]
    if dtype is None or value.dim() < 2 or tuple(value.shape[:2]) != (n, c) or groups < 1 or c % groups:
        return None
    return [(value.shape, dtype), ((n, groups), dtype), ((n, groups), dtype)]


def _batch_norm(bound: Bound) -> Results | None:
    value, dtype = bound["input"], _one_dtype(bound)
    if dtype is None or value.dim() < 2 or not bound["training"]:
        return None
    channels = (value.shape[1],)
    return [(value.shape, dtype), *[(channels, dtype)] * 4]


def _gradients(bound: Bound, shapes: Iterable[Sequence[int]]) -> Results | None:
    dtype = _one_dtype(bound)
    wanted = zip(bound["output_mask"], shapes, strict=True)
    return None if dtype is None else [(shape, dtype) for is_wanted, shape in wanted if is_wanted]


def _layer_norm_backward(bound: Bound) -> Results | None:
    inner = bound["normalized_shape"]
    return _gradients(bound, (bound["input"].shape, inner, inner))


def _norm_backward(bound: Bound) -> Results | None:
    value = bound["input"]
    if value.dim() < 2:
        return None
    return _gradients(bound, (value.shape, value.shape[1:2], value.shape[1:2]))


def _nll(bound: Bound) -> Results | None:
    scores = bound["self"]
    if not _scores_fit(bound):
        return None
    return [((scores.shape[0],) if bound["reduction"] == 0 else (), scores.dtype), ((), scores.dtype)]


def _nll_backward(bound: Bound) -> Results | None:
    scores, grad = bound["self"], bound["grad_output"]
    fits = _scores_fit(bound) and grad.dtype is scores.dtype and bound["total_weight"].dtype is scores.dtype
    right = grad.shape == (scores.shape[:1] if bound["reduction"] == 0 else ())
    return [(scores.shape, scores.dtype)] if fits and right else None


def _scores_fit(bound: Bound) -> bool:
    scores, target, weight = bound["self"], bound["target"], bound["weight"]
    if scores.dim() != 2 or scores.dtype not in FLOATS or bound["reduction"] not in (0, 1, 2):
        return False
    if weight is not None and (weight.dtype is not scores.dtype or weight.shape != scores.shape[1:]):
        return False
    return target.dtype is torch.int64 and bool(target.shape == scores.shape[:1])


def _convolution_backward(bound: Bound) -> Results | None:
    value, weight = bound["input"], bound["weight"]
    if value.dim() != weight.dim():
        return None
    outputs = weight.shape[1] * bound["groups"] if bound["transposed"] else weight.shape[0]
    return _gradients(bound, (value.shape, weight.shape, (outputs,)))


_RULES: Mapping[str, Callable[[Bound], Results | None]] = {
    "mm": _mm,
    "addmm": _addmm,
    "sum": lambda bound: _sum(bound) if "dim" in bound.op.index else None,
    "mean": lambda bound: _sum(bound) if "dim" in bound.op.index else None,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "_softmax_backward_data": _softmax_backward,
    "_log_softmax_backward_data": _softmax_backward,
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "native_group_norm": _group_norm,
    "native_group_norm_backward": _norm_backward,
    "_native_batch_norm_legit_functional": _batch_norm,
    "native_batch_norm_backward": _norm_backward,
    "nll_loss_forward": _nll,
    "nll_loss_backward": _nll_backward,
    "convolution_backward": _convolution_backward,
}
