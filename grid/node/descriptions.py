"""What an owner writes about a dataset: one `NAME.toml` beside the data file, read into a `Description`.

Everything that is wrong is a `DatasetError` with the file, the line where it is known, the key, and what is allowed, raised
or noted as the `Findings` say. The same checks serve datasets that are made in one process (`Dataset.from_frame`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grid.errors import DatasetError, GridError
from grid.node.findings import Findings
from grid.policy.rules import Policy

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
MISSING_RULES = ("error", "category", "mean-of-bounds")
MAX_TAGS = 64
MAX_LABEL = 200
"""Characters of a column's or category's name; gateways list no longer ones, nor more tags."""

MAX_TEXT = 10_000
MAX_CATEGORIES = 10_000

MAX_SIDE = 16_384
"""Pixels of an image's height or width."""

CHANNELS = (1, 3)

_TOP = ("description", "file", "tags", "target", "features", "targets", "image", "policy", "columns")
_COLUMN = ("min", "max", "categories", "missing")
_IMAGE = ("size", "channels")


@dataclasses.dataclass(frozen=True, slots=True)
class ColumnRule:
    """What the owner declares about one column."""

    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str, ...] = ()
    missing: str = "error"
    broken: bool = False
    """What the owner wrote is wrong, and was noted: nothing more is said of this column."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRule:
    """The form of an image folder's images: `(channels, height, width)`."""

    height: int
    width: int
    channels: int


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """A dataset's description, checked by itself; its `Reader` checks it against the data.

    `target` is a column of a table. `features` and `targets` are names of arrays in a file of arrays, "" for the usual ones.
    """

    name: str
    where: Where
    policy: Policy
    text: str = ""
    file: Path | None = None
    tags: tuple[str, ...] = ()
    target: str = ""
    features: str = ""
    targets: str = ""
    image: ImageRule | None = None
    columns: Mapping[str, ColumnRule] = dataclasses.field(default_factory=dict)
    policy_broken: bool = False
    """A part of the policy is wrong, and was noted: the policy is not what the owner meant."""

    @property
    def path(self) -> Path:
        """The data file or folder. Only for a description that was read from a file."""
        assert self.file is not None
        return self.file

    def refuse_keys(self, keys: Iterable[str], why: str, findings: Findings) -> None:
        """Say that keys which were given make no sense for this kind of file."""
        for key in keys:
            if getattr(self, key):
                findings.error(self.where.error(f"{key!r} {why}", **({"section": key} if key == "image" else {"key": key})))


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
        return _lines_of(self.source).get((_bare(section), key), 0)


_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_ENTRY = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^\s="']+))\s*=""")


def _bare(section: str) -> str:
    return re.sub(r"[\"'\s]", "", section)


