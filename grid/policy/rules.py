"""What an owner allows to be done with one dataset: the `[policy]` table of its description, checked."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from grid.crypto.cards import is_name
from grid.errors import InvalidRequest
from grid.ids import PlanId
from grid.wire.messages import PolicyCard

DENY, AGGREGATE, APPROVE, OPEN = "deny", "aggregate", "approve", "open"
RELEASES = (DENY, AGGREGATE, APPROVE, OPEN)

BUILTIN, ANY = "builtin", "any"
PLANS = (BUILTIN, ANY)

SUMMED, SINGLE = "summed", "single"
UPDATES = (SUMMED, SINGLE)
SECRET, KNOWN = "secret", "known"
BATCHES = (SECRET, KNOWN)

DEFAULT_MIN_ROWS = 10
SMALLEST_COHORT = 3
SMALLEST_COHORT_DEV = 2
"""Nodes that a secure sum over datasets needs, at least. An owner can ask for more (`min_cohort`)."""

DEFAULT_SHARE_OF_ROWS = 0.33
"""Elements released over a dataset's life, as a share of its rows, where the owner sets no `max_elements`."""

ANYBODY = ("*",)
"""In place of names: whatever three nodes a client names. No node has this name."""

MAX_COUNT = 1 << 62

ANYTHING = "*"
"""In place of an argument: whatever a client passes."""

ALLOWED = re.compile(r"([0-9a-f]{64})(?:\(([^()]*)\))?\Z")
"""An entry of `allow`: the id of a plan, and in brackets perhaps its arguments."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """An owner's rules for one dataset.

    `release`: "deny", "aggregate", "approve" or "open". `plans`: whose results may leave under "aggregate": "builtin" (the
    built-in statistics and the plan ids in `allow`) or "any" (any plan and pointer result that the labels show to be an
    aggregate). `allow` lists plans; one with arguments, "ID(alice/bid, bob/bid)", is for these on shares alone (`calls`).
    `min_cohort`: how many nodes must be in a sum over nodes that values of this dataset go into; None is 3, 2 in `--dev`.
    `max_elements` None is a third of the rows. `sinks` names the nodes that values with rows of this dataset may
    move to. `share`: whether values may be split into secret shares: not at all, or in sums and in committees of any nodes, or in
    sums and in committees of the nodes named alone; None is no under "deny", and leaves committees to `parties`. `updates`:
    whether what a federated job learned of the rows leaves in sums over nodes alone ("summed"), or also by itself, to the gateway
    ("single"). `same_organisation`: whether two nodes of one organisation may take part in those sums. `batches`: whether a
    client that gives a job a seed can tell which rows make a batch ("known") or not ("secret"). `epsilon` and `delta` bound what
    differential privacy may spend.
    """

    release: str = DENY
    plans: str = BUILTIN
    allow: tuple[str, ...] = ()
    min_rows: int = DEFAULT_MIN_ROWS
    min_cohort: int | None = None
    max_elements: int | None = None
    sinks: tuple[str, ...] = ()
    share: bool | tuple[str, ...] | None = None
    updates: str = SUMMED
    same_organisation: bool = False
    batches: str = SECRET
    epsilon: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        _check_choice("release", self.release, RELEASES)
        _check_choice("plans", self.plans, PLANS)
        _check_choice("updates", self.updates, UPDATES)
        _check_choice("batches", self.batches, BATCHES)
        if not isinstance(self.same_organisation, bool):
            raise InvalidRequest("'same_organisation' is true or false")
        _check_count("min_rows", self.min_rows, 1)
        if self.min_cohort is not None:
            _check_count("min_cohort", self.min_cohort, SMALLEST_COHORT)
        if self.max_elements is not None:
            _check_count("max_elements", self.max_elements, 0)
        for entry in _texts("allow", self.allow):
            _parsed(entry)
        _texts("sinks", self.sinks)
        if isinstance(self.share, tuple):
            if not all(isinstance(one, str) and is_name(one) for one in self.share):
                raise InvalidRequest("'share' lists names of nodes, or their ids")
        elif not (self.share is None or isinstance(self.share, bool)):
            raise InvalidRequest("'share' is true, false, or a list of nodes' names")
        _check_number("epsilon", self.epsilon, math.inf)
        _check_number("delta", self.delta, 1.0)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Policy:
        """A policy from a description's `[policy]` table. Raises `InvalidRequest` that names the key."""
        known = {field.name for field in dataclasses.fields(cls)}
        for key in table:
            if key not in known:
                raise InvalidRequest(f"a policy has no key {key!r}; it has {', '.join(sorted(known))}")
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
        return cls(**values)

    def element_limit(self, rows: int) -> int:
        """How many elements may leave over the life of a dataset of so many rows."""
        return int(rows * DEFAULT_SHARE_OF_ROWS) if self.max_elements is None else self.max_elements

    def cohort(self, *, dev: bool = False) -> int:
        """How many nodes must be in a sum over nodes."""
        return self.min_cohort or (SMALLEST_COHORT_DEV if dev else SMALLEST_COHORT)

    @property
    def may_share(self) -> bool:
        """Whether values with rows may be split into secret shares at all."""
        if isinstance(self.share, bool):
            return self.share
        return self.release != DENY or bool(self.share)

    @property
    def may_update_singly(self) -> bool:
        """Whether an update of a federated job may go to the gateway by itself: where secure aggregation is off."""
        return self.release != DENY and (self.updates == SINGLE or self.release == OPEN)

    @property
    def tells_batches(self) -> bool:
        """Whether a client with a seed may know which rows make a batch."""
        return self.batches == KNOWN or self.release == OPEN

    def parties(self, *, dev: bool = False) -> tuple[str, ...]:
        """The nodes, by name or id, that may hold shares of rows in a committee, beside the owner's own; `ANYBODY` for all.

        Where the owner has not said, these are nobody; all in `dev`, and for what everybody may fetch anyway. Under "deny" only
        nodes that are named count: results open at the owner's node, and to others those of plans in `allow`.
        """
        if isinstance(self.share, tuple):
            return self.share
        if self.release == DENY or self.share is False:
            return ()
        return ANYBODY if self.share or dev or self.release == OPEN else ()

    @property
    def calls(self) -> list[tuple[PlanId, tuple[str, ...] | None]]:
        """The entries of `allow`: each plan, and its arguments as `argument` writes them or `ANYTHING`, None for any at all."""
        return [_parsed(entry) for entry in self.allow]

    def card(self, rows: int, *, dev: bool = False) -> PolicyCard:
        """The rules as clients may read them."""
        return PolicyCard(
            release=self.release,
            plans=self.plans,
            min_rows=self.min_rows,
            min_cohort=self.cohort(dev=dev),
            max_elements=self.element_limit(rows),
            allow=self.allow,
            sinks=self.sinks,
            share=self.may_share,
            parties=self.parties(dev=dev),
            updates=SINGLE if self.may_update_singly else SUMMED,
            same_organisation=self.same_organisation,
            batches=KNOWN if self.tells_batches else SECRET,
        )


