"""What a tensor at a node may reveal about the rows of datasets: the values of the label system (docs/labels.md).

Each dimension of a tensor is a row-major product of *factors*, each with a size and a tag: an `Order` (position p of the
factor belongs to row order.index[p] of a dataset), `CONST` (the tensor is constant along it) or `FREE` (anything else).
Beside its dimensions a tensor has, per dataset, *cells*: a partition of the rows that went into it, into classes that
were treated alike. The claim that everything rests on, and that `tests/tensors` plays out: permute a dataset's rows
inside every cell, and a tensor that is not *mixed* is permuted along its Order and otherwise unchanged. *Blame* names
the datasets of which slice i no longer depends on row i alone. What cannot be shown is mixed, and stays so. Cells and
orders also know by which `Choice` their rows were picked: which rows a block holds is a secret that nothing may depend on.

A `Form` is all of that; equal forms are one object, so the typing of an operation can be looked up. A `Type` is a form
and its `Story`: the steps that made it mixed, or joined rows, for messages to people. A `Space` holds one client's
forms at one node; it belongs to one thread at a time and bounds the memory that they take.
"""

from __future__ import annotations

import enum
import hashlib
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from grid.errors import LocalProtocolError, QuotaExceeded

Ids = npt.NDArray[np.int32]


class Tag(enum.Enum):
    """What a factor without rows is."""

    FREE = "free"
    CONST = "const"


FREE, CONST = Tag.FREE, Tag.CONST


class Choice(enum.IntFlag):
    """How rows of a dataset were picked: not at all, by their public positions, as whole secret blocks. The join is `|`.

    Whether a block and rows at given positions overlap is the node's secret, so a value of both is mixed before anybody
    looks, and what may be released is remembered by choice.
    """

    WHOLE = 0
    POSITIONS = 1
    BLOCKS = 2
    BOTH = 3


class Reason(NamedTuple):
    """Why rows cannot be followed any further, and what to write instead."""

    text: str
    instead: str = ""


class Mix(Exception):
    """Raised by a row rule: the result is mixed, for this reason."""

    def __init__(self, text: str, instead: str = "") -> None:
        super().__init__(text)
        self.reason = Reason(text, instead)


BLOCKS_AND_POSITIONS = Reason(
    "rows chosen by position cannot be combined with batches of secret blocks",
    "`ds.split` or `ds.batches` for all of them, or positions for all of them",
)


class Order:
    """Distinct rows of one dataset in one sequence. In one space, equal orders of one choice are one object.

    `parents` are the orders that it was selected from, as far as anything still uses them; `cells`, once somebody has asked,
    are its rows as one class. The sequence of all rows is
    `Choice.WHOLE`, however it came about, but never equal to one of blocks.
    """

    __slots__ = ("__weakref__", "cells", "choice", "dataset", "index", "parents", "space")

    def __init__(self, space: Space, dataset: str, index: Ids, choice: Choice) -> None:
        self.cells: Cells | None = None
        self.space = space
        self.dataset = dataset
        self.index = index
        self.choice = choice
        self.parents: weakref.WeakSet[Order] = weakref.WeakSet()

    def take(self, positions: slice | npt.NDArray[np.int64]) -> Order:
        """The rows at these positions. Raises `Mix` if one is taken twice, or if they are rows of blocks."""
        if self.choice is Choice.BLOCKS:
            raise Mix(*BLOCKS_AND_POSITIONS)
        picked = self.space.order(self.dataset, self.index[positions])
        if picked is not self:
            picked.parents.add(self)
        return picked

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"rows({self.dataset}, {len(self.index)})"


class Cells:
    """A partition of one dataset's rows: 0 is "not involved", equal ids were treated alike. Interned like `Order`.

    `smallest` is the size of the smallest class, 0 where no row is involved. With `Choice.BOTH` there are no ids: the
    partition would be a secret, and the value is mixed anyway.
    """

    __slots__ = ("__weakref__", "choice", "count", "dataset", "ids", "smallest")

    def __init__(self, dataset: str, ids: Ids, choice: Choice = Choice.WHOLE) -> None:
        self.dataset = dataset
        self.choice = choice
        self.ids = ids
        sizes = np.bincount(ids)[1:] if len(ids) else np.zeros(0, np.int64)
        self.count = len(sizes)
        self.smallest = int(sizes.min()) if len(sizes) else 0

    def __repr__(self) -> str:
        return f"cells({self.dataset}, {self.count}, smallest {self.smallest})"