@functools.lru_cache(maxsize=4)
def _lines_of(source: str) -> Mapping[tuple[str, str], int]:
    """The line on which each key of each section stands first; a section's own is that of the key ""."""
    found: dict[tuple[str, str], int] = {}
    section = ""
    for number, line in enumerate(source.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _bare(header[1])
            found.setdefault((section, ""), number)
        elif entry := _ENTRY.match(line):
            found.setdefault((section, entry[1] or entry[2] or entry[3] or ""), number)
    return found


def read_description(path: Path, findings: Findings | None = None) -> Description:
    """The description in a TOML file; the dataset's name is the file's.

    Raises `DatasetError` where nothing can be made of it; what else is wrong is for the `findings`, by default raised, too.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as text ({error.__class__.__name__})") from error
    try:
        table = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise DatasetError(f"{path}: not valid TOML: {error}") from error
    where = Where(str(path), source)
    description = parse_description(table, path.stem, where, findings=findings)
    if description.file is None:
        raise where.error("the key 'file' is missing: the name of the data file beside this description")
    return dataclasses.replace(description, file=path.parent / description.file)


def parse_description(
    table: Mapping[str, Any],
    name: str,
    where: Where,
    default_policy: Policy | None = None,
    findings: Findings | None = None,
) -> Description:
    """A description from a TOML table or a dict of the same form."""
    findings = findings or Findings()
    if not NAME.match(name):
        findings.error(where.error(f"{name!r} is no name for a dataset: letters, digits, '.', '_' and '-', at most 64"))
    check_keys(table, _TOP, where, "", findings)
    texts = {key: _text(table, key, where, findings) for key in ("description", "file", "target", "features", "targets")}
    target = texts["target"]
    columns = {str(column): _column(str(column), rule, where, findings) for column, rule in _columns(table, where, findings)}
    if target in columns and columns[target].missing != "error":
        what = 'a target cannot have missing values: use missing = "error"'
        findings.error(where.error(what, section=f"columns.{target}", key="missing"))
    tags: tuple[str, ...] = ()
    with findings.noting():
        tags = _tags(table, where)
    image = None
    with findings.noting():
        image = _image(table, where)
    policy, policy_broken = _policy(table, where, default_policy, findings)
    return Description(
        name=name,
        where=where,
        policy=policy,
        policy_broken=policy_broken,
        text=texts["description"],
        file=Path(texts["file"]) if texts["file"] else None,
        tags=tags,
        target=target,
        features=texts["features"],
        targets=texts["targets"],
        image=image,
        columns=columns,
    )


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: Where, section: str, findings: Findings) -> None:
    """Say of each key that is not known which known one is the nearest."""
    known = tuple(known)
    for key in table:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), known, 1)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        place = f" in [{section}]" if section else ""
        findings.error(where.error(f"unknown key {key!r}{place}; {advice}", section=section, key=str(key)))


def _text(table: Mapping[str, Any], key: str, where: Where, findings: Findings) -> str:
    value = table.get(key, "")
    if isinstance(value, str) and len(value) <= MAX_TEXT and "\0" not in value:
        return value
    findings.error(where.error(f"{key!r} must be a text of at most {MAX_TEXT} characters", key=key))
    return ""


def _table(table: Mapping[str, Any], key: str, where: Where) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise where.error(f"{key!r} must be a table: [{key}]", key=key)
    return value


def _columns(table: Mapping[str, Any], where: Where, findings: Findings) -> Iterable[tuple[Any, Any]]:
    with findings.noting():
        return _table(table, "columns", where).items()
    return ()


def _image(table: Mapping[str, Any], where: Where) -> ImageRule | None:
    if "image" not in table:
        return None
    section = _table(table, "image", where)
    check_keys(section, _IMAGE, where, "image", Findings())
    size, channels = section.get("size"), section.get("channels", 3)
    two = isinstance(size, list) and len(size) == 2 and all(type(side) is int and 1 <= side <= MAX_SIDE for side in size)
    if not two:
        what = f"'size' must be the images' height and width, such as [28, 28], each from 1 to {MAX_SIDE}"
        raise where.error(what, section="image", key="size" if "size" in section else "")
    assert isinstance(size, list)
    if type(channels) is not int or channels not in CHANNELS:
        raise where.error("'channels' is 1 (grayscale) or 3 (colour)", section="image", key="channels")
    return ImageRule(size[0], size[1], channels)


def _tags(table: Mapping[str, Any], where: Where) -> tuple[str, ...]:
    tags = table.get("tags", [])
    if not isinstance(tags, list | tuple) or len(tags) > MAX_TAGS:
        raise where.error(f"'tags' must be a list of at most {MAX_TAGS} texts", key="tags")
    if not all(isinstance(tag, str) and 0 < len(tag) <= 100 and tag.isprintable() for tag in tags):
        raise where.error("each of 'tags' must be a printable text of 1 to 100 characters", key="tags")
    return tuple(dict.fromkeys(tags))


def _policy(table: Mapping[str, Any], where: Where, default: Policy | None, findings: Findings) -> tuple[Policy, bool]:
    """The policy of what is sound in its section, and whether something is not."""
    if "policy" not in table and default is not None:
        return default, False
    value = table.get("policy", {})
    if isinstance(value, Policy):
        return value, False
    sound: dict[str, Any] = {}
    with findings.noting():
        section = _table(table, "policy", where)
        check_keys(section, POLICY_KEYS, where, "policy", findings)
        for key in section:
            if key in POLICY_KEYS:
                with findings.noting():
                    _check_policy_key(key, section[key], where)
                    sound[key] = section[key]
        return Policy.from_table(sound), len(sound) < len(section)
    return Policy(), True


def _check_policy_key(key: str, value: Any, where: Where) -> None:
    try:
        Policy.from_table({key: value})
    except GridError as error:
        raise where.error(error.message, section="policy", key=key) from error


POLICY_KEYS = tuple(field.name for field in dataclasses.fields(Policy))


def _column(name: str, rule: Any, where: Where, findings: Findings) -> ColumnRule:
    with findings.noting():
        return _column_rule(name, rule, where)
    return ColumnRule(broken=True)


def _column_rule(name: str, rule: Any, where: Where) -> ColumnRule:
    section = f"columns.{name}"
    if not isinstance(rule, Mapping):
        raise where.error(f"[{section}] must be a table", section="columns", key=name)
    check_keys(rule, _COLUMN, where, section, Findings())
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
        raise where.error("missing = \"category\" needs 'categories'", section=section, key="missing")
    if missing == "mean-of-bounds" and (minimum is None or maximum is None):
        raise where.error("missing = \"mean-of-bounds\" needs 'min' and 'max'", section=section, key="missing")
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
