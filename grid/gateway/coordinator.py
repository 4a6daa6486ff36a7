"""The coordinator of federated jobs: meets clients and nodes on job channels, and drives the rounds of each job."""

from __future__ import annotations

from grid.crypto.cards import Card
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.wire.jobs import JobList, ListJobs


class Coordinator:
    """All jobs of one gateway."""

    def receive(self, card: Card) -> Session:
        """A node or a client has come."""
        return Session(self, card)


class Session:
    """One node or client at the coordinator."""

    def __init__(self, coordinator: Coordinator, card: Card) -> None:
        self.handlers = Handlers({ListJobs: Session.list_jobs})
        self.card = card

    def came(self, peer: Peer) -> None:
        """The session is open."""

    def went(self) -> None:
        """The session is over."""

    def list_jobs(self, message: ListJobs) -> JobList:
        """The jobs of a client."""
        return JobList(jobs=())
