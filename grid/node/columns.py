"""From a table and its description to tensors: each column checked against what its owner declared.

A column of numbers becomes float32, one of declared categories int64 codes in the declared order (a missing one, where the
owner allows it, the code after the last). `plan_columns` decides what each column is, before a tensor has its shape;
`numbers` and `codes` convert a chunk. Every error names the column and the line, never the cell's content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy
import pandas
import torch
from torch import Tensor

from grid.errors import DatasetError
from grid.node.descriptions import ColumnRule, Description
from grid.node.findings import Findings, Flags
from grid.node.tables import Chunk, Table
from grid.wire.messages import ColumnCard

MISSING_CATEGORY = "(missing)"
"""Name of the one-hot feature of missing cells, where `missing = "category"`."""

TRUTH = {"true": 1.0, "false": 0.0}

Numbers = numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """What one column of a table is. `role`: "feature", "target" or "other"; text has no values."""

    name: str
    kind: str
    role: str
    rule: ColumnRule

    @property
    def categories(self) -> tuple[str, ...]:
        """The declared categories, and the one for missing cells where there is one."""
        return self.rule.categories + ((MISSING_CATEGORY,) if self.rule.missing == "category" else ())

    @property
    def width(self) -> int:
        """How many columns of the feature matrix it takes."""
        return 0 if self.role != "feature" or self.kind == "text" else max(1, len(self.categories))

    @property
    def feature_names(self) -> list[str]:
        """The names of those, one-hot ones as "column=value"."""
        if not self.width:
            return []
        return [f"{self.name}={category}" for category in self.categories] or [self.name]

    @property
    def card(self) -> ColumnCard:
        """What everybody may know of it."""
        rule = self.rule
        return ColumnCard(
            name=self.name,
            kind=self.kind,
            role=self.role,
            minimum=rule.minimum,
            maximum=rule.maximum,
            categories=rule.categories,
            missing=rule.missing,
        )


@dataclasses.dataclass(slots=True)
class Tally:
    """Of a column that nobody declared: cells that hold something, and those of them that are no numbers."""

    present: int = 0
    wrong: int = 0


def plan_columns(
    table: Table,
    tallies: Mapping[str, Tally],
    description: Description,
    findings: Findings,
    *,
    usual: str = "feature",
    without: Collection[str] = (),
) -> list[Column]:
    """All columns in the table's order but those of `without`. `usual` is the role of one that is not the target."""
    names = dict.fromkeys(name for name in table.names if name not in without)
    _check_declared(names, description, findings)
    return [_plan(name, table, tallies.get(name, Tally()), description, findings, usual) for name in names]


def _check_declared(names: Collection[str], description: Description, findings: Findings) -> None:
    where = description.where
    for name in description.columns:
        if name not in names:
            findings.error(where.error(f"the data has no column {name!r}", section=f"columns.{name}"))
    if description.target and description.target not in names:
        what = f"the data has no column {description.target!r} to be the target"
        findings.error(where.error(what, key="target"))


def _plan(name: str, table: Table, tally: Tally, description: Description, findings: Findings, usual: str) -> Column:
    rule = description.columns.get(name)
    role = "target" if name == description.target else usual
    why_not = table.unsuited(name)
    if rule is not None and rule.broken:
        findings.unused[name] = "what [columns] says of it is wrong"
        return Column(name, "text", "other", ColumnRule())
    if why_not and (rule is not None or role == "target"):
        findings.error(DatasetError(f"{table.place}: column {name!r} {why_not}"))
    elif rule is not None and rule.categories:
        return Column(name, "category", role, rule)
    elif rule is None and 2 * tally.wrong > tally.present:
        why_not = "is text without declared categories"
        if role == "target":
            what = f"the target {name!r} is text: declare its categories in [columns.{name}]"
            findings.error(description.where.error(what, key="target"))
    if why_not:
        findings.leave_out(table.place, "column", name, why_not)
        return Column(name, "text", "other", ColumnRule())
    return Column(name, "number", role, rule or ColumnRule())


