"""Row rules of operations that work position by position, that make tensors, or that reduce or need whole dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grid.tensors.calls import Call
from grid.tensors.meeting import join_dim, join_dims, meet, spread
from grid.tensors.rows import CONST, FREE, Dim, Dims, Form, Mix, has_rows, plain_dim, plain_dims

COUNTS = "counts by public edges: (x[:, None] > edges).sum(0)"


def elementwise(call: Call) -> list[Form]:
    """Every operand is aligned and broadcast to the result."""
    return [call.make(meet(call.inputs, shape)) for shape in call.shapes]


def copy(call: Call) -> list[Form]:
    """`copy_`: the whole target is overwritten; what it held before still refines its cells, as after any write."""
    return [call.combine([call.of("src")], spread(call.dims("src"), call.shapes[0]))]


def fill(call: Call) -> list[Form]:
    """`fill_`, `zero_`: one value everywhere."""
    forms = [call.of("value")] if call.has("value") else []
    return [call.combine(forms, plain_dims(call.shapes[0], CONST))]


def constant(call: Call) -> list[Form]:
    """Nothing but a shape and constants of the client's go in, and a shape is not a value."""
    return [call.space.plain(shape, CONST) for shape in call.shapes]


def sequence(call: Call) -> list[Form]:
    """`arange` and the like vary along their dimensions: what a client could have sent."""
    return [call.space.plain(shape) for shape in call.shapes]


def draw(call: Call) -> list[Form]:
    """Random values that a client can read, so FREE; mixed if rows decide on their law."""
    if any(form.rows for form in call.inputs):
        raise Mix("random values were drawn from rows", "draw from a client's own tensor and add it to sums of rows")
    return [call.free(shape) for shape in call.shapes]


def dropout(call: Call) -> list[Form]:
    """The mask comes from the node's secret generator: the same law for every row, unknown to the client.

    It varies along every dimension, so what was constant is FREE now. The draw is noted (`rows.Thinned`).
    """
    dims, p = call.dims("input"), float(call.arg("p"))
    if call.arg("train") is False or p == 0:
        return [call.make(dims), call.space.plain(call.shapes[1], CONST)]
    if has_rows(*dims) and p > 0.5:
        raise Mix("dropout above 0.5 picks few rows", "p <= 0.5")
    form = call.make([tuple([(length, FREE if tag is CONST else tag) for length, tag in dim]) for dim in dims])
    if form.rows:
        call.volatile = True
        call.space.draws += 1
        thinned = form.thinned | {(call.space.draws, 1 - p)}
        form = call.space.form(form.dims, form.cells, form.blame, None, thinned)
    return [form, form]


# ---------------------------------------------------------------- whole dimensions


def drop(dims: Dims, gone: Sequence[int], keep: bool) -> list[Dim]:
    """The dimensions left after a reduction; `keep` leaves reduced ones with length 1."""
    return [() if at in gone else dim for at, dim in enumerate(dims) if keep or at not in gone]


def reduce(call: Call) -> list[Form]:
    """Sums and what is made of them: symmetric in the rows that go."""
    dims = call.dims("self")
    gone = call.axes("dim", len(dims))
    order = call.arg("ord", call.arg("p"))
    if isinstance(order, (int, float)) and not math.isfinite(order) and has_rows(*[dims[axis] for axis in gone]):
        raise Mix("the infinity norm over the row axis is one row's value", COUNTS)
    form = call.make(drop(dims, gone, bool(call.arg("keepdim"))))
    return [form for _ in call.shapes]


def extreme(call: Call) -> list[Form]:
    """Results that are one position's value: symmetric too, but they show a single row."""
    dims = call.dims("self")
    gone = call.axes("dim", len(dims))
    if has_rows(*[dims[axis] for axis in gone]):
        raise Mix(f"{call.base} over the row axis is one row's value", COUNTS)
    form = call.make(drop(dims, gone, bool(call.arg("keepdim"))))
    return [form for _ in call.shapes]


def along(call: Call) -> list[Form]:
    """Needs every position along some dimensions, and is a map for the others."""
    rank = len(call.inputs[0].dims)
    if call.base in ("tril", "triu"):
        over = [rank - 2, rank - 1]
    else:
        over = call.axes("dims" if call.base in ("flip", "roll") else "dim", rank)
    if any(has_rows(form.dims[axis]) for form in call.inputs for axis in over if rank):
        raise Mix(f"{call.base} along the row axis compares rows by position")
    others = {axis: join_dims(form.dims[axis] for form in call.inputs) for axis in range(rank) if axis not in over}
    return [call.make([others.get(axis, plain_dim(shape[axis])) for axis in range(len(shape))]) for shape in call.shapes]


def histogram(call: Call) -> list[Form]:
    """Counts in equal bins of a given range. Equal ends make torch take the data's own range, which two rows decide."""
    low, high = float(call.arg("min")), float(call.arg("max"))
    if not low < high and has_rows(*call.dims("self")):
        raise Mix("histc without a range shows the smallest and the largest row", "torch.histc(x, bins, min, max)")
    return [call.free(call.shapes[0])]


def bucketize(call: Call) -> list[Form]:
    """The bin of each element; the edges are without rows."""
    name = "boundaries" if call.has("boundaries") else "sorted_sequence"
    if has_rows(*call.dims(name)):
        raise Mix("the edges of bins hold rows", "public edges")
    own = call.dims("self") if call.has("self") else ()
    edges = call.dims(name)
    if len(edges) == 1:
        return [call.make(own)]
    return [call.make([*[join_dim(a, b) for a, b in zip(own[:-1], edges[:-1], strict=True)], own[-1]])]


def membership(call: Call) -> list[Form]:
    """Whether each element is among some values, which are without rows."""
    if has_rows(*call.dims("test_elements")):
        raise Mix("isin compares each row with every other", "public values to compare with")
    return [call.make(call.dims("elements"))]


def row_free(call: Call) -> list[Form]:
    """Any function of values that hold no rows on an axis is one more such value."""
    if any(form.rows for form in call.inputs):
        raise Mix(f"{call.base} has no rule for rows", "reduce over the rows first, for example x.T @ x")
    return [call.free(shape) for shape in call.shapes]


def lists(call: Call) -> list[Form]:
    """`_foreach_*`: each result takes what all inputs bring."""
    if any(form.rows for form in call.inputs):
        raise Mix("an operation on a list of tensors with rows", "the same operation tensor by tensor (foreach=False)")
    return [call.free(shape) for shape in call.shapes]

