"""Made-up data of a dataset's schema as a table and tensors; `grid.mock` draws the cells."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy
import pandas
import torch

from grid.display import printable
from grid.errors import InvalidRequest
from grid.mock import MAX_ROWS, draw_cells, generator
from grid.tensors.buffers import torch_dtype
from grid.wire.messages import ColumnCard, DatasetCard

MISSING = "(missing)"
"""The feature of cells without a category, where the owner lets them be one: the nodes' name for it."""


class Mock(pandas.DataFrame):
    """A table with the dataset's columns; `features` and `targets` are tensors such as the remote ones stand for."""

    _metadata = ("features", "targets")
    features: torch.Tensor
    targets: torch.Tensor | None

    @property
    def _constructor(self) -> type[pandas.DataFrame]:
        """Slices and results are ordinary tables: they no longer go with the tensors."""
        return pandas.DataFrame

    def __repr__(self) -> str:
        return f"{NOTE}\n{_lines(super().__repr__())}"

    def _repr_html_(self) -> str:
        table = getattr(super(), "_repr_html_")()  # noqa: B009  # pandas' stubs do not know it
        return f'<div style="opacity:.7">{NOTE}</div>{_lines(table or "")}'


def _lines(text: str) -> str:
    """Without control characters, which pandas leaves in the names of columns."""
    return "\n".join(printable(line, 1 << 20) for line in text.splitlines())


NOTE = "Made-up rows: what the owner wrote of the columns, nothing of the data."


MAX_CELLS = 1 << 26
"""Numbers in all mock data of one dataset: the card comes from a stranger, and rows may be large images."""


def make_mock(card: DatasetCard, rows: int) -> Mock:
    """A table of `rows` rows, at most `MAX_ROWS`, and fewer where a row is very large.

    Raises `InvalidRequest` for a card that makes no sense, or of whose rows not one has `MAX_CELLS` numbers at most.
    """
    rows = min(rows, MAX_ROWS)
    most = MAX_CELLS // max(1, _row_cells(card))
    if not most:
        raise InvalidRequest(f"a row of dataset {card.name!r} has more than {MAX_CELLS} numbers, too many to make some up")
    rng = generator(card)
    # All rows are drawn, so that those which are kept are those that the gateway's page shows.
    drawn = draw_cells(card.columns, rows, rng)
    rows = min(rows, most)
    frame = Mock({name: cells[:rows] for name, cells in drawn.items()})
    features, targets = _features(card, frame, rows, rng), _targets(card, frame, rows, rng)
    # Past pandas' own attribute rules, which would warn that a tensor makes no column.
    object.__setattr__(frame, "features", features)
    object.__setattr__(frame, "targets", targets)
    return frame


def _row_cells(card: DatasetCard) -> int:
    """How many numbers one row has, everything counted."""
    if any(side < 0 for side in (*card.feature_shape, *card.target_shape)):
        raise InvalidRequest(f"the card of dataset {card.name!r} has a shape with a negative number")
    features = max(math.prod(card.feature_shape), len(card.feature_names))
    return len(card.columns) + features + math.prod(card.target_shape)


def _features(card: DatasetCard, frame: Mock, rows: int, rng: numpy.random.Generator) -> torch.Tensor:
    dtype = torch_dtype(card.feature_dtype)
    columns = {column.name: column for column in card.columns if column.role == "feature"}
    if not columns or card.feature_shape != (len(card.feature_names),):
        return _draw((rows, *card.feature_shape), dtype, 0, rng)
    one_hot = _one_hot(columns.values())
    pieces = []
    for name in card.feature_names:
        if name in columns and columns[name].kind == "number":
            pieces.append(frame[name].to_numpy(dtype=numpy.float64))
        elif name in one_hot:
            column, category = one_hot[name]
            pieces.append((frame[column] == category).to_numpy(dtype=numpy.float64))
        else:
            raise InvalidRequest(f"the dataset's card names a feature {name!r} that is of none of its columns")
    return torch.from_numpy(numpy.stack(pieces, axis=1)).to(dtype)


def _one_hot(columns: Iterable[ColumnCard]) -> dict[str, tuple[str, str]]:
    """`housing=own` -> column and category. Both may hold the sign: of two columns with one such name the first counts."""
    found: dict[str, tuple[str, str]] = {}
    for column in columns:
        for category in (*column.categories, MISSING):
            found.setdefault(f"{column.name}={category}", (column.name, category))
    return found


def _targets(card: DatasetCard, frame: Mock, rows: int, rng: numpy.random.Generator) -> torch.Tensor | None:
    if not card.target_dtype:
        return None
    dtype = torch_dtype(card.target_dtype)
    column = next((column for column in card.columns if column.role == "target"), None)
    if column is None or card.target_shape:
        return _draw((rows, *card.target_shape), dtype, card.classes, rng)
    if column.kind == "category":
        codes = {category: code for code, category in enumerate(column.categories)}
        return torch.tensor([codes.get(cell, 0) for cell in frame[column.name]]).to(dtype)  # a card may list no categories
    return torch.from_numpy(frame[column.name].to_numpy(copy=True)).to(dtype)


def _draw(shape: tuple[int, ...], dtype: torch.dtype, classes: int, rng: numpy.random.Generator) -> torch.Tensor:
    if classes or not dtype.is_floating_point:
        least = 256 if dtype is torch.uint8 else 2  # bytes are images
        return torch.from_numpy(rng.integers(0, classes or least, shape)).to(dtype)
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)
