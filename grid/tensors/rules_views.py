"""Row rules of views, selections by public position, and their gradients; of joining and repeating tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grid.tensors.calls import Call
from grid.tensors.meeting import constant_or_free, join_dim, join_dims, meet, regroup, spread
from grid.tensors.rows import BLOCKS_AND_POSITIONS, CONST, Choice, Dim, Dims, Form, Mix, Order, has_rows, plain_dim, size

Positions = npt.NDArray[np.int64]


def view(call: Call) -> list[Form]:
    """Factors in row-major order under other brackets: `view`, and `squeeze` and `unsqueeze`, which move only lengths of 1."""
    return [call.make(regroup(call.dims("self"), shape)) for shape in call.shapes]


def permute(call: Call) -> list[Form]:
    """Whole dimensions change places."""
    dims = list(call.dims("self"))
    rank = len(dims)
    if call.base == "permute":
        return [call.make([dims[axis % rank] for axis in call.arg("dims")])]
    if call.base == "t":
        return [call.make(dims[::-1])]
    if rank:
        a, b = call.axis("dim0", rank), call.axis("dim1", rank)
        dims[a], dims[b] = dims[b], dims[a]
    return [call.make(dims)]


def expand(call: Call) -> list[Form]:
    """New positions repeat the old ones: constant."""
    return [call.make(spread(call.dims("self"), call.shapes[0]))]


def repeat(call: Call) -> list[Form]:
    """Each dimension becomes (times, constant) x itself: position p of the result is position p modulo the length."""
    dims = call.dims("self")
    times: list[int] = call.arg("repeats")
    padded: list[Dim] = [() for _ in range(len(times) - len(dims))]
    padded.extend(dims)
    return [call.make([plain_dim(count, CONST) + dim for count, dim in zip(times, padded, strict=True)])]


def diagonal(call: Call) -> list[Form]:
    """The diagonal of two dimensions without rows; the others are mapped."""
    dims = call.dims("self")
    two = (call.axis("dim1", len(dims)), call.axis("dim2", len(dims)))
    if has_rows(dims[two[0]], dims[two[1]]):
        raise Mix("the diagonal over the row axis picks rows by position")
    rest = [dim for axis, dim in enumerate(dims) if axis not in two]
    return [call.make([*rest, plain_dim(call.shapes[0][-1])])]


def diagonal_backward(call: Call) -> list[Form]:
    """Zeros around the gradient of a diagonal; `diag_embed` the same around any tensor."""
    dims = call.dims("grad_output" if call.has("grad_output") else "self")
    shape = call.shapes[0]
    two = (call.axis("dim1", len(shape)), call.axis("dim2", len(shape)))
    if has_rows(dims[-1]):
        raise Mix("the diagonal over the row axis picks rows by position")
    rest = iter(dims[:-1])
    return [call.make([plain_dim(length) if axis in two else next(rest) for axis, length in enumerate(shape)])]


# ---------------------------------------------------------------- selection


def choose(call: Call, name: str, axis: int, positions: slice | Positions | int) -> Form:
    """The positions, public, of one dimension; with a single number the dimension goes."""
    form = call.of(name)
    dims, dim = form.dims, form.dims[axis]
    length = size(dim)
    single = isinstance(positions, int)
    if isinstance(positions, slice):
        count = len(range(*positions.indices(length)))
    else:
        count = 1 if isinstance(positions, int) else len(positions)
    if isinstance(positions, slice) and count == length and positions.indices(length)[2] == 1:
        return call.make(dims)
    if not has_rows(dim):
        picked: list[Dim] = [] if single else [constant_or_free(dim, count)]
        return call.make([*dims[:axis], *picked, *dims[axis + 1 :]])
    order = dim[0][1]
    if len(dim) != 1 or not isinstance(order, Order):
        raise Mix("rows were selected from a row axis that was merged with another", "select before reshaping")
    taken = order.take(np.array([positions]) if isinstance(positions, int) else positions)
    new: list[Dim] = [] if single else [((len(taken), taken),) if len(taken) > 1 else ()]
    chosen = call.space.form((), {order.dataset: call.space.cells_of(taken)})
    return call.combine([*call.inputs, chosen], [*dims[:axis], *new, *dims[axis + 1 :]])


def slice_(call: Call) -> list[Form]:
    """Positions from start to end in steps."""
    rank = len(call.dims("self"))
    return [choose(call, "self", call.axis("dim", rank), slice(call.arg("start"), call.arg("end"), call.arg("step")))]


def select(call: Call) -> list[Form]:
    """One position."""
    dims = call.dims("self")
    axis = call.axis("dim", len(dims))
    return [choose(call, "self", axis, int(call.arg("index")) % size(dims[axis]))]


def split(call: Call) -> list[Form]:
    """Neighbouring pieces; `unbind` makes them of one position each and drops the dimension."""
    axis = call.axis("dim", len(call.dims("self")))
    if call.base == "unbind":
        return [choose(call, "self", axis, at) for at in range(len(call.shapes))]
    ends = np.cumsum([shape[axis] for shape in call.shapes]).tolist()
    return [choose(call, "self", axis, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]


def part_scatter(call: Call) -> list[Form]:
    """A tensor with a public part of one dimension replaced."""
    whole = call.dims("self")
    axis = call.axis("dim", len(whole))
    part = list(call.dims("src"))
    if call.base == "select_scatter":
        part.insert(axis, ())
    if has_rows(whole[axis], part[axis]):
        raise Mix("a part of the row axis was overwritten", "torch.where, torch.cat or torch.stack")
    dims = [plain_dim(size(a)) if at == axis else join_dim(a, b) for at, (a, b) in enumerate(zip(whole, part, strict=True))]
    return [call.make(dims)]


def part_backward(call: Call) -> list[Form]:
    """Zeros around the gradient of a part. A slice of rows goes back into the order that it was taken from."""
    grad = list(call.dims("grad_output"))
    sizes: list[int] = call.arg("input_sizes")
    axis = call.axis("dim", len(sizes))
    length = sizes[axis]
    if call.base == "select_backward":
        return [call.make([*grad[:axis], plain_dim(length), *grad[axis:]])]
    cut = slice(call.arg("start"), call.arg("end"), call.arg("step"))
    if cut.indices(length) == (0, length, 1):
        return [call.make(grad)]
    if not has_rows(grad[axis]):
        return [call.make([*grad[:axis], plain_dim(length), *grad[axis + 1 :]])]
    order = grad[axis][0][1]
    if isinstance(order, Order) and len(grad[axis]) == 1:
        if order.choice is Choice.BLOCKS:
            raise Mix(*BLOCKS_AND_POSITIONS)
        for parent in list(order.parents):
            if len(parent) == length and np.array_equal(parent.index[cut], order.index):
                whole = call.space.form((), {parent.dataset: call.space.cells_of(parent)})
                return [call.combine([*call.inputs, whole], [*grad[:axis], ((length, parent),), *grad[axis + 1 :]])]
    raise Mix("the gradient of a selection of rows has no way back", "select before computing; slices of rows work")


# ---------------------------------------------------------------- joining


def cat(call: Call) -> list[Form]:
    """On a dimension without rows: join of the others. On the rows: disjoint rows in turn, or the same rows k times."""
    shape = call.shapes[0]
    given = call.listed("tensors")
    forms = [form for form in given if form.shape != (0,) or len(shape) == 1]
    axis = call.axis("dim", len(shape))
    parts = [form.dims[axis] for form in forms]
    dims: list[Dim] = []
    for at, length in enumerate(shape):
        if at == axis:
            dims.append(_chained(call, parts, length))
        else:
            dims.append(join_dims(form.dims[at] for form in forms))
    return [call.make(dims)]


def _chained(call: Call, parts: Sequence[Dim], length: int) -> Dim:
    """The dimension on which tensors are put one behind the other."""
    if len(parts) == 1:
        return parts[0]
    if not has_rows(*parts):
        return plain_dim(length)
    if all(part == parts[0] for part in parts):
        return plain_dim(len(parts)) + parts[0]
    found = [part[0][1] if len(part) == 1 else None for part in parts]
    chain = [order for order in found if isinstance(order, Order)]
    if len(chain) != len(parts) or len({order.dataset for order in chain}) != 1:
        raise Mix("rows and something else were put into one axis", "reduce the rows first, then add")
    rows = np.concatenate([order.index for order in chain])
    return ((length, call.space.order(chain[0].dataset, rows, chain[0].choice)),)  # blocks meet no other choice here


def stack(call: Call) -> list[Form]:
    """A new dimension without rows."""
    forms = call.listed("tensors")
    dims = list(meet(forms, forms[0].shape))
    dims.insert(call.axis("dim", len(dims) + 1), plain_dim(len(forms)))
    return [call.make(dims)]


def pad(call: Call) -> list[Form]:
    """Constants around, or positions cut off, the last dimensions."""
    dims: Dims = call.dims("self")
    amounts: list[int] = call.arg("pad")
    out: list[Dim] = []
    for at, dim in enumerate(dims):
        back = 2 * (len(dims) - 1 - at)
        touched = any(amounts[back : back + 2])
        if touched and has_rows(dim):
            raise Mix("padding along the row axis")
        out.append(plain_dim(call.shapes[0][at]) if touched else dim)
    return [call.make(out)]


def spatial(call: Call) -> list[Form]:
    """Works inside each picture or volume: the last two or three dimensions hold no rows, those before are mapped."""
    inner = 3 if "3d" in call.base else 2
    out: list[Form] = []
    for shape in call.shapes:
        if any(has_rows(*form.dims[-inner:]) for form in call.inputs):
            raise Mix(f"{call.base} along the row axis")
        lead: list[Dim] = []
        for at in range(len(shape) - inner):
            lead.append(join_dims(form.dims[at] for form in call.inputs))
        out.append(call.make([*lead, *[plain_dim(length) for length in shape[-inner:]]]))
    return out
