"""Datasets of a node: their tensors, the owner's policy, and the card that everybody may read.

Nothing in a card is computed from rows except their number, the dtypes and the shapes. What a file becomes is decided by its
`Reader`; the tensors lie where `DatasetFiles` puts them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas
import torch
from torch import Tensor

from grid.errors import DatasetError, NotFound
from grid.node.array_files import ArrayFile, NpzFile, SafetensorsFile
from grid.node.array_reader import MAX_NAMED_FEATURES, ArrayReader
from grid.node.csv_table import CsvTable
from grid.node.dataset_files import DatasetFiles
from grid.node.descriptions import MAX_LABEL, Description, Where, check_keys, parse_description, read_description
from grid.node.findings import Findings
from grid.node.image_reader import image_reader
from grid.node.parquet_table import ParquetTable
from grid.node.readers import FEATURES, TARGETS, Reader, Schema, TableReader, check_file
from grid.node.tables import FrameTable, Table
from grid.policy.rules import Policy
from grid.tensors.buffers import short_dtype
from grid.wire.messages import NO_LIMIT, ColumnCard, DatasetCard

log = logging.getLogger(__name__)

LOCAL_POLICY = {"release": "aggregate", "plans": "any", "min_rows": 10, "max_elements": NO_LIMIT}
"""Rules of datasets made in one process that bring none of their own: for tests and notebooks."""

MAX_COLUMNS = 10_000
MAX_ALL_CATEGORIES = 100_000
MAX_DIMS = 9
"""With the rows; like the two before, what gateways list."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """One dataset. `features` is `(rows, ...)`, `targets` `(rows, ...)` or None; nobody writes into them.

    `columns` are in the file's order; `values` holds the `(rows,)` tensor of each that can be asked for by name, which may be a
    view of the features. `appends`: rows that are added to its file come after all others.
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
    appends: bool = True

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

    def card(self, *, dev: bool = False) -> DatasetCard:
        """What everybody may know."""
        targets = self.targets
        return DatasetCard(
            name=self.name,
            description=self.description,
            tags=self.tags,
            rows=self.rows,
            columns=self.columns,
            policy=self.policy.card(self.rows, dev=dev),
            feature_names=self.feature_names,
            feature_shape=tuple(self.features.shape[1:]),
            feature_dtype=short_dtype(self.features.dtype),
            target_shape=() if targets is None else tuple(targets.shape[1:]),
            target_dtype="" if targets is None else short_dtype(targets.dtype),
            classes=self.classes,
        )

    @classmethod
    def from_file(cls, path: Path, files: DatasetFiles | None = None) -> Self:
        """The dataset that a `NAME.toml` describes."""
        findings = Findings()
        description = read_description(path, findings)
        reader = open_reader(description, findings)
        tensors = (files or DatasetFiles()).fill(description.name, reader.schema, reader.blocks())
        return cls.described(description, reader.schema, tensors, findings)._told(findings)

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
        findings = Findings()
        reader = TableReader(FrameTable(frame, where.place), parsed, findings)
        tensors = DatasetFiles().fill(name, reader.schema, reader.blocks())
        return cls.described(parsed, reader.schema, tensors, findings)._told(findings)

    @classmethod
    def from_tensors(cls, name: str, parts: Mapping[str, Any]) -> Self:
        """A dataset from {"features", "targets", "tags", "policy", "description", "classes"}; only features are required."""
        where = Where(f"dataset {name!r}")
        findings = Findings()
        check_keys(parts, ("features", "targets", "tags", "policy", "description", "classes"), where, "", findings)
        table = {key: parts[key] for key in ("tags", "policy", "description") if key in parts}
        parsed = parse_description(table, name, where, Policy.from_table(LOCAL_POLICY))
        features = _tensor(parts, "features", where)
        targets = _tensor(parts, "targets", where) if parts.get("targets") is not None else None
        if features is None or features.dim() == 0 or features.shape[0] == 0:
            raise where.error("'features' must be a tensor with at least one row")
        if 0 in features.shape:
            raise where.error(f"'features' has the shape {tuple(features.shape)}: there is nothing in its rows")
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
        return made._checked(where, findings)._told(findings)

    @classmethod
    def described(
        cls, description: Description, schema: Schema, tensors: Mapping[str, Tensor], findings: Findings
    ) -> Self:
        """A dataset of these tensors, by part of the schema."""
        made = cls(
            name=description.name,
            features=tensors[FEATURES],
            targets=tensors.get(TARGETS),
            policy=description.policy,
            description=description.text,
            tags=description.tags,
            columns=schema.columns,
            values={name: tensors[part] if at is None else tensors[part][:, at] for name, (part, at) in schema.places.items()},
            feature_names=schema.feature_names,
            classes=schema.classes,
            appends=schema.appends,
        )
        return made._checked(description.where, findings)

    def _checked(self, where: Where, findings: Findings) -> Self:
        with findings.noting():
            self._check_card(where)
        policy = self.policy
        if policy.epsilon is not None or policy.delta is not None:
            what = "'epsilon' and 'delta' are kept for later and not enforced yet: nothing here is differentially private"
            findings.warn(where.error(what, section="policy", key="delta" if policy.epsilon is None else "epsilon").message)
        smallest = self.policy.min_rows
        if self.policy.release not in ("open", "deny") and self.rows < smallest:
            what = f"{self.rows} rows are too few: nothing could be released with min_rows = {smallest}"
            findings.error(where.error(what, section="policy", key="min_rows"))
        return self

    def _told(self, findings: Findings) -> Self:
        """The dataset, and what its owner should look at in the log."""
        for warning in findings.warnings:
            log.warning("%s", warning)
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


