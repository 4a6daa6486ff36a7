"""The shape of arguments and results: nested dicts, lists and tuples around leaves, as plain data.

A plan stores two of these, for what it takes and what it gives back. A node is written as one of

    ["leaf"] | ["none"] | ["value", plain] | ["list", [child, ...]] | ["tuple", [child, ...]] | ["dict", [[key, child], ...]]

`value` is a number or text that was there when the plan was traced: it is part of the program, and a call must bring the
same one. Sequences and mappings of other types are taken for tuples, lists and dicts: what comes back is always plain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grid.errors import InvalidRequest, PlanRejected

MAX_DEPTH = 16
"""Levels of one structure."""

MAX_CHILDREN = 1 << 14
"""Entries of one dict, list or tuple."""

MAX_TEXT = 1024
"""Characters of a key or text value."""

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Tree:
    """One node of a structure. `keys` belong to a dict alone, `value` to a value alone."""

    kind: str
    children: tuple[Tree, ...] = ()
    keys: tuple[Value, ...] = ()
    value: Value | None = None

    def leaves(self) -> int:
        """How many leaves there are below."""
        return 1 if self.kind == "leaf" else sum(child.leaves() for child in self.children)


LEAF = Tree("leaf")
NONE = Tree("none")


def flatten(value: object, is_leaf: Callable[[object], bool]) -> tuple[list[Any], Tree]:
    """The leaves of `value` in order, and its structure. Raises `InvalidRequest` for what no plan can take or give."""
    leaves: list[Any] = []
    return leaves, _flatten(value, is_leaf, leaves, MAX_DEPTH)


def _flatten(value: object, is_leaf: Callable[[object], bool], leaves: list[Any], depth: int) -> Tree:
    if is_leaf(value):
        leaves.append(value)
        return LEAF
    if value is None:
        return NONE
    if isinstance(value, (bool, int, float, str)):
        return Tree("value", value=_plain(value))
    if depth == 0:
        raise InvalidRequest(f"arguments and results of a plan may nest {MAX_DEPTH} levels deep, not more")
    if isinstance(value, Mapping):
        keys = tuple(_plain(key) for key in value)
        return Tree("dict", tuple(_flatten(value[key], is_leaf, leaves, depth - 1) for key in value), keys)
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return Tree(kind, tuple(_flatten(child, is_leaf, leaves, depth - 1) for child in value))
    raise InvalidRequest(
        f"a plan takes and gives tensors, numbers, text and None in dicts, lists and tuples, not {type(value).__name__}"
    )


def _plain(value: object) -> Value:
    """The same number or text as an instance of the plain class, so that subclasses do not survive."""
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    raise InvalidRequest(f"a dict in a plan's arguments or results may have text and numbers as keys, not {type(value).__name__}")


def unflatten(tree: Tree, leaves: Iterator[Any]) -> Any:
    """Build the structure with these leaves."""
    if tree.kind == "leaf":
        return next(leaves)
    if tree.kind == "none":
        return None
    if tree.kind == "value":
        return tree.value
    children = [unflatten(child, leaves) for child in tree.children]
    if tree.kind == "dict":
        return dict(zip(tree.keys, children, strict=True))
    return tuple(children) if tree.kind == "tuple" else children


def take(tree: Tree, value: object, is_leaf: Callable[[object], bool], where: str) -> list[Any]:
    """The leaves of `value`, which must have this structure; dicts may have their keys in any order.

    Raises `InvalidRequest` that names the first place where it differs; `where` is how to call the whole.
    """
    leaves: list[Any] = []
    _take(tree, value, is_leaf, leaves, where)
    return leaves


def _take(tree: Tree, value: object, is_leaf: Callable[[object], bool], leaves: list[Any], where: str) -> None:
    if tree.kind == "leaf":
        if not is_leaf(value):
            raise InvalidRequest(f"{where} must be a tensor, not {type(value).__name__}")
        leaves.append(value)
    elif tree.kind == "none":
        if value is not None:
            raise InvalidRequest(f"{where} must be None as it was when the plan was traced")
    elif tree.kind == "value":
        if is_leaf(value) or not isinstance(value, (bool, int, float, str)) or not _same_value(_plain(value), tree.value):
            raise InvalidRequest(f"{where} was {tree.value!r} when the plan was traced, and is part of it; trace again")
    else:
        for key, child, part in _parts(tree, value, where):
            _take(child, part, is_leaf, leaves, f"{where}[{key!r}]")


def _parts(tree: Tree, value: object, where: str) -> Iterator[tuple[Value, Tree, object]]:
    if tree.kind == "dict":
        if not isinstance(value, Mapping) or set(value) != set(tree.keys):
            raise InvalidRequest(f"{where} must be a dict with the {len(tree.keys)} keys that it had when the plan was traced")
        for key, child in zip(tree.keys, tree.children, strict=True):
            yield key, child, value[key]
        return
    expected = tuple if tree.kind == "tuple" else list
    if not isinstance(value, expected) or len(value) != len(tree.children):
        raise InvalidRequest(f"{where} must be a {tree.kind} of {len(tree.children)}, as it was when the plan was traced")
    for index, (child, part) in enumerate(zip(tree.children, value, strict=True)):
        yield index, child, part


def _same_value(one: Value, other: Value | None) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


def paths(tree: Tree, where: str) -> Iterator[str]:
    """How to write each leaf, in order: `where`, then subscripts."""
    if tree.kind == "leaf":
        yield where
    keys: Sequence[Value] = tree.keys if tree.kind == "dict" else range(len(tree.children))
    for key, child in zip(keys, tree.children, strict=True):
        yield from paths(child, f"{where}[{key!r}]")


def to_plain(tree: Tree) -> list[Any]:
    """The structure as lists, for the encoding."""
    if tree.kind in ("leaf", "none"):
        return [tree.kind]
    if tree.kind == "value":
        return [tree.kind, tree.value]
    children = [to_plain(child) for child in tree.children]
    if tree.kind == "dict":
        return [tree.kind, [[key, child] for key, child in zip(tree.keys, children, strict=True)]]
    return [tree.kind, children]


def from_plain(data: object, depth: int = MAX_DEPTH) -> Tree:
    """Read what `to_plain` wrote, or something hostile. Raises `PlanRejected` and nothing else."""
    match data:
        case ["leaf"]:
            return LEAF
        case ["none"]:
            return NONE
        case ["value", (bool() | int() | float() | str()) as value] if _is_value(value):
            return Tree("value", value=value)
        case ["list" | "tuple" as kind, list(children)] if depth and len(children) <= MAX_CHILDREN:
            return Tree(kind, tuple(from_plain(child, depth - 1) for child in children))
        case ["dict", list(entries)] if depth and len(entries) <= MAX_CHILDREN:
            return _dict_from_plain(entries, depth)
    raise PlanRejected("a plan's argument or result structure is malformed or too deep")


def _dict_from_plain(entries: list[Any], depth: int) -> Tree:
    keys: list[Value] = []
    children: list[Tree] = []
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) == 2 and _is_value(entry[0])):
            raise PlanRejected("a dict in a plan's argument or result structure is malformed")
        keys.append(entry[0])
        children.append(from_plain(entry[1], depth - 1))
    if len(set(keys)) != len(keys):
        raise PlanRejected("a dict in a plan's argument or result structure has a key twice")
    return Tree("dict", tuple(children), tuple(keys))


def _is_value(value: object) -> bool:
    if type(value) is str:
        return len(value) <= MAX_TEXT
    return type(value) in (bool, int, float)
