"""The lattice: cells refine, tags join, dimensions meet and are regrouped. And memory for all that is bounded."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid.errors import LocalProtocolError, QuotaExceeded
from grid.tensors.meeting import join_dim, join_tag, regroup, spread
from grid.tensors.rows import (
    CONST,
    FREE,
    Choice,
    Dim,
    Form,
    Mix,
    Order,
    Space,
    check_choices,
    check_operands,
    plain_dims,
    refine_ids,
    size,
)

ids = st.lists(st.integers(0, 4), min_size=8, max_size=8).map(np.array)


def space() -> Space:
    made = Space()
    made.dataset("d", 8)
    made.dataset("e", 8)
    return made


@given(ids, ids, ids)
def test_refining_is_associative_commutative_and_idempotent(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    s = space()
    x, y, z = (s.cells("d", each) for each in (a, b, c))
    assert s.refine(x, x) is x
    assert s.refine(x, y) is s.refine(y, x)
    assert s.refine(s.refine(x, y), z) is s.refine(x, s.refine(y, z))


@given(ids, ids)
def test_refining_keeps_apart_what_either_keeps_apart(a: np.ndarray, b: np.ndarray) -> None:
    s = space()
    both = s.refine(s.cells("d", a), s.cells("d", b)).ids
    for i in range(8):
        assert (both[i] == 0) == (a[i] == 0 and b[i] == 0)
        for j in range(8):
            assert (both[i] == both[j]) == (a[i] == a[j] and b[i] == b[j])


@given(ids, st.permutations(range(1, 5)))
def test_what_cells_are_called_does_not_matter(a: np.ndarray, names: list[int]) -> None:
    s = space()
    renamed = np.array([0, *names])[a]
    assert s.cells("d", a) is s.cells("d", renamed)
    assert s.cells("d", a) is s.cells("d", renamed.astype(np.int64) * 10**9)
    sizes = [int((a == k).sum()) for k in set(a.tolist()) - {0}]
    assert s.cells("d", a).smallest == min(sizes, default=0)


@given(st.lists(st.sampled_from([CONST, FREE, 0, 1]), min_size=3, max_size=3))
def test_joining_tags_is_associative_commutative_and_idempotent(which: list[object]) -> None:
    s = space()
    orders = [s.order("d", np.arange(8)), s.order("d", np.arange(8)[::-1])]
    a, b, c = (orders[tag] if isinstance(tag, int) else tag for tag in which)

    def join(*tags: object) -> object:
        found = tags[0]
        for tag in tags[1:]:
            try:
                found = "mixed" if "mixed" in (found, tag) else join_tag(found, tag)  # type: ignore[arg-type]
            except Mix:
                found = "mixed"
        return found

    assert join(a, a) is a
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))


def test_tags_are_ordered() -> None:
    s = space()
    order = s.order("d", np.arange(8))
    assert join_tag(CONST, order) is order and join_tag(order, CONST) is order
    assert join_tag(CONST, FREE) is FREE
    for a, b in [(order, FREE), (FREE, order), (order, s.order("d", np.arange(8)[::-1])), (order, s.order("e", np.arange(8)))]:
        with pytest.raises(Mix):
            join_tag(a, b)


def test_the_same_rows_are_the_same_order() -> None:
    s = space()
    order = s.order("d", np.arange(8))
    assert order.take(slice(1, 7)).take(slice(1, 3)) is order.take(np.array([2, 3]))
    assert order.take(slice(0, 8)) is order and order not in order.parents
    assert order in order.take(slice(0, 4)).parents
    with pytest.raises(Mix, match="twice"):
        order.take(np.array([1, 1]))
    with pytest.raises(Mix, match="no rows"):
        order.take(slice(3, 3))


def test_factors_are_split_to_meet() -> None:
    s = space()
    order = s.order("d", np.arange(8))
    two_by_rows: Dim = ((2, CONST), (8, order))
    assert join_dim(two_by_rows, ((16, CONST),)) == two_by_rows
    assert join_dim(((2, FREE), (8, CONST)), ((4, CONST), (4, FREE))) == ((2, FREE), (2, CONST), (4, FREE))
    assert join_dim(((6, FREE),), ((2, CONST), (3, CONST))) == ((2, FREE), (3, FREE))
    assert size(join_dim(((4, FREE), (6, CONST)), ((6, FREE), (4, CONST)))) == 24
    with pytest.raises(Mix):
        join_dim(two_by_rows, ((4, CONST), (4, CONST)))
    with pytest.raises(Mix):
        join_dim(two_by_rows, ((16, FREE),))
    with pytest.raises(ValueError):
        join_dim(((4, FREE),), ((8, FREE),))


@given(st.lists(st.sampled_from([1, 2, 3, 4]), max_size=4), st.randoms())
def test_a_view_and_the_view_back_keep_the_rows(shape: list[int], chance: object) -> None:
    s = space()
    rows: Dim = ((8, s.order("d", np.arange(8))),)
    dims = (rows, *plain_dims(shape))
    flat = regroup(dims, [8 * int(np.prod(shape or [1]))])
    assert len(flat) == 1
    assert spread(regroup(flat, [8, *shape]), [8, *shape])[0] == rows


def test_a_view_does_not_cut_rows() -> None:
    s = space()
    rows: Dim = ((8, s.order("d", np.arange(8))),)
    with pytest.raises(Mix, match="cuts the row axis"):
        regroup((rows, ((3, FREE),)), [4, 6])
    assert regroup((((8, FREE),), ((3, FREE),)), [4, 6]) == (((4, FREE),), ((6, FREE),))


def test_a_new_dimension_is_constant() -> None:
    assert spread((((3, FREE),),), [2, 3]) == (((2, CONST),), ((3, FREE),))
    assert spread(((),), [5]) == (((5, CONST),),)


def test_equal_forms_are_one_object_while_anybody_uses_one() -> None:
    s = space()
    assert s.plain([2, 3]) is s.plain((2, 3))
    assert s.plain([2, 3]) is not s.plain([2, 3], CONST)
    kept = s.plain([7])
    del kept
    gc.collect()
    assert not s._forms


def test_a_dataset_has_one_length() -> None:
    s = space()
    with pytest.raises(LocalProtocolError, match="9 rows"):
        s.dataset("d", 9)


def test_memory_for_row_sets_is_bounded() -> None:
    s = Space(max_bytes=1 << 16)
    s.dataset("d", 1000)
    dropped = []
    s.on_pressure.append(lambda: dropped.append(1))
    for row in range(500):  # 4 kB each, and nobody keeps any
        s.cells_of(s.order("d", np.array([row])))
    assert dropped
    kept: list[object] = []
    with pytest.raises(QuotaExceeded, match=r"ds\.batches"):
        for row in range(500):
            kept.append(s.cells_of(s.order("d", np.array([row]))))
    assert len(kept) < 20


def test_ids_of_many_cells_refine_without_overflow() -> None:
    a = np.arange(1, 50_001, dtype=np.int32)
    s = Space()
    cells = s.cells("d", refine_ids(a, a[::-1].copy()))
    assert cells.count == 50_000 and cells.smallest == 1
    assert isinstance(s.order("d", a), Order)


def chosen(s: Space, *rows: int, choice: Choice = Choice.POSITIONS) -> Form:
    """One value of these rows, summed."""
    return s.form((), {"d": s.cells_of(s.order("d", np.array(rows), choice))})


def test_how_rows_were_picked_is_joined_and_stays() -> None:
    s = Space()
    s.dataset("d", 8)
    whole = chosen(s, *range(8))
    part, block = chosen(s, 0, 1), chosen(s, 2, 3, choice=Choice.BLOCKS)
    assert [form.cells["d"].choice for form in (whole, part, block)] == [Choice.WHOLE, Choice.POSITIONS, Choice.BLOCKS]
    for one in (part, block):
        for pair in ((one, whole), (whole, one), (one, one)):
            check_operands(pair)
            assert s.join_cells(pair)["d"].choice is one.cells["d"].choice
    for forms in ([part, block], [block, part], [whole, part, block]):
        with pytest.raises(Mix, match="secret blocks"):
            check_operands(forms)
        both = s.join_cells(forms)
        with pytest.raises(Mix, match="secret blocks"):
            check_choices(both.values())
        assert s.refine(both["d"], whole.cells["d"]) is both["d"]
    check_operands([part, s.form((), {"e": block.cells["d"]})])  # another dataset


def test_a_secret_partition_is_not_even_computed() -> None:
    """Else the memory that labels take would depend on it."""
    s = Space()
    s.dataset("d", 8)
    block = chosen(s, 2, 3, choice=Choice.BLOCKS)
    joined = {s.join_cells([block, chosen(s, at, at + 1)])["d"] for at in range(7)}
    assert len(joined) == 1 and len(joined.pop().ids) == 0


def test_blocks_are_never_found_equal_to_rows_by_position() -> None:
    s = Space()
    s.dataset("d", 4)
    for rows in ([0, 1], [0, 1, 2, 3]):
        block = s.order("d", np.array(rows), Choice.BLOCKS)
        assert block.choice is Choice.BLOCKS and block is s.order("d", np.array(rows), Choice.BLOCKS)
        assert s.order("d", np.array(rows)) is not block and s.cells_of(s.order("d", np.array(rows))) is not s.cells_of(block)
        with pytest.raises(Mix, match="secret blocks"):
            block.take(slice(0, 1))
    assert s.order("d", np.arange(4)).choice is Choice.WHOLE
