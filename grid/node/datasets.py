"""Datasets of a node: tensors in memory, the owner's policy, and the card that everybody may read.

Nothing in a card is computed from rows except their number, the dtypes and the shapes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas
import torch
from torch import Tensor

from grid.errors import DatasetError, NotFound
from grid.node.columns import Column, read_columns
from grid.node.descriptions import MAX_LABEL, Description, Where, check_keys, parse_description, read_description
from grid.node.tables import Table, read_csv
from grid.policy.rules import Policy
from grid.tensors.buffers import short_dtype
from grid.wire.messages import NO_LIMIT, ColumnCard, DatasetCard

log = logging.getLogger(__name__)

LOCAL_POLICY = {"release": "aggregate", "plans": "any", "min_rows": 10, "max_elements": NO_LIMIT}
"""Rules of datasets made in one process that bring none of their own: for tests and notebooks."""

MAX_NAMED_FEATURES = 10_000
MAX_COLUMNS = 10_000
MAX_ALL_CATEGORIES = 100_000
MAX_DIMS = 9
"""With the rows; like the two before, what gateways list."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """One dataset. `features` is `(rows, ...)`, `targets` `(rows, ...)` or None; nobody writes into them.

    `columns` are in the file's order; `values` holds the `(rows,)` tensor of each that can be asked for by name.
    """

    name: str
    features: Tensor
    targets: Tensor | None
    policy: Policy
    description: str = ""
    tags: tuple[str, ...] = ()
    columns: tuple[ColumnCard, ...] = ()
    values: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    feature_names: tuple[str, ...] = ()
    classes: int = 0

    @property
    def rows(self) -> int:
        return int(self.features.shape[0])

    def part(self, part: str, column: str = "") -> Tensor:
        """`features`, `targets` or the named column; `NotFound` where the dataset has no such part."""
        if part == "features":
            return self.features
        if part == "targets" and self.targets is not None:
            return self.targets
        if part == "column" and column in self.values:
            return self.values[column]
        if part == "column":
            raise NotFound(f"dataset {self.name!r} has no usable column {column[:100]!r}")
        raise NotFound(f"dataset {self.name!r} has no {part[:20]!r}")

    def first_rows(self, rows: int) -> Self:
        """The same dataset with its first rows only."""
        return dataclasses.replace(
            self,
            features=self.features[:rows],
            targets=None if self.targets is None else self.targets[:rows],
            values={name: values[:rows] for name, values in self.values.items()},
        )

    def card(self) -> DatasetCard:
        """What everybody may know."""
        targets = self.targets
        return DatasetCard(
            name=self.name,
            description=self.description,
            tags=self.tags,
            rows=self.rows,
            columns=self.columns,
            policy=self.policy.card(self.rows),
            feature_names=self.feature_names,
            feature_shape=tuple(self.features.shape[1:]),
            feature_dtype=short_dtype(self.features.dtype),
            target_shape=() if targets is None else tuple(targets.shape[1:]),
            target_dtype="" if targets is None else short_dtype(targets.dtype),
            classes=self.classes,
        )

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The dataset that a `NAME.toml` describes."""
        description = read_description(path)
        assert description.file is not None
        if description.file.suffix.lower() != ".csv":
            raise description.where.error("only CSV files (.csv) are read", key="file")
        if not description.file.is_file():
            raise description.where.error(f"there is no file {str(description.file)!r}", key="file")
        categorical = [name for name, rule in description.columns.items() if rule.categories]
        return cls._build(read_csv(description.file, categorical), description)

    @classmethod
    def from_frame(
        cls,
        name: str,
        frame: pandas.DataFrame,
        *,
        description: str = "",
        tags: Sequence[str] = (),
        target: str = "",
        columns: Mapping[str, Any] | None = None,
        policy: Policy | Mapping[str, Any] | None = None,
    ) -> Self:
        """A dataset from a table in memory, described by the same keys as a file; without a policy, the local one."""
        table: dict[str, Any] = {"description": description, "tags": list(tags), "target": target, "columns": columns or {}}
        if policy is not None:
            table["policy"] = policy
        where = Where(f"dataset {name!r}")
        parsed = parse_description(table, name, where, Policy.from_table(LOCAL_POLICY))
        if len(frame) == 0:
            raise where.error("the table has no rows")
        return cls._build(Table(frame, where.place), parsed)

    @classmethod
    def from_tensors(cls, name: str, parts: Mapping[str, Any]) -> Self:
        """A dataset from {"features", "targets", "tags", "policy", "description", "classes"}; only features are required."""
        where = Where(f"dataset {name!r}")
        check_keys(parts, ("features", "targets", "tags", "policy", "description", "classes"), where, "")
        table = {key: parts[key] for key in ("tags", "policy", "description") if key in parts}
        parsed = parse_description(table, name, where, Policy.from_table(LOCAL_POLICY))
        features = _tensor(parts, "features", where)
        targets = _tensor(parts, "targets", where) if parts.get("targets") is not None else None
        if features is None or features.dim() == 0 or features.shape[0] == 0:
            raise where.error("'features' must be a tensor with at least one row")
        if targets is not None and (targets.dim() == 0 or targets.shape[0] != features.shape[0]):
            raise where.error(f"'targets' must have as many rows as 'features', {features.shape[0]}")
        cards, values, names = _tensor_columns(features)
        made = cls(
            name=name,
            features=features,
            targets=targets,
            policy=parsed.policy,
            description=parsed.text,
            tags=parsed.tags,
            columns=cards,
            values=values,
            feature_names=names,
            classes=_classes(parts, where),
        )
        return made._checked(where)

    @classmethod
    def _build(cls, table: Table, description: Description) -> Self:
        columns, warnings = read_columns(table, description)
        for warning in warnings:
            log.warning("%s", warning)
        target = next((column for column in columns if column.card.role == "target"), None)
        features, names = _features(columns)
        if not names:
            raise description.where.error("no column of the data is a feature")
        made = cls(
            name=description.name,
            features=features,
            targets=None if target is None else target.values,
            policy=description.policy,
            description=description.text,
            tags=description.tags,
            columns=tuple(column.card for column in columns),
            values={column.card.name: column.values for column in columns if column.values is not None},
            feature_names=names,
            classes=0 if target is None else len(target.card.categories),
        )
        return made._checked(description.where)

    def _checked(self, where: Where) -> Self:
        self._check_card(where)
        policy = self.policy
        if policy.epsilon is not None or policy.delta is not None:
            what = "'epsilon' and 'delta' are kept for later and not enforced yet: nothing here is differentially private"
            log.warning("%s", where.error(what, section="policy", key="delta" if policy.epsilon is None else "epsilon").message)
        smallest = self.policy.min_rows
        if self.policy.release not in ("open", "deny") and self.rows < smallest:
            raise where.error(
                f"{self.rows} rows are too few: nothing could be released with min_rows = {smallest}",
                section="policy",
                key="min_rows",
            )
        return self

    def _check_card(self, where: Where) -> None:
        """Refuse what no gateway lists, here where the file can be named."""
        long = next((column.name for column in self.columns if len(column.name) > MAX_LABEL), "")
        if long:
            raise where.error(f"the name of column {long[:40]!r}... has more than {MAX_LABEL} characters")
        if len(self.columns) > MAX_COLUMNS:
            raise where.error(f"{len(self.columns)} columns are more than the {MAX_COLUMNS} that a gateway lists")
        if sum(len(column.categories) for column in self.columns) > MAX_ALL_CATEGORIES:
            raise where.error(f"all columns together have more than {MAX_ALL_CATEGORIES} categories")
        dims = max(self.features.dim(), 0 if self.targets is None else self.targets.dim())
        if dims > MAX_DIMS:
            raise where.error(f"a tensor has {dims} dimensions; a gateway lists at most {MAX_DIMS}")


