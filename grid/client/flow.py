"""The flow of commands to one node: queued by the program's threads, sent by the loop's thread, bounded, and never waited for.

Up to `MAX_BACKLOG` commands may be queued or running, and up to `MAX_MESSAGES` messages unanswered, so a program that is
faster than its node ends up waiting for it, with full batches. What fails at the node is kept, with the operation's name and
the user's line, until somebody asks.

Threads: `add`, `free` and the bounds are for any thread; everything else runs on the loop's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol

from grid.client.origins import Origin
from grid.client.outgoing import Outgoing, Sending, Single, Work
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, LocalProtocolError, NodeUnavailable, again
from grid.ids import ObjectId
from grid.wire.messages import CommandFailed, Message, TensorFrame

log = logging.getLogger(__name__)

MAX_BACKLOG = 16384
"""Commands of one session that may be running, and commands and frees that may be queued. A quarter of that must be done before
a waiting program goes on."""

MAX_BACKLOG_BYTES = 256 << 20
"""Bytes of tensors that may be queued or under way with them."""

MAX_MESSAGES = 32

AHEAD = 2
"""Messages that are sent as soon as there is one. With so many unanswered, commands gather until `WORTH` things wait, an answer
comes, or somebody waits for a value: a message costs both sides as much as some tens of commands."""

WORTH = 512

MAX_REMEMBERED_FAILURES = 1000

COMMAND_TIMEOUT_S = 7 * 24 * 3600.0
"""Commands take as long as they take; that the node is there is what heartbeats tell."""


class Peer(Protocol):
    """What is used of `rpc.peer.Peer`."""

    @property
    def closed(self) -> bool: ...

    def start_request(self, message: Message, *, timeout_s: float | None = None) -> asyncio.Future[Message]: ...
    def notify(self, message: Message) -> None: ...
    async def wait_closed(self) -> GridError | None: ...


OnFailed = Callable[[object, CommandFailed], None]
OpenPeer = Callable[[OnFailed], AbstractAsyncContextManager[Peer]]
"""Dials, opens the channel and runs the session for as long as it is entered, with this handler of `CommandFailed`."""


class Home:
    """The event loop that a client lives on, its thread and its process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._thread = threading.get_ident()
        self._process = os.getpid()

    def is_here(self) -> bool:
        """Whether the caller runs on the loop's thread."""
        return threading.get_ident() == self._thread

    def check_process(self) -> None:
        """Raise in a forked child, where neither the loop's thread nor its connections exist: waiting would last for ever."""
        if os.getpid() != self._process:
            raise InvalidRequest(FORKED)

    def call(self, function: Callable[[], object]) -> None:
        """Have the loop call `function` soon. Raises `NodeUnavailable` once the loop is closed."""
        self.check_process()
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:
            raise NodeUnavailable("the client was closed") from None


FORKED = (
    "this process was forked from the one that made this grid client, and the client's connections and thread stayed behind:"
    " connect again in the child"
)


