"""A transport that outlives its connection: when that is lost, another takes its place and nothing is missing.

It carries a sealed channel, whose secret binds the connections to each other (`resume` has the rules). The initiator dials
again, with full jitter, until `lease_s` have passed; the responder waits for as long. Above this nothing notices but the time.
A connection that is silent for `patience_s` counts as lost: sessions ask for a sign of life far more often.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any

from grid.clock import Clock
from grid.errors import AuthenticationFailed, DeadlineExceeded, GridError, LocalProtocolError, NodeUnavailable, NotFound
from grid.rpc.channel import REFUSAL, printable, time_limit
from grid.rpc.reconnect import Backoff
from grid.rpc.resume import Resumption, is_ack, session_of
from grid.settings import SessionLimits
from grid.transport.base import MAX_FRAME_BYTES, Buffer, Dial, Transport, size_of

log = logging.getLogger(__name__)

KEPT_BYTES = 8 << 20
"""Bytes that wait for an acknowledgement before `send` waits, too."""


class Resumable(Transport):
    """One end. `dial` opens another connection to the same peer; without it this is the responder, which `resume` helps.
    It raises `NotFound` where the peer is gone and not worth waiting for.

    `on_end` is called once, when it cannot be resumed any more.
    """

    def __init__(
        self,
        transport: Transport,
        secret: bytes,
        *,
        limits: SessionLimits,
        clock: Clock,
        dial: Dial | None = None,
        on_end: Callable[[Resumable], None] = lambda ended: None,
    ) -> None:
        self._state = Resumption(secret)
        self._limits = limits
        self._clock = clock
        self._dial = dial
        self._on_end = on_end
        self._link: Transport | None = transport
        self._next = 0
        self._error: GridError | None = None
        self._heard = clock.monotonic()
        self._linked = asyncio.Event()
        self._room = asyncio.Event()
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._released = asyncio.Event()
        self._returning: asyncio.Task[None] | None = None
        self._linked.set()
        self._spawn(self._watch(), "watch")

    @property
    def session(self) -> bytes:
        """What names it in an ask."""
        return self._state.session

    # ------------------------------------------------------------ the transport

    async def send(self, *parts: Buffer) -> None:
        self._check()
        frame = _whole(parts)
        while self._state.kept_bytes >= KEPT_BYTES:
            self._room.clear()
            await self._room.wait()
            self._check()
        self._state.keep(frame)
        await self._flush()

    def can_send_now(self) -> bool:
        link, state = self._link, self._state
        ready = link is not None and self._error is None and self._next == state.sent and state.kept_bytes < KEPT_BYTES
        return ready and not self._sending.locked() and link is not None and link.can_send_now()

    def send_now(self, *parts: Buffer) -> None:
        link, frame = self._link, _whole(parts)
        assert link is not None  # `can_send_now` has seen it
        self._state.keep(frame)
        self._next += 1
        try:
            link.send_now(frame)
        except GridError as error:
            self._lost(link, error.message)

    async def receive(self) -> Buffer:
        while True:
            link = self._link
            if link is None:
                self._check()
                await self._linked.wait()
                continue
            try:
                frame = await link.receive()
            except GridError as error:
                self._lost(link, error.message)
                continue
            if link is not self._link:
                continue  # it was replaced meanwhile: the far end sends this again over the new one
            self._heard = self._clock.monotonic()
            if is_ack(frame):
                self._acked(frame)
                continue
            if self._state.arrived(len(frame)):
                self._acknowledge(link)
            return frame

    async def close(self, reason: str = "") -> None:
        link = self._link
        self._end(NodeUnavailable(f"the connection is closed{': ' + reason if reason else ''}"))
        if link is not None:
            await link.close(reason)
        for task in self._tasks:
            task.cancel()
        if left := self._tasks | self._closing:
            await asyncio.wait(left)

    def _check(self) -> None:
        if self._error is not None:
            raise type(self._error)(self._error.message)

    async def _flush(self) -> None:
        """Send what is due over the link that there is. What a lost link takes along is sent again over the next one."""
        async with self._sending:
            while (link := self._link) is not None and (self._state.owes or self._next < self._state.sent):
                if self._state.owes:
                    frame: Buffer = self._state.ack()
                else:
                    frame = self._state.frame(self._next)
                    self._next += 1
                try:
                    await link.send(frame)
                except GridError as error:
                    self._lost(link, error.message)

    def _acknowledge(self, link: Transport) -> None:
        """Say what has come, without waiting here: reading must go on while the far end does not read."""
        if self._sending.locked():
            return  # whoever sends says it
        if not link.can_send_now():
            self._spawn(self._flush(), "acknowledge")
            return
        try:
            link.send_now(self._state.ack())
        except GridError as error:
            self._lost(link, error.message)

    def _acked(self, frame: Buffer) -> None:
        try:
            self._state.acked(frame, self._next)
        except GridError as error:
            self._end(error)
            raise
        self._room.set()

    # ------------------------------------------------------------ loss and return

    def _lost(self, link: Transport, why: str) -> None:
        if link is not self._link or self._error is not None:
            return
        log.info("a connection was lost (%s); waiting %g s for another", why, self._limits.lease_s)
        self._detach()
        self._returning = self._spawn(self._await_return(why) if self._dial is None else self._return(self._dial, why), "return")

    def _detach(self) -> None:
        """Take nothing more from the link that there is."""
        link, self._link = self._link, None
        self._linked.clear()
        self._released.set()
        if link is not None:
            closing = asyncio.get_running_loop().create_task(link.close("another connection takes its place"))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _attach(self, link: Transport) -> None:
        self._link, self._next = link, self._state.resend_from
        self._released = asyncio.Event()
        self._heard = self._clock.monotonic()
        self._linked.set()
        self._room.set()
        if self._returning is not None and self._returning is not asyncio.current_task():
            self._returning.cancel()
        self._returning = None
        self._spawn(self._flush(), "send again")

    async def _await_return(self, why: str) -> None:
        """The responder's part: wait."""
        await self._clock.sleep(self._limits.lease_s)
        self._end(NodeUnavailable(f"the connection was lost ({why}) and nobody came back within {self._limits.lease_s:g} s"))

    async def _return(self, dial: Dial, why: str) -> None:
        """The initiator's part: dial until the lease is over, or the far end says that it does not know the session."""
        backoff, deadline = Backoff(self._clock, Random()), self._clock.monotonic() + self._limits.lease_s
        while self._error is None:
            await backoff.wait()
            try:
                async with time_limit(self._clock, max(0.0, deadline - self._clock.monotonic()), "resuming a session"):
                    self._attach(await self._asked(await dial()))
                return
            except (AuthenticationFailed, NotFound) as error:
                self._end(NodeUnavailable(f"the connection was lost ({why}), and the session ended with it: {error.message}"))
            except GridError as error:
                if not isinstance(error, DeadlineExceeded):
                    log.debug("a session is not resumed yet: %s", error)
                    why = error.message
                if self._clock.monotonic() >= deadline:
                    self._end(
                        NodeUnavailable(f"the connection was lost and did not come back within {self._limits.lease_s:g} s: {why}")
                    )
            except Exception:
                log.exception("resuming a session failed")
                self._end(NodeUnavailable("the connection was lost, and resuming failed by a fault of this program"))

    async def _asked(self, link: Transport) -> Transport:
        """The link, once the far end has agreed to go on over it."""
        try:
            await link.send(self._state.ask())
            reply = await link.receive()
            if len(reply) >= 1 and reply[0] == REFUSAL:
                raise AuthenticationFailed(printable(bytes(reply[1:]).decode("utf-8", "replace")))
            self._state.check_reply(reply)
            return link
        except BaseException:
            await link.close("not resumed")
            raise

    async def resume(self, ask: Buffer, link: Transport) -> None:
        """Responder: go on over this link, which has brought the ask, until it is lost or not needed any more.

        Raises `AuthenticationFailed`, with nothing changed, unless the far end has asked. The caller closes the link.
        """
        self._check()
        self._state.check_ask(ask)
        self._detach()
        attempt = self._state.attempt
        try:
            async with time_limit(self._clock, self._limits.handshake_s, "resuming a session"):
                await link.send(self._state.reply())
        except GridError as error:
            if self._link is None and self._returning is None:
                self._returning = self._spawn(self._await_return(error.message), "return")
            raise
        if attempt != self._state.attempt or self._error is not None:  # a later ask has overtaken this one
            raise NodeUnavailable("another connection has resumed this session")
        self._attach(link)
        await self._released.wait()

    async def _watch(self) -> None:
        """Give up a silent link. Time in which this process stood still itself does not count."""
        patience_s = self._limits.patience_s
        while True:
            asked = self._clock.monotonic()
            await self._clock.sleep(patience_s / 4)
            now = self._clock.monotonic()
            if now - asked > patience_s / 2:
                self._heard = now
            if self._link is not None and now - self._heard >= patience_s:
                self._lost(self._link, f"it was silent for {now - self._heard:.1f} s")

    def _end(self, error: GridError) -> None:
        if self._error is None:
            self._error = error
            self._link = None
            self._released.set()
            self._linked.set()
            self._room.set()
            self._on_end(self)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that `close` ends."""
        task = asyncio.get_running_loop().create_task(work, name=f"resumable: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _whole(parts: Sequence[Buffer]) -> bytes:
    """A frame in one piece that nobody changes, as it is kept."""
    size = size_of(parts)
    if size > MAX_FRAME_BYTES:
        raise LocalProtocolError(f"a frame of {size} bytes is larger than {MAX_FRAME_BYTES}")
    return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)


def patient(limits: SessionLimits) -> SessionLimits:
    """The limits of a session over a resumable transport, which notices by itself when a connection is lost."""
    return dataclasses.replace(limits, patience_s=limits.patience_s + limits.lease_s)


class Sessions:
    """The responder's resumable transports, by session."""

    def __init__(self, *, limits: SessionLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._known: dict[bytes, Resumable] = {}

    def __len__(self) -> int:
        return len(self._known)

    def wrap(self, transport: Transport, secret: bytes) -> Transport:
        """Make a transport resumable; for `accept_channel`."""
        made = Resumable(transport, secret, limits=self._limits, clock=self._clock, on_end=self._forget)
        self._known[made.session] = made
        return made

    async def resume(self, ask: Buffer, link: Transport) -> None:
        """Bring a link to the session that it asks for, and return when it carries that no more; the caller closes it.

        Raises, and tells the far end, `AuthenticationFailed` where there is no such session or it may not have it.
        """
        try:
            known = self._known.get(session_of(ask))
            if known is None:
                raise AuthenticationFailed("there is no such session any more")
            await known.resume(ask, link)
        except (AuthenticationFailed, NodeUnavailable) as error:
            with contextlib.suppress(GridError):
                async with time_limit(self._clock, self._limits.handshake_s, "refusing to resume a session"):
                    await link.send(bytes([REFUSAL]), error.message.encode())
            raise

    async def close(self, reason: str) -> None:
        """End all of them: nobody is waited for."""
        await asyncio.gather(*(known.close(reason) for known in list(self._known.values())))

    def _forget(self, ended: Resumable) -> None:
        self._known.pop(ended.session, None)