def _features(columns: Sequence[Column]) -> tuple[Tensor, tuple[str, ...]]:
    """The float32 matrix `(rows, features)` of all feature columns, categories one-hot, and the features' names."""
    pieces: list[Tensor] = []
    names: list[str] = []
    for column in columns:
        if column.card.role != "feature" or column.values is None:
            continue
        if column.card.kind == "category":
            pieces.append(torch.nn.functional.one_hot(column.values, len(column.categories)).to(torch.float32))
            names.extend(f"{column.card.name}={category}" for category in column.categories)
        else:
            pieces.append(column.values[:, None])
            names.append(column.card.name)
    return (torch.cat(pieces, dim=1) if pieces else torch.empty(0, 0)), tuple(names)


def _tensor(parts: Mapping[str, Any], key: str, where: Where) -> Tensor:
    value = parts.get(key)
    if not isinstance(value, Tensor) or value.is_complex() or value.is_sparse or value.is_quantized:
        raise where.error(f"{key!r} must be a dense tensor of real numbers")
    return value.detach().to("cpu", copy=True).contiguous()


def _classes(parts: Mapping[str, Any], where: Where) -> int:
    classes = parts.get("classes", 0)
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise where.error("'classes' must be a whole number")
    return classes


def _tensor_columns(features: Tensor) -> tuple[tuple[ColumnCard, ...], dict[str, Tensor], tuple[str, ...]]:
    """Columns x0, x1, ... of a feature matrix; none for features of another form."""
    if features.dim() != 2 or features.shape[1] > MAX_NAMED_FEATURES:
        return (), {}, ()
    names = tuple(f"x{position}" for position in range(features.shape[1]))
    cards = tuple(ColumnCard(name=name, kind="number", role="feature") for name in names)
    return cards, {name: features[:, position] for position, name in enumerate(names)}, names


def load_datasets(folder: Path) -> list[Dataset]:
    """Every dataset of a folder, by name. Raises `DatasetError` for the first that is wrong; none at all is one, too."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise DatasetError(f"{folder}: no dataset here: each needs a NAME.toml beside its file")
    return [Dataset.from_file(path) for path in paths]