def open_reader(description: Description, findings: Findings) -> Reader:
    """The data behind a description that was read from a file, by the ending of its name, or a folder of images."""
    path = description.path
    if path.is_dir():
        return image_reader(description, findings)
    kind = path.suffix.lower()
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise description.where.error(f"only files with the endings {known} and folders of images are read", key="file")
    check_file(description)
    if kind in ARRAYS:
        return ArrayReader(ARRAYS[kind](path), description, findings)
    no_arrays = "names an array; a table has columns, of which 'target' names one"
    description.refuse_keys(("features", "targets"), no_arrays, findings)
    description.refuse_keys(("image",), "is for folders of images", findings)
    return TableReader(TABLES[kind](path, findings), description, findings)


TABLES: Mapping[str, Callable[[Path, Findings], Table]] = {".csv": CsvTable, ".parquet": ParquetTable}
ARRAYS: Mapping[str, Callable[[Path], ArrayFile]] = {".npz": NpzFile, ".safetensors": SafetensorsFile}
KINDS = (*TABLES, *ARRAYS)


def _tensor(parts: Mapping[str, Any], key: str, where: Where) -> Tensor:
    value = parts.get(key)
    if not isinstance(value, Tensor) or value.is_complex() or value.is_sparse or value.is_quantized:
        raise where.error(f"{key!r} must be a dense tensor of real numbers")
    if not torch.isfinite(value).all():
        raise where.error(f"{key!r} holds numbers that are missing (NaN) or infinite: fill them in, or leave those rows out")
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


def description_paths(folder: Path) -> list[Path]:
    """The descriptions in a folder, by name. Raises `DatasetError` where there are none."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise DatasetError(f"{folder}: no dataset here: each needs a NAME.toml beside its file")
    return paths


def load_datasets(folder: Path, files: DatasetFiles | None = None) -> list[Dataset]:
    """Every dataset of a folder, by name. Raises `DatasetError` for the first that is wrong; none at all is one, too."""
    files = files or DatasetFiles()
    paths = description_paths(folder)
    try:
        return [Dataset.from_file(path, files) for path in paths]
    except DatasetError as error:
        raise DatasetError(f"{error.message}\n  `grid data check {folder}` lists all that is wrong at once") from error
