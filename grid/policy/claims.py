"""What the gate is told of a value: its type in plain data, which also travels from a process that works for a client.

Such a process may have gone wrong, so a claim is checked where it is used: ids must be a partition of the dataset's rows,
and the size of the smallest cell is counted here and never claimed. Arrays that are not looked at are not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from grid.errors import WireError
from grid.tensors.rows import Cells, Choice, Type, refine_ids
from grid.wire.messages import Buffer, record

CHOICES: Mapping[str, Choice] = MappingProxyType(dict(Choice.__members__))


@record
class RowsClaim:
    """What a value says of one dataset. `axis`: the dimension that holds rows, None where none does.

    `choice` is how the rows were picked, by name (`CHOICES`). `every`: they are all rows, treated alike, and `ids` is empty;
    otherwise it holds the number of each row's cell, little-endian int32, 0 for rows that are not involved, empty where no
    row of this node's is. `blame`: the first step that joined rows.
    """

    dataset: str
    axis: int | None
    choice: str
    every: bool
    ids: Buffer
    blame: str

    def cells(self, rows: int) -> Cells:
        """The partition of a dataset of so many rows. Raises `WireError` where the claim draws none."""
        choice = CHOICES.get(self.choice)
        if choice is None:
            raise WireError("a value's label names no way to choose rows")
        if self.every:
            return Cells(self.dataset, np.ones(rows, np.int32), choice)
        data = memoryview(self.ids)
        if data.nbytes not in (0, 4 * rows):
            raise WireError("a value's label is about another number of rows than the dataset has")
        ids = np.frombuffer(data, dtype="<i4").astype(np.int32, copy=False)
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) <= rows):
            raise WireError("a value's label numbers cells that cannot be")
        return Cells(self.dataset, ids, choice)


@record
class Claim:
    """The type of a value with a label. `mixed`: why rows cannot be followed, "" where they can; `instead`: what to write;
    `step`: where it became mixed. `rows`: one for each dataset behind it, by name."""

    mixed: str
    instead: str
    step: str
    rows: tuple[RowsClaim, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets whose rows went in, by name."""
        return tuple([one.dataset for one in self.rows])


def merged(one: RowsClaim, other: RowsClaim) -> RowsClaim:
    """Of two claims about one dataset without axes: the partition that both draw together. Raises `WireError` as `cells`."""
    rows = max(memoryview(claim.ids).nbytes for claim in (one, other)) // 4
    if not rows:
        return one
    first, second = one.cells(rows), other.cells(rows)
    refined = refine_ids(first.ids, second.ids)
    _, numbered = np.unique(refined, return_inverse=True)
    ids = numbered.astype("<i4") + np.int32(0 if bool((refined == 0).any()) else 1)
    return dataclasses.replace(one, every=False, choice=(first.choice | second.choice).name or "", ids=ids.data.cast("B"))


NO_REASON = "its rows cannot be followed"


def claim_of(kind: Type) -> Claim:
    """What is claimed of a value of this type, without copies."""
    mixed = kind.mixed
    return Claim(
        mixed="" if mixed is None else mixed.text or NO_REASON,
        instead="" if mixed is None else mixed.instead,
        step=kind.story.mixed,
        rows=tuple([_rows(kind, name, cells) for name, cells in kind.cells.items()]),
    )


def _rows(kind: Type, name: str, cells: Cells) -> RowsClaim:
    every = cells.count == 1 and cells.smallest == len(cells.ids)
    return RowsClaim(
        dataset=name,
        axis=kind.axis(name),
        choice=cells.choice.name or "",
        every=every,
        ids=b"" if every or not len(cells.ids) else np.ascontiguousarray(cells.ids, dtype="<i4").data.cast("B"),
        blame=kind.story.blame.get(name, ""),
    )
