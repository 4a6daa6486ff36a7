"""Descriptions that travel as plain values: a table of checks for each kind, used where one is made and where one comes in.

What comes from a client is one of the kinds of a table or `InvalidRequest`, never another error: names are looked up, numbers are
finite and within bounds, and whatever is not named in a description is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from grid.errors import InvalidRequest

Check = Callable[[str, Any], Any]
"""Takes what to call a value, and the value; gives it in its own type, or raises `InvalidRequest`."""


def number(least: float, most: float, *, above: bool = False) -> Check:
    """A finite number from `least` to `most`; beyond `least` where `above`."""

    def check(name: str, value: Any) -> float:
        if type(value) not in (int, float) or (type(value) is float and not math.isfinite(value)):
            raise InvalidRequest(f"{name} must be a finite number, not {_shown(value)}")
        if not least <= value <= most or (above and value == least):
            bound = "above" if above else "at least"
            raise InvalidRequest(f"{name} must be {bound} {least:g} and at most {most:g}, not {_shown(value)}")
        return float(value)

    return check


def whole(least: int, most: int) -> Check:
    """A whole number from `least` to `most`."""

    def check(name: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise InvalidRequest(f"{name} must be a whole number from {least} to {most}, not {_shown(value)}")
        return value

    return check


def text(least: int, most: int) -> Check:
    """A text of so many characters."""

    def check(name: str, value: Any) -> str:
        if type(value) is not str:
            raise InvalidRequest(f"{name} must be a text, not {_shown(value)}")
        if not least <= len(value) <= most:
            raise InvalidRequest(f"{name} must have from {least} to {most} characters, not {len(value)}")
        return value

    return check


def choice(*values: str) -> Check:
    """One of these texts."""

    def check(name: str, value: Any) -> str:
        if type(value) is not str or value not in values:
            raise InvalidRequest(f"{name} must be one of {', '.join(values)}, not {_shown(value)}")
        return value

    return check


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if type(value) is not bool:
        raise InvalidRequest(f"{name} must be true or false, not {_shown(value)}")
    return value


def pair(check: Check) -> Check:
    """Two values, each of which passes `check`."""

    def both(name: str, value: Any) -> tuple[Any, Any]:
        if type(value) not in (tuple, list) or len(value) != 2:
            raise InvalidRequest(f"{name} must be two numbers, not {_shown(value)}")
        return check(name, value[0]), check(name, value[1])

    return both


def optional(check: Check) -> Check:
    """None, or what passes `check`."""
    return lambda name, value: None if value is None else check(name, value)


def _shown(value: Any) -> str:
    return repr(value)[:40] if type(value) in (bool, int, float, str, type(None)) else type(value).__name__


class Described:
    """Base of frozen dataclasses that travel: `kind` is the name on the wire, `checks` has an entry for each field."""

    __slots__ = ()
    kind: ClassVar[str]
    checks: ClassVar[Mapping[str, Check]]

    def __post_init__(self) -> None:
        for name, check in self.checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def to_plain(self) -> dict[str, Any]:
        """The description in dicts, lists, numbers and texts."""
        return {"kind": self.kind, **{name: _plain(getattr(self, name)) for name in self.checks}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


D = TypeVar("D", bound=Described)


def fields_of(data: Any, known: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The entries of a received description, all of which are `known`. Raises `InvalidRequest`."""
    if type(data) is not dict:
        raise InvalidRequest(f"{what} is not a description, which has named values")
    for key in data:
        if type(key) is not str or (key != "kind" and key not in known):
            raise InvalidRequest(f"{what} has no {_shown(key)}; it has {', '.join(known)}. A newer client may ask for more")
    return {key: value for key, value in data.items() if key != "kind"}


def described_from_plain(data: Any, table: Mapping[str, type[D]], what: str) -> D:
    """What `to_plain` of one of the table's classes gave. Raises `InvalidRequest` for anything else."""
    kind = data.get("kind") if type(data) is dict else None
    found = table.get(kind) if type(kind) is str else None
    if found is None:
        raise InvalidRequest(f"{what} is none of the kinds known here: {', '.join(table)}")
    return found(**fields_of(data, found.checks, f"{what} {kind!r}"))
