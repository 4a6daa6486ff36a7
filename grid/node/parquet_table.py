"""Reading Parquet files, row group by row group and in parts of those.

Numbers of any width and booleans are numbers, dictionaries are what their values are. Dates and times, nested columns and bytes
are no features: what a date means for a model is for its owner to say, in a column of numbers. pandas' own index column is
left out. Nothing in a Parquet file is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path

import numpy
import pandas
import pyarrow
import pyarrow.parquet
from pyarrow import types

from grid.errors import DatasetError
from grid.node.findings import Findings
from grid.node.tables import CHUNK_CELLS, Chunk, Table, check_names

READ_BYTES = 1 << 20
"""Read ahead of each column: more than a page, much less than a row group."""

INDEX_COLUMN = "__index_level_"


class ParquetTable(Table):
    """A Parquet file."""

    def __init__(self, path: Path, findings: Findings) -> None:
        self.place = str(path)
        self._path = path
        with self._open() as file:
            self._types = {field.name: _plain(field.type) for field in file.schema_arrow}
            names = [field.name for field in file.schema_arrow]
            self._rows = int(file.metadata.num_rows)
        check_names(names, self.place)
        index = [name for name in names if name.startswith(INDEX_COLUMN)]
        for name in index:
            findings.leave_out(self.place, "column", name, "is the index of a pandas table")
        self.names = tuple(name for name in names if name not in index)
        if not self._rows:
            raise DatasetError(f"{path}: there are no rows")

    def _open(self) -> pyarrow.parquet.ParquetFile:
        try:
            return pyarrow.parquet.ParquetFile(self._path, buffer_size=READ_BYTES, pre_buffer=False)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DatasetError(f"{self._path}: cannot be read as Parquet ({error.__class__.__name__})") from error

    def chunks(self, texts: Set[str], columns: Set[str], most_rows: int) -> Iterator[Chunk]:
        wanted = [name for name in self.names if name in columns]
        most_rows = max(1, min(most_rows, CHUNK_CELLS // max(1, len(wanted))))
        first = 0
        with self._open() as file:
            try:
                for batch in file.iter_batches(batch_size=most_rows, columns=wanted, use_threads=False):
                    cells = {
                        name: _series(column, self._types[name], name in texts)
                        for name, column in zip(batch.schema.names, batch.columns, strict=True)
                    }
                    yield Chunk(self.place, first, batch.num_rows, cells)
                    first += batch.num_rows
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                what = f"{self._path}: cannot be read after row {first} ({error.__class__.__name__})"
                raise DatasetError(what) from error
        if first != self._rows:
            raise DatasetError(f"{self._path}: {first} rows where its own list of row groups names {self._rows}")

    def known_rows(self) -> int:
        return self._rows

    def unsuited(self, name: str) -> str:
        kind = self._types[name]
        if types.is_temporal(kind):
            return "holds dates or times: add a column of numbers, such as days since a date, if it is to be a feature"
        if types.is_nested(kind):
            return "holds lists or structures: Parquet columns here are plain values"
        plain = _is_number(kind) or _is_text(kind) or types.is_null(kind)
        return "" if plain else f"holds {kind}, which is neither number nor text"

    def may_be_text(self, name: str) -> bool:
        return _is_text(self._types[name])


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of a column's values."""
    return kind.value_type if types.is_dictionary(kind) else kind


def _is_number(kind: pyarrow.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def _is_text(kind: pyarrow.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _series(column: pyarrow.Array, kind: pyarrow.DataType, is_text: bool) -> pandas.Series:
    """A column's cells, None (or NaN, for numbers) where they are null."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_number(kind) and not is_text:
        numbers = column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        return pandas.Series(numbers, dtype=numpy.float64)
    if _is_number(kind) or _is_text(kind):
        return pandas.Series(column.to_pylist(), dtype=object)
    return pandas.Series([None] * len(column), dtype=object)
