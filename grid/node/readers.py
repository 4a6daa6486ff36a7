"""What a dataset is made of: one interface over every kind of file, and over tables in memory.

A `Reader` says what tensors it has (`schema`) before it gives their rows (`blocks`), block by block, so that room can be made
for a dataset larger than memory. Rows come in the order in which they stand in the file, always. A dataset may grow at its
end; `appends` says whether added rows come there.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from grid.errors import DatasetError
from grid.node.columns import Column, Tally, codes_of, named, numbers_of, one_hot, parse, plan_columns
from grid.node.descriptions import Description
from grid.node.findings import Findings
from grid.node.tables import Chunk, Table, no_rows
from grid.wire.messages import ColumnCard

FEATURES, TARGETS, COLUMN = "features", "targets", "column:"
"""Names of a reader's tensors; a column's follows the last."""

BLOCK_BYTES = 4 << 20
"""Bytes of tensors in one block, about; a block has one row at least."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One tensor: `(rows, *inner)`."""

    inner: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.inner) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """The tensors of a dataset and what is said of them.

    `places` has, for each column that can be asked for by name, the part that holds it and its position in there, None for
    all of it.
    """

    rows: int
    parts: Mapping[str, Part]
    columns: tuple[ColumnCard, ...] = ()
    places: Mapping[str, tuple[str, int | None]] = dataclasses.field(default_factory=dict)
    feature_names: tuple[str, ...] = ()
    classes: int = 0
    appends: bool = True

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all parts."""
        return sum(part.row_bytes for part in self.parts.values())


Block = Mapping[str, Tensor]
"""The next rows of every part."""


class Reader(abc.ABC):
    """A data file, folder or table, checked against its description. What is wrong goes to the findings it was made with."""

    @property
    @abc.abstractmethod
    def schema(self) -> Schema:
        """What it has."""

    @abc.abstractmethod
    def blocks(self) -> Iterator[Block]:
        """All rows, once, in order."""


class TableReader(Reader):
    """A table: numeric columns and one-hot categories as a float32 feature matrix, and perhaps a target."""

    def __init__(self, table: Table, description: Description, findings: Findings) -> None:
        self._findings = findings
        self._table = table
        rows, tallies = survey(table, description, findings)
        self._columns = plan_columns(table, tallies, description, findings)
        width = sum(column.width for column in self._columns)
        if not width:
            findings.error(description.where.error("no column of the data is a feature"))
        self._schema = self._make_schema(rows, width)

    @property
    def schema(self) -> Schema:
        return self._schema

    def _make_schema(self, rows: int, width: int) -> Schema:
        parts = {FEATURES: Part((width,), torch.float32)}
        places: dict[str, tuple[str, int | None]] = {}
        position, classes = 0, 0
        for column in self._columns:
            if column.kind == "text":
                continue
            if column.role == "target":
                parts[TARGETS] = column_part(column)
                places[column.name] = (TARGETS, None)
                classes = len(column.rule.categories)
            elif column.kind == "number":
                places[column.name] = (FEATURES, position)
            else:
                parts[COLUMN + column.name] = column_part(column)
                places[column.name] = (COLUMN + column.name, None)
            position += column.width
        return Schema(rows, parts, tuple(column.card for column in self._columns), places, named(self._columns), classes)

    def blocks(self) -> Iterator[Block]:
        usable = [column for column in self._columns if column.kind != "text"]
        for chunk in self._table.chunks(texts_of(usable), {c.name for c in usable}, block_rows(self._schema.row_bytes)):
            values = column_values(usable, chunk, self._findings)
            features = torch.zeros(chunk.rows, *self._schema.parts[FEATURES].inner)
            block: dict[str, Tensor] = {FEATURES: features}
            position = 0
            for column in usable:
                if column.width:
                    one_hot(column, values[column.name], features[:, position : position + column.width])
                    position += column.width
                place, inside = self._schema.places[column.name]
                if inside is None:
                    block[place] = values[column.name]
            yield block


def survey(table: Table, description: Description, findings: Findings) -> tuple[int, dict[str, Tally]]:
    """The number of rows, and of columns that nobody declared, how much in them is no number."""
    undeclared = (name for name in table.names if name not in description.columns and table.may_be_text(name))
    tallies = {name: Tally() for name in undeclared}
    rows = table.known_rows()
    if rows is None or tallies:
        counted = 0
        for chunk in table.chunks(frozenset(), tallies.keys(), block_rows(1)):
            counted += chunk.rows
            for name, tally in tallies.items():
                cells = chunk.cells[name]
                tally.present += int(cells.notna().sum())
                tally.wrong += int(parse(cells)[1].sum())
        rows = counted
    if not rows:
        no_rows(table.place, findings)
    return rows, tallies


def column_part(column: Column) -> Part:
    """The tensor of one column's values."""
    return Part((), torch.int64 if column.kind == "category" else torch.float32)


def texts_of(columns: Sequence[Column]) -> set[str]:
    """The columns whose cells a table is to give as they are written."""
    return {column.name for column in columns if column.kind == "category"}


def column_values(columns: Sequence[Column], chunk: Chunk, findings: Findings) -> dict[str, Tensor]:
    """A chunk's values of every column, `(rows,)` each."""
    return {
        column.name: (codes_of if column.kind == "category" else numbers_of)(column, chunk.cells[column.name], chunk, findings)
        for column in columns
    }


def block_rows(row_bytes: int) -> int:
    """How many rows of so many bytes make a block."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def check_file(description: Description) -> None:
    """Raise where the data file is not there, or is no plain file."""
    path = description.path
    if not path.exists():
        raise description.where.error(f"there is no file {str(path)!r}", key="file")
    if not path.is_file():
        raise description.where.error(f"{str(path)!r} is neither a file nor a folder", key="file")
    if path.stat().st_size == 0:
        raise DatasetError(f"{path}: the file is empty")