Factor = tuple[int, "Tag | Order"]
Dim = tuple[Factor, ...]
Dims = tuple[Dim, ...]


Thinned = frozenset[tuple[int, float]]
"""Dropout masks that rows went through on their way: the number of each draw, and the share of elements that it kept."""

DENSE: Thinned = frozenset()


class Form:
    """Dimensions, cells, blame and whether it is mixed. Made by `Space.form` alone, so that equal means identical.

    `thinned`: see `Thinned`; empty again once the rows are summed.
    """

    __slots__ = ("__weakref__", "blame", "cells", "dims", "labelled", "mixed", "rows", "shape", "thinned")

    def __init__(
        self, dims: Dims, cells: Mapping[str, Cells], blame: frozenset[str], mixed: Reason | None, thinned: Thinned
    ) -> None:
        self.dims = dims
        self.cells = cells
        self.blame = blame
        self.mixed = mixed
        self.thinned = thinned
        self.shape = tuple(size(dim) for dim in dims)
        self.rows = has_rows(*dims)
        self.labelled = bool(cells) or mixed is not None

    def axis(self, dataset: str) -> int | None:
        """The dimension that holds rows of this dataset; None where none does (or where the form is mixed)."""
        for at, dim in enumerate(self.dims):
            if any(isinstance(tag, Order) and tag.dataset == dataset for _, tag in dim):
                return at
        return None

    def __repr__(self) -> str:
        return f"Form({self.dims}, {dict(self.cells)}, blame={set(self.blame)}, mixed={self.mixed})"


class Story(NamedTuple):
    """Where things happened: the step that made a tensor mixed, and per dataset the first step that joined rows."""

    mixed: str = ""
    blame: Mapping[str, str] = MappingProxyType({})


NOTHING = Story()


class Type(NamedTuple):
    """The label of one tensor."""

    form: Form
    story: Story = NOTHING

    @property
    def dims(self) -> Dims:
        return self.form.dims

    @property
    def shape(self) -> tuple[int, ...]:
        return self.form.shape

    @property
    def cells(self) -> Mapping[str, Cells]:
        return self.form.cells

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets whose rows went in, by name."""
        return tuple(sorted(self.form.cells))

    @property
    def mixed(self) -> Reason | None:
        return self.form.mixed

    @property
    def labelled(self) -> bool:
        """Whether anything but the client's own values went in."""
        return self.form.labelled

    def axis(self, dataset: str) -> int | None:
        """The dimension that holds rows of this dataset; None where none does."""
        return self.form.axis(dataset)

    def rows(self, dataset: str) -> int:
        """The size of the smallest class of this dataset's rows behind the value."""
        return self.form.cells[dataset].smallest

    def public_axis(self) -> int:
        """What a client may know: the first dimension that holds rows, -1 for none, -2 for mixed."""
        if self.form.mixed:
            return -2
        return next((at for at, dim in enumerate(self.form.dims) if has_rows(dim)), -1)


def size(dim: Dim) -> int:
    """The length of a dimension."""
    return math.prod(factor[0] for factor in dim)


def has_rows(*dims: Dim) -> bool:
    """Whether one of these dimensions holds an Order."""
    return any(isinstance(tag, Order) for dim in dims for _, tag in dim)


def plain_dim(length: int, tag: Tag = FREE) -> Dim:
    """A dimension without rows; one of length 1 has no factors."""
    return () if length == 1 else ((length, tag),)


def plain_dims(shape: Sequence[int], tag: Tag = FREE) -> Dims:
    """Dimensions without rows."""
    return tuple([() if length == 1 else ((int(length), tag),) for length in shape])


