"""Reading CSV files. Errors name the file and the line, never a cell's content.

A row that has too few or too many cells, a repeated column name, text that is not UTF-8 and a line without end are errors;
nothing is repaired in silence. Memory is bounded by the chunk, however long the file and its lines are.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TextIO

import numpy
import pandas

from grid.errors import DatasetError
from grid.node.findings import Findings
from grid.node.tables import CHUNK_CELLS, Chunk, Table, check_names

MISSING_NUMBERS = frozenset(("", "NA", "N/A", "NaN", "nan", "null", "NULL"))
"""Cells of a column of numbers that stand for a missing value. In a column of categories only the empty cell does."""

MAX_LINE = 1 << 24
"""Characters of one line."""

CHUNK_CHARACTERS = 1 << 24


class CsvTable(Table):
    """A CSV file with a header. The first time through finds the rows with too few or too many cells."""

    def __init__(self, path: Path, findings: Findings) -> None:
        self.place = str(path)
        self._path = path
        self._findings = findings
        self._gone_through = False
        with self._open() as text:
            self.names = next(self._rows(text))[1]

    def chunks(self, texts: Set[str], columns: Set[str], most_rows: int) -> Iterator[Chunk]:
        most_rows = max(1, min(most_rows, CHUNK_CELLS // len(self.names)))
        wanted = [(position, name, name in texts) for position, name in enumerate(self.names) if name in columns]
        with self._open() as text:
            rows = self._rows(text)
            next(rows)
            first, lines, cells, size = 0, [], [], 0
            for line, row in rows:
                lines.append(line)
                cells.append(row)
                size += sum(map(len, row))
                if len(cells) >= most_rows or size > CHUNK_CHARACTERS:
                    yield self._chunk(first, lines, cells, wanted)
                    first, lines, cells, size = first + len(cells), [], [], 0
            if cells:
                yield self._chunk(first, lines, cells, wanted)

    def _chunk(self, first: int, lines: list[int], rows: list[tuple[str, ...]], wanted: Sequence[tuple[int, str, bool]]) -> Chunk:
        cells = {name: _series([row[position] for row in rows], is_text) for position, name, is_text in wanted}
        return Chunk(self.place, first, len(rows), cells, numpy.asarray(lines, dtype=numpy.int64))

    def known_rows(self) -> None:
        return None

    def unsuited(self, name: str) -> str:
        return ""

    def may_be_text(self, name: str) -> bool:
        return True

    # ------------------------------------------------------------ lines

    def _open(self) -> TextIO:
        try:
            return self._path.open(encoding="utf-8-sig", newline="")
        except FileNotFoundError as error:
            raise DatasetError(f"{self._path}: no such file") from error
        except OSError as error:
            raise DatasetError(f"{self._path}: cannot be read ({error.strerror})") from error

    def _lines(self, text: TextIO) -> Iterator[str]:
        number = 0
        try:
            while line := text.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise DatasetError(f"{self._path}, line {number}: the line has more than {MAX_LINE} characters")
                yield line
        except UnicodeDecodeError as error:
            line_number = _first_bad_line(self._path)
            raise DatasetError(f"{self._path}, line {line_number}: not UTF-8 text; save the file in that encoding") from error
        except OSError as error:
            raise DatasetError(f"{self._path}: cannot be read ({error.strerror})") from error

    def _rows(self, text: TextIO) -> Iterator[tuple[int, tuple[str, ...]]]:
        """The header, then the rows, each with the line on which it begins."""
        reader = csv.reader(self._lines(text), strict=True, skipinitialspace=True)
        header: tuple[str, ...] = ()
        begins, rows = 1, 0
        try:
            for cells in reader:
                if not header:
                    if any(cells):
                        header = tuple(cell.strip() for cell in cells)
                        check_names(header, f"{self._path}, line {begins}")
                        yield begins, header
                elif not cells or (len(cells) == 1 and not cells[0].strip() and len(header) > 1):
                    pass  # a blank line
                elif len(cells) != len(header):
                    if not self._gone_through:
                        what = f"{len(cells)} cells where the header has {len(header)}"
                        self._findings.row(f"{self._path}, line {begins}", "", what)
                else:
                    rows += 1
                    yield begins, tuple(cells)
                begins = reader.line_num + 1
        except csv.Error as error:
            raise DatasetError(f"{self._path}, line {begins}: not valid CSV ({error})") from error
        if not header:
            raise DatasetError(f"{self._path}: the file is empty; it needs a line with the columns' names, and rows")
        self._gone_through = True
        if not rows:
            raise DatasetError(f"{self._path}: there are no rows below the header")


def _series(cells: Sequence[str], is_text: bool) -> pandas.Series:
    """A column's cells, None for missing ones; whole numbers and decimals as numbers where all of them are."""
    if is_text:
        return pandas.Series([cell.strip() or None for cell in cells], dtype=object)
    joined = "".join(cells)
    if joined.isascii() and "_" not in joined:  # float would take digits of other scripts, and 1_000
        with contextlib.suppress(ValueError):
            numbers = numpy.fromiter(map(float, cells), dtype=numpy.float64, count=len(cells))
            if not numpy.isnan(numbers).any():
                return pandas.Series(numbers)
    stripped = (cell.strip() for cell in cells)
    return pandas.Series([None if cell in MISSING_NUMBERS else cell for cell in stripped], dtype=object)


def _first_bad_line(path: Path) -> int:
    with path.open("rb") as file:
        number = 1
        while line := file.readline(MAX_LINE):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
            number += 1
    return number
