"""How dimensions meet, are regrouped and are broadcast: the arithmetic under every row rule.

Tags are ordered CONST < Order and CONST < FREE. Order with FREE, and one Order with another, have no join: `Mix`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grid.tensors.rows import CONST, FREE, Dim, Dims, Factor, Form, Mix, Order, Tag, has_rows, plain_dim, plain_dims, size

OTHER_ROWS = "two tensors with different rows, or the same rows in another sequence, met along one axis"
NOT_THESE_ROWS = "a tensor without these rows varies along the row axis"
CUT = "the row axis was merged with another or cut in two different ways"

INSTEAD_OF_OTHER = "select the same rows of both before computing, or keep what belongs to a row in one dataset"
INSTEAD_OF_OWN = "x.sum(0) for a product with ones, torch.ones_like(x) made at the node, x[index] with distinct rows for a mask"


def join_tag(a: Tag | Order, b: Tag | Order) -> Tag | Order:
    """What holds of a position where both hold."""
    if a is b or b is CONST:
        return a
    if a is CONST:
        return b
    if isinstance(a, Order) and isinstance(b, Order):
        raise Mix(OTHER_ROWS, INSTEAD_OF_OTHER)
    raise Mix(NOT_THESE_ROWS, INSTEAD_OF_OWN)


def join_dim(a: Dim, b: Dim) -> Dim:
    """Two descriptions of one dimension, met elementwise. Both have the same length; factors are split to a common refinement."""
    if a is b or a == b:
        return a
    left, right = list(reversed(a)), list(reversed(b))
    out: list[Factor] = []
    while left and right:
        (length_a, tag_a), (length_b, tag_b) = left.pop(), right.pop()
        if length_a > length_b:
            left, right, length_a, tag_a, length_b, tag_b = right, left, length_b, tag_b, length_a, tag_a
        if not length_a:
            return plain_dim(0)
        if length_b % length_a or (length_b != length_a and isinstance(tag_b, Order)):
            if has_rows(a, b):
                raise Mix(CUT)
            return plain_dim(size(a))
        # The factors are row-major, so the outer part of the longer one meets the shorter one and the inner part is left over.
        if length_b != length_a:
            right.append((length_b // length_a, tag_b))
        out.append((length_a, join_tag(tag_a, tag_b)))
    if left or right:
        raise ValueError("two dimensions of different length met")
    return tuple(out)


def join_dims(rows: Iterable[Dim]) -> Dim:
    """`join_dim` over any number of descriptions, at least one."""
    first, *rest = rows
    for dim in rest:
        first = join_dim(first, dim)
    return first


def spread(dims: Dims, shape: Sequence[int]) -> Dims:
    """Broadcasting to a shape: a new dimension, and one of length 1 that grows, is CONST."""
    pad = len(shape) - len(dims)
    if pad < 0:
        raise ValueError("a tensor was broadcast to fewer dimensions")
    own: list[Dim] = [() for _ in range(pad)]
    own.extend(dims)
    return tuple([dim if size(dim) == length else plain_dim(int(length), CONST) for dim, length in zip(own, shape, strict=True)])


def meet(forms: Iterable[Form], shape: Sequence[int]) -> Dims:
    """Elementwise: every operand, aligned, broadcast, and joined tag by tag."""
    out = plain_dims(shape, CONST)
    for form in forms:
        out = tuple([join_dim(a, b) for a, b in zip(out, spread(form.dims, shape), strict=True)])
    return out


def regroup(dims: Dims, shape: Sequence[int]) -> Dims:
    """`view`: the same factors in row-major order under other brackets. A row factor moves whole and is never cut."""
    rest = _flat(dims)[::-1]
    out: list[Dim] = []
    for want in shape:
        dim: list[Factor] = []
        while want != 1:
            if not rest:
                return _without_rows(dims, shape)
            length, tag = rest.pop()
            if want % length == 0:
                dim.append((length, tag))
                want //= length
            elif length % want == 0 and not isinstance(tag, Order):
                dim.append((want, tag))
                rest.append((length // want, tag))
                want = 1
            else:
                return _without_rows(dims, shape)
        out.append(tuple(dim))
    return tuple(out)


def _flat(dims: Dims) -> list[Factor]:
    """All factors in a row, neighbours of one tag (not an Order) merged."""
    flat: list[Factor] = []
    for length, tag in (factor for dim in dims for factor in dim):
        if flat and flat[-1][1] is tag and not isinstance(tag, Order):
            flat[-1] = (flat[-1][0] * length, tag)
        else:
            flat.append((length, tag))
    return flat


def _without_rows(dims: Dims, shape: Sequence[int]) -> Dims:
    if has_rows(*dims):
        raise Mix("a view merges or cuts the row axis", "keep the row axis whole: x.view(x.shape[0], ...)")
    return plain_dims(shape)


def constant_or_free(dim: Dim, length: int) -> Dim:
    """A dimension made of positions of one without rows: constant if that was constant."""
    return plain_dim(length, CONST if all(tag is CONST for _, tag in dim) else FREE)