def parse(cells: pandas.Series) -> tuple[Numbers, Flags]:
    """The cells as numbers (NaN for missing ones), and which of them are neither missing nor numbers."""
    if pandas.api.types.is_complex_dtype(cells.dtype) or pandas.api.types.is_datetime64_any_dtype(cells.dtype):
        return numpy.full(len(cells), numpy.nan), cells.notna().to_numpy(dtype=bool)
    if pandas.api.types.is_numeric_dtype(cells.dtype) or pandas.api.types.is_bool_dtype(cells.dtype):
        numbers = cells.to_numpy(dtype=numpy.float64, na_value=numpy.nan)
        return numbers, numpy.zeros(len(cells), dtype=bool)
    parsed = pandas.to_numeric(cells, errors="coerce")
    numbers = parsed.to_numpy(dtype=numpy.float64, na_value=numpy.nan).copy()
    wrong = cells.notna().to_numpy(dtype=bool) & numpy.isnan(numbers)
    texts = cells.to_numpy(dtype=object) if wrong.any() else ()
    for position in numpy.flatnonzero(wrong):
        truth = TRUTH.get(str(texts[position]).lower())
        if truth is not None:
            numbers[position], wrong[position] = truth, False
    return numbers, wrong


def numbers_of(column: Column, cells: pandas.Series, chunk: Chunk, findings: Findings) -> Tensor:
    """A chunk's cells of a column of numbers: `(rows,)` float32."""
    numbers, wrong = parse(cells)
    name, rule = column.name, column.rule
    _note(findings, chunk, wrong, name, "holds something that is not a number")
    missing = numpy.isnan(numbers) & ~wrong
    if missing.any():
        if rule.missing == "error":
            _note(findings, chunk, missing, name, _missing(name, '"mean-of-bounds"'))
        else:
            assert rule.minimum is not None and rule.maximum is not None
            numbers = numpy.where(missing, (rule.minimum + rule.maximum) / 2, numbers)
            findings.filled(name, int(missing.sum()))
    check_bounds(name, numbers, rule, chunk, findings)
    with numpy.errstate(over="ignore"):  # what overflows is infinite and reported below
        single = numbers.astype(numpy.float32)
    unknown = wrong | missing
    _note(findings, chunk, ~numpy.isfinite(single) & ~unknown, name, "holds a number that is not finite in float32")
    return torch.from_numpy(single)


def check_bounds(name: str, numbers: numpy.ndarray, rule: ColumnRule, chunk: Chunk, findings: Findings) -> None:
    """Say where a number lies beyond what its owner declared."""
    if rule.minimum is not None:
        _note(findings, chunk, numbers < rule.minimum, name, "holds a value beyond its declared 'min'")
    if rule.maximum is not None:
        _note(findings, chunk, numbers > rule.maximum, name, "holds a value beyond its declared 'max'")


def codes_of(column: Column, cells: pandas.Series, chunk: Chunk, findings: Findings) -> Tensor:
    """A chunk's cells of a column of categories: `(rows,)` int64."""
    name, rule = column.name, column.rule
    missing = cells.isna().to_numpy(dtype=bool)
    if missing.any() and rule.missing != "category":
        _note(findings, chunk, missing, name, _missing(name, '"category"'))
    elif missing.any():
        findings.filled(name, int(missing.sum()))
    known: Mapping[str, int] = {category: code for code, category in enumerate(rule.categories)}
    present = zip(cells.to_numpy(dtype=object), missing, strict=True)
    found = [len(known) if gone else known.get(_as_text(cell), -1) for cell, gone in present]
    codes = numpy.array(found, dtype=numpy.int64)
    _note(findings, chunk, codes < 0, name, "holds a category that is not declared")
    return torch.from_numpy(codes)


def _as_text(cell: object) -> str:
    """A cell as its category is written: 1.0 of a table in memory is category "1"."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _missing(name: str, other: str) -> str:
    return f"has no value; fill it in, or declare missing = {other} in [columns.{name}]"


def _note(findings: Findings, chunk: Chunk, wrong: Flags, name: str, what: str) -> None:
    count = int(wrong.sum())
    if count:
        findings.row(chunk.at(int(numpy.argmax(wrong))), name, f"column {name!r} {what}", count)


def one_hot(column: Column, values: Tensor, out: Tensor) -> None:
    """Write a chunk's values into their columns of the feature matrix, `(rows, width)` float32, which is all zeros."""
    if column.kind == "category":
        out.scatter_(1, values.clamp(0, column.width - 1)[:, None], 1.0)  # beyond is only what was noted as wrong
    else:
        out[:, 0] = values


def named(columns: Sequence[Column]) -> tuple[str, ...]:
    """The names of the feature matrix's columns."""
    return tuple(name for column in columns for name in column.feature_names)
