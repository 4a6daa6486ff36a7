"""Who is here and what they have: the gateway's memory of peers, as a state machine without I/O.

Rules:
* A peer is known by its id. A node is connected by at most one connection; a newer one of the same id takes its place.
* A client may have several connections: a person's programs share the keys that the person was enrolled with.
* A node's name belongs to one id. Another identity gets the name only when its holder is not connected.
* A node that has gone stays listed as offline, up to `max_offline` of them; its datasets are found only while it is online.
* All text in announcements comes from strangers: it is bounded here, once, and escaped where it is shown.

`version` rises with every change that a reader can see.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NewType

from grid.errors import InvalidRequest, QuotaExceeded
from grid.ids import PeerId
from grid.telemetry import printable
from grid.wire.messages import Announce, ColumnCard, DatasetCard, FoundDataset, NodeCard

ConnectionId = NewType("ConnectionId", int)
"""One connection to this gateway; never used again."""

MAX_NAME = 200
MAX_DESCRIPTION = 10_000
MAX_TAGS = 64
MAX_TAG = 100
MAX_COLUMNS = 10_000
MAX_CATEGORIES = 100_000
MAX_SHAPE = 8
MAX_PAGE = 1000
MAX_DESCRIBED = 1 << 19
"""Bytes of all descriptions that a node announces."""

MAX_REPLY = 3 << 19
"""Bytes of descriptions in one reply, so that it stays a message that can be sent."""


@dataclasses.dataclass(slots=True)
class Entry:
    """A peer. `connection` is None while it is offline; `since` is the wall time of its last coming or going.

    `others` are further connections of a client, newest first.
    """

    id: PeerId
    name: str
    organisation: str
    role: str
    card: bytes
    since: float
    connection: ConnectionId | None
    others: tuple[ConnectionId, ...] = ()
    address: str = ""
    datasets: tuple[DatasetCard, ...] = ()
    size: int = 0

    @property
    def online(self) -> bool:
        return self.connection is not None

    def to_card(self, *, described: bool = True) -> NodeCard:
        """What other peers may know; without its datasets where there is no room for them."""
        return NodeCard(
            id=self.id,
            name=self.name,
            organisation=self.organisation,
            state="online" if self.online else "offline",
            address=self.address,
            card=self.card,
            datasets=self.datasets if described else (),
        )


class Registry:
    """Peers by id, nodes by name, datasets by tag."""

    def __init__(self, *, max_datasets: int = 1000, max_offline: int = 1000) -> None:
        self.version = 0
        self._max_datasets = max_datasets
        self._max_offline = max_offline
        self._entries: dict[PeerId, Entry] = {}
        self._node_of: dict[str, PeerId] = {}
        self._tagged: dict[str, set[PeerId]] = {}

    # ------------------------------------------------------------ presence

    def enter(
        self, connection: ConnectionId, *, peer: PeerId, name: str, organisation: str, role: str, card: bytes, now: float
    ) -> ConnectionId | None:
        """A peer has proved who it is. Returns a node's older connection, which this one replaces, if there is one.

        Raises `InvalidRequest` where another node that is connected has the name.
        """
        if role == "node":
            self._take_name(name, peer)
        before = self._entries.get(peer)
        if before is not None:
            self._remove(before)
        entry = Entry(
            id=peer, name=name, organisation=organisation, role=role, card=card, since=now, connection=connection
        )
        replaced = before.connection if before is not None else None
        if before is not None and before.role == role == "node":
            entry.address, entry.datasets, entry.size = before.address, before.datasets, before.size
        elif before is not None and replaced is not None and before.role == role == "client":
            entry.others, replaced = (replaced, *before.others), None
        self._add(entry)
        return replaced

    def leave(self, connection: ConnectionId, peer: PeerId, now: float) -> bool:
        """A connection has ended. False where the peer has another one, or was never here."""
        entry = self._entries.get(peer)
        if entry is not None and entry.others:
            left = [one for one in (entry.connection, *entry.others) if one is not None and one != connection]
            entry.connection, entry.others = left[0], tuple(left[1:])
            return False
        if entry is None or entry.connection != connection:
            return False
        self._remove(entry)
        if entry.role == "node":
            entry.connection, entry.since = None, now
            self._add(entry)
            self._forget_oldest()
        self.version += 1
        return True

    def forget(self, peer: PeerId) -> None:
        """Remove a peer altogether; its key was revoked."""
        entry = self._entries.get(peer)
        if entry is not None:
            self._remove(entry)
            self.version += 1

    # ------------------------------------------------------------ announcements

    def announce(self, peer: PeerId, message: Announce) -> None:
        """A node says what it has. Raises `InvalidRequest` or `QuotaExceeded`, and then nothing has changed."""
        entry = self._entries[peer]
        if entry.role != "node":
            raise InvalidRequest(f"only nodes announce datasets, and {printable(entry.name)} joined as a {entry.role}")
        if len(message.datasets) > self._max_datasets:
            raise QuotaExceeded(f"{len(message.datasets)} datasets were announced; at most {self._max_datasets} are listed")
        _bounded("address", message.address, 300)
        seen: set[str] = set()
        for dataset in message.datasets:
            _check_dataset(dataset)
            if dataset.name in seen:
                raise InvalidRequest(f"two datasets are named {printable(dataset.name)!r}; rename one of their files")
            seen.add(dataset.name)
        size = sum(map(_size, message.datasets))
        if size > MAX_DESCRIBED:
            raise QuotaExceeded(f"the descriptions of the datasets take {size} bytes in all; at most {MAX_DESCRIBED} are listed")
        self._remove(entry)
        entry.size = size
        entry.datasets = tuple(sorted(message.datasets, key=lambda dataset: dataset.name))
        entry.address = message.address
        self._add(entry)

    # ------------------------------------------------------------ reading

    def get(self, peer: PeerId) -> Entry | None:
        return self._entries.get(peer)

    def nodes(self) -> list[Entry]:
        """All nodes by name, offline ones too."""
        return sorted((entry for entry in self._entries.values() if entry.role == "node"), key=_by_name)

    def cards(self) -> tuple[NodeCard, ...]:
        """All nodes by name, for one reply: the later ones without their datasets where those would not fit."""
        cards, room = [], MAX_REPLY
        for entry in self.nodes():
            room -= entry.size
            cards.append(entry.to_card(described=room >= 0))
        return tuple(cards)

    def online(self, role: str) -> int:
        """How many peers of a role are connected."""
        return sum(entry.online and entry.role == role for entry in self._entries.values())

    def connected(self) -> Iterator[Entry]:
        return (entry for entry in self._entries.values() if entry.online)

    def search(self, tags: tuple[str, ...], offset: int = 0, limit: int = MAX_PAGE) -> tuple[list[FoundDataset], int]:
        """One page of the datasets of online nodes that have every tag, by node and name, and how many there are in all."""
        if len(tags) > MAX_TAGS or offset < 0 or limit < 0:
            raise InvalidRequest(f"a search takes at most {MAX_TAGS} tags, and an offset and limit of 0 or more")
        found = [
            (entry, dataset)
            for entry in self._nodes_with(tags)
            for dataset in entry.datasets
            if all(tag in dataset.tags for tag in tags)
        ]
        page, room = [], MAX_REPLY
        for entry, dataset in found[offset : offset + min(limit, MAX_PAGE)]:
            room -= _size(dataset)
            if room < 0:
                break
            page.append(FoundDataset(node=entry.id, node_name=entry.name, dataset=dataset))
        return page, len(found)

    def tags(self) -> dict[str, int]:
        """Each tag of an online node's datasets, and how many datasets have it; the most used first."""
        counts: dict[str, int] = {}
        for entry in self.nodes():
            if entry.online:
                for dataset in entry.datasets:
                    for tag in set(dataset.tags):
                        counts[tag] = counts.get(tag, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    # ------------------------------------------------------------ inside

    def _nodes_with(self, tags: tuple[str, ...]) -> list[Entry]:
        if not tags:
            return [entry for entry in self.nodes() if entry.online]
        holders = set.intersection(*(self._tagged.get(tag, set()) for tag in tags))
        return sorted((self._entries[peer] for peer in holders), key=_by_name)

    def _take_name(self, name: str, peer: PeerId) -> None:
        holder = self._node_of.get(name)
        if holder is None or holder == peer:
            return
        entry = self._entries[holder]
        if entry.online:
            raise InvalidRequest(
                f"a node named {printable(name)!r} with another identity is connected; "
                "start this one under another name, or with the --state folder of that node"
            )
        self._remove(entry)

    def _forget_oldest(self) -> None:
        offline = [entry for entry in self._entries.values() if not entry.online]
        if len(offline) > self._max_offline:
            self._remove(min(offline, key=lambda entry: entry.since))

    def _add(self, entry: Entry) -> None:
        """Every change goes through here and `_remove`, so the indexes cannot disagree with the entries."""
        self.version += 1
        self._entries[entry.id] = entry
        if entry.role != "node":
            return
        self._node_of[entry.name] = entry.id
        if entry.online:
            for tag in _tags(entry):
                self._tagged.setdefault(tag, set()).add(entry.id)

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.id]
        if self._node_of.get(entry.name) == entry.id:
            del self._node_of[entry.name]
        for tag in _tags(entry):
            holders = self._tagged.get(tag, set())
            holders.discard(entry.id)
            if not holders:
                self._tagged.pop(tag, None)


