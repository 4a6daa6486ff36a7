"""One call of an operation as its row rule sees it: arguments by name, the forms of its tensors, the shapes of its results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from grid.tensors.ops import Bound
from grid.tensors.rows import DENSE, Cells, Dim, Dims, Form, Mix, Order, Space, Thinned, check_choices, plain_dims

LONE_ROW_RISK = 1e-6
"""Dropout may leave fewer than two rows of a cell in a sum with at most this probability."""

Forms = Form | list[Form | None] | None


class Call:
    """What a rule reads, and how it makes forms.

    `forms` has, per argument that holds tensors, a form or a list of forms. `inputs` are all of them but pure outputs
    (`out=`). `shapes` are the results' shapes. A rule that reads the values of a public index sets `volatile`: its verdict
    holds for this call alone.
    """

    def __init__(self, space: Space, bound: Bound, forms: dict[str, Forms], shapes: Sequence[tuple[int, ...]]) -> None:
        self.space = space
        self.bound = bound
        self.forms = forms
        self.shapes = shapes
        self.volatile = False
        self.inputs: list[Form] = []
        for name, found in forms.items():
            if name != "out":
                self.inputs.extend(form for form in (found if isinstance(found, list) else [found]) if form is not None)

    @property
    def base(self) -> str:
        """The operation's name without overload and without the underscore of an in-place one."""
        base = self.bound.op.base
        return base[:-1] if base.endswith("_") and not base.endswith("__") else base

    def arg(self, name: str, default: Any = None) -> Any:
        """The argument of this name; `default` where the operation has none such."""
        return self.bound.get(name, default)

    def has(self, name: str) -> bool:
        """Whether this argument is a tensor (and not left out, and not a number in a tensor's place)."""
        return isinstance(self.forms.get(name), Form)

    def of(self, name: str) -> Form:
        """The form of a tensor argument."""
        found = self.forms[name]
        if not isinstance(found, Form):
            raise TypeError(f"{self.bound.op.name}: {name} is not one tensor")
        return found

    def dims(self, name: str) -> Dims:
        """The dimensions of a tensor argument."""
        return self.of(name).dims

    def listed(self, name: str) -> list[Form]:
        """The forms of a list of tensors, those left out not counted."""
        found = self.forms[name]
        if not isinstance(found, list):
            raise TypeError(f"{self.bound.op.name}: {name} is not a list of tensors")
        return [form for form in found if form is not None]

    def tensor(self, name: str) -> Tensor:
        """The value of a tensor argument; only ever that of a public index."""
        value = self.bound[name]
        assert isinstance(value, Tensor)
        self.volatile = True
        return value

    def make(self, dims: Sequence[Dim], *only: str, summed: Sequence[Dim] = ()) -> Form:
        """A result with these dimensions, refined cells and collected blame.

        `only`: it depends on these arguments alone. `summed`: dimensions that were joined and contracted away; rows in them
        are to blame even where the result has an Order of the same dataset from elsewhere.
        """
        forms = [self.of(name) for name in only if self.has(name)] if only else self.inputs
        return self.combine(forms, dims, summed=summed)

    def combine(self, forms: Sequence[Form], dims: Sequence[Dim], *, summed: Sequence[Dim] = ()) -> Form:
        """`make` from given forms."""
        for form in forms:
            if form.mixed is not None:
                raise Mix(*form.mixed)
        cells = self.space.join_cells(forms)
        check_choices(cells.values())
        if not cells:
            return self.space.form(dims)
        seen = [tag.dataset for dim in dims for _, tag in dim if isinstance(tag, Order)]
        if len(seen) > len(set(seen)):
            raise Mix("every row would meet every other row", "sums over rows; for kernels, random Fourier features")
        spent = {tag.dataset for dim in summed for _, tag in dim if isinstance(tag, Order)}
        blame = {dataset for form in forms for dataset in form.blame}
        blame.update(dataset for dataset in cells if dataset not in seen or dataset in spent)
        thinned = DENSE.union(*[form.thinned for form in forms])
        if thinned and not seen:
            enough_left(thinned, cells)
            thinned = DENSE
        return self.space.form(dims, cells, frozenset(blame), None, thinned)

    def free(self, shape: Sequence[int], *only: str) -> Form:
        """A result without rows on any dimension."""
        return self.make(plain_dims(shape), *only)

    def free_summed(self, shape: Sequence[int], summed: Sequence[Dim]) -> Form:
        """A result without rows on any dimension, into which these dimensions were added up."""
        return self.make(plain_dims(shape), summed=summed)

    def axes(self, name: str, rank: int) -> list[int]:
        """The dimensions that an argument names, counted from the front; all of them where it names none."""
        value = self.arg(name)
        if value is None or value == [] or rank == 0:
            return list(range(rank))
        return sorted({axis % rank for axis in (value if isinstance(value, list) else [value])})

    def axis(self, name: str, rank: int) -> int:
        """The one dimension that an argument names, counted from the front."""
        return int(self.arg(name)) % max(rank, 1)


def enough_left(thinned: Thinned, cells: Mapping[str, Cells]) -> None:
    """Raise `Mix` if a sum over rows that dropout has thinned could well hold one row alone.

    A chain of masks on one another keeps as few rows as its author likes, and this counts its links. What it does not see is
    one mask wide enough to be combined with itself (a product over its columns): that is one of the limits in SECURITY.md.
    """
    kept = math.prod(share for _, share in thinned)
    for dataset, own in cells.items():
        n = own.smallest
        if (1 - kept) ** n + n * kept * (1 - kept) ** (n - 1) > LONE_ROW_RISK:
            raise Mix(f"dropout leaves too few rows of {dataset!r} in a sum", "larger batches, or less dropout")
