"""Row rules of indexing by tensors: public positions of rows, tables looked up by private values, and scattered writes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from grid.tensors.calls import Call
from grid.tensors.meeting import join_dim, meet, spread
from grid.tensors.rows import CONST, Dim, Form, Mix, has_rows, plain_dim, size
from grid.tensors.rules_views import choose

WRITE = "rows were written by index"
INSTEAD_OF_WRITE = "torch.where, scatter_add into sums, torch.cat or torch.stack"


def take(call: Call, axis: int, index: Form, name: str) -> Form:
    """`self` at the positions of `index` along one dimension.

    Rows are selected by a public index, whose values `name` reads; a table without rows there is looked up by any index.
    """
    dims = call.dims("self")
    if not has_rows(dims[axis]):
        return call.make([*dims[:axis], *index.dims, *dims[axis + 1 :]])
    if index.labelled:
        raise Mix("rows were chosen by private values", "torch.where(condition, x, torch.zeros_like(x))")
    if len(index.dims) != 1:
        raise Mix("rows were selected into a new shape", "a one-dimensional index of distinct rows")
    if name == "indices":
        call.volatile = True
        values = next(item for item in call.bound["indices"] if item is not None)
    else:
        values = call.tensor(name)
    positions = values.reshape(-1).to(torch.int64).numpy()
    return choose(call, "self", axis, positions % size(dims[axis]))


def _broadcast(forms: Iterable[Form]) -> list[int]:
    """The shape that these broadcast to; that they do was checked by the shape rule."""
    return list(np.broadcast_shapes(*[form.shape for form in forms]))


def index_select(call: Call) -> list[Form]:
    """One dimension by a list of positions."""
    if not call.dims("self"):
        return [call.make(())]
    index = call.of("index")
    one = call.space.form(index.dims or ((),), index.cells, index.blame, index.mixed)
    return [take(call, call.axis("dim", len(call.dims("self"))), one, "index")]


def index(call: Call) -> list[Form]:
    """`x[i]`, `x[:, i]`, `x[i, j]`: one index takes the place of its dimension, several meet elementwise."""
    dims = call.dims("self")
    found = call.forms["indices"]
    assert isinstance(found, list)
    used = {axis: form for axis, form in enumerate(found) if form is not None}
    if len(used) == 1:
        [(axis, form)] = used.items()
        return [take(call, axis, form, "indices")]
    if has_rows(*[dims[axis] for axis in used]):
        raise Mix("several indices at once, one of them over the row axis", "select rows first: x[rows][:, columns]")
    shape = _broadcast(used.values())
    met = meet(used.values(), shape)
    rest = [dim for axis, dim in enumerate(dims) if axis not in used]
    first, last = min(used), max(used)
    at = first if last - first + 1 == len(used) else 0
    return [call.make([*rest[:at], *met, *rest[at:]])]


def embedding(call: Call) -> list[Form]:
    """Rows of a table without dataset rows, looked up by any index."""
    table = call.dims("weight")
    if has_rows(table[0]):
        raise Mix("dataset rows were used as an embedding table")
    return [call.make([*call.dims("indices"), table[1]])]


def embedding_backward(call: Call) -> list[Form]:
    """Gradients added up by table row."""
    grad, indices = call.dims("grad_output"), call.dims("indices")
    inner = [join_dim(a, b) for a, b in zip(grad, indices, strict=False)]
    return [call.make([plain_dim(call.shapes[0][0]), grad[-1]], summed=inner)]


def gather(call: Call) -> list[Form]:
    """Each position of the other dimensions looks into its own part of `self`."""
    table, index = call.dims("self"), call.dims("index")
    if not table or not index:
        if any(form.rows for form in call.inputs):
            raise Mix("gather between a scalar and rows")
        return [call.free(call.shapes[0])]
    axis = call.axis("dim", len(table))
    if has_rows(table[axis]):
        raise Mix("gather along the row axis", "x[index] with distinct public rows")
    dims: list[Dim] = []
    for at, (a, b) in enumerate(zip(table, index, strict=True)):
        if at == axis:
            dims.append(b)
        elif size(a) == size(b):
            dims.append(join_dim(a, b))
        elif has_rows(a, b):
            raise Mix("gather with fewer rows than there are")
        else:
            dims.append(plain_dim(size(b)))
    return [call.make(dims)]


def scatter(call: Call) -> list[Form]:
    """Values put, or with `scatter_add` added, at indexed positions of one dimension. Adding rows up is a reduction."""
    into, index = call.dims("self"), call.dims("index")
    values = call.dims("src") if call.has("src") else tuple([plain_dim(size(dim), CONST) for dim in index])
    if not any(form.rows for form in call.inputs):
        return [call.free(call.shapes[0])]
    if not into or not index or not values:
        raise Mix("scatter of a scalar with rows")
    axis = call.axis("dim", len(into))
    dims: list[Dim] = []
    for at, (a, b, v) in enumerate(zip(into, index, values, strict=True)):
        if at != axis:
            if not size(a) == size(b) == size(v):
                raise Mix("scatter of a part, with rows")
            dims.append(join_dim(join_dim(a, b), v))
        else:
            dims.append(plain_dim(size(a)))
    if has_rows(into[axis]) or size(index[axis]) != size(values[axis]):
        raise Mix("scatter into the row axis", INSTEAD_OF_WRITE)
    inner = join_dim(index[axis], values[axis])
    if has_rows(inner) and call.base != "scatter_add":
        raise Mix("scatter keeps one of several rows", "scatter_add")
    return [call.make(dims, summed=[inner])]


def index_put(call: Call) -> list[Form]:
    """Public or private positions of a table without rows; rows may only be added up there."""
    if not any(form.rows for form in call.inputs):
        return [call.free(call.shapes[0])]
    into = call.dims("self")
    found = call.forms["indices"]
    assert isinstance(found, list)
    used = [form for form in found if form is not None]
    if len(used) == 1 and call.arg("accumulate"):
        return [_added(call, next(at for at, form in enumerate(found) if form is not None), used[0], "values")]
    if has_rows(*into) or not call.arg("accumulate") or any(form is None for form in found[: len(used)]):
        raise Mix(WRITE, INSTEAD_OF_WRITE)
    at = _broadcast(used)
    rest = [size(dim) for dim in into[len(used) :]]
    values = spread(call.dims("values"), [*at, *rest])
    inner = [join_dim(a, b) for a, b in zip(meet(used, at), values, strict=False)]
    if has_rows(*values[len(at) :]):
        raise Mix(WRITE, INSTEAD_OF_WRITE)
    return [call.free_summed(call.shapes[0], inner)]


def index_add(call: Call) -> list[Form]:
    """Slices along one dimension added up by index."""
    if not any(form.rows for form in call.inputs):
        return [call.free(call.shapes[0])]
    into = call.dims("self")
    if not into or not call.dims("source"):
        raise Mix("index_add of a scalar with rows")
    index = call.of("index")
    one = call.space.form(index.dims or ((),), index.cells, index.blame, index.mixed)
    return [_added(call, call.axis("dim", len(into)), one, "source")]


def _added(call: Call, axis: int, index: Form, name: str) -> Form:
    """What is added up by one index at one dimension, which holds no rows; the others are mapped."""
    into = call.dims("self")
    if has_rows(into[axis]):
        raise Mix(WRITE, INSTEAD_OF_WRITE)
    before, after = into[:axis], into[axis + 1 :]
    count = len(index.dims)
    shape = [*map(size, before), *index.shape, *map(size, after)]
    if len(call.dims(name)) > len(shape):
        raise Mix("values with more dimensions than there is room for were written by index")
    values = spread(call.dims(name), shape)
    dims = [join_dim(a, b) for a, b in zip((*before, *after), (*values[:axis], *values[axis + count :]), strict=True)]
    inner = [join_dim(a, b) for a, b in zip(index.dims, values[axis : axis + count], strict=True)]
    return call.make([*dims[:axis], plain_dim(size(into[axis])), *dims[axis:]], summed=inner)


def index_write(call: Call) -> list[Form]:
    """`index_fill`, `index_copy`: of tensors without rows."""
    if any(form.rows for form in call.inputs):
        raise Mix(WRITE, INSTEAD_OF_WRITE)
    return [call.free(call.shapes[0])]
