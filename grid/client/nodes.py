"""Nodes as a client sees them, and the mapping of their names."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from grid.client.chain import Member
from grid.client.connection import NodeConnection, Site
from grid.client.datasets import COLUMNS, ByName, Dataset, row_of
from grid.client.modules import send
from grid.client.origins import origin
from grid.display import counted, html, printable, text_table
from grid.errors import NotFound
from grid.wire.messages import NodeCard

NODE_COLUMNS = ("name", "state", "organisation", "datasets", "id")


class Roster:
    """The nodes that the gateway last told of, by name."""

    def __init__(self, connect: Callable[[Node], NodeConnection], gather: Callable[[Sequence[Any]], Any]) -> None:
        self._connect = connect
        self.gather = gather
        self._cards: dict[str, NodeCard] = {}
        self._nodes: dict[str, Node] = {}

    def update(self, cards: tuple[NodeCard, ...]) -> None:
        """Take over a new list. A node that keeps its id keeps its `Node` object."""
        self._cards = {card.name: card for card in cards}
        self._nodes = {name: self._kept(card) for name, card in self._cards.items()}

    def _kept(self, card: NodeCard) -> Node:
        known = self._nodes.get(card.name)
        return known if known is not None and known.id == card.id else Node(self, card)

    def card(self, node: Node) -> NodeCard | None:
        """What the gateway now says of a node; None where it does not know it any more."""
        card = self._cards.get(node.name)
        return card if card is not None and card.id == node.id else None

    def connection(self, node: Node) -> NodeConnection:
        return self._connect(node)

    def find(self, name: str) -> Node:
        """The node of this name. Raises `NotFound`, naming those there are."""
        if name not in self._nodes:
            known = ", ".join(sorted(self._nodes)[:20]) or "none"
            raise NotFound(f"there is no node {name!r} in this grid; known nodes: {known}")
        return self._nodes[name]

    def by_id(self, node_id: str) -> Node | None:
        """The node of this id, if it is known."""
        return next((node for node in self._nodes.values() if node.id == node_id), None)

    def names(self) -> list[str]:
        return sorted(self._nodes)


class Node(Site, Member):
    """A node: where remote tensors are made, and datasets are."""

    def __init__(self, roster: Roster, card: NodeCard) -> None:
        self._roster = roster
        self._first = card

    @property
    def name(self) -> str:
        """Its name, unique in the grid."""
        return self._first.name

    @property
    def id(self) -> str:
        """What its key makes of it: the same name under another key is another node."""
        return self._first.id

    @property
    def card(self) -> NodeCard:
        """What the gateway last said of it."""
        return self._roster.card(self) or self._first

    @property
    def organisation(self) -> str:
        """Whose node it is, as its enrolment says."""
        return self.card.organisation

    @property
    def state(self) -> str:
        """`online` or `offline`, as the gateway last said."""
        card = self._roster.card(self)
        return card.state if card is not None else "offline"

    @property
    def since(self) -> float:
        """Wall time in seconds from which on it has been in that state, as the gateway says; 0 where that is not known."""
        card = self._roster.card(self)
        return card.since if card is not None else 0.0

    @property
    def datasets(self) -> ByName:
        """Its datasets, by name."""
        return ByName(self.name, [Dataset(self, card) for card in self.card.datasets])

    def send(self, value: torch.Tensor | torch.nn.Module) -> Any:
        """A remote tensor with the value of this one; for a module, a new module with remote parameters and buffers.

        Returns at once. What the caller writes into the value afterwards does not count.
        """
        place, connection = origin(), self.connection()
        return send(value, lambda tensor: connection.put(tensor, place))

    def connection(self) -> NodeConnection:
        """The session with it; opened when it is first needed, and again after it was lost."""
        return self._roster.connection(self)

    def gather(self, places: Sequence[Any]) -> Any:
        """The committee of three nodes of this one's client; what `x.share(alice, bob, carol)` asks for."""
        return self._roster.gather(places)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Node {printable(self.name)} ({self.state}{self._since()}): {counted(_count(self.card), 'dataset')}>"

    def _repr_html_(self) -> str:
        facts = [("organisation", self.organisation), ("id", self.id)]
        rows = [row_of(one)[1:] for one in self.datasets.values()]
        return html(self.name, f"node, {self.state}{self._since()}", facts=facts, columns=COLUMNS[1:], rows=rows)

    def _since(self) -> str:
        return f" since {_shown(self.since)}" if self.state == "offline" and self.since else ""


class Nodes(Mapping[str, Node]):
    """Name -> node, as it is now: `refresh` is called first, and asks the gateway where that can be waited for."""

    def __init__(self, roster: Roster, refresh: Callable[[], None]) -> None:
        self._roster = roster
        self._refresh = refresh

    def __getitem__(self, name: str) -> Node:
        self._refresh()
        return self._roster.find(name)

    def __iter__(self) -> Iterator[str]:
        self._refresh()
        return iter(self._roster.names())

    def __len__(self) -> int:
        self._refresh()
        return len(self._roster.names())

    def __contains__(self, name: object) -> bool:
        self._refresh()
        return name in self._roster.names()

    def __repr__(self) -> str:
        """Of the last list that came: showing it asks nobody."""
        return text_table(counted(len(self._roster.names()), "node"), NODE_COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        return html(counted(len(self._roster.names()), "node"), columns=NODE_COLUMNS, rows=self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        nodes = [self._roster.find(name) for name in self._roster.names()]
        return [(node.name, node.state, node.organisation, str(_count(node.card)), node.id) for node in nodes]


def _shown(wall: float) -> str:
    """Wall time in seconds as people write it, in UTC; a gateway may say anything."""
    try:
        return datetime.datetime.fromtimestamp(int(wall), datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "a time that makes no sense"


def _count(card: NodeCard) -> int:
    """How many datasets a node has. A gateway of an older version lists them all and does not count."""
    return max(card.dataset_count, len(card.datasets))
