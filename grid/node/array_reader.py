"""Datasets in files of arrays: `features`, perhaps `targets`, and one-dimensional arrays beside them as further columns.

The first dimension of each runs over rows. Decimals are float32 at most, as in tables; whole numbers stay as they are in
`features` (images as uint8 take a quarter of the room) and become int64 in `targets`, where they are classes, and in columns
of categories. A matrix of features has the columns x0, x1, ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy
import pandas
import torch
from torch import Tensor

from grid.errors import DatasetError
from grid.node.array_files import ArrayFile, ArrayForm
from grid.node.columns import Column, check_bounds, codes_of, numbers_of
from grid.node.descriptions import ColumnRule, Description
from grid.node.findings import Findings
from grid.node.readers import COLUMN, FEATURES, TARGETS, Block, Part, Reader, Schema, block_rows, column_part
from grid.node.tables import Chunk
from grid.wire.messages import ColumnCard

MAX_NAMED_FEATURES = 10_000

NARROW: Mapping[torch.dtype, torch.dtype] = {torch.float64: torch.float32}


class ArrayReader(Reader):
    """See the module. Raises `DatasetError` where the file cannot be read or has no features."""

    def __init__(self, file: ArrayFile, description: Description, findings: Findings) -> None:
        self._file = file
        self._findings = findings
        self._description = description
        self._forms = file.forms()
        self._features, self._targets = self._main_arrays()
        self._rows = self._form(self._features).shape[0]
        self._columns = self._side_columns()
        self._names = self._feature_names()
        self._target = self._target_column()
        self._check_declared()
        self._schema = self._make_schema()

    @property
    def schema(self) -> Schema:
        return self._schema

    # ------------------------------------------------------------ what is in the file

    def _main_arrays(self) -> tuple[str, str]:
        said = self._description
        no_column = "names a column of a table; here the target is the array 'targets', or the one that the key 'targets' names"
        said.refuse_keys(("target",), no_column, self._findings)
        said.refuse_keys(("image",), "is for folders of images", self._findings)
        features, targets = said.features or FEATURES, said.targets or TARGETS
        for key, name in (("features", features), ("targets", targets)):
            if name not in self._forms and (key == "features" or said.targets):
                have = ", ".join(repr(one) for one in list(self._forms)[:10]) or "no arrays"
                where = said.where
                what = f"{str(self._file.path)!r} has no array {name!r}; it has {have}"
                raise where.error(f'{what}. Name one: {key} = "..."', key=key if getattr(said, key) else "file")
        for name in (features, targets):
            if name in self._forms:
                self._check_form(name)
        form = self._form(features)
        if targets in self._forms and self._form(targets).shape[0] != form.shape[0]:
            what = f"{self._form(targets).shape[0]} rows in {targets!r}, and {form.shape[0]} in {features!r}"
            raise DatasetError(f"{self._file.path}: {what}")
        return features, targets if targets in self._forms else ""

    def _check_form(self, name: str) -> None:
        form = self._form(name)
        if form.dtype is None:
            raise DatasetError(f"{self._file.path}: array {name!r} holds {form.kind}, with which nothing is computed here")
        if not form.shape or not form.shape[0]:
            raise DatasetError(f"{self._file.path}: array {name!r} has no rows")
        if 0 in form.shape:
            raise DatasetError(f"{self._file.path}: array {name!r} has the shape {form.shape}: there is nothing in its rows")

    def _form(self, name: str) -> ArrayForm:
        return self._forms[name]

    def _side_columns(self) -> list[Column]:
        columns = []
        for name, form in self._forms.items():
            if name in (self._features, self._targets):
                continue
            rule = self._description.columns.get(name, ColumnRule())
            usable = form.dtype is not None and form.shape == (self._rows,) and not rule.broken
            if not usable and not rule.broken:
                form_of = f"has the shape {form.shape}" if form.dtype is not None else f"holds {form.kind}"
                self._findings.leave_out(str(self._file.path), "array", name, f"{form_of}, is no column of {self._rows} numbers")
            if usable:
                columns.append(Column(name, "category" if rule.categories else "number", "other", rule))
        return columns

    def _feature_names(self) -> tuple[str, ...]:
        shape = self._form(self._features).shape
        if len(shape) != 2 or shape[1] > MAX_NAMED_FEATURES:
            return ()
        names = tuple(f"x{position}" for position in range(shape[1]))
        clash = next((name for name in (self._targets, *(column.name for column in self._columns)) if name in names), "")
        if clash:
            raise DatasetError(f"{self._file.path}: array {clash!r} has the name of a column of {self._features!r}; rename it")
        return names

    def _target_column(self) -> Column | None:
        """The target as a column, where it is one number or category a row."""
        if not self._targets or len(self._form(self._targets).shape) != 1:
            return None
        rule = self._description.columns.get(self._targets, ColumnRule())
        if rule.missing != "error":
            what = 'a target cannot have missing values: use missing = "error"'
            self._findings.error(self._description.where.error(what, section=f"columns.{self._targets}", key="missing"))
        return Column(self._targets, "category" if rule.categories else "number", "target", rule)

    def _check_declared(self) -> None:
        known = {self._targets if self._target else "", *self._names, *(column.name for column in self._columns)}
        for name, rule in self._description.columns.items():
            where = self._description.where
            if name not in known and not rule.broken:
                what = f"there is no column {name!r}: columns are 1-d arrays of {self._rows} rows, and x0, x1, ... of a matrix"
                self._findings.error(where.error(what, section=f"columns.{name}"))
            if name in self._names and rule.categories:
                what = "a column of a matrix of numbers has no categories; put it into an array of its own"
                self._findings.error(where.error(what, section=f"columns.{name}", key="categories"))

    # ------------------------------------------------------------ tensors

    def _make_schema(self) -> Schema:
        form = self._form(self._features)
        assert form.dtype is not None
        parts = {FEATURES: Part(form.shape[1:], NARROW.get(form.dtype, form.dtype))}
        places: dict[str, tuple[str, int | None]] = {name: (FEATURES, at) for at, name in enumerate(self._names)}
        rules = self._description.columns
        cards = [_feature_card(name, rules.get(name, ColumnRule())) for name in self._names]
        for column in self._columns:
            parts[COLUMN + column.name] = column_part(column)
            places[column.name] = (COLUMN + column.name, None)
            cards.append(column.card)
        classes = 0
        if self._targets:
            shape, dtype = self._form(self._targets).shape, self._form(self._targets).dtype
            assert dtype is not None
            parts[TARGETS] = Part(shape[1:], _target_dtype(dtype, self._target))
        if self._target is not None:
            places[self._targets] = (TARGETS, None)
            cards.append(self._target.card)
            classes = len(self._target.rule.categories)
        return Schema(self._rows, parts, tuple(cards), places, self._names, classes)

    def blocks(self) -> Iterator[Block]:
        parts = self._schema.parts
        arrays = {FEATURES: self._features} | ({TARGETS: self._targets} if self._targets else {})
        arrays |= {COLUMN + column.name: column.name for column in self._columns}
        columns = {COLUMN + column.name: column for column in self._columns}
        if self._target is not None:
            columns[TARGETS] = self._target
        most = block_rows(self._schema.row_bytes)
        streams = {part: self._file.rows(name, most) for part, name in arrays.items()}
        for first in range(0, self._rows, most):
            read = {part: next(stream) for part, stream in streams.items()}
            chunk = Chunk(str(self._file.path), first, len(read[FEATURES]), {})
            yield {part: self._values(part, values, parts[part].dtype, columns.get(part), chunk) for part, values in read.items()}

    def _values(self, part: str, values: Tensor, dtype: torch.dtype, column: Column | None, chunk: Chunk) -> Tensor:
        """A block of one array as the dataset holds it, checked."""
        whole_target = part == TARGETS and not values.is_floating_point()
        if column is not None and column.kind == "category":
            return codes_of(column, _series(values), chunk, self._findings)
        if column is not None and not whole_target:
            return numbers_of(column, _series(values), chunk, self._findings).to(dtype)
        made = values.to(dtype)
        if made.is_floating_point():
            wrong = ~torch.isfinite(made.reshape(len(made), -1)).all(dim=1).numpy()
            if wrong.any():
                name = self._features if part == FEATURES else self._targets
                what = f"array {name!r} holds a number that is missing or not finite in {str(dtype).removeprefix('torch.')}"
                self._findings.row(chunk.at(int(numpy.argmax(wrong))), name, what, int(wrong.sum()))
        rules = self._description.columns
        for at, name in enumerate(self._names if part == FEATURES else ()):
            if name in rules:
                check_bounds(name, made[:, at].double().numpy(), rules[name], chunk, self._findings)
        if whole_target and column is not None:
            check_bounds(column.name, made.double().numpy(), column.rule, chunk, self._findings)
        return made


def _target_dtype(dtype: torch.dtype, column: Column | None) -> torch.dtype:
    if column is not None and column.kind == "category":
        return torch.int64
    return NARROW.get(dtype, dtype) if dtype.is_floating_point else torch.int64


def _feature_card(name: str, rule: ColumnRule) -> ColumnCard:
    return Column(name, "number", "feature", ColumnRule(rule.minimum, rule.maximum)).card


def _series(values: Tensor) -> pandas.Series:
    return pandas.Series((values.float() if values.dtype == torch.bfloat16 else values).numpy())
