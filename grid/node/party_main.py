"""The process of one party: reads what its node says from a pipe and computes, on a loop of its own.

It has the committee's keys and shares, two sockets to its peers and the pipe; no key of the node, no datasets, and no say in what
leaves. It ends when the node is gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import torch

from grid.clock import SystemClock
from grid.errors import NodeUnavailable
from grid.node.party_messages import FROM_PARTY_TABLE, TO_PARTY_TABLE, Begin
from grid.node.party_work import PartyWork, agreed_settings
from grid.settings import NodeSettings
from grid.smpc.interpreter import Call, Value
from grid.smpc.kernels.memory import keep_large_blocks
from grid.smpc.local import run_parties
from grid.smpc.party import Party
from grid.transport.pipes import End, LoopPipe
from grid.wire.codec import decode, encode
from grid.wire.messages import Buffer, Message

log = logging.getLogger(__name__)


class PartyProcess:
    """The life of the process."""

    def __init__(self, node: End, sockets: list[Any], settings: NodeSettings, max_bytes: int) -> None:
        self._sockets = sockets
        self._settings = settings
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work: PartyWork | None = None
        self._pipe = LoopPipe(node, max_bytes=max_bytes, on_frame=self._on_frame, on_end=self._on_end)

    def _on_frame(self, frame: Buffer) -> None:
        try:
            message, request_id, _ = decode(frame, TO_PARTY_TABLE)
            if isinstance(message, Begin):
                self._begin(message)
            elif self._work is not None:
                self._work.handle(message, request_id)
        except Exception as error:
            if not self._ended.done():
                self._ended.set_exception(error)

    def _begin(self, begin: Begin) -> None:
        sockets = {link.rank: end for link, end in zip(begin.links, self._sockets, strict=True)}
        settings = agreed_settings(self._settings, begin)
        self._work = PartyWork(begin, sockets, settings=settings, clock=SystemClock(), tell=self._tell)

    def _tell(self, message: Message, request_id: int) -> None:
        self._pipe.send(encode(message, request_id, table=FROM_PARTY_TABLE))

    def _on_end(self, wrong: str) -> None:
        if wrong:
            log.error("the node sent what is no frame: %s", wrong)
        if self._work is not None:
            self._work.end(NodeUnavailable("the node is gone"))
        if not self._ended.done():
            self._ended.set_result(None)

    async def run(self) -> None:
        """Until the node is gone. Raises what goes wrong anywhere: nothing that follows could be trusted."""
        asyncio.get_running_loop().set_exception_handler(self._wrong)
        await self._ended

    def _wrong(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self._ended.done():
            self._ended.set_exception(error if isinstance(error, Exception) else RuntimeError(str(context.get("message"))))


async def _live(node: End, sockets: list[Any], settings: NodeSettings, max_bytes: int) -> None:
    await PartyProcess(node, sockets, settings, max_bytes).run()


def run_party(node: End, sockets: list[Any], settings: NodeSettings, max_bytes: int) -> None:
    """The life of a process that was just forked for a party."""
    keep_large_blocks()
    try:
        import uvloop
    except ImportError:
        asyncio.run(_live(node, sockets, settings, max_bytes))
    else:
        uvloop.run(_live(node, sockets, settings, max_bytes))


WARM_UPS = ("aten.mm.default", "aten.mul.Tensor", "aten.add.Tensor", "aten.relu.default")
"""Operations done once before all parties."""


def warm_up() -> None:
    """Do what is slow the first time, once for all parties: kernels, modules that torch loads late, and its shape rules."""
    from grid.smpc.replicated.compiling import warm_up as compile_kernels

    keep_large_blocks()
    compile_kernels()
    run_parties(_operations)


async def _operations(party: Party) -> None:
    from grid.smpc.replicated.protocol import Replicated

    protocol = Replicated(party)
    words = np.arange(4, dtype=np.uint64).reshape(2, 2)
    x = Value(await protocol.share(0, words.shape, words if party.rank == 0 else None), torch.float32)
    for op in WARM_UPS:
        await Call(op, [x] if op == "aten.relu.default" else [x, x], {}, most=words.size).run(protocol)
