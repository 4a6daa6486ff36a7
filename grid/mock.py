"""Made-up cells for a dataset's columns, from its card alone: what the owner wrote, never anything that was computed from rows.

Numbers are uniform between the owner's bounds, or standard normal without them; categories are drawn evenly. The same
dataset gives the same values each time and everywhere, so that a failing experiment fails again, and so that the rows which
the gateway's page shows are those that `ds.mock` has.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import numpy.typing

from grid.wire.messages import ColumnCard, DatasetCard

MAX_ROWS = 1000
"""Mock data of a larger dataset has this many rows."""

LARGEST = float(numpy.finfo(numpy.float32).max)

Cells = numpy.typing.NDArray[Any]


def generator(card: DatasetCard) -> numpy.random.Generator:
    """The dataset's own generator; columns are drawn from it in their order."""
    return numpy.random.default_rng(zlib.crc32(card.name.encode()))


def draw_cells(columns: Sequence[ColumnCard], rows: int, rng: numpy.random.Generator) -> Mapping[str, Cells]:
    """`rows` cells for each column, by its name."""
    return {column.name: _cells(column, rows, rng) for column in columns}


def first_rows(card: DatasetCard, columns: int, rows: int) -> list[tuple[str | float, ...]]:
    """The first `rows` rows of the dataset's mock data, of its first `columns` columns, as plain values.

    All rows are drawn, as one generator makes column after column.
    """
    cells = draw_cells(card.columns[:columns], min(card.rows, MAX_ROWS), generator(card))
    return list(itertools.islice(zip(*(column.tolist() for column in cells.values()), strict=True), rows))


def _cells(column: ColumnCard, rows: int, rng: numpy.random.Generator) -> Cells:
    """Whatever a card says: it comes from a stranger, and its bounds may be the wrong way round or have no number between."""
    if column.kind == "category":
        return rng.choice(numpy.array(column.categories or ("",), dtype=object), rows)
    if column.kind == "text":
        return numpy.array([f"{column.name} {number}" for number in range(rows)], dtype=object)
    if column.minimum is not None and column.maximum is not None:
        part = rng.random(rows)
        values = column.minimum * (1 - part) + column.maximum * part
        return values.clip(-LARGEST, LARGEST).astype(numpy.float32)
    return rng.standard_normal(rows).astype(numpy.float32)
