"""What a gateway remembers over a restart: the nodes that it has known, each with its last announcement.

The registry says which nodes have changed; one thread writes them. Changes that come while a write is under way go into the
next one together, so a thousand nodes that come back at once cost a few commits. What was acknowledged is on disk: whoever
answers a peer waits for what `keep` gives first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from grid.crypto.cards import read_card
from grid.crypto.trust import Trust
from grid.errors import GridError
from grid.gateway.announcements import check_announcement, compact
from grid.gateway.registry import Entry
from grid.ids import PeerId
from grid.store.base import KnownNode, Store
from grid.wire.codec import decode, encode
from grid.wire.messages import Announce

log = logging.getLogger(__name__)


class Keeper:
    """Writes nodes to a store, where there is one. Enter it on the gateway's loop; leaving it writes what is left."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway store")
        self._waiting: dict[str, KnownNode | None] = {}
        self._next: asyncio.Future[None] | None = None
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._work is not None:
            await asyncio.wait([self._work])
        self._thread.shutdown()

    def restore(self, trust: Trust, *, max_datasets: int, now: float) -> Iterator[Entry]:
        """The nodes of the last run, all of them offline. A node that was here at its end has been gone since `now`.

        What does not pass today's rules is left out: limits may be tighter now, and a key may have been revoked.
        """
        for peer, node in (self._store.nodes() if self._store is not None else {}).items():
            try:
                if trust.revoked(read_card(node.card)):
                    continue
                announced = _decoded(node.announcement)
                sizes = check_announcement(announced, max_datasets)
            except GridError as error:
                log.warning("what was remembered of node %s does not count any more: %s", peer, error)
                continue
            yield Entry(
                id=PeerId(peer),
                name=node.name,
                organisation=node.organisation,
                role="node",
                card=node.card,
                since=now if node.online else node.since,
                connection=None,
                address=announced.address,
                datasets=tuple(map(compact, announced.datasets)),
                sizes=sizes,
            )

    def keep(self, changes: Mapping[PeerId, Entry | None]) -> asyncio.Future[None]:
        """Write these soon; None forgets a node. Wait for the result where that is acknowledged: `GridError` if it cannot be."""
        loop = asyncio.get_running_loop()
        if self._store is None or not changes:
            done = loop.create_future()
            done.set_result(None)
            return done
        self._waiting.update({peer: None if entry is None else _known(entry) for peer, entry in changes.items()})
        if self._next is None:
            self._next = loop.create_future()
        if self._work is None:
            self._work = loop.create_task(self._write(self._store), name="gateway store")  # owned here: leaving waits for it
        return self._next

    async def _write(self, store: Store) -> None:
        loop = asyncio.get_running_loop()
        while self._next is not None:
            (changes, self._waiting), (done, self._next) = (self._waiting, {}), (self._next, None)
            try:
                await loop.run_in_executor(self._thread, store.keep_nodes, changes)
                done.set_result(None)
            except Exception:
                # A full disk must not end the grid, and what was not kept must not be acknowledged.
                log.exception("the gateway's store cannot be written")
                done.set_exception(GridError("the gateway could not store this; its log has more"))
                done.exception()  # nobody may be waiting
        self._work = None


def _known(entry: Entry) -> KnownNode:
    announced = b"".join(encode(Announce(datasets=entry.datasets, address=entry.address)))
    return KnownNode(entry.name, entry.organisation, entry.card, announced, entry.since, entry.online)


def _decoded(announcement: bytes) -> Announce:
    message, _, _ = decode(announcement)
    assert isinstance(message, Announce)  # only `_known` writes them
    return message
