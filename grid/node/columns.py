"""From a table and its description to tensors: each column checked against what its owner declared.

A column of numbers becomes float32, one of declared categories int64 codes in the declared order (a missing one, where the
owner allows it, the code after the last). Every error names the column and the line, never the cell's content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy
import pandas
import torch
from torch import Tensor

from grid.errors import DatasetError
from grid.node.descriptions import ColumnRule, Description
from grid.node.tables import Table
from grid.wire.messages import ColumnCard

MISSING_CATEGORY = "(missing)"
"""Name of the one-hot feature of missing cells, where `missing = "category"`."""

Numbers = numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]
Flags = numpy.ndarray[tuple[int], numpy.dtype[numpy.bool_]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A usable column: its card and its values, `(rows,)` float32 or int64. Text columns have no values."""

    card: ColumnCard
    values: Tensor | None

    @property
    def categories(self) -> tuple[str, ...]:
        """The declared categories, and the one for missing cells where there is one."""
        extra = (MISSING_CATEGORY,) if self.card.missing == "category" else ()
        return self.card.categories + extra


def read_columns(table: Table, description: Description) -> tuple[list[Column], list[str]]:
    """All columns in the table's order, and warnings about columns that are left out."""
    names = [str(name) for name in table.frame.columns]
    _check_declared(names, table, description)
    columns, warnings = [], []
    for position, name in enumerate(names):
        cells = table.frame.iloc[:, position]
        column, warning = _read_column(name, cells, table, description)
        columns.append(column)
        if warning:
            warnings.append(warning)
    return columns, warnings


def _check_declared(names: list[str], table: Table, description: Description) -> None:
    where = description.where
    repeated = pandas.Index(names).duplicated()
    if repeated.any():
        raise DatasetError(f"{table.place}: there are two columns {names[_first(repeated)]!r}")
    for name in description.columns:
        if name not in names:
            raise where.error(f"the data has no column {name!r}", section=f"columns.{name}")
    if description.target and description.target not in names:
        raise where.error(f"the data has no column {description.target!r} to be the target", key="target")


def _read_column(name: str, cells: pandas.Series, table: Table, description: Description) -> tuple[Column, str]:
    rule = description.columns.get(name)
    is_target = name == description.target
    role = "target" if is_target else "feature"
    if rule is not None and rule.categories:
        return Column(_card(name, "category", role, rule), _codes(name, cells, rule, table)), ""
    numbers, wrong = _parse(cells)
    if wrong.any() and rule is None and 2 * int(wrong.sum()) > int(cells.notna().sum()):
        if is_target:
            advice = f"declare its categories in [columns.{name}]"
            raise description.where.error(f"the target {name!r} is text: {advice}", key="target")
        warning = f"{table.place}: column {name!r} is text without declared categories and is no feature"
        return Column(_card(name, "text", "other", ColumnRule()), None), warning
    if wrong.any():
        raise DatasetError(f"{table.at(_first(wrong))}: column {name!r} holds something that is not a number")
    rule = rule or ColumnRule()
    return Column(_card(name, "number", role, rule), _numbers(name, numbers, rule, table)), ""


def _card(name: str, kind: str, role: str, rule: ColumnRule) -> ColumnCard:
    return ColumnCard(
        name=name,
        kind=kind,
        role=role,
        minimum=rule.minimum,
        maximum=rule.maximum,
        categories=rule.categories,
        missing=rule.missing,
    )


def _parse(cells: pandas.Series) -> tuple[Numbers, Flags]:
    """The cells as numbers (NaN for missing ones), and which of them are neither missing nor numbers."""
    if pandas.api.types.is_complex_dtype(cells.dtype) or pandas.api.types.is_datetime64_any_dtype(cells.dtype):
        return numpy.full(len(cells), numpy.nan), cells.notna().to_numpy(dtype=bool)
    if pandas.api.types.is_numeric_dtype(cells.dtype) or pandas.api.types.is_bool_dtype(cells.dtype):
        numbers = cells.to_numpy(dtype=numpy.float64, na_value=numpy.nan)
        return numbers, numpy.zeros(len(cells), dtype=bool)
    parsed = pandas.to_numeric(cells, errors="coerce")
    numbers = parsed.to_numpy(dtype=numpy.float64, na_value=numpy.nan)
    return numbers, cells.notna().to_numpy(dtype=bool) & numpy.isnan(numbers)


def _numbers(name: str, numbers: Numbers, rule: ColumnRule, table: Table) -> Tensor:
    missing = numpy.isnan(numbers)
    if missing.any():
        if rule.missing == "error":
            raise _missing(name, _first(missing), table, '"mean-of-bounds"')
        assert rule.minimum is not None and rule.maximum is not None
        numbers = numpy.where(missing, (rule.minimum + rule.maximum) / 2, numbers)
    for outside, bound in ((rule.minimum, "min"), (rule.maximum, "max")):
        if outside is None:
            continue
        wrong = numbers < outside if bound == "min" else numbers > outside
        if wrong.any():
            raise DatasetError(f"{table.at(_first(wrong))}: column {name!r} holds a value beyond its declared {bound!r}")
    with numpy.errstate(over="ignore"):  # what overflows is infinite and reported below
        single = numbers.astype(numpy.float32)
    infinite = ~numpy.isfinite(single)
    if infinite.any():
        raise DatasetError(f"{table.at(_first(infinite))}: column {name!r} holds a number that is not finite in float32")
    return torch.from_numpy(single)


def _codes(name: str, cells: pandas.Series, rule: ColumnRule, table: Table) -> Tensor:
    missing = cells.isna().to_numpy(dtype=bool)
    if missing.any() and rule.missing != "category":
        raise _missing(name, _first(missing), table, '"category"')
    codes_of: Mapping[str, int] = {category: code for code, category in enumerate(rule.categories)}
    present = zip(cells.to_numpy(dtype=object), missing, strict=True)
    codes = numpy.array(
        [len(codes_of) if gone else codes_of.get(_as_text(cell), -1) for cell, gone in present], dtype=numpy.int64
    )
    unknown = codes < 0
    if unknown.any():
        raise DatasetError(f"{table.at(_first(unknown))}: column {name!r} holds a category that is not declared")
    return torch.from_numpy(codes)


def _as_text(cell: object) -> str:
    """A cell as its category is written: 1.0 of a table in memory is category "1"."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _missing(name: str, row: int, table: Table, other: str) -> DatasetError:
    return DatasetError(
        f"{table.at(row)}: column {name!r} has no value; fill it in, or declare missing = {other} in [columns.{name}]"
    )


def _first(flags: Flags) -> int:
    return int(numpy.argmax(flags))
