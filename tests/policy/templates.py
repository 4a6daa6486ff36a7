"""How random programs choose their next step: one small function for each way to call operations.

A template proposes; what does not fit is refused by the shape rules and forgotten. Index lists with repeated rows, and
lists with a position that does not exist, come often on purpose: with rare ones, the mutants that they catch survive.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from programs import N, Program, Value
from torch import Tensor

Template = Callable[[Program], None]


def floats(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() < 4000


def whole(value: Tensor) -> bool:
    return not value.is_floating_point() and value.dtype.itemsize == 8 and value.numel() < 200


def index(value: Tensor) -> bool:
    return whole(value) and value.dim() == 1


def vector(p: Program, length: int) -> Value | None:
    """A vector of this length, if there is one."""
    fitting = [number for number, value in enumerate(p.values) if floats(value) and tuple(value.shape) == (length,)]
    return Value(p.random.choice(fitting)) if fitting else None


def rank(*allowed: int) -> Callable[[Tensor], bool]:
    return lambda value: floats(value) and value.dim() in allowed


def like(p: Program, value: Value) -> Callable[[Tensor], bool]:
    shape = p.shape(value)
    return lambda other: floats(other) and tuple(other.shape) == shape


UNARY = "neg abs sigmoid tanh relu square sin clone detach alias sign floor exp logical_not isnan round softplus gelu".split()
REDUCTIONS = "sum.dim_IntList mean.dim var.correction logsumexp.default linalg_vector_norm.default sum.default".split()
BINARY = "add mul sub div".split()
COMPARE = "gt le eq ne".split()


def unary(p: Program) -> None:
    p.try_step(f"aten.{p.random.choice(UNARY)}.default", p.pick(floats))


def binary(p: Program) -> None:
    p.try_step(f"aten.{p.random.choice(BINARY)}.Tensor", p.pick(floats), p.pick(floats))


def scalar(p: Program) -> None:
    p.try_step(f"aten.{p.random.choice(BINARY)}.Tensor", p.pick(floats), p.random.choice([0.5, 2, -1.0]))


def compare(p: Program) -> None:
    mask = p.pick(floats)
    p.try_step(f"aten.{p.random.choice(COMPARE)}.Tensor", mask, p.pick(floats))
    condition = Value(len(p.values) - 1)
    a = p.pick(floats)
    p.try_step("aten.where.self", condition, a, p.pick(like(p, a)))


def classes(p: Program) -> None:
    p.try_step("aten.eq.Tensor", p.pick(whole), p.pick(whole))
    p.try_step("aten._to_copy.default", Value(len(p.values) - 1), dtype=p.values[0].dtype)


def reduce(p: Program) -> None:
    x = p.pick(floats)
    dims = sorted({p.dim(x) for _ in range(p.random.randint(1, 2))})
    keep = p.random.random() < 0.4
    name = p.random.choice(REDUCTIONS)
    if name == "sum.default":
        p.try_step("aten.sum.default", x)
    elif name == "var.correction":
        p.try_step("aten.var.correction", x, dims, correction=0, keepdim=keep)
    elif name == "linalg_vector_norm.default":
        p.try_step("aten." + name, x, p.random.choice([1, 2, math.inf]), dims, keep)
    else:
        p.try_step("aten." + name, x, dims, keep)


def extreme(p: Program) -> None:
    x = p.pick(floats)
    name = p.random.choice(["max.dim", "min.dim", "argmax.default", "median.dim", "prod.dim_int"])
    p.try_step("aten." + name, x, p.dim(x))


def along(p: Program) -> None:
    x = p.pick(floats)
    axis = p.dim(x)
    rest = {"_softmax": [axis, False], "cumsum": [axis], "flip": [[axis]], "sort": [axis], "roll": [[1], [axis]], "tril": [0]}
    rest["topk"] = [2, axis]
    name = p.random.choice(sorted(rest))
    p.try_step(f"aten.{name}.default", x, *rest[name])


def softmax_backward(p: Program) -> None:
    x = p.pick(floats)
    p.try_step("aten._softmax_backward_data.default", p.pick(like(p, x)), x, p.dim(x), p.values[0].dtype)


def view(p: Program) -> None:
    x = p.pick(floats)
    count = math.prod(p.shape(x))
    first = p.random.choice([k for k in (1, 2, 3, 4, 6, 12, 36) if count % k == 0])
    second = p.random.choice([k for k in (1, 2, 3, 6) if (count // first) % k == 0])
    shapes = [[first, count // first], [count], [first, second, count // first // second]]
    p.try_step("aten.view.default", x, p.random.choice(shapes))


def reorder(p: Program) -> None:
    x = p.pick(floats)
    dims = list(range(len(p.shape(x))))
    p.random.shuffle(dims)
    p.try_step("aten.permute.default", x, dims)
    p.try_step("aten.t.default", p.pick(rank(1, 2)))
    p.try_step("aten.transpose.int", x, p.dim(x), p.dim(x))


def squeeze(p: Program) -> None:
    x = p.pick(floats)
    p.try_step("aten.unsqueeze.default", x, p.random.randint(0, len(p.shape(x))))
    p.try_step("aten.squeeze.default", x)


def expand(p: Program) -> None:
    x = p.pick(lambda v: floats(v) and v.dim() < 4)
    shape = [N if length == 1 else length for length in p.shape(x)]
    p.try_step("aten.expand.default", x, [p.random.choice([2, N]), *shape])
    p.try_step("aten.repeat.default", x, [p.random.choice([1, 2]) for _ in shape] or [2])


def slices(p: Program) -> None:
    x = p.pick(floats)
    start, end = sorted(p.random.sample(range(N + 1), 2))
    p.try_step("aten.slice.Tensor", x, p.dim(x), start, end, p.random.choice([1, 1, 2]))
    p.try_step("aten.select.int", p.pick(floats), p.random.choice([0, 1, -1]), p.random.randint(0, 1))
    p.try_step("aten.split.Tensor", x, p.random.choice([2, 3]), p.dim(x))
    p.try_step("aten.unbind.int", p.pick(rank(2, 3)), 0)


def slice_gradient(p: Program) -> None:
    x = p.pick(lambda v: floats(v) and v.dim() > 0 and v.shape[0] == N)
    shape, start = list(p.shape(x)), p.random.choice([0, 1, 2])
    p.try_step("aten.slice.Tensor", x, 0, start, start + 3)
    back = p.random.choice([start, start, 0])
    p.try_step("aten.slice_backward.default", Value(len(p.values) - 1), shape, 0, back, back + 3, 1)
    p.try_step("aten.slice.Tensor", x, 0, 0, N, 2)
    p.try_step("aten.slice_backward.default", Value(len(p.values) - 1), shape, 0, 0, N, 2)
    part = p.pick(rank(1, 2))
    p.try_step("aten.select_backward.default", part, [*p.shape(part), N], -1, 2)


def index_rows(p: Program) -> None:
    x = p.pick(floats)
    p.try_step("aten.index_select.default", x, p.dim(x), p.pick(index))
    p.try_step("aten.index.Tensor", x, [None] * p.random.choice([0, 0, 1]) + [p.pick(index)])
    p.try_step("aten.index.Tensor", p.pick(rank(2, 3)), [p.pick(index), p.pick(index)])


def rows_twice(p: Program) -> None:
    """The same rows by two index lists of one length, one of them with a repeated row, and then sums."""
    x = p.pick(lambda v: floats(v) and v.dim() > 0 and v.shape[0] == N)
    lists = [p.distinct, p.repeated]
    p.random.shuffle(lists)
    for which in lists:
        p.try_step("aten.index_select.default", x, 0, which)
        p.try_step("aten.sum.dim_IntList", Value(len(p.values) - 1), [0])


def lookup_table(p: Program) -> None:
    p.try_step("aten.embedding.default", p.pick(rank(2)), p.pick(whole))
    x = p.pick(rank(2))
    p.try_step("aten.unsqueeze.default", p.pick(index), 1)
    at = Value(len(p.values) - 1)
    p.try_step("aten.gather.default", x, p.random.choice([0, 1]), at)
    ids = p.pick(index)
    p.try_step("aten.embedding_dense_backward.default", p.pick(rank(2)), ids, N, -1, False)


def scatter(p: Program) -> None:
    ids = p.pick(index)
    p.try_step("aten.scatter_add.default", p.pick(rank(1)), 0, ids, p.pick(rank(1)))
    p.try_step("aten.scatter.src", p.pick(rank(1)), 0, ids, p.pick(rank(1)))
    p.try_step("aten.index_add.default", p.pick(rank(2)), p.random.choice([0, 1]), ids, p.pick(rank(2)))
    into = p.pick(rank(2))
    p.try_step("aten.index_put.default", into, [None, ids], p.pick(like(p, into)), p.random.random() < 0.8)
    into = p.pick(rank(1, 2))
    values = p.pick(lambda v: floats(v) and v.dim() <= len(p.shape(into)))
    p.try_step("aten.index_put.default", into, [ids], values, p.random.random() < 0.7)
    p.try_step("aten.index_copy.default", p.pick(rank(2)), 0, ids, p.pick(rank(2)))
    p.try_step("aten.sum.dim_IntList", p.pick(rank(2)), [p.random.choice([0, 1])])
    p.try_step("aten.index_fill.int_Scalar", Value(len(p.values) - 1), 0, p.distinct, 0.5)
    p.try_step("aten.unsqueeze.default", p.pick(index), 1)
    p.try_step("aten.scatter.value", p.pick(rank(2)), 1, Value(len(p.values) - 1), 1.0)


def part_scatter(p: Program) -> None:
    x = p.pick(rank(2))
    p.try_step("aten.select_scatter.default", x, p.pick(rank(1)), p.random.choice([0, 1]), 1)
    p.try_step("aten.slice_scatter.default", x, p.pick(like(p, x)), p.random.choice([0, 1]), 0, N)


def join(p: Program) -> None:
    x = p.pick(floats)
    items = [x, p.pick(like(p, x)), p.pick(like(p, x))][: p.random.choice([2, 3])]
    p.try_step("aten.cat.default", items, p.dim(x))
    p.try_step("aten.stack.default", items, p.random.randint(0, len(p.shape(x))))


def rejoin(p: Program) -> None:
    x = p.pick(lambda v: floats(v) and v.dim() > 0 and v.shape[0] == N)
    cut = p.random.choice([2, 3, 4])
    p.try_step("aten.slice.Tensor", x, 0, 0, cut)
    first = Value(len(p.values) - 1)
    p.try_step("aten.slice.Tensor", x, 0, p.random.choice([cut, 1]), N)
    p.try_step("aten.cat.default", [Value(len(p.values) - 1), first], 0)


def pad(p: Program) -> None:
    amounts = p.random.choice([[1, 1], [0, 0, 1, 0], [0, -1], [0, 0, 0, 0]])
    p.try_step("aten.constant_pad_nd.default", p.pick(floats), amounts, 0.5)


def diagonal(p: Program) -> None:
    x = p.pick(rank(3))
    p.try_step("aten.diagonal.default", x, 0, p.random.choice([0, 1]), -1)
    y = p.pick(rank(1, 2))
    p.try_step("aten.diagonal_backward.default", y, [*p.shape(y), p.shape(y)[-1]], 0, -2, -1)
    p.try_step("aten.diag_embed.default", y)


def contract(p: Program) -> None:
    a, b = p.pick(rank(2)), p.pick(rank(2))
    p.try_step("aten.mm.default", a, b)
    p.try_step("aten.t.default", b)
    p.try_step("aten.mm.default", Value(len(p.values) - 1), a)
    p.try_step("aten.addmm.default", p.pick(rank(1, 2)), a, b)
    p.try_step("aten.mv.default", a, p.pick(rank(1)))
    p.try_step("aten.dot.default", p.pick(rank(1)), p.pick(rank(1)))
    p.try_step("aten.addr.default", a, p.pick(rank(1)), p.pick(rank(1)))
    p.try_step("aten.bmm.default", p.pick(rank(3)), p.pick(rank(3)))


def convolution(p: Program) -> None:
    weight = p.pick(lambda v: floats(v) and v.dim() == 4 and v.shape[-1] < 4)
    x = p.pick(rank(4))
    rest = [[1, 1], [1, 1], [1, 1], False, [0, 0], 1]
    p.try_step("aten.convolution.default", x, weight, None, *rest)
    grad = Value(len(p.values) - 1)
    p.try_step("aten.convolution_backward.default", grad, x, weight, [3], *rest, [True, True, True])


def pooling_of_volumes(p: Program) -> None:
    x = p.pick(rank(4))
    p.try_step("aten.avg_pool3d.default", x, [1, 2, 2])
    p.try_step("aten.avg_pool3d_backward.default", Value(len(p.values) - 1), x, [1, 2, 2], [], [0, 0, 0], False, True, None)
    p.try_step("aten.max_pool3d_with_indices.default", x, [2, 1, 2])
    made = [Value(len(p.values) - 2), x, [2, 1, 2], [], [0, 0, 0], [1, 1, 1], False, Value(len(p.values) - 1)]
    p.try_step("aten.max_pool3d_with_indices_backward.default", *made)


def pooling(p: Program) -> None:
    x = p.pick(rank(3, 4))
    p.try_step("aten.avg_pool2d.default", x, [2, 2])
    p.try_step("aten.avg_pool2d_backward.default", Value(len(p.values) - 1), x, [2, 2], [], [0, 0], False, True, None)
    p.try_step("aten.max_pool2d_with_indices.default", x, [2, 2])
    indices = Value(len(p.values) - 1)
    p.try_step(
        "aten.max_pool2d_with_indices_backward.default", Value(len(p.values) - 2), x, [2, 2], [], [0, 0], [1, 1], False, indices
    )


def batch_norm(p: Program) -> None:
    x = p.pick(rank(2, 4))
    channels = p.shape(x)[1]
    scale = vector(p, channels)
    train = p.random.random() < 0.5
    running = [vector(p, channels) for _ in range(2)]
    p.try_step("aten.native_batch_norm.default", x, scale, None, *running, train, 0.1, 1e-3)
    saved = [Value(len(p.values) - 2), Value(len(p.values) - 1)]
    if p.random.random() < 0.3 and scale is not None:
        saved[0] = scale
    grad = p.pick(like(p, x))
    p.try_step("aten.native_batch_norm_backward.default", grad, x, scale, *running, *saved, train, 1e-3, [True, True, True])


def layer_norm(p: Program) -> None:
    x = p.pick(rank(2, 3))
    shape = p.shape(x)
    scale = vector(p, shape[-1])
    p.try_step("aten.native_layer_norm.default", x, [shape[-1]], scale, None, 1e-3)
    saved = [Value(len(p.values) - 2), Value(len(p.values) - 1)]
    if p.random.random() < 0.5:
        p.try_step("aten.view.default", p.vector, [*shape[:-1], 1])
        saved[p.random.choice([0, 1])] = Value(len(p.values) - 1)
    grad, mask = p.pick(like(p, x)), [True, scale is not None, scale is not None]
    p.try_step("aten.native_layer_norm_backward.default", grad, x, [shape[-1]], *saved, scale, scale, mask)



def group_norm(p: Program) -> None:
    x = p.pick(rank(3, 4))
    shape = p.shape(x)
    if len(shape) < 3:
        return
    sizes = [shape[0], shape[1], math.prod(shape[2:]), 1]
    scale = vector(p, shape[1])
    p.try_step("aten.native_group_norm.default", x, scale, None, *sizes, 1e-3)
    saved = [Value(len(p.values) - 2), Value(len(p.values) - 1)]
    mask = [True, scale is not None, False]
    p.try_step("aten.native_group_norm_backward.default", p.pick(like(p, x)), x, *saved, scale, *sizes, mask)


def attention(p: Program) -> None:
    q = p.pick(rank(4))
    k = p.pick(like(p, q))
    p.try_step("aten._scaled_dot_product_flash_attention_for_cpu.default", q, k, p.pick(like(p, q)))
    out, total = Value(len(p.values) - 2), Value(len(p.values) - 1)
    p.try_step(
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default", p.pick(like(p, q)), q, k, k, out, total, 0.0, False
    )


def losses(p: Program) -> None:
    x = p.pick(lambda v: floats(v) and v.dim() == 2 and v.shape[1] == N)
    target = p.random.choice(p.classes)
    reduction = p.random.choice([0, 1, 2])
    weight = vector(p, N) if p.random.random() < 0.3 else None
    p.try_step("aten.nll_loss_forward.default", x, target, weight, reduction, -100)
    loss, total = Value(len(p.values) - 2), Value(len(p.values) - 1)
    p.try_step("aten.nll_loss_backward.default", loss, x, target, weight, reduction, -100, total)
    y = p.pick(like(p, x))
    p.try_step("aten.mse_loss.default", x, y, reduction)
    p.try_step("aten.mse_loss_backward.default", Value(len(p.values) - 1), x, y, reduction)


def write(p: Program) -> None:
    target = p.pick(floats)
    source = p.pick(floats)
    kind = p.random.randrange(9)
    if kind < 2:
        p.try_step(f"aten.{p.random.choice(['add_', 'mul_'])}.Tensor", target, source)
    elif kind == 2:
        p.try_step("aten.copy_.default", target, source)
    elif kind == 3:
        p.try_step("aten.zero_.default", target)
    elif kind == 4:
        p.try_step("aten.fill_.Scalar", target, 0.5)
    elif kind == 5:
        p.try_step("aten.index_put_.default", target, [p.pick(index)], source, p.random.random() < 0.5)
    elif kind == 6:
        p.try_step("aten.index_add_.default", target, 0, p.pick(index), source)
    elif kind == 7:
        p.try_step("aten.scatter_add_.default", p.pick(rank(1)), 0, p.pick(index), p.pick(rank(1)))
    else:
        p.try_step("aten._foreach_add_.List", [target], [p.pick(like(p, target))])


def write_view(p: Program) -> None:
    """A view, a write through it, and a read of what it was a view of."""
    base = p.pick(rank(2))
    p.try_step("aten.select.int", base, p.random.choice([0, 1]), p.random.randint(0, 2))
    view_ = Value(len(p.values) - 1)
    p.try_step(p.random.choice(["aten.copy_.default", "aten.add_.Tensor"]), view_, p.pick(like(p, view_)))
    p.try_step("aten.sum.dim_IntList", base, [p.random.choice([0, 1])])


def half_write(p: Program) -> None:
    """An in-place write that fails after it has written row 0."""
    target = p.pick(rank(2))
    p.try_step("aten.index_put_.default", target, [p.outside], p.pick(rank(1, 2)))


def constants(p: Program) -> None:
    x = p.pick(floats)
    p.try_step(f"aten.{p.random.choice(['zeros_like', 'ones_like', 'empty_like'])}.default", x)
    p.try_step("aten.arange.default", N)
    p.try_step("aten.new_zeros.default", x, [N])


def lists(p: Program) -> None:
    p.try_step("aten.sum.dim_IntList", p.pick(rank(2)), [p.random.choice([0, 1])])
    total = Value(len(p.values) - 1)
    p.try_step("aten._foreach_sqrt.default", [total, p.pick(floats)])
    p.try_step("aten._foreach_add_.List", [total], [p.pick(like(p, total))])


def bins(p: Program) -> None:
    p.try_step("aten.histc.default", p.pick(floats), 4, *p.random.choice([(-2.0, 2.0), (0.0, 0.0), (1.0, 1.0)]))
    p.try_step("aten.bucketize.Tensor", p.pick(floats), p.pick(rank(1)))
    p.try_step("aten.isin.Tensor_Tensor", p.pick(floats), p.pick(rank(1)))
    p.try_step("aten.isin.Tensor_Tensor", p.pick(whole), p.pick(whole))


def solve(p: Program) -> None:
    x = p.pick(rank(2))
    p.try_step("aten.t.default", x)
    p.try_step("aten.mm.default", Value(len(p.values) - 1), x)
    a = p.random.choice([Value(len(p.values) - 1), x])
    p.try_step("aten._linalg_solve_ex.default", a, p.pick(rank(1, 2)))


def dropout(p: Program) -> None:
    p.try_step("aten.native_dropout.default", p.pick(floats), p.random.choice([0.3, 0.9]), False)


TEMPLATES: list[tuple[Template, int]] = [
    (unary, 4),
    (binary, 8),
    (scalar, 2),
    (compare, 3),
    (classes, 2),
    (reduce, 8),
    (extreme, 3),
    (along, 6),
    (softmax_backward, 2),
    (view, 6),
    (reorder, 4),
    (squeeze, 3),
    (expand, 3),
    (slices, 4),
    (slice_gradient, 3),
    (index_rows, 6),
    (rows_twice, 6),
    (lookup_table, 4),
    (scatter, 4),
    (part_scatter, 3),
    (join, 3),
    (rejoin, 3),
    (pad, 3),
    (diagonal, 3),
    (contract, 6),
    (convolution, 3),
    (pooling, 3),
    (pooling_of_volumes, 3),
    (batch_norm, 4),
    (layer_norm, 6),
    (group_norm, 3),
    (attention, 2),
    (losses, 6),
    (write, 8),
    (write_view, 5),
    (half_write, 2),
    (constants, 3),
    (lists, 2),
    (bins, 3),
    (solve, 3),
    (dropout, 3),
]
