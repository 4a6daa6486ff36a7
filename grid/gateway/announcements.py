"""What a node may announce: the bounds of every field, and how much room a description takes in a reply.

Everything comes from strangers and goes on to everybody, in messages whose size is limited. So every field is checked, those
with few values against the list of them, and sizes are those of the encoded message: an estimate would overlook a field.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from grid.display import printable
from grid.errors import InvalidRequest, QuotaExceeded
from grid.wire.address import parse_address
from grid.wire.codec import DTYPES, encode
from grid.wire.messages import Announce, ColumnCard, DatasetCard, PolicyCard

Card = TypeVar("Card", DatasetCard, ColumnCard, PolicyCard)

MAX_NAME = 200
MAX_DESCRIPTION = 10_000
MAX_TAGS = 64
MAX_TAG = 100
MAX_COLUMNS = 10_000
MAX_CATEGORIES = 100_000
MAX_SHAPE = 8
MAX_DESCRIBED = 1 << 19
"""Bytes of all descriptions that a node announces."""

MAX_ADDRESS = 300

COLUMN_CHOICES: Mapping[str, tuple[str, ...]] = {
    "kind": ("number", "category", "text"),
    "role": ("feature", "target", "other"),
    "missing": ("error", "category", "mean-of-bounds"),
}
POLICY_CHOICES: Mapping[str, tuple[str, ...]] = {
    "release": ("deny", "aggregate", "approve", "open"),
    "plans": ("builtin", "any"),
    "updates": ("summed", "single"),
}

_ALLOWED = re.compile(r"[0-9a-f]{64}(\([^()]*\))?\Z")
MAX_ALLOWED = 10_000


def check_announcement(message: Announce, max_datasets: int) -> dict[str, int]:
    """The size of each dataset's description in bytes, by name. Raises `InvalidRequest` or `QuotaExceeded`.

    The types of the fields are the codec's business.
    """
    if len(message.datasets) > max_datasets:
        raise QuotaExceeded(f"{len(message.datasets)} datasets were announced; at most {max_datasets} are listed")
    _bounded("address", message.address, MAX_ADDRESS)
    if message.address:
        parse_address(message.address)
    sizes: dict[str, int] = {}
    for dataset in message.datasets:
        _check_dataset(dataset)
        if dataset.name in sizes:
            raise InvalidRequest(f"two datasets are named {printable(dataset.name)!r}; rename one of their files")
        sizes[dataset.name] = sum(map(len, encode(Announce(datasets=(dataset,)))))
    total = sum(sizes.values())
    if total > MAX_DESCRIBED:
        raise QuotaExceeded(f"the descriptions of the datasets take {total} bytes in all; at most {MAX_DESCRIBED} are listed")
    return sizes


def compact(card: Card) -> Card:
    """An equal card that shares its words with all others: a thousand nodes say "feature" and "number" thousands of times."""
    return dataclasses.replace(card, **{field.name: _compact(getattr(card, field.name)) for field in dataclasses.fields(card)})


def _compact(value: Any) -> Any:
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, tuple):
        return tuple(_compact(one) for one in value)
    if isinstance(value, ColumnCard):
        return compact(value)
    return compact(value) if isinstance(value, PolicyCard) else value


def _bounded(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidRequest(f"the {what} {printable(text[:40])!r}... has {len(text)} characters; at most {most} are listed")


def _count(what: str, dataset: DatasetCard, number: int, most: int) -> None:
    if number > most:
        raise QuotaExceeded(f"dataset {printable(dataset.name)!r} has {number} {what}; at most {most} are listed")


def _one_of(what: str, dataset: DatasetCard, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        named = f"{what} of dataset {printable(dataset.name)!r}"
        raise InvalidRequest(f"the {named} is one of {', '.join(choices)}, not {printable(value[:40])!r}")


def _check_dataset(dataset: DatasetCard) -> None:
    """The bounds of one announced dataset."""
    _bounded("dataset name", dataset.name, MAX_NAME)
    if not dataset.name or not dataset.name.isprintable():
        raise InvalidRequest(f"a dataset's name must be printable text, and {printable(dataset.name)!r} is not")
    if dataset.name in (".", ".."):  # No address of a page can end in these.
        raise InvalidRequest(f"a dataset cannot be named {dataset.name!r}; rename its file")
    _bounded("description", dataset.description, MAX_DESCRIPTION)
    _count("tags", dataset, len(dataset.tags), MAX_TAGS)
    for tag in dataset.tags:
        _bounded("tag", tag, MAX_TAG)
        if not tag or not tag.isprintable():
            raise InvalidRequest(f"a tag of {printable(dataset.name)!r} must be printable text, and {printable(tag)!r} is not")
    _count("columns", dataset, len(dataset.columns), MAX_COLUMNS)
    _count("categories", dataset, sum(len(column.categories) for column in dataset.columns), MAX_CATEGORIES)
    for column in dataset.columns:
        _check_column(dataset, column)
    _check_values(dataset)
    _check_policy(dataset)


def _check_values(dataset: DatasetCard) -> None:
    if dataset.rows < 0:
        raise InvalidRequest(f"dataset {printable(dataset.name)!r} announces {dataset.rows} rows")
    _count("feature names", dataset, len(dataset.feature_names), MAX_CATEGORIES)
    for name in dataset.feature_names:
        _bounded("feature name", name, 2 * MAX_NAME + 1)
    _count("dimensions", dataset, max(len(dataset.feature_shape), len(dataset.target_shape)), MAX_SHAPE)
    _one_of("dtype of the features", dataset, dataset.feature_dtype, tuple(DTYPES))
    if dataset.target_dtype:
        _one_of("dtype of the target", dataset, dataset.target_dtype, tuple(DTYPES))


def _check_policy(dataset: DatasetCard) -> None:
    policy = dataset.policy
    for field, choices in POLICY_CHOICES.items():
        _one_of(f"{field} rule", dataset, getattr(policy, field), choices)
    _count("allowed plans", dataset, len(policy.allow), MAX_COLUMNS)
    for plan in policy.allow:
        _bounded("allowed plan", plan, MAX_ALLOWED)
        if not _ALLOWED.match(plan):
            raise InvalidRequest(f"an allowed plan of {printable(dataset.name)!r} has no plan's id, 64 hexadecimal digits")
    _count("sinks", dataset, len(policy.sinks), MAX_COLUMNS)
    for sink in policy.sinks:
        _bounded("sink", sink, MAX_NAME)


def _check_column(dataset: DatasetCard, column: ColumnCard) -> None:
    _bounded("column name", column.name, MAX_NAME)
    values = {"kind": column.kind, "role": column.role, "missing": column.missing}
    for field, choices in COLUMN_CHOICES.items():
        _one_of(f"{field} of a column", dataset, values[field], choices)
    if not all(bound is None or math.isfinite(bound) for bound in (column.minimum, column.maximum)):
        raise InvalidRequest(f"the range of column {printable(column.name)!r} of {printable(dataset.name)!r} is not finite")
    for category in column.categories:
        _bounded(f"category of column {printable(column.name)!r}", category, MAX_NAME)
