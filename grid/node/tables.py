"""Reading CSV files: pandas parses the cells, a first pass over the lines knows where each row stands.

The first pass also finds what pandas would repair in silence or report without a line: rows with too few or too many
cells, repeated column names, text that is not UTF-8. Errors name the file and the line, never a cell's content.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Collection
from pathlib import Path

import numpy
import pandas

from grid.errors import DatasetError

MISSING_NUMBERS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""Cells of a column of numbers that stand for a missing value. In a column of categories only the empty cell does."""

MAX_COLUMNS = 100_000


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows of a dataset before they are checked. `lines` has the line of each row, or is None for a table made in memory."""

    frame: pandas.DataFrame
    place: str
    lines: numpy.ndarray[tuple[int], numpy.dtype[numpy.int64]] | None = None

    def at(self, row: int) -> str:
        """How an error names a row: "patients.csv, line 17"; for a table in memory "row 16"."""
        return f"{self.place}, row {row}" if self.lines is None else f"{self.place}, line {int(self.lines[row])}"


def read_csv(path: Path, text_columns: Collection[str]) -> Table:
    """The table in a CSV file with a header. The cells of `text_columns` stay as they are written."""
    text = _read_text(path)
    header, lines = _scan(text, path)
    texts = [name for name in header if name in text_columns]
    missing = {name: [""] if name in text_columns else list(MISSING_NUMBERS) for name in header}
    try:
        frame = pandas.read_csv(
            io.StringIO(text),
            header=0,
            names=header,
            index_col=False,
            dtype=dict.fromkeys(texts, "str"),
            keep_default_na=False,
            na_values=missing,
            skipinitialspace=True,
            low_memory=False,
        )
    except (ValueError, OverflowError) as error:  # pandas' own errors are ValueErrors
        raise DatasetError(f"{path}: cannot be read as CSV ({error.__class__.__name__})") from error
    if len(frame) != len(lines):
        raise DatasetError(f"{path}: rows cannot be told apart; look for stray quotation marks")
    return Table(frame, str(path), numpy.asarray(lines, dtype=numpy.int64))


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}, line {line}: not UTF-8 text; save the file in that encoding") from error


def _scan(text: str, path: Path) -> tuple[list[str], list[int]]:
    """The column names, and for each row the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    header: list[str] = []
    lines: list[int] = []
    begins = 1
    try:
        for cells in reader:
            if not header:
                if any(cells):
                    header = _check_header([cell.strip() for cell in cells], path, begins)
            elif not cells or (len(cells) == 1 and not cells[0].strip() and len(header) > 1):
                pass  # pandas skips blank lines, too
            elif len(cells) != len(header):
                raise DatasetError(f"{path}, line {begins}: {len(cells)} cells where the header has {len(header)}")
            else:
                lines.append(begins)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{path}, line {begins}: not valid CSV ({error})") from error
    if not header:
        raise DatasetError(f"{path}: the file is empty; it needs a line with the columns' names, and rows")
    if not lines:
        raise DatasetError(f"{path}: there are no rows below the header")
    return header, lines


def _check_header(names: list[str], path: Path, line: int) -> list[str]:
    if len(names) > MAX_COLUMNS:
        raise DatasetError(f"{path}, line {line}: more than {MAX_COLUMNS} columns")
    seen: set[str] = set()
    for position, name in enumerate(names, 1):
        if not name:
            raise DatasetError(f"{path}, line {line}: column {position} has no name")
        if name in seen:
            raise DatasetError(f"{path}, line {line}: there are two columns {name!r}")
        seen.add(name)
    return names