def _expire(answer: asyncio.Future[Message], what: str, name: str, timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(DeadlineExceeded(f"{name} did not answer {what} within {timeout_s:g} s"))


class Flow:
    """The queue, what is under way, and the failures. `home` is the loop and its thread."""

    def __init__(self, name: str, timeout_s: float, home: Home) -> None:
        self.error: GridError | None = None
        self._name = name
        self._timeout_s = timeout_s
        self._home = home
        self._loop = home.loop
        self._outgoing = Outgoing()
        self._awake = False
        self._peer: Peer | None = None
        self._under_way: deque[Sending] = deque()
        self._asked = 0  # requests in the queue that somebody waits for
        self._commands = 0
        self._bytes = 0
        self._room = threading.Condition()
        self._room_waiters: list[asyncio.Future[None]] = []
        self._failure: GridError | None = None
        self._failures: dict[int, GridError] = {}

    # ------------------------------------------------------------ from any thread

    def emit(self, command: Work, tensors: Sequence[TensorFrame], place: Origin, what: str) -> None:
        """Queue a command, with the tensors that its `Inline` arguments count. Waits while too much is under way.

        `place` and `what` are the line that asked for it, and what to call it, if it fails.
        """
        self._check_usable()
        if tensors:
            self._count_bytes(sum(len(tensor.data) for tensor in tensors))
        self._outgoing.add((command, tensors, place, what))
        if not self._awake and self._is_worth_it():
            self._wake()
        if self._is_full(MAX_BACKLOG):
            self._wait_for_room()

    def queue(self, single: Single, place: Origin) -> None:
        """Queue a message of its own, as `emit`."""
        self._check_usable()
        if single.nbytes:
            self._count_bytes(single.nbytes)
        self._outgoing.add((single, (), place, single.what))
        if not self._awake and self._is_worth_it():
            self._wake()
        if self._is_full(MAX_BACKLOG):
            self._wait_for_room()

    def _check_usable(self) -> None:
        # Asked for every command: in a forked child a queue that was being emptied would take commands and never send them.
        self._home.check_process()
        if self.error is not None:
            raise again(self.error)

    def free(self, object_id: ObjectId) -> None:
        """The object is not needed any more. Called by finalizers: takes no lock and never raises."""
        self._outgoing.free(object_id)
        if not self._awake and self.error is None and len(self._under_way) < AHEAD:
            # A finalizer runs anywhere, even while the interpreter or the loop shuts down; then the node forgets by itself.
            with suppress(GridError):
                self._wake()

    def _wake(self) -> None:
        self._awake = True
        try:
            self._home.call(self.flush)
        except GridError:
            self._awake = False
            raise

    def _is_worth_it(self) -> bool:
        """Whether what waits should be sent now. Where not, the answer to a message under way will send it."""
        return len(self._under_way) < AHEAD or self._asked > 0 or len(self._outgoing) >= WORTH

    def _is_full(self, limit: int) -> bool:
        return len(self._outgoing) + self._commands > limit or self._bytes > MAX_BACKLOG_BYTES

    def _count_bytes(self, change: int) -> None:
        with self._room:  # += is not one step, and several threads do it
            self._bytes += change

    def _wait_for_room(self) -> None:
        if self._home.is_here():
            self.flush()  # An asynchronous program that never awaits cannot be made to wait; `drained` is there for that.
            return
        self._home.check_process()
        with self._room:
            while self._is_full(MAX_BACKLOG) and self.error is None:
                self._room.wait()

    # ------------------------------------------------------------ on the loop's thread

    async def run(self, open_peer: OpenPeer) -> None:
        """Open the session and keep it until it ends. Errors go to those who use the session, not to the caller."""
        error: GridError | None = None
        try:
            async with open_peer(self.command_failed) as peer:
                self._peer = peer
                self.flush()
                error = await peer.wait_closed()
        except GridError as caught:
            error = caught
        except Exception:
            log.exception("the session with %s ended in an unexpected way", self._name)
            error = LocalProtocolError("the session ended by a fault of this program; its log has more")
        finally:
            self._lost(error or NodeUnavailable("the connection was closed"))

    def abandon(self, error: GridError) -> None:
        """End a session that never began."""
        self._lost(error)

    def ask(self, message: Message, what: str, timeout_s: float | None = None) -> asyncio.Future[Message]:
        """Send a request in its place in the order; the reply or error is the result of the future."""
        answer: asyncio.Future[Message] = self._loop.create_future()
        if self.error is not None:
            answer.set_exception(again(self.error))
            return answer
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if not timeout_s >= 0:
            raise InvalidRequest(f"timeout is {timeout_s}; it must be a number of seconds")
        single = Single(message, what, answer=answer, timeout_s=timeout_s)
        self._outgoing.add((single, (), None, what))
        self._asked += 1
        self.flush()
        # The session keeps time for what it has sent; this is for a request that waits for its turn, or for the session.
        timer = self._loop.call_later(timeout_s, _expire, answer, what, self._name, timeout_s)
        answer.add_done_callback(lambda _: timer.cancel())
        return answer

    def tell(self, message: Message) -> None:
        """Send a one-way message in its place in the order; nothing happens where the session is over."""
        if self.error is None:
            self._outgoing.add((Single(message, message.tag, one_way=True), (), None, message.tag))
            self.flush()

    async def drained(self) -> None:
        """Return once there is room for a good number of further commands."""
        while self._is_full(MAX_BACKLOG // 2) and self.error is None:
            waiter = self._loop.create_future()
            self._room_waiters.append(waiter)
            await waiter

    def flush(self) -> None:
        """Send what waits, as far as the bounds allow."""
        self._awake = False
        if self._peer is None:
            return
        while len(self._under_way) < MAX_MESSAGES and self._is_worth_it():
            sending = self._outgoing.take()
            if sending is None:
                return
            self._send(self._peer, sending)

    def command_failed(self, _context: object, message: CommandFailed) -> None:
        """Handler of `CommandFailed`."""
        number = message.command
        what = next((text for one in self._under_way if one.first and (text := one.describe(number)) is not None), None)
        self._remember(number, message.error.to_error(), what)

    def raise_failure(self) -> None:
        """Raise the first failure that nobody was told of yet."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise again(failure)

    def explained(self, error: GridError) -> GridError:
        """`error`, or, if it says that it goes back to a command that failed, that failure: it names the user's line."""
        number = error.details.get("command")
        known = self._failures.get(number) if isinstance(number, int) else None
        if known is not None and known is self._failure:
            self._failure = None  # told now
        return again(known if known is not None else error)

    def _send(self, peer: Peer, sending: Sending) -> None:
        single = sending.single
        if single is not None and single.answer is not None:
            self._asked -= 1
        self._commands += sending.count
        self._under_way.append(sending)
        try:
            if single is not None and single.one_way:
                peer.notify(sending.message)
                self._under_way.pop()
                return
            timeout_s = single.timeout_s if single is not None and single.timeout_s is not None else COMMAND_TIMEOUT_S
            reply = peer.start_request(sending.message, timeout_s=timeout_s)
        except GridError as error:
            self._finish(sending, error)
            return
        reply.add_done_callback(lambda done: self._replied(peer, sending, done))
        if single is not None and single.answer is not None:
            single.answer.add_done_callback(lambda asked: reply.cancel() if asked.cancelled() else None)

    def _replied(self, peer: Peer, sending: Sending, reply: asyncio.Future[Message]) -> None:
        if reply.cancelled():
            outcome: Message | BaseException = NodeUnavailable(f"the request to {self._name} was cancelled")
        else:
            outcome = reply.exception() or reply.result()
            if isinstance(outcome, NodeUnavailable) and peer.closed:
                outcome = self._gone(outcome)
        self._finish(sending, outcome)
        self.flush()

    def _finish(self, sending: Sending, outcome: Message | BaseException) -> None:
        """Account for a message that was answered, and tell whoever waits. Nobody waits for commands: failures are kept."""
        self._under_way.remove(sending)
        self._commands -= sending.count
        if sending.nbytes:
            self._count_bytes(-sending.nbytes)
        answer = sending.single.answer if sending.single is not None else None
        if answer is not None:
            if not answer.done():
                if isinstance(outcome, (NodeUnavailable, DeadlineExceeded)) and self._name not in outcome.message:
                    answer.set_exception(type(outcome)(f"{self._name}: {outcome.message}", node=self._name))
                elif isinstance(outcome, BaseException):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)
        elif isinstance(outcome, BaseException) and not isinstance(outcome, NodeUnavailable):  # else the session is at its end
            if not isinstance(outcome, GridError):
                log.error("a command to %s ended in an unexpected way", self._name, exc_info=outcome)
                outcome = LocalProtocolError(f"a command to {self._name} could not be sent; the log has more")
            self._remember(sending.first, outcome, sending.describe_all())
        if not self._is_full(MAX_BACKLOG * 3 // 4):
            self._wake_waiting()

    def _remember(self, number: int, error: GridError, what: str | None) -> None:
        """Keep a failure for whoever asks next. `number` is 0 for a message that is no command."""
        told = error if what is None else type(error)(f"{error.message} [at {self._name}: {what}]", **error.details)
        while len(self._failures) >= MAX_REMEMBERED_FAILURES:
            del self._failures[next(iter(self._failures))]
        if number:
            told = self._failures.setdefault(number, told)
        if self._failure is None:
            self._failure = told

    def _lost(self, error: GridError) -> None:
        if isinstance(error, NodeUnavailable):
            self.error = self._gone(error)
        else:
            self.error = type(error)(f"{self._name}: {error.message}", **error.details)
        self._peer = None
        if self._failure is not None:
            log.warning("an operation had failed at %s and nobody asked: %s", self._name, self._failure.message)
        for single in self._outgoing.drop():
            if single.answer is not None and not single.answer.done():
                single.answer.set_exception(again(self.error))
        self._wake_waiting()

    def _gone(self, error: NodeUnavailable) -> NodeUnavailable:
        """What those hear whose session has ended. What was never there is not gone."""
        gone = "; its remote values are gone" if self._peer is not None else ""
        return NodeUnavailable(f"{self._name}: {error.message}{gone}", node=self._name)

    def _wake_waiting(self) -> None:
        with self._room:
            self._room.notify_all()
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
