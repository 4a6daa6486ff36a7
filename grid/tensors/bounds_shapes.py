"""What is checked of a call's shapes and constants before anything runs, where the kernel takes it on trust.

Several of torch's kernels, backward ones above all, read as far as one argument says in the memory of another, divide by
what may be 0, or stop the program on empty tensors. What a forward pass would have made is demanded here. `SHAPE_CHECKS`
names the checks as `grid.tensors.table` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from grid.errors import InvalidRequest, LocalProtocolError
from grid.tensors.ops import MAX_LIST, OPS, Bound, Meta, bind, elements, infer
from grid.tensors.table import BOUNDS
from grid.wire.dtypes import MAX_DIMS

MAX_ELEMENTS = 1 << 28
"""Default limit of the elements that one operation may produce, repeated ones of expanded dimensions counted."""

MAX_PADDING = 1 << 16
INDEX_DTYPES = (torch.int64, torch.int32)

_ARGUMENTS = {kind: {p.name for op in OPS.values() if op.bounds == kind for p in op.parameters} for kind in BOUNDS}
"""Bounds -> the arguments that operations with these bounds have. A check of any other would check nothing."""


def misfit(bound: Bound, text: str) -> InvalidRequest:
    return InvalidRequest(f"{bound.op.name}: {text}", op=bound.op.name)


def _demand(bound: Bound, holds: bool, text: str) -> None:
    if not holds:
        raise misfit(bound, text)


def _same(bound: Bound, name: str, *allowed: Sequence[int]) -> None:
    """The tensor argument, where the operation has it and it is given, has one of these shapes."""
    if name not in _ARGUMENTS[bound.op.bounds]:
        raise LocalProtocolError(f"no operation whose bounds are {bound.op.bounds!r} has an argument {name!r}")
    value = bound.get(name)
    if isinstance(value, Tensor) and tuple(value.shape) not in {tuple(shape) for shape in allowed}:
        wanted = " or ".join(str(tuple(shape)) for shape in allowed)
        raise misfit(bound, f"{name} has the shape {tuple(value.shape)} instead of {wanted}")


def _broadcasts(bound: Bound, small: tuple[int, ...], whole: tuple[int, ...]) -> None:
    """One shape can be broadcast to the other, which stays as it is."""
    fits = len(small) <= len(whole) and all(n in (1, m) for n, m in zip(small[::-1], whole[::-1], strict=False))
    _demand(bound, fits, f"{small} cannot be broadcast to {whole}")


def _pieces(bound: Bound) -> None:
    shape = tuple(bound["self"].shape)
    axis = bound["dim"]
    _demand(bound, -len(shape) <= axis < len(shape), f"there is no dimension {axis}")
    length, base = shape[axis], bound.op.base
    if base == "unbind":
        count = length
    elif base.endswith("with_sizes"):
        count = len(bound["split_sizes"])
    else:
        step = bound["split_size"]
        _demand(bound, step >= (1 if length else 0), "split_size must be at least 1")
        count = -(-length // max(step, 1))
    _demand(bound, count <= MAX_LIST, f"{count} pieces; at most {MAX_LIST} can be made at once")


def _strides(bound: Bound) -> None:
    """Only the strides of a dense tensor whose dimensions were permuted: no gaps, no overlap."""
    size, stride = bound["size"], bound["stride"]
    _demand(bound, len(size) == len(stride) and all(n >= 0 for n in size), "size and stride do not fit together")
    expected = 1
    for step, length in sorted((s, n) for s, n in zip(stride, size, strict=True) if n > 1):
        _demand(bound, step == expected, "the strides leave gaps or overlap")
        expected *= length


def _index(bound: Bound) -> None:
    for index in bound["indices"]:
        if index is not None and index.dtype not in INDEX_DTYPES:
            text = "a boolean mask is not an index here; use torch.where(mask, a, b), or a whole-number index"
            raise misfit(bound, text if index.dtype in (torch.bool, torch.uint8) else "an index must be of whole numbers")
    if bound.get("values") is not None:
        place = tuple(infer(bind(OPS["aten.index.Tensor"], [bound["self"], bound["indices"]], {}))[0].shape)
        _broadcasts(bound, tuple(bound["values"].shape), place)


def _dim_index(bound: Bound) -> None:
    own, index, axis = tuple(bound["self"].shape), bound["index"], bound["dim"]
    _demand(bound, index.dtype in INDEX_DTYPES, "an index must be of whole numbers")
    _demand(bound, -max(len(own), 1) <= axis < max(len(own), 1), f"there is no dimension {axis}")
    if not bound.op.base.startswith(("gather", "scatter")):
        _demand(bound, index.dim() <= 1, "the index must have one dimension")
        return
    others = [own] if bound.get("src") is None else [own, tuple(bound["src"].shape)]
    for shape in others:
        _demand(bound, index.dim() == len(shape) or 0 in (index.dim(), len(shape)), "the index has another number of dimensions")
    for at, length in enumerate(index.shape if index.dim() == len(own) else ()):
        for which, shape in enumerate(others):
            if not shape:
                continue
            free = which == 0 and at == axis % len(own)
            _demand(bound, free or length <= shape[at], f"the index is longer than its partner in dimension {at}")


def _embedding_backward(bound: Bound) -> None:
    _demand(bound, bound["num_weights"] >= 1, "num_weights must be at least 1")
    grad, indices = bound["grad_output"], bound["indices"]
    _demand(bound, indices.dtype in INDEX_DTYPES, "an index must be of whole numbers")
    _demand(bound, tuple(grad.shape[:-1]) == tuple(indices.shape) and grad.dim() > 0, "gradient and indices do not fit together")


def _classes(bound: Bound) -> None:
    scores, target = bound["self"], bound["target"]
    _demand(bound, scores.dim() in ((4,) if "2d" in bound.op.base else (1, 2)), "scores have a wrong number of dimensions")
    classes = scores.shape[1] if scores.dim() > 1 else scores.shape[0]
    per = (scores.shape[0], *scores.shape[2:]) if scores.dim() > 1 else ()
    _demand(bound, target.dtype in (torch.int64, torch.uint8), "classes must be int64")
    _same(bound, "target", per, *([(1,)] if not per else []))
    _same(bound, "weight", (classes,))
    _same(bound, "total_weight", (), (1,))
    _same(bound, "grad_output", *([per] if bound["reduction"] == 0 else [(), (1,)]))


def _gradient(bound: Bound) -> None:
    """The gradient has the shape that the forward operation would have made."""
    base = bound.op.base
    grad = "grad_output"
    if "softmax" in base:
        _same(bound, grad, bound["output"].shape)
        return
    if base.startswith("upsample"):
        size, out = bound["input_size"], bound["output_size"]
        _demand(bound, len(size) == 4 and len(out) == 2 and min(size + out) >= 1, "sizes do not fit together")
        _scales(bound)
        _same(bound, grad, [*size[:2], *out])
        return
    own = bound["self"]
    _demand(bound, min(own.shape, default=1) >= 1, "the input must not be empty")
    if "adaptive" in base:
        inner = 3 if "3d" in base else 2
        fits = own.dim() in (inner + 1, inner + 2) and bound[grad].dim() == own.dim()
        _demand(bound, fits, f"input and gradient must have {inner + 1} or {inner + 2} dimensions")
        _same(bound, grad, [*own.shape[:-inner], *bound[grad].shape[-inner:]])
        _same(bound, "indices", bound[grad].shape)
        return
    forward = OPS[f"aten.{base.removesuffix('_backward')}.default"]
    shape = infer(bind(forward, [bound[p.name] for p in forward.parameters], {}))[0].shape
    _same(bound, grad, shape)
    _same(bound, "indices", shape)
    _demand(bound, bound.get("indices") is None or bound["indices"].dtype is torch.int64, "indices must be int64")


def _scales(bound: Bound) -> None:
    for name in ("scales_h", "scales_w"):
        scale = bound.get(name)
        _demand(bound, scale is None or 2**-10 <= scale <= 2**10, f"{name} must lie between 2**-10 and 2**10")


def _layer_norm(bound: Bound) -> None:
    shape, normalised = tuple(bound["input"].shape), tuple(bound["normalized_shape"])
    count = len(shape) - len(normalised)
    fits = bool(normalised) and count >= 0 and shape[count:] == normalised
    _demand(bound, fits, "normalized_shape is not the end of the input's shape")
    _same(bound, "weight", normalised)
    _same(bound, "bias", normalised)
    _same(bound, "grad_out", shape)
    _masked(bound)
    for name in ("mean", "rstd"):
        _same(bound, name, [*shape[:count], *[1] * len(normalised)])


def _group_norm(bound: Bound) -> None:
    data, groups = bound["input"], bound["group"]
    n, c = bound["N"], bound["C"]
    _demand(bound, data.dim() >= 2 and tuple(data.shape[:2]) == (n, c), "N and C are not the input's first dimensions")
    _demand(bound, n * c * bound["HxW"] == data.numel(), "N x C x HxW is not the input's size")
    _demand(bound, groups >= 1 and c % groups == 0, "the channels cannot be cut into so many groups")
    _same(bound, "weight", (c,))
    _same(bound, "bias", (c,))
    _same(bound, "grad_out", data.shape)
    _masked(bound)
    for name in ("mean", "rstd"):
        _same(bound, name, (n, groups))


def _masked(bound: Bound) -> None:
    """Gradients are asked for parameters that are there alone."""
    mask = bound.get("output_mask", [False] * 3)
    _demand(bound, len(mask) == 3, "output_mask must have 3 items")
    for wanted, name in zip(mask[1:], ("weight", "bias" if "bias" in bound.op.index else "weight"), strict=True):
        _demand(bound, not wanted or bound[name] is not None, f"a gradient of {name} is asked for, and there is no {name}")


def _batch_norm(bound: Bound) -> None:
    data = bound["input"]
    _demand(bound, data.dim() >= 2, "the input must have at least 2 dimensions")
    channels = data.shape[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        _same(bound, name, (channels,))
    _same(bound, "grad_out", data.shape)
    trains = bool(bound.get("training", bound.get("train", bound.get("update", False))))
    backward = bound.op.base.endswith("backward")
    saved = ("save_mean", "save_invstd", "save_var") if backward else ()
    for name in saved if trains else ("running_mean", "running_var"):
        _demand(bound, name not in bound.op.index or bound[name] is not None, f"{name} is needed")
    for name in ("save_mean", "save_invstd", "save_var"):
        _same(bound, name, (channels,), *([] if trains else [(0,)]))


def _convolution(bound: Bound) -> None:
    weight = bound["weight"]
    for name in ("padding", "output_padding"):
        _demand(bound, all(0 <= amount <= MAX_PADDING for amount in bound[name]), f"{name} must lie between 0 and {MAX_PADDING}")
    for name in ("stride", "dilation"):
        _demand(bound, all(1 <= amount <= MAX_PADDING for amount in bound[name]), f"{name} must lie between 1 and {MAX_PADDING}")
    _demand(bound, bound["groups"] >= 1 and weight.dim() >= 3, "groups or weight do not fit a convolution")
    _demand(bound, bound["input"].dim() == weight.dim(), "the input must have a batch dimension")
    forward = OPS["aten.convolution.default"]
    names = ("input", "weight", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    given = {name: bound[name] for name in names}
    shape = tuple(infer(bind(forward, [], {**given, "bias": None}))[0].shape)
    _same(bound, "grad_output", shape)
    columns = elements(weight.shape[1:]) * elements(bound["input"].shape[2:] if bound["transposed"] else shape[2:])
    _demand(bound, columns <= MAX_ELEMENTS, "a picture times the kernel is too large")
    if bound.get("output_mask", [False])[-1]:
        _demand(bound, bound["bias_sizes"] == [shape[1]], "bias_sizes is not the number of output channels")


def _attention(bound: Bound) -> None:
    query, key, value = bound["query"], bound["key"], bound["value"]
    _demand(bound, query.dim() == key.dim() == value.dim() == 4, "query, key and value must have 4 dimensions")
    _demand(bound, min(*query.shape, *key.shape) >= 1, "query, key and value must not be empty")
    (n, h, length, width), source = query.shape, key.shape[2]
    _same(bound, "key", (n, h, source, width))
    _same(bound, "value", (n, h, source, width))
    _same(bound, "grad_out", query.shape)
    _same(bound, "out", query.shape)
    _same(bound, "logsumexp", (n, h, length))
    _demand(bound, bound["dropout_p"] == 0, "dropout inside attention does not run remotely; use torch.nn.Dropout around it")
    mask = bound["attn_mask"]
    if mask is not None:
        whole = (n, h, length, source)[4 - mask.dim() :]
        fits = mask.dim() in (2, 4) and all(a in (1, b) for a, b in zip(mask.shape, whole, strict=True))
        _demand(bound, fits, "attn_mask does not fit query and key")


def _sequence(bound: Bound) -> None:
    for value in bound.values:
        if isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= 2**62):
            raise misfit(bound, "numbers must be finite and not larger than 2**62")
    if bound.op.base in ("tril_indices", "triu_indices"):
        small = max(abs(bound[name]) for name in ("row", "col", "offset")) <= 1 << 20
        _demand(bound, small and bound["row"] * bound["col"] <= MAX_ELEMENTS, "the matrix is too large")


def _probability(bound: Bound) -> None:
    _demand(bound, 0 <= bound["p"] <= 1, "p must lie between 0 and 1")
    _demand(bound, bound["input"].is_floating_point(), "dropout needs a floating-point tensor")


def _pivots(bound: Bound) -> None:
    lu, pivots = bound["LU"], bound["pivots"]
    _demand(bound, lu.dim() >= 2 and lu.shape[-1] == lu.shape[-2], "LU must be square")
    _demand(bound, pivots.dtype is torch.int32 and tuple(pivots.shape) == tuple(lu.shape[:-1]), "pivots do not fit LU")


def _product(bound: Bound) -> None:
    """What is added to a product is broadcast to it, never the other way."""
    base = bound.op.base
    names = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec"), "addr": ("vec1", "vec2")}[base]
    a, b = (tuple(bound[name].shape) for name in names)
    ranks = {"addmm": (2, 2), "baddbmm": (3, 3), "addmv": (2, 1), "addr": (1, 1)}[base]
    _demand(bound, (len(a), len(b)) == ranks, "the factors have a wrong number of dimensions")
    whole = (*a, *b) if base == "addr" else (*a[:-1], *b[len(b) - 1 :] * (base != "addmv"))
    _broadcasts(bound, tuple(bound["self"].shape), whole)


_WHOLE = {"select": "aten.select.int", "slice": "aten.slice.Tensor", "diagonal": "aten.diagonal.default"}


def _part(bound: Bound) -> None:
    """What is put into a whole has the shape of the part that the forward operation takes out."""
    kind, _, back = bound.op.base.partition("_")
    name = "grad_output" if back == "backward" else "src"
    sizes = bound["input_sizes"] if back == "backward" else list(bound["self"].shape)
    _demand(bound, len(sizes) <= MAX_DIMS and all(n >= 0 for n in sizes), "input_sizes is no shape")
    whole = Meta(tuple(sizes), (0,) * len(sizes), bound[name].dtype).make()
    taken = infer(bind(OPS[_WHOLE[kind]], [whole, *bound.values[2:]], {}))[0]
    _same(bound, name, taken.shape)


def _floats(bound: Bound) -> None:
    """These kernels divide, and a processor stops the program at a whole number divided by 0."""
    _demand(bound, any(tensor.is_floating_point() for tensor in bound.tensors()), "the tensors must be of floating-point numbers")
    if bound.op.base in ("binary_cross_entropy", "binary_cross_entropy_backward"):
        shape = tuple(bound["self"].shape)
        _same(bound, "target", shape)
        _same(bound, "grad_output", shape, ())
        if bound["weight"] is not None:
            _broadcasts(bound, tuple(bound["weight"].shape), shape)


def _histogram(bound: Bound) -> None:
    low, high = float(bound["min"]), float(bound["max"])
    _demand(bound, 1 <= bound["bins"] <= MAX_ELEMENTS, "there must be at least one bin")
    _demand(bound, math.isfinite(low) and math.isfinite(high) and low <= high, "min and max must be finite and in order")


def _unsorted(bound: Bound) -> None:
    _demand(bound, bound["sorter"] is None, "give the sorted sequence itself instead of a sorter")


def _embedding(bound: Bound) -> None:
    _demand(bound, bound["indices"].dtype in INDEX_DTYPES, "an index must be of whole numbers")
    _demand(bound, bound["weight"].dim() == 2, "the table must have 2 dimensions")


def _target(bound: Bound) -> None:
    """What is written into has the result's shape already: resizing would change a tensor under the feet of its views."""
    own, other = tuple(bound["self"].shape), tuple(bound["other"].shape)
    length = max(len(own), len(other))
    pairs = zip((1,) * (length - len(own)) + own, (1,) * (length - len(other)) + other, strict=True)
    _same(bound, "out", [b if a == 1 else a for a, b in pairs])


SHAPE_CHECKS: Mapping[str, Callable[[Bound], None]] = MappingProxyType(
    {
        "pieces": _pieces,
        "strides": _strides,
        "index": _index,
        "dim_index": _dim_index,
        "embedding": _embedding,
        "embedding_backward": _embedding_backward,
        "classes": _classes,
        "gradient": _gradient,
        "upsample": _scales,
        "layer_norm": _layer_norm,
        "group_norm": _group_norm,
        "batch_norm": _batch_norm,
        "convolution": _convolution,
        "attention": _attention,
        "sequence": _sequence,
        "probability": _probability,
        "pivots": _pivots,
        "unsorted": _unsorted,
        "floats": _floats,
        "histogram": _histogram,
        "product": _product,
        "part": _part,
        "target": _target,
    }
)
