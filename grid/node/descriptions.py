"""What an owner writes about a dataset: one `NAME.toml` beside the data file, read into a `Description`.

Everything that is wrong raises `DatasetError` with the file, the line where it is known, the key, and what is allowed. The
same checks serve datasets that are made in one process (`Dataset.from_frame`), which have no file.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grid.errors import DatasetError, GridError
from grid.policy.rules import Policy

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
MISSING_RULES = ("error", "category", "mean-of-bounds")
MAX_TAGS = 64
MAX_LABEL = 200
"""Characters of a column's or category's name; gateways list no longer ones, nor more tags."""

MAX_TEXT = 10_000
MAX_CATEGORIES = 10_000

_TOP = ("description", "file", "tags", "target", "policy", "columns")
_COLUMN = ("min", "max", "categories", "missing")


@dataclasses.dataclass(frozen=True, slots=True)
class ColumnRule:
    """What the owner declares about one column."""

    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str, ...] = ()
    missing: str = "error"


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """A dataset's description, checked by itself; `Dataset` checks it against the data."""

    name: str
    where: Where
    policy: Policy
    text: str = ""
    file: Path | None = None
    tags: tuple[str, ...] = ()
    target: str = ""
    columns: Mapping[str, ColumnRule] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """Names the place of an error: a description's file and, from its text, the line of a key."""

    place: str
    source: str = ""

    def error(self, what: str, *, section: str = "", key: str = "") -> DatasetError:
        """An error about a key of a section ("" for the top); both may be empty."""
        line = self._line(section, key) if key or section else 0
        place = f"{self.place}, line {line}" if line else self.place
        return DatasetError(f"{place}: {what}")

    def _line(self, section: str, key: str) -> int:
        header = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
        entry = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=")
        current = ""
        for number, line in enumerate(self.source.splitlines(), 1):
            found = header.match(line)
            if found:
                current = re.sub(r"[\"'\s]", "", found[1])
            if current == re.sub(r"[\"'\s]", "", section) and (entry.match(line) if key else found):
                return number
        return 0


def read_description(path: Path) -> Description:
    """The description in a TOML file; the dataset's name is the file's."""
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as text ({error.__class__.__name__})") from error
    try:
        table = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise DatasetError(f"{path}: not valid TOML: {error}") from error
    where = Where(str(path), source)
    if "file" not in table:
        raise where.error("the key 'file' is missing: the name of the data file beside this description")
    description = parse_description(table, path.stem, where)
    assert description.file is not None
    return dataclasses.replace(description, file=path.parent / description.file)


def parse_description(table: Mapping[str, Any], name: str, where: Where, default_policy: Policy | None = None) -> Description:
    """A description from a TOML table or a dict of the same form."""
    if not NAME.match(name):
        raise where.error(f"{name!r} is no name for a dataset: letters, digits, '.', '_' and '-', at most 64")
    check_keys(table, _TOP, where, "")
    file = _text(table, "file", where)
    columns_table = _table(table, "columns", where)
    target = _text(table, "target", where)
    columns = {str(column): _column(column, rule, where) for column, rule in columns_table.items()}
    if target in columns and columns[target].missing != "error":
        what = 'a target cannot have missing values: use missing = "error"'
        raise where.error(what, section=f"columns.{target}", key="missing")
    return Description(
        name=name,
        where=where,
        policy=_policy(table, where, default_policy),
        text=_text(table, "description", where),
        file=Path(file) if file else None,
        tags=_tags(table, where),
        target=target,
        columns=columns,
    )


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: Where, section: str) -> None:
    """Raise for the first key that is not known, with the nearest one that is."""
    known = tuple(known)
    for key in table:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), known, 1)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        place = f" in [{section}]" if section else ""
        raise where.error(f"unknown key {key!r}{place}; {advice}", section=section, key=str(key))


def _text(table: Mapping[str, Any], key: str, where: Where) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise where.error(f"{key!r} must be a text of at most {MAX_TEXT} characters", key=key)
    return value


def _table(table: Mapping[str, Any], key: str, where: Where) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise where.error(f"{key!r} must be a table: [{key}]", key=key)
    return value


def _tags(table: Mapping[str, Any], where: Where) -> tuple[str, ...]:
    tags = table.get("tags", [])
    if not isinstance(tags, list | tuple) or len(tags) > MAX_TAGS:
        raise where.error(f"'tags' must be a list of at most {MAX_TAGS} texts", key="tags")
    if not all(isinstance(tag, str) and 0 < len(tag) <= 100 and tag.isprintable() for tag in tags):
        raise where.error("each of 'tags' must be a printable text of 1 to 100 characters", key="tags")
    return tuple(dict.fromkeys(tags))


def _policy(table: Mapping[str, Any], where: Where, default: Policy | None) -> Policy:
    if "policy" not in table and default is not None:
        return default
    value = table.get("policy", {})
    if isinstance(value, Policy):
        return value
    section = _table(table, "policy", where)
    check_keys(section, POLICY_KEYS, where, "policy")
    try:
        return Policy.from_table(section)
    except GridError as error:
        named = next((key for key in section if repr(key) in error.message or f" {key} " in f" {error.message} "), "")
        raise where.error(error.message, section="policy", key=named) from error


POLICY_KEYS = tuple(field.name for field in dataclasses.fields(Policy))


def _column(name: str, rule: Any, where: Where) -> ColumnRule:
    section = f"columns.{name}"
    if not isinstance(rule, Mapping):
        raise where.error(f"[{section}] must be a table", section="columns", key=str(name))
    check_keys(rule, _COLUMN, where, section)
    minimum = _number(rule, "min", section, where)
    maximum = _number(rule, "max", section, where)
    categories = _categories(rule, section, where)
    missing = rule.get("missing", "error")
    if missing not in MISSING_RULES:
        raise where.error(f"'missing' must be one of {', '.join(MISSING_RULES)}", section=section, key="missing")
    if categories and (minimum is not None or maximum is not None):
        raise where.error("a column has either 'categories' or 'min' and 'max'", section=section, key="categories")
    if minimum is not None and maximum is not None and minimum >= maximum:
        raise where.error("'min' must be less than 'max'", section=section, key="min")
    if missing == "category" and not categories:
        raise where.error('missing = "category" needs \'categories\'', section=section, key="missing")
    if missing == "mean-of-bounds" and (minimum is None or maximum is None):
        raise where.error('missing = "mean-of-bounds" needs \'min\' and \'max\'', section=section, key="missing")
    return ColumnRule(minimum, maximum, categories, missing)


def _number(rule: Mapping[str, Any], key: str, section: str, where: Where) -> float | None:
    value = rule.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise where.error(f"{key!r} must be a finite number", section=section, key=key)
    return float(value)


def _categories(rule: Mapping[str, Any], section: str, where: Where) -> tuple[str, ...]:
    """Categories as texts; whole numbers and booleans are taken as they are written in a file."""
    values = rule.get("categories")
    if values is None:
        return ()
    allowed = isinstance(values, list | tuple) and all(isinstance(value, str | int) for value in values)
    if not allowed or not 2 <= len(values) <= MAX_CATEGORIES:
        raise where.error(
            f"'categories' must be a list of 2 to {MAX_CATEGORIES} texts or whole numbers", section=section, key="categories"
        )
    texts = tuple(str(value).strip() for value in values)
    if max(map(len, texts)) > MAX_LABEL:
        raise where.error(f"a category has at most {MAX_LABEL} characters", section=section, key="categories")
    if len(set(texts)) != len(texts):
        raise where.error("'categories' holds one of its values twice", section=section, key="categories")
    return texts
