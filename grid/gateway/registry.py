"""Who is here and what they have: the gateway's memory of peers, as a state machine without I/O.

Rules:
* A peer is known by its id. A node is connected by at most one connection; a newer one of the same id takes its place.
* A client may have several connections, up to `MAX_CONNECTIONS`: a person's programs share the keys of that person.
* A node's name belongs to one id. Another identity gets the name only when its holder is not connected.
* A node that has gone stays listed as offline with what it announced last, up to `max_offline` of them. Their descriptions
  may take `MAX_OFFLINE_BYTES` in all; above that the nodes that left first lose theirs.
* All text in announcements comes from strangers: it is bounded here, once, and escaped where it is shown.

`version` rises with every change that a reader can see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NewType

from grid.display import printable
from grid.errors import InvalidRequest, QuotaExceeded
from grid.gateway.announcements import MAX_TAGS, check_announcement, compact
from grid.gateway.index import Index
from grid.ids import PeerId
from grid.wire.messages import Announce, DatasetCard, FoundDataset, NodeCard

ConnectionId = NewType("ConnectionId", int)
"""One connection to this gateway; never used again."""

MAX_PAGE = 1000
MAX_CONNECTIONS = 16
"""Connections of one client at once."""

MAX_LISTED = 2 << 20
"""Bytes of a list of nodes without their datasets; a longer list is cut, the offline nodes first."""

MAX_OFFLINE_BYTES = 32 << 20
"""Bytes of descriptions that are kept of nodes that have gone."""

MAX_REPLY = 3 << 19
"""Bytes of descriptions in one reply, so that it stays a message that can be sent."""


@dataclasses.dataclass(slots=True)
class Entry:
    """A peer. `connection` is None while it is offline; `since` is the wall time of its last coming or going.

    `others` are further connections of a client, newest first. `sizes` are the bytes of the datasets' descriptions by name.
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
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all that is told of this peer beside its datasets, rounded up."""
        return 200 + len(self.card) + 4 * (len(self.name) + len(self.organisation) + len(self.address))

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
            since=self.since,
            datasets=self.datasets if described else (),
            dataset_count=len(self.datasets),
        )


class Registry:
    """Peers by id, nodes by name, datasets by tags and words."""

    def __init__(self, *, max_datasets: int = 1000, max_offline: int = 1000) -> None:
        self.version = 0
        self._max_datasets = max_datasets
        self._max_offline = max_offline
        self._entries: dict[PeerId, Entry] = {}
        self._node_of: dict[str, PeerId] = {}
        self._changed: set[PeerId] = set()
        self.index = Index()

    # ------------------------------------------------------------ presence

    def enter(
        self, connection: ConnectionId, *, peer: PeerId, name: str, organisation: str, role: str, card: bytes, now: float
    ) -> ConnectionId | None:
        """A peer has proved who it is. Returns a node's older connection, which this one replaces, if there is one.

        Raises `InvalidRequest` where another node that is connected has the name, or the peer is connected in another role;
        `QuotaExceeded` where it has too many connections.
        """
        before = self._entries.get(peer)
        if before is not None and before.online:
            _check_another(before, role)
        if role == "node":
            self._take_name(name, peer)
        if before is not None:
            self._remove(before)
        entry = Entry(
            id=peer, name=name, organisation=organisation, role=role, card=card, since=now, connection=connection
        )
        replaced = before.connection if before is not None else None
        if before is not None and before.role == role == "node":
            entry.address, entry.datasets, entry.sizes = before.address, before.datasets, before.sizes
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

    def restore(self, entries: Iterable[Entry]) -> None:
        """Take in nodes of an earlier run; before anybody has come."""
        for entry in entries:
            self._add(entry)
        self._changed.clear()

    def take_changes(self) -> dict[PeerId, Entry | None]:
        """The nodes that have changed since this was asked last; None for those that are forgotten."""
        changed, self._changed = self._changed, set()
        found = {peer: self._entries.get(peer) for peer in changed}
        return {peer: entry if entry is not None and entry.role == "node" else None for peer, entry in found.items()}

    # ------------------------------------------------------------ announcements

    def announce(self, peer: PeerId, message: Announce) -> None:
        """A node says what it has. Raises `InvalidRequest` or `QuotaExceeded`, and then nothing has changed."""
        entry = self._entries[peer]
        if entry.role != "node":
            raise InvalidRequest(f"only nodes announce datasets, and {printable(entry.name)} joined as a {entry.role}")
        sizes = check_announcement(message, self._max_datasets)
        self._remove(entry)
        entry.sizes = sizes
        entry.datasets = tuple(sorted(map(compact, message.datasets), key=lambda dataset: dataset.name))
        entry.address = message.address
        self._add(entry)

    # ------------------------------------------------------------ reading

    def get(self, peer: PeerId) -> Entry | None:
        return self._entries.get(peer)

    def rows_of(self, node: PeerId, dataset: str) -> int | None:
        """How many rows a node has announced, last or now, for a dataset of this name; None where it has none."""
        entry = self._entries.get(node)
        if entry is None or entry.role != "node":
            return None
        return next((card.rows for card in entry.datasets if card.name == dataset), None)

    def nodes(self) -> list[Entry]:
        """All nodes by name, offline ones too."""
        return self.index.nodes()

    def find_node(self, wanted: str) -> Entry | None:
        """The node with this id or name."""
        entry = self._entries.get(PeerId(wanted)) or self._entries.get(self._node_of.get(wanted, PeerId("")))
        return entry if entry is not None and entry.role == "node" else None

    def cards(self) -> tuple[NodeCard, ...]:
        """The nodes by name, for one reply: where not all fit the offline ones go first, then datasets, in the same order."""
        room = MAX_LISTED
        listed: list[Entry] = []
        for entry in sorted(self.nodes(), key=lambda entry: not entry.online):
            room -= entry.size
            if room < 0:
                break
            listed.append(entry)
        described, room = set(), MAX_REPLY
        for entry in listed:
            room -= sum(entry.sizes.values())
            if room < 0:
                break
            described.add(entry.id)
        cards = [entry.to_card(described=entry.id in described) for entry in sorted(listed, key=_by_name)]
        return tuple(cards)

    def lists_datasets_of(self, entry: Entry) -> bool:
        """Whether `cards` has room for the datasets of this node; in a large grid only a search finds those of later nodes."""
        return any(card.id == entry.id and card.datasets for card in self.cards())

    def online(self, role: str) -> int:
        """How many peers of a role are connected."""
        return sum(entry.online and entry.role == role for entry in self._entries.values())

    def connected(self) -> Iterator[Entry]:
        return (entry for entry in self._entries.values() if entry.online)

    def search(
        self,
        tags: tuple[str, ...],
        offset: int = 0,
        limit: int = MAX_PAGE,
        words: Sequence[str] = (),
        *,
        offline: bool = False,
    ) -> tuple[list[FoundDataset], int]:
        """One page of the datasets that have every tag and word, by node and name, and how many there are in all.

        Those of online nodes; with `offline` those of nodes that have gone, too, as they were announced last.
        """
        if len(tags) > MAX_TAGS or offset < 0 or limit < 0:
            raise InvalidRequest(f"a search takes at most {MAX_TAGS} tags, and an offset and limit of 0 or more")
        found = self.index.find(tags, words, offline=offline)
        page, room = [], MAX_REPLY
        for entry, dataset, _ in found[offset : offset + min(limit, MAX_PAGE)]:
            room -= entry.sizes[dataset.name] + entry.size
            if room < 0:
                break
            state = "online" if entry.online else "offline"
            page.append(FoundDataset(node=entry.id, node_name=entry.name, dataset=dataset, state=state, since=entry.since))
        return page, len(found)

    # ------------------------------------------------------------ inside

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
        offline = sorted((entry for entry in self._entries.values() if not entry.online), key=lambda entry: entry.since)
        if len(offline) > self._max_offline:
            self._remove(offline.pop(0))
        taken = sum(sum(entry.sizes.values()) for entry in offline)
        for oldest in offline:
            if taken <= MAX_OFFLINE_BYTES:
                return
            if oldest.sizes:
                taken -= sum(oldest.sizes.values())
                self._remove(oldest)
                oldest.datasets, oldest.sizes = (), {}
                self._add(oldest)

    def _add(self, entry: Entry) -> None:
        """Every change goes through here and `_remove`, so the indexes cannot disagree with the entries."""
        self.version += 1
        self._entries[entry.id] = entry
        if entry.role != "node":
            return
        self._changed.add(entry.id)
        self._node_of[entry.name] = entry.id
        self.index.add(entry)

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.id]
        if entry.role == "node":
            self._changed.add(entry.id)
        if self._node_of.get(entry.name) == entry.id:
            del self._node_of[entry.name]
        self.index.remove(entry)


def _by_name(entry: Entry) -> tuple[str, PeerId]:
    return entry.name, entry.id


def _check_another(before: Entry, role: str) -> None:
    """Whether a connected peer may have one more connection in this role."""
    if before.role != role:
        raise InvalidRequest(f"this identity is connected as a {before.role}; a {role} needs one of its own")
    if role != "node" and len(before.others) + 1 >= MAX_CONNECTIONS:
        name = printable(before.name)
        raise QuotaExceeded(f"{before.role} {name} has {MAX_CONNECTIONS} connections, as many as one may; close some first")