def argument(node: str, dataset: str, part: str = "features") -> str:
    """What of a dataset is given to a plan, as `allow` names it: "alice/bid" for features, "alice/bid/targets"."""
    return f"{node}/{dataset}" if part == "features" else f"{node}/{dataset}/{part}"


def _parsed(entry: str) -> tuple[PlanId, tuple[str, ...] | None]:
    """One entry of `allow`. Raises `InvalidRequest`."""
    found = ALLOWED.match(entry)
    if found is None:
        raise InvalidRequest(
            f"'allow' lists plan ids, which have 64 hexadecimal digits, each perhaps with its arguments: {entry[:80]!r} is none"
        )
    if found[2] is None:
        return PlanId(found[1]), None
    arguments = tuple(one.strip() for one in found[2].split(","))
    for one in arguments:
        node, _, rest = one.partition("/")
        if one != ANYTHING and not (is_name(node) and rest):
            raise InvalidRequest(f"an argument in 'allow' is NODE/DATASET, NODE/DATASET/targets or *; {one[:80]!r} is none")
    return PlanId(found[1]), arguments


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequest(f"{key!r} is one of {', '.join(choices)}, not {str(value)[:80]!r}")


def _check_count(key: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_COUNT:
        raise InvalidRequest(f"{key!r} is a whole number of at least {least}")


def _check_number(key: str, value: object, most: float) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < most:
        raise InvalidRequest(f"{key!r} is a number above 0" + ("" if most == math.inf else f" and below {most:g}"))


def _texts(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidRequest(f"{key!r} is a list of texts")
    return value
