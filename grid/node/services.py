"""What the sessions of a node use of it. `app.Node` is this; sessions know no more of it."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

from grid.ids import PeerId
from grid.node.committees import Committees
from grid.node.copies import Copies
from grid.node.neighbours import Neighbours
from grid.node.permits import Permits
from grid.node.results import Results
from grid.node.sums import Sums
from grid.node.transfers import Transfers


class Services(Protocol):
    """The parts of a node that its sessions share."""

    @property
    def sums(self) -> Sums: ...

    @property
    def transfers(self) -> Transfers: ...

    @property
    def committees(self) -> Committees: ...

    @property
    def neighbours(self) -> Neighbours: ...

    @property
    def copies(self) -> Copies: ...

    @property
    def id(self) -> PeerId: ...

    @property
    def permits(self) -> Permits: ...

    @property
    def results(self) -> Results: ...

    @property
    def names(self) -> Mapping[PeerId, str]: ...

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task that ends with the node."""
        ...
