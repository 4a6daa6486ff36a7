"""What lists of nodes and datasets are read from: nodes in order, text to search in, tags and how often each is used.

A search is for words: an item is found if every word occurs somewhere in its text, whatever the case. Each search reads all
of the text, once per word, which for ten thousand descriptions takes a few milliseconds. So what is kept beside the cards is one
more copy of their text, bounded as announcements are, and any part of a word finds it.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from grid.ids import PeerId
from grid.wire.messages import DatasetCard

if TYPE_CHECKING:
    from grid.gateway.registry import Entry

MAX_WORDS = 8
MAX_QUERY = 200
"""Characters of a query; the rest does not count."""


class Described(NamedTuple):
    """A dataset, its node, and the text in which it is found."""

    entry: Entry
    card: DatasetCard
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """A node and the text in which it is found, with its datasets: of one that has gone, those that it announced last."""

    entry: Entry
    text: str
    datasets: tuple[Described, ...]
    online: bool


class Index:
    """Follows the registry: `add` and `remove` are called with each change of a node, and cost what that node has.

    `online`, `datasets` and `tags` count what nodes that are online have.
    """

    def __init__(self) -> None:
        self.online = 0
        self.datasets = 0
        self.tags: Counter[str] = Counter()
        self._order: list[tuple[str, PeerId]] = []
        self._listed: dict[PeerId, Listed] = {}

    def add(self, entry: Entry) -> None:
        """A node is as `entry` says now."""
        listed = _listed(entry)
        self._listed[entry.id] = listed
        bisect.insort(self._order, (entry.name, entry.id))
        self.online += listed.online
        if listed.online:
            self.datasets += len(listed.datasets)
            for described in listed.datasets:
                self.tags.update(set(described.card.tags))

    def remove(self, entry: Entry) -> None:
        """The node of this id is no longer as it was when it was added; it may not be there at all."""
        listed = self._listed.pop(entry.id, None)
        if listed is None:
            return
        del self._order[bisect.bisect_left(self._order, (listed.entry.name, entry.id))]
        if not listed.online:
            return
        self.online -= 1
        self.datasets -= len(listed.datasets)
        for described in listed.datasets:
            for tag in set(described.card.tags):
                self.tags[tag] -= 1
                if not self.tags[tag]:
                    del self.tags[tag]

    def __len__(self) -> int:
        return len(self._order)

    def nodes(self, words: Sequence[str] = ()) -> list[Entry]:
        """The nodes in whose name, organisation, id or address every word occurs, by name."""
        return [listed.entry for listed in self._in_order() if _has(listed.text, words)]

    def find(self, tags: Sequence[str] = (), words: Sequence[str] = (), *, offline: bool = False) -> list[Described]:
        """The datasets of nodes that are online which have every tag and every word, by node and name; with `offline` also
        those of nodes that have gone.

        Words are looked for in the name, the node's name, the tags and the description. What is found is as it was indexed:
        ten thousand new objects for each search would make the garbage collector look at everything there is.
        """
        if not offline and any(tag not in self.tags for tag in tags):
            return []
        return [
            described
            for listed in self._in_order()
            if listed.online or offline
            for described in listed.datasets
            if _tagged(described.card, tags) and _has(described.text, words)
        ]

    def most_used_tags(self, most: int) -> list[tuple[str, int]]:
        """Tags with how many datasets have each, the most used first."""
        return heapq.nsmallest(most, self.tags.items(), key=lambda item: (-item[1], item[0]))

    def _in_order(self) -> list[Listed]:
        return [self._listed[peer] for _, peer in self._order]


def words_of(query: str) -> tuple[str, ...]:
    """The words of what a person typed, as they are looked for."""
    return tuple(query[:MAX_QUERY].casefold().split()[:MAX_WORDS])


def _listed(entry: Entry) -> Listed:
    text = "\n".join((entry.name, entry.organisation, entry.id, entry.address)).casefold()
    described = tuple(_described(entry, card) for card in entry.datasets)
    return Listed(entry=entry, text=text, datasets=described, online=entry.online)


def _described(entry: Entry, card: DatasetCard) -> Described:
    return Described(entry, card, "\n".join((card.name, entry.name, *card.tags, card.description)).casefold())


def _has(text: str, words: Sequence[str]) -> bool:
    for word in words:  # Not `all(...)`: a generator for each of ten thousand texts costs more than the search.
        if word not in text:
            return False
    return True


def _tagged(card: DatasetCard, tags: Sequence[str]) -> bool:
    for tag in tags:
        if tag not in card.tags:
            return False
    return True
