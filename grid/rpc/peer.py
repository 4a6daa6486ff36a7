"""A live session over a transport: `wire.session` decides, this performs.

Four tasks, all owned by the `Peer` and gone when its `async with` ends: one reads, one writes, one keeps time, one waits for
the end and clears up. Handlers' awaitables run beside them in the same group. The read loop never waits for a handler, and
the write loop takes as many frames as the transport has room for each time it wakes. While the writer has nothing to do and the
transport has room, whoever has something to say sends it without the writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

from grid.clock import Clock
from grid.errors import GridError, InvalidRequest, LocalProtocolError, NodeUnavailable
from grid.ids import RequestId
from grid.logs import REQUEST, tag_from_now, tags
from grid.rpc.dispatch import Handlers, Result, public_error
from grid.settings import SessionLimits
from grid.transport.base import Transport
from grid.wire.effects import Closed, Deliver, Effect, Expired, Fail, Opened, Reply
from grid.wire.memory import keep_freed_memory
from grid.wire.messages import Greeting, Hello, Message
from grid.wire.session import Session

log = logging.getLogger(__name__)

CLOSE_S = 1.0
"""Time for what is queued, and the goodbye, to leave before the transport is closed."""

MIN_TICK_S = 0.005

READ_TURN_S = 0.002
"""How long frames that have come already are worked on before others on this loop have their turn."""

_INTERNAL = "an internal error ended the session; the log says what"


class Peer:
    """The other side of a connection. Use as `async with Peer(...) as peer`.

    `handlers` answer the peer's messages; each gets `context`. `check_greeting` is for the initiator: it sees the accepting
    side's Hello before anything is sent, and raises a `GridError` to send nothing at all. `about` are tags of the log lines of
    this session and of its handlers (`grid.logs`).

    Buffers of a message given to `request`, `start_request` or `notify` must not change before it has been sent: for a
    request until its answer, otherwise until `drained`. Messages below 16 KiB are copied at once.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        initiator: bool,
        handlers: Handlers,
        context: object,
        limits: SessionLimits,
        clock: Clock,
        name: str,
        greeting: Greeting | None = None,
        check_greeting: Callable[[Hello], None] | None = None,
        about: Mapping[str, object] | None = None,
    ) -> None:
        self.name = name
        self._about = {"peer": name, **(about or {})}
        self._transport = transport
        self._initiator = initiator
        self._handlers = handlers
        self._context = context
        self._limits = limits
        self._clock = clock
        self._check_greeting = check_greeting
        self._session = Session(initiator=initiator, limits=limits, greeting=greeting)
        self._drain_bytes = limits.window_bytes // 4
        self._requests: dict[RequestId, asyncio.Future[Message]] = {}
        self._work: dict[int, asyncio.Future[Any]] = {}
        self._errands = itertools.count(-1, -1)
        self._tasks = asyncio.TaskGroup()
        self._hello: Hello | None = None
        self._error: GridError | None = None
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()
        self._wake = asyncio.Event()
        self._writer_waits = False
        self._room = asyncio.Event()
        self._tick_due = 0.0
        self._talkative = log.isEnabledFor(logging.DEBUG)  # asked once: a session passes many thousand messages a second

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        """Exchange Hellos. Raises what `check_greeting` raises, `WireError`, or `NodeUnavailable` (after `handshake_s`, too)."""
        keep_freed_memory()
        await self._tasks.__aenter__()
        self._session.start(self._clock.monotonic())
        spawn = self._tasks.create_task
        with tags(**self._about):  # which the tasks keep
            loops = [
                spawn(self._read(), name=f"read {self.name}"),
                spawn(self._write(), name=f"write {self.name}"),
                spawn(self._keep_time(), name=f"time {self.name}"),
            ]
            spawn(self._clear_up(*loops), name=f"end {self.name}")
        try:
            await self._opened.wait()
        except BaseException:
            await self._end()
            raise
        if self._hello is None:
            await self._end()
            raise self._error or NodeUnavailable(f"{self.name} closed the connection before saying hello")
        # It said hello only to refuse us. A connection that was merely lost may have brought messages, and those count.
        if self._error is not None and not isinstance(self._error, NodeUnavailable):
            await self._end()
            raise self._error
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._end()

    async def _end(self) -> None:
        self.close_soon()
        await self._tasks.__aexit__(None, None, None)

    @property
    def hello(self) -> Hello:
        """What the peer said first. Raises `LocalProtocolError` before the `async with` has been entered."""
        if self._hello is None:
            raise LocalProtocolError(f"{self.name} has not said hello yet")
        return self._hello

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self._closed.is_set()

    async def wait_closed(self) -> GridError | None:
        """Return once the session is over: why, or None where both sides wanted it."""
        await self._closed.wait()
        return self._error

    def close_soon(self, error: GridError | None = None) -> None:
        """End the session. Without an error, what is queued leaves first; with one, only that goes to the peer."""
        self._after(self._session.close(error, self._clock.monotonic()))

    def tag(self, **about: object) -> None:
        """For a handler, or `check_greeting`: more tags for the lines of this session from now on."""
        self._about |= about
        tag_from_now(**about)

    def _debug(self, request_id: RequestId | None, text: str, what: object) -> None:
        with tags(**self._about):  # whoever asks may be a task of something else
            log.debug(text, what, extra={"grid_request": request_id})

    def limit_messages(self, max_bytes: int) -> None:
        """Accept messages of at most `max_bytes` from now on; for a peer that has not proved who it is."""
        self._session.max_message_bytes = min(max_bytes, self._limits.max_message_bytes)

    # ------------------------------------------------------------ sending

    async def request(self, message: Message, *, timeout_s: float | None = None) -> Message:
        """Send a request and wait for its answer.

        Raises the peer's `GridError`; `DeadlineExceeded` after `timeout_s` (default: `request_s` of the limits);
        `NodeUnavailable` when the session ends first; `QuotaExceeded` with too much under way.
        """
        return await self.start_request(message, timeout_s=timeout_s)

    def start_request(self, message: Message, *, timeout_s: float | None = None) -> asyncio.Future[Message]:
        """Send a request; the future gets its answer or error. Raises at once what `request` raises before sending."""
        now = self._clock.monotonic()
        deadline = now + (self._limits.request_s if timeout_s is None else timeout_s)
        request_id = self._session.request(message, now, deadline)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._requests[request_id] = future
        if self._talkative:
            self._debug(request_id, "asks for %r", message.tag)
        if deadline < self._tick_due:
            self._run(next(self._errands), self._tick_at(deadline))
        self._push()
        return future

    def notify(self, message: Message) -> None:
        """Send a one-way message, in order with requests. Raises `NodeUnavailable` after the end, `QuotaExceeded`."""
        self._session.notify(message, self._clock.monotonic())
        self._push()

    def is_drained(self) -> bool:
        """Whether little waits to be sent, and the session is not over."""
        return self._session.queued_bytes <= self._drain_bytes and not self.closed

    async def drained(self) -> None:
        """Return once little waits to be sent, or the session is over."""
        while self._session.queued_bytes > self._drain_bytes and not self.closed:
            self._room.clear()
            await self._room.wait()

    # ------------------------------------------------------------ the loops

    async def _read(self) -> None:
        """Read frames. A transport gives those that it holds without waiting, so taking turns with others is up to us."""
        receive, session, monotonic = self._transport.receive, self._session, self._clock.monotonic
        loop_time = asyncio.get_running_loop().time
        turn_ends = loop_time() + READ_TURN_S
        try:
            while True:
                if loop_time() >= turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = loop_time() + READ_TURN_S
                frame = await receive()
                effects = session.receive(frame, monotonic())
                if effects:
                    self._perform(effects)
                if not session.flushed:
                    self._push()
        except GridError as error:
            self._lost(error)
        except Exception:
            log.exception("reading failed")
            self._lost(GridError(_INTERNAL))

    async def _write(self) -> None:
        send, session, monotonic = self._transport.send, self._session, self._clock.monotonic
        try:
            while True:
                frame = session.next_frame(monotonic())
                if frame is not None:
                    await send(*frame)
                    if not self._room.is_set() and session.queued_bytes <= self._drain_bytes:
                        self._room.set()
                elif self.closed and session.flushed:
                    return
                else:
                    self._room.set()
                    self._wake.clear()
                    self._writer_waits = True
                    await self._wake.wait()
                    self._writer_waits = False
        except GridError as error:
            if isinstance(error, NodeUnavailable):
                await self._last_words()
            self._lost(error)
        except Exception:
            log.exception("writing failed")
            self._lost(GridError(_INTERNAL))

    def _push(self) -> None:
        """Send what waits: here and now if that is possible, or else by the writer."""
        transport, session = self._transport, self._session
        while self._writer_waits and not self._wake.is_set() and not self.closed:
            if session.flushed:  # asked first, since every layer below has its say in `can_send_now`
                self._room.set()
                return
            if not transport.can_send_now():
                break
            frame = session.next_frame(self._clock.monotonic())
            if frame is None:
                self._room.set()
                return
            try:
                transport.send_now(*frame)
            except GridError as error:
                self._lost(error)
        self._wake.set()

    async def _last_words(self) -> None:
        """The peer takes no more. What it sent before can still be read, and may end with its goodbye: leave time for that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._closed.wait()

    async def _keep_time(self) -> None:
        clock, session = self._clock, self._session
        while not self.closed:
            now = clock.monotonic()
            wait = min(max(session.next_tick(now) - now, MIN_TICK_S), self._limits.heartbeat_s)
            self._tick_due = now + wait
            await clock.sleep(wait)
            self._after(session.tick(clock.monotonic()))

    async def _tick_at(self, deadline: float) -> None:
        """An extra tick, for a deadline that comes before the next one that was planned."""
        await self._clock.sleep(deadline - self._clock.monotonic())
        self._after(self._session.tick(self._clock.monotonic()))

    async def _clear_up(self, read: asyncio.Task[None], write: asyncio.Task[None], time: asyncio.Task[None]) -> None:
        await self._closed.wait()
        time.cancel()
        for work in list(self._work.values()):
            work.cancel()
        await asyncio.wait([write], timeout=CLOSE_S)
        await self._transport.close("" if self._error is None else self._error.message)
        read.cancel()
        write.cancel()

    def _lost(self, error: GridError) -> None:
        self._after(self._session.lost(error))

    # ------------------------------------------------------------ effects

    def _after(self, effects: list[Effect]) -> None:
        """Perform effects and let the writer look for frames."""
        if effects:
            self._perform(effects)
        self._push()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if type(effect) is Deliver:
                self._deliver(effect)
            elif type(effect) is Reply:
                future = self._requests.pop(effect.request_id)
                if self._talkative:
                    self._debug(effect.request_id, "was answered with %r", effect.message.tag)
                if not future.done():
                    future.set_result(effect.message)
            elif type(effect) is Fail:
                future = self._requests.pop(effect.request_id)
                if self._talkative:
                    self._debug(effect.request_id, "was answered with an error: %s", effect.error)
                if not future.done():
                    future.set_exception(effect.error)
            elif type(effect) is Expired:
                work = self._work.get(effect.request_id)
                if work is not None:
                    work.cancel()
            elif type(effect) is Opened:
                self._on_opened(effect.hello)
            elif type(effect) is Closed:
                self._on_closed(effect.error)

    def _on_opened(self, hello: Hello) -> None:
        now = self._clock.monotonic()
        if self._initiator:
            try:
                if self._check_greeting is not None:
                    self._check_greeting(hello)
            except GridError as error:
                self._after(self._session.close(error, now))
                return
            self._session.accept_hello(now)
        self._hello = hello
        self._opened.set()

    def _on_closed(self, error: GridError | None) -> None:
        log.debug("the session is over: %s", error or "both sides wanted that")
        self._error = error
        self._closed.set()
        self._opened.set()
        self._room.set()

    # ------------------------------------------------------------ handlers

    def _deliver(self, effect: Deliver) -> None:
        before = REQUEST.set(effect.request_id)  # for log lines; tasks that the handler starts inherit it
        try:
            self._handle(effect)
        finally:
            REQUEST.reset(before)

    def _handle(self, effect: Deliver) -> None:
        request_id, message, held = effect
        if self._talkative and request_id is not None:  # what goes one way is mostly frames that pass
            self._debug(request_id, "is asked for %r", message.tag)
        try:
            result = self._handlers.call(self._context, message)
        except Exception as error:
            self._refuse(request_id, message, error)
        else:
            if isinstance(result, asyncio.Future):  # what can be waited for without a task
                key = request_id or next(self._errands)
                self._work[key] = result
                result.add_done_callback(partial(self._finished, key, request_id, message, held))
                return
            if inspect.isawaitable(result):
                work = self._run(request_id or next(self._errands), self._finish(request_id, message, result, held))
                if inspect.iscoroutine(result):
                    # A task that is cancelled before its first step never awaits what it was given.
                    work.add_done_callback(lambda _: result.close())
                return
            self._answer(request_id, message, result)
        if held:
            self._session.consumed(held)

    def _run(self, key: int, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run as a task of this peer, cancelled when the session ends. `key` is the request's id, or a negative number."""
        task: asyncio.Task[None] = self._tasks.create_task(coroutine)
        self._work[key] = task
        task.add_done_callback(lambda _: self._work.pop(key, None))
        return task

    def _finished(
        self, key: int, request_id: RequestId | None, message: Message, held: int, result: asyncio.Future[Message | None]
    ) -> None:
        self._work.pop(key, None)
        if result.cancelled():
            self._refuse(request_id, message, NodeUnavailable("the work on this request was given up"))
        elif isinstance(error := result.exception(), Exception):
            self._refuse(request_id, message, error)
        else:
            self._answer(request_id, message, result.result())
        if held:
            self._session.consumed(held)
            self._push()

    async def _finish(
        self, request_id: RequestId | None, message: Message, result: Awaitable[Message | None], held: int
    ) -> None:
        try:
            answer = await result
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._refuse(request_id, message, NodeUnavailable("the work on this request was given up"))
        except Exception as error:
            self._refuse(request_id, message, error)
        else:
            self._answer(request_id, message, answer)
        finally:
            if held:
                self._session.consumed(held)
                self._push()

    def _answer(self, request_id: RequestId | None, message: Message, answer: Result) -> None:
        if request_id is None:
            return
        if answer is None:  # the peer's mistake, and not one that should fill a log
            self._refuse(request_id, message, InvalidRequest(f"a {message.tag!r} message has no answer: send it one way"))
            return
        try:
            if not isinstance(answer, Message):
                raise LocalProtocolError(f"the handler of {message.tag!r} returned {type(answer).__name__}, not a reply")
            effects = self._session.reply(request_id, answer, self._clock.monotonic())
        except LocalProtocolError as error:
            log.error("no reply to %r: %s", message.tag, error)
            self._refuse(request_id, message, GridError("the peer has no answer that can be sent; its log says why"))
        else:
            self._after(effects)

    def _refuse(self, request_id: RequestId | None, message: Message, error: Exception) -> None:
        shown = public_error(error, message)
        if request_id is None:
            log.info("a %r message was refused: %s", message.tag, shown)
            return
        if self._talkative:
            self._debug(request_id, "answers with an error: %s", shown)
        with contextlib.suppress(NodeUnavailable):  # the session ended meanwhile: nobody waits
            self._after(self._session.fail(request_id, shown, self._clock.monotonic()))
