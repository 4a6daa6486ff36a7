"""Tables: rows of named columns, read chunk by chunk, so that a file may be larger than memory.

A `Table` can be gone through any number of times. What its cells mean is for `columns` to say; a table gives each column of
a chunk as a pandas Series of numbers, or of texts as they are written, None where a value is missing.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Set

import numpy
import pandas

from grid.errors import DatasetError
from grid.node.findings import Findings

Lines = numpy.ndarray[tuple[int], numpy.dtype[numpy.int64]]

MAX_COLUMNS = 100_000

CHUNK_CELLS = 1 << 18
"""Cells of a chunk, about; a chunk has one row at least."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some rows in a row. `first` is the number of the first; `lines` has the line of each, where the file has lines."""

    place: str
    first: int
    rows: int
    cells: Mapping[str, pandas.Series]
    lines: Lines | None = None

    def at(self, row: int) -> str:
        """How an error names a row of the chunk: "patients.csv, line 17"; without lines "patients.parquet, row 16"."""
        return f"{self.place}, row {self.first + row}" if self.lines is None else f"{self.place}, line {int(self.lines[row])}"


class Table(abc.ABC):
    """Rows of named columns. `place` is what errors call it; `names` are its columns in order, all different."""

    place: str
    names: tuple[str, ...]

    @abc.abstractmethod
    def chunks(self, texts: Set[str], columns: Set[str], most_rows: int) -> Iterator[Chunk]:
        """The rows in order, in chunks of at most `most_rows`, with the cells of `columns`; those of `texts` as written."""

    @abc.abstractmethod
    def known_rows(self) -> int | None:
        """The number of rows, where it stands in the file; else going through it once tells."""

    @abc.abstractmethod
    def unsuited(self, name: str) -> str:
        """Why a column can never be a feature, such as "holds dates"; "" for one that may be."""

    @abc.abstractmethod
    def may_be_text(self, name: str) -> bool:
        """Whether the cells of an undeclared column have to be seen to tell numbers from text."""


class FrameTable(Table):
    """A table in memory."""

    def __init__(self, frame: pandas.DataFrame, place: str) -> None:
        self.place = place
        self.names = tuple(str(name) for name in frame.columns)
        check_names(self.names, place)
        self._frame = frame
        self._kinds = dict(zip(self.names, frame.dtypes, strict=True))

    def chunks(self, texts: Set[str], columns: Set[str], most_rows: int) -> Iterator[Chunk]:
        wanted = [(position, name) for position, name in enumerate(self.names) if name in columns]
        for first in range(0, len(self._frame), most_rows):
            part = self._frame.iloc[first : first + most_rows]
            yield Chunk(self.place, first, len(part), {name: part.iloc[:, position] for position, name in wanted})

    def known_rows(self) -> int:
        return len(self._frame)

    def unsuited(self, name: str) -> str:
        kind = self._kinds[name]
        if pandas.api.types.is_datetime64_any_dtype(kind) or pandas.api.types.is_timedelta64_dtype(kind):
            return "holds dates or times"
        return "holds complex numbers" if pandas.api.types.is_complex_dtype(kind) else ""

    def may_be_text(self, name: str) -> bool:
        kind = self._kinds[name]
        return not (pandas.api.types.is_numeric_dtype(kind) or pandas.api.types.is_bool_dtype(kind))


def check_names(names: Collection[str], place: str) -> None:
    """Raise for columns that cannot be told apart."""
    if len(names) > MAX_COLUMNS:
        raise DatasetError(f"{place}: more than {MAX_COLUMNS} columns")
    seen: set[str] = set()
    for position, name in enumerate(names, 1):
        if not name:
            raise DatasetError(f"{place}: column {position} has no name")
        if name in seen:
            raise DatasetError(f"{place}: there are two columns {name!r}")
        seen.add(name)


def no_rows(place: str, findings: Findings) -> None:
    """Say that a table is empty."""
    findings.error(DatasetError(f"{place}: there are no rows"))
