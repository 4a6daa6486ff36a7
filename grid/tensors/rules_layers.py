"""Row rules of contractions, convolutions, normalisation, attention and losses, with their gradients.

An argument that a forward pass saved (a mean, an index, a normaliser) comes back to a backward operation from the client,
which may have put anything in its place: it is an operand like any other and has to fit the rows.
"""

from __future__ import annotations

import numpy as np

from grid.tensors.calls import Call
from grid.tensors.meeting import join_dim, join_dims, meet, spread
from grid.tensors.rows import Dim, Form, Mix, has_rows, plain_dim, plain_dims, size

OPERANDS = {
    "mm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "bmm": ("self", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
}


def without_rows(call: Call, what: str, *names: str) -> None:
    """Raise `Mix` if one of these arguments holds rows."""
    if any(call.has(name) and call.of(name).rows for name in names):
        raise Mix(f"{what} hold rows")


def only_first(call: Call, what: str, *names: str) -> None:
    """Raise `Mix` if one of these arguments holds rows elsewhere than in dimension 0."""
    if any(call.has(name) and has_rows(*call.dims(name)[1:]) for name in names):
        raise Mix(f"{what} over a row axis that is not dimension 0", "keep rows in dimension 0")


def lead(call: Call, count: int, *names: str) -> list[Dim]:
    """The first dimensions of these arguments, joined."""
    dims = [call.dims(name) for name in names if call.has(name)]
    return [join_dims(own[at] for own in dims) for at in range(count)]


def contract(call: Call) -> list[Form]:
    """Matrix products: the inner dimensions meet and are summed, outer and batch dimensions are mapped."""
    first, second = OPERANDS[call.base]
    a, b = call.dims(first), call.dims(second)
    batch: list[Dim] = []
    if len(a) == 3:
        batch, a, b = [join_dim(a[0], b[0])], a[1:], b[1:]
    try:
        inner = join_dim(a[-1], b[0])
    except Mix as mix:
        raise Mix(f"a product over the row axis with something else: {mix.reason.text}", mix.reason.instead) from None
    dims = [*batch, *a[:-1], *b[1:]]
    if call.base in ("addmm", "baddbmm", "addmv"):
        dims = [join_dim(x, y) for x, y in zip(dims, spread(call.dims("self"), call.shapes[0]), strict=True)]
    return [call.make(dims, summed=[inner])]


def outer(call: Call) -> list[Form]:
    """`addr`: every position of one vector with every position of the other."""
    dims = [*call.dims("vec1"), *call.dims("vec2")]
    return [call.make([join_dim(x, y) for x, y in zip(dims, spread(call.dims("self"), call.shapes[0]), strict=True)])]


def convolution(call: Call) -> list[Form]:
    """Samples are mapped; channels, space and weights hold no rows."""
    data = call.dims("input")
    only_first(call, "convolution", "input")
    without_rows(call, "the weights of a convolution", "weight", "bias")
    if len(data) != len(call.dims("weight")):
        raise Mix("a convolution without a batch dimension")
    return [call.make([data[0], *plain_dims(call.shapes[0][1:])])]


def convolution_backward(call: Call) -> list[Form]:
    """Gradients for input (a map), weight and bias (sums over samples), those that the mask asks for."""
    grad, data = call.dims("grad_output"), call.dims("input")
    only_first(call, "convolution", "input", "grad_output")
    without_rows(call, "the weights of a convolution", "weight")
    if len(data) != len(call.dims("weight")):
        raise Mix("a convolution without a batch dimension")
    met = join_dim(grad[0], data[0])
    out: list[Form] = []
    shapes = iter(call.shapes)
    for wanted, which in zip(call.arg("output_mask"), ("input", "weight", "bias"), strict=True):
        if not wanted:
            continue
        shape = next(shapes)
        if which == "input":
            out.append(call.make([grad[0], *plain_dims(shape[1:])], "grad_output", "weight"))
        elif which == "weight":
            out.append(call.make(plain_dims(shape), "grad_output", "input", summed=[met]))
        else:
            out.append(call.make(plain_dims(shape), "grad_output", summed=[grad[0]]))
    return out


# ---------------------------------------------------------------- normalisation


def _trains(call: Call) -> bool:
    """Whether a batch norm uses the statistics of the batch."""
    for name in ("training", "train", "update"):
        if name in call.bound.op.index:
            return bool(call.arg(name))
    return "no_" not in call.base


def batch_norm(call: Call) -> list[Form]:
    """Training: each output depends on all rows, and statistics are sums over rows. Evaluation: a map."""
    data = call.dims("input")
    only_first(call, "batch norm", "input")
    without_rows(call, "the parameters of batch norm", "weight", "bias", "running_mean", "running_var")
    statistics = call.make([plain_dim(size(data[1]))])
    with_them = [*call.inputs, statistics] if _trains(call) else call.inputs
    out = call.combine(with_them, [data[0], *plain_dims(call.shapes[0][1:])])
    return [out, *[call.combine([statistics], plain_dims(shape)) for shape in call.shapes[1:]]]


def running_statistics(call: Call) -> Form:
    """What a training batch norm writes into its running mean and variance."""
    return call.make([plain_dim(size(call.dims("input")[1]))])


