"""Parties in processes of their own: forked by a nursery that has the kernels compiled and no datasets, started by the first
committee, so that a node without committees pays nothing. The watch over them is that of all workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from grid.errors import GridError, LocalProtocolError, NodeUnavailable, QuotaExceeded, WireError
from grid.node.nursery_messages import PARTIES
from grid.node.pace import Running
from grid.node.party import Parties, PartyPort, PartyUser
from grid.node.party_messages import FROM_PARTY_TABLE, TO_PARTY_TABLE, Begin
from grid.node.workers import Spawn, Worker, Workers, WorkerUser
from grid.settings import NodeSettings
from grid.wire.codec import decode, encode
from grid.wire.messages import Buffer, Message

log = logging.getLogger(__name__)


class ProcessParties(Parties):
    """Parties in processes."""

    def __init__(self, settings: NodeSettings, spawn: Spawn) -> None:
        self._settings = settings
        self._spawn = spawn
        self._workers: Workers | None = None
        self._lock = asyncio.Lock()

    async def prepare(self, off_loop: Callable[[Callable[[], list[Any]]], Awaitable[Any]]) -> None:
        async with self._lock:
            if self._workers is None:
                workers = Workers({}, self._settings, self._spawn, kind=PARTIES)
                self._workers = await workers.__aenter__()

    def open(self, user: PartyUser) -> PartyPort:
        if self._workers is None:
            raise NodeUnavailable("the node is closing")
        return ProcessParty(user, self._settings, self._workers, self._spawn)

    async def close(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            await workers.__aexit__(None, None, None)


class ProcessParty(PartyPort, WorkerUser):
    """A party in a process."""

    def __init__(self, user: PartyUser, settings: NodeSettings, workers: Workers, spawn: Spawn) -> None:
        super().__init__(user, settings)
        self._workers = workers
        self._spawn = spawn
        self._worker: Worker | None = None

    def _start(self, begin: Begin, sockets: Mapping[int, Any]) -> None:
        try:
            files = [sockets[link.rank].fileno() for link in begin.links]
            self._worker = self._workers.start(self, None, files)
        finally:
            for each in sockets.values():
                each.close()
        self._tell(begin, 0)

    def _tell(self, message: Message, request_id: int) -> None:
        if self._worker is not None:
            self._worker.pipe.send(encode(message, request_id, table=TO_PARTY_TABLE))

    def _stop(self, error: GridError) -> None:
        if self._worker is not None:
            self._worker.pipe.close()
            self._worker.kill()

    # ------------------------------------------------------------ what the process says

    def on_frame(self, frame: Buffer) -> None:
        """An answer or an event. What makes no sense ends the process: something in it has gone wrong."""
        try:
            decoded = decode(frame, FROM_PARTY_TABLE)
            self.heard(decoded.message, decoded.id)
        except (WireError, LocalProtocolError) as error:
            self._gone_wrong(error.message)

    def _gone_wrong(self, why: str) -> None:
        log.error("a party's process sent what makes no sense, and is ended: %s", why)
        self._user.party_over(NodeUnavailable("the process of this node's party went wrong and was ended"))

    def on_end(self, wrong: str) -> None:
        """The pipe has ended; nothing comes any more."""
        if wrong:
            self._gone_wrong(wrong)
        elif self._worker is not None and self._error is None:
            self._spawn(self._explain(self._worker), "the end of a party's process")

    async def _explain(self, worker: Worker) -> None:
        error = await worker.explained()
        log.warning("%s", error.message)
        self._user.party_over(error)

    def lost(self, how: str) -> GridError:
        return NodeUnavailable(f"the process of this node's party {how}; the committee is over, open another one")

    def is_busy(self) -> bool:
        return True

    def overran(self, running: Running) -> GridError:
        return NodeUnavailable("the process of this node's party hangs and was ended")

    def overate(self, running: Running) -> GridError:
        return QuotaExceeded(
            f"the party of this committee took more memory than the {self._settings.max_process_bytes} bytes that a process may"
            " (max_process_bytes); free values, give it smaller batches, or ask the node's owner for a higher limit",
            limit="max_process_bytes",
        )