class Space:
    """One client's orders, cells and forms at one node.

    `max_bytes` bounds the memory of orders and cells: `QuotaExceeded` once three quarters of it are in use and more is
    asked for. `rows` maps each dataset to the number of its rows. `draws` counts dropout masks. `on_pressure` is called
    before memory is counted, to drop caches.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        self.rows: dict[str, int] = {}
        self.on_pressure: list[Callable[[], None]] = []
        self.draws = 0
        self._max_bytes = max_bytes
        self._grown = 0
        self._orders: weakref.WeakValueDictionary[tuple[str, Choice, bytes], Order] = weakref.WeakValueDictionary()
        self._cells: weakref.WeakValueDictionary[tuple[str, Choice, bytes], Cells] = weakref.WeakValueDictionary()
        self._forms: weakref.WeakValueDictionary[Any, Form] = weakref.WeakValueDictionary()
        self._refined: dict[tuple[Cells, Cells], Cells] = {}

    def dataset(self, name: str, rows: int) -> None:
        """State how many rows a dataset has. Raises `LocalProtocolError` if it had another number before."""
        if self.rows.setdefault(name, rows) != rows:
            raise LocalProtocolError(f"dataset {name!r} came with {rows} rows, and with {self.rows[name]} before")

    def order(self, dataset: str, index: npt.NDArray[Any], choice: Choice = Choice.POSITIONS) -> Order:
        """The order of these rows. Raises `Mix` if a row is in it twice, or none is in it."""
        index = np.ascontiguousarray(index, dtype=np.int32)
        if choice is not Choice.BLOCKS:
            every = len(index) == self.rows.get(dataset) and np.array_equal(index, np.arange(len(index)))
            choice = Choice.WHOLE if every else Choice.POSITIONS
        key = (dataset, choice, _digest(index))
        found = self._orders.get(key)
        if found is None:
            if not len(index):
                raise Mix("no rows were selected")
            if int(np.bincount(index, minlength=1).max()) > 1:
                raise Mix("a row was selected twice", "x[index] with distinct rows")
            found = self._orders[key] = Order(self, dataset, _frozen(index), choice)
            self._grow(index.nbytes)
        return found

    def cells(self, dataset: str, ids: npt.NDArray[Any], choice: Choice = Choice.WHOLE) -> Cells:
        """The partition that these ids draw, 0 for rows that are not involved; what the ids are does not matter."""
        canonical = _canonical(np.asarray(ids))
        key = (dataset, choice, _digest(canonical))
        found = self._cells.get(key)
        if found is None:
            found = self._cells[key] = Cells(dataset, _frozen(canonical), choice)
            self._grow(canonical.nbytes)
        return found

    def cells_of(self, order: Order) -> Cells:
        """One class: the rows of the order. The others are not involved."""
        if order.cells is None:
            ids = np.zeros(self.rows[order.dataset], np.int32)
            ids[order.index] = 1
            order.cells = self.cells(order.dataset, ids, order.choice)
        return order.cells

    def refine(self, a: Cells, b: Cells) -> Cells:
        """The coarsest partition that keeps apart what either keeps apart: the join of the lattice."""
        if a is b:
            return a
        found = self._refined.get((a, b))
        if found is None:
            choice = a.choice | b.choice
            ids = np.zeros(0, np.int64) if choice is Choice.BOTH else refine_ids(a.ids, b.ids)
            found = self.cells(a.dataset, ids, choice)
            self._refined[a, b] = self._refined[b, a] = found
        return found

    def join_cells(self, forms: Sequence[Form]) -> dict[str, Cells]:
        """Per dataset, the refinement over all of these. What is `Choice.BOTH` in one of them may only become mixed."""
        cells: dict[str, Cells] = {}
        for form in forms:
            for dataset, own in form.cells.items():
                cells[dataset] = self.refine(cells[dataset], own) if dataset in cells else own
        return cells

    def form(
        self,
        dims: Sequence[Dim],
        cells: Mapping[str, Cells] | None = None,
        blame: frozenset[str] = frozenset(),
        mixed: Reason | None = None,
        thinned: Thinned = DENSE,
    ) -> Form:
        """The one form with these parts."""
        dims = tuple(dims)
        pairs = tuple(sorted(cells.items())) if cells else ()
        key = (dims, pairs, blame, mixed, thinned)
        found = self._forms.get(key)
        if found is None:
            found = self._forms[key] = Form(dims, MappingProxyType(dict(pairs)), blame, mixed, thinned)
        return found

    def plain(self, shape: Sequence[int], tag: Tag = FREE) -> Form:
        """A client's own tensor (FREE), or one that was made constant at the node (CONST)."""
        return self.form(plain_dims(shape, tag))

    def taint(self, forms: Sequence[Form], shape: Sequence[int], reason: Reason) -> Form:
        """The result of an operation over which rows cannot be followed. Without labels on its inputs nothing is lost."""
        if not any(form.labelled for form in forms):
            return self.plain(shape)
        cells = self.join_cells(forms)
        return self.form(plain_dims(shape), cells, frozenset(cells), reason)

    def unknown(self, shape: Sequence[int], origins: Sequence[str], reason: Reason) -> Form:
        """A mixed form of rows that this space knows nothing of but where they came from; no rule lets it leave."""
        empty = np.zeros(0, np.int32)
        names = [f"{origin} (elsewhere)" for origin in origins]
        return self.form(plain_dims(shape), {name: self.cells(name, empty) for name in names}, frozenset(names), reason)

    def _grow(self, nbytes: int) -> None:
        self._grown += nbytes
        if self._grown > self._max_bytes:
            self._refined.clear()
            for drop in self.on_pressure:
                drop()
            self._grown = sum(o.index.nbytes for o in self._orders.values()) + sum(c.ids.nbytes for c in self._cells.values())
            if self._grown > self._max_bytes * 3 // 4:
                raise QuotaExceeded("the selections of rows that are in use take too much memory; free some, or use `ds.batches`")