def batch_norm_backward(call: Call) -> list[Form]:
    """Gradients for input, weight and bias."""
    only_first(call, "batch norm", "input", "grad_out")
    saved = ("running_mean", "running_var", "save_mean", "save_invstd", "save_var")
    without_rows(call, "the parameters of batch norm", "weight", *saved)
    first = join_dim(call.dims("grad_out")[0], call.dims("input")[0])
    sums = call.make([plain_dim(size(call.dims("input")[1]))], summed=[first])
    with_them = [*call.inputs, sums] if _trains(call) else call.inputs
    rank = len(call.dims("input"))
    out: list[Form] = []
    for shape in call.shapes:
        if len(shape) == rank:
            out.append(call.combine(with_them, [first, *plain_dims(shape[1:])]))
        else:
            out.append(call.combine([sums], plain_dims(shape)))
    return out


def layer_norm(call: Call) -> list[Form]:
    """The leading dimensions are mapped, the normalised ones hold no rows."""
    data = call.dims("input")
    count = len(data) - len(call.arg("normalized_shape"))
    _layer_norm_fits(call, count)
    return [call.make([*data[:count], *plain_dims(shape[count:])]) for shape in call.shapes]


def layer_norm_backward(call: Call) -> list[Form]:
    """Gradients for input (a map), weight and bias (sums over the leading dimensions), those that the mask asks for."""
    count = len(call.dims("input")) - len(call.arg("normalized_shape"))
    _layer_norm_fits(call, count)
    met = lead(call, count, "grad_out", "input", "mean", "rstd")
    out: list[Form] = []
    shapes = iter(call.shapes)
    for wanted, is_input in zip(call.arg("output_mask"), (True, False, False), strict=True):
        if wanted:
            shape = next(shapes)
            if is_input:
                out.append(call.make([*met, *plain_dims(shape[count:])]))
            else:
                out.append(call.make(plain_dims(shape), summed=met))
    return out


def _layer_norm_fits(call: Call, count: int) -> None:
    without_rows(call, "the parameters of layer norm", "weight", "bias")
    if any(call.has(name) and has_rows(*call.dims(name)[count:]) for name in ("input", "grad_out", "mean", "rstd")):
        raise Mix("layer norm over the row axis", "normalise over features")


def group_norm(call: Call) -> list[Form]:
    """Samples are mapped."""
    only_first(call, "group norm", "input")
    without_rows(call, "the parameters of group norm", "weight", "bias")
    first = call.dims("input")[0]
    return [call.make([first, *plain_dims(shape[1:])]) for shape in call.shapes]


def group_norm_backward(call: Call) -> list[Form]:
    """Gradients for input (a map), weight and bias (sums over samples), those that the mask asks for."""
    only_first(call, "group norm", "input", "grad_out", "mean", "rstd")
    without_rows(call, "the parameters of group norm", "weight")
    met = lead(call, 1, "grad_out", "input", "mean", "rstd")
    rank = len(call.dims("input"))
    return [
        call.make([*met, *plain_dims(shape[1:])]) if len(shape) == rank else call.make(plain_dims(shape), summed=met)
        for shape in call.shapes
    ]


def attention(call: Call) -> list[Form]:
    """Samples and heads are mapped; positions and features hold no rows. A mask may vary over samples as anything else may."""
    names = ("query", "key", "value", "grad_out", "out", "logsumexp")
    if any(call.has(name) and has_rows(*call.dims(name)[2:]) for name in names):
        raise Mix("attention over the row axis", "keep rows in dimension 0")
    met = lead(call, 2, *names)
    if call.has("attn_mask"):
        mask = call.dims("attn_mask")
        if has_rows(*mask[-2:]):
            raise Mix("attention over the row axis", "keep rows in dimension 0")
        if len(mask) > 2:
            whole = [size(met[0]), size(met[1]), size(mask[-2]), size(mask[-1])]
            met = [join_dim(a, b) for a, b in zip(met, spread(mask, whole), strict=False)]
    return [call.make([*met, *plain_dims(shape[2:])]) for shape in call.shapes]


# ---------------------------------------------------------------- losses


def _per_sample(call: Call) -> list[Dim]:
    """The dimensions of a negative log likelihood before it is reduced: samples and space, classes gone."""
    scores, target = call.dims("self"), call.dims("target")
    classes = scores[1] if len(scores) > 1 else scores[0]
    if has_rows(classes):
        raise Mix("classes hold rows", "scores of shape (rows, classes)")
    without_rows(call, "class weights", "weight", "total_weight")
    if len(scores) == 1:
        return []
    return [join_dim(a, b) for a, b in zip((scores[0], *scores[2:]), target, strict=True)]


def nll(call: Call) -> list[Form]:
    """One loss per sample, or their sum or mean; and the sum of weights."""
    per = _per_sample(call)
    return [call.make(per if shape else ()) for shape in call.shapes]


def nll_backward(call: Call) -> list[Form]:
    """The gradient for the scores."""
    per = _per_sample(call)
    scores = call.dims("self")
    if len(scores) == 1:
        return [call.free(call.shapes[0])]
    shape = [size(dim) for dim in per]
    per = [join_dim(a, b) for a, b in zip(per, spread(call.dims("grad_output"), shape), strict=True)]
    return [call.make([per[0], plain_dim(size(scores[1])), *per[1:]])]


def loss(call: Call) -> list[Form]:
    """Elementwise losses, not reduced or summed: whether reduced or not, the operands must fit row by row."""
    shape = np.broadcast_shapes(*[form.shape for form in call.inputs])
    per = meet(call.inputs, shape)
    reduced = call.arg("reduction") != 0
    return [call.make(() if reduced else per) for _ in call.shapes]


def loss_backward(call: Call) -> list[Form]:
    """The gradient for the input, elementwise."""
    return [call.make(meet(call.inputs, shape)) for shape in call.shapes]