def _by_name(entry: Entry) -> tuple[str, PeerId]:
    return entry.name, entry.id


def _tags(entry: Entry) -> set[str]:
    return {tag for dataset in entry.datasets for tag in dataset.tags}


def _size(dataset: DatasetCard) -> int:
    """About how many bytes a dataset's description takes in a message."""
    texts = [dataset.name, dataset.description, *dataset.tags, *dataset.feature_names]
    texts += [*dataset.policy.allow, *dataset.policy.sinks]
    texts += [text for column in dataset.columns for text in (column.name, *column.categories)]
    return 200 + 60 * len(dataset.columns) + sum(len(text.encode()) + 5 for text in texts)


def _bounded(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidRequest(f"the {what} {printable(text[:40])!r}... has {len(text)} characters; at most {most} are listed")


def _count(what: str, dataset: DatasetCard, number: int, most: int) -> None:
    if number > most:
        raise QuotaExceeded(f"dataset {printable(dataset.name)!r} has {number} {what}; at most {most} are listed")


def _check_dataset(dataset: DatasetCard) -> None:
    """The bounds of one announced dataset. The types of its fields are the codec's business."""
    _bounded("dataset name", dataset.name, MAX_NAME)
    if not dataset.name or not dataset.name.isprintable():
        raise InvalidRequest(f"a dataset's name must be printable text, and {printable(dataset.name)!r} is not")
    _bounded("description", dataset.description, MAX_DESCRIPTION)
    _count("tags", dataset, len(dataset.tags), MAX_TAGS)
    for tag in dataset.tags:
        _bounded("tag", tag, MAX_TAG)
        if not tag or not tag.isprintable():
            raise InvalidRequest(f"a tag of {printable(dataset.name)!r} must be printable text, and {printable(tag)!r} is not")
    _count("columns", dataset, len(dataset.columns), MAX_COLUMNS)
    _count("feature names", dataset, len(dataset.feature_names), MAX_CATEGORIES)
    _count("dimensions", dataset, max(len(dataset.feature_shape), len(dataset.target_shape)), MAX_SHAPE)
    _count("categories", dataset, sum(len(column.categories) for column in dataset.columns), MAX_CATEGORIES)
    if dataset.rows < 0:
        raise InvalidRequest(f"dataset {printable(dataset.name)!r} announces {dataset.rows} rows")
    _count("allowed plans", dataset, len(dataset.policy.allow), MAX_COLUMNS)
    _count("sinks", dataset, len(dataset.policy.sinks), MAX_COLUMNS)
    _check_texts(dataset, dataset.columns)


def _check_texts(dataset: DatasetCard, columns: tuple[ColumnCard, ...]) -> None:
    for column in columns:
        _bounded("column name", column.name, MAX_NAME)
        if not all(bound is None or math.isfinite(bound) for bound in (column.minimum, column.maximum)):
            raise InvalidRequest(f"the range of column {printable(column.name)!r} of {printable(dataset.name)!r} is not finite")
        for category in column.categories:
            _bounded(f"category of column {printable(column.name)!r}", category, MAX_NAME)
    for name in dataset.feature_names:
        _bounded("feature name", name, 2 * MAX_NAME + 1)