def check_choices(cells: Iterable[Cells]) -> None:
    """Raise `Mix` if in one of a value's cells rows chosen by position meet secret blocks."""
    if any(own.choice is Choice.BOTH for own in cells):
        raise Mix(*BLOCKS_AND_POSITIONS)


def check_operands(forms: Iterable[Form]) -> None:
    """`check_choices` of what would come of these forms together, without looking at any row."""
    choices: dict[str, Choice] = {}
    for form in forms:
        for dataset, own in form.cells.items():
            choices[dataset] = joined = choices.get(dataset, Choice.WHOLE) | own.choice
            if joined is Choice.BOTH:
                raise Mix(*BLOCKS_AND_POSITIONS)


def refine_ids(a: Ids, b: Ids) -> npt.NDArray[np.int64]:
    """Ids of the common refinement of two partitions; 0 stays 0 where neither involves a row."""
    width = int(b.max(initial=0)) + 1
    return a.astype(np.int64) * width + b


def _canonical(ids: npt.NDArray[Any]) -> Ids:
    """The same partition with classes numbered from 1 in order of first appearance; 0 stays 0."""
    out = np.zeros(len(ids), np.int32)
    largest = int(ids.max(initial=0))
    if not largest:
        return out
    if largest > 4 * len(ids) + 4096:
        _, small = np.unique(ids, return_inverse=True)
        ids = small + (0 if ids.min() == 0 else 1)
        largest = int(ids.max())
    first = np.full(largest + 1, len(ids), np.int64)
    first[ids[::-1]] = np.arange(len(ids) - 1, -1, -1)  # of several writes to one place the last one stays: the first row
    present = np.flatnonzero(first[1:] < len(ids)) + 1
    number = np.zeros(largest + 1, np.int32)
    number[present[np.argsort(first[present])]] = np.arange(1, len(present) + 1, dtype=np.int32)
    out[:] = number[ids]
    return out


def _digest(array: npt.NDArray[Any]) -> bytes:
    return hashlib.blake2b(array.data if len(array) else b"", digest_size=16).digest()


def _frozen(array: Ids) -> Ids:
    array = array.copy() if array.base is not None else array
    array.flags.writeable = False
    return array
