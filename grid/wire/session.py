"""The rules of a session, without I/O: whoever owns it brings frames and the time, and performs the effects.

    owner                                        session
    start(now)                                   the accepting side queues its Hello
    receive(frame, now)  -> effects              what a frame of the peer means
    request / notify / reply / fail              queue a message
    tick(now)            -> effects              heartbeats, deadlines, patience; due at `next_tick(now)`
    next_frame(now)      -> parts or None        the next frame to send, pulled whenever the transport has room
    close / lost         -> effects              the end, by us or by the connection

Every change of state is an entry of `TRANSITIONS`; what has no entry is a breach, by the peer (`WireError`, and the session
ends) or by our own code (`LocalProtocolError`). A session is not thread-safe.
"""

from __future__ import annotations

import math
from types import MappingProxyType

from grid.errors import (
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    LocalProtocolError,
    NodeUnavailable,
    QuotaExceeded,
    WireError,
    from_wire,
)
from grid.ids import RequestId
from grid.settings import SessionLimits
from grid.wire import codec
from grid.wire.answers import Answers
from grid.wire.effects import Closed, Deliver, Effect, Expired, Fail, Opened, Reply
from grid.wire.frames import CHUNK, MAX_FRAME_BYTES, SMALL_BYTES, Assembler
from grid.wire.messages import Buffer, Credit, ErrorInfo, Failure, Goodbye, Greeting, Hello, Message, Ping, Pong
from grid.wire.outgoing import Outgoing
from grid.wire.pulse import Pulse
from grid.wire.states import LIVE, MUTE, TRANSITIONS, Event, State
from grid.wire.window import Window

OLDEST_VERSION = 1
NEWEST_VERSION = 1

EXPIRY_GRACE_S = 1.0
"""Time after a request's deadline at which we stop work on it: its sender knows first."""

MAX_CREDIT = 1 << 40
"""No peer gives more credit at once."""


class Session:
    """One side of a session.

    `max_message_bytes` may be set lower by the owner while it does not know the peer.
    """

    def __init__(
        self, *, initiator: bool, limits: SessionLimits, greeting: Greeting | None = None, software: str = "grid"
    ) -> None:
        self._initiator = initiator
        self._limits = limits
        self._hello = Hello(oldest=OLDEST_VERSION, newest=NEWEST_VERSION, software=software, greeting=greeting)
        self._state = State.NEW
        self._outgoing = Outgoing()
        self._window = Window(limits.window_bytes)
        self._assembler = Assembler()
        self._answers = Answers()
        self._requests: dict[RequestId, float] = {}
        self._next_request = 1 if initiator else 2
        self._pulse = Pulse(limits, initiator=initiator)
        self._started = 0.0
        self._stalled_s = self._ticked = 0.0
        self.version = 0
        self.max_message_bytes = limits.max_message_bytes

    # ------------------------------------------------------------ what is known

    @property
    def state(self) -> State:
        return self._state

    @property
    def queued_bytes(self) -> int:
        """Bytes, roughly, of messages that wait to be sent."""
        return self._outgoing.queued_bytes

    @property
    def flushed(self) -> bool:
        """Whether nothing waits to be sent."""
        return self._outgoing.empty

    # ------------------------------------------------------------ start and end

    def start(self, now: float) -> None:
        """Begin. The accepting side's Hello is the first frame of a session; the initiator waits for it."""
        self._local(Event.DIAL if self._initiator else Event.OFFER)
        self._started = self._ticked = now
        self._pulse.start(now)
        if not self._initiator:
            self._outgoing.greet(self._hello)

    def accept_hello(self, now: float) -> None:
        """Initiator: answer the Hello that `Opened` brought. Before this nothing was sent."""
        self._local(Event.ACCEPT)
        self._outgoing.greet(self._hello)
        self._outgoing.give(self._window.due())

    def close(self, error: GridError | None, now: float) -> list[Effect]:
        """End the session; the peer is told `error`. Without one, what is queued leaves before the goodbye."""
        if self._state not in LIVE:
            return []
        if self._state not in MUTE:
            goodbye = Goodbye(error=None if error is None else ErrorInfo.of(error))
            self._outgoing.finish(goodbye, at_once=error is not None)
        self._local(Event.CLOSE)
        return self._ended(error)

    def lost(self, error: GridError) -> list[Effect]:
        """The connection is gone, or said something that it must not."""
        if self._state in LIVE:
            self._state = TRANSITIONS[self._state, Event.END]
            self._outgoing.clear()
            return self._ended(error)
        self._state = State.CLOSED
        self._outgoing.clear()
        return []

    def _ended(self, error: GridError | None) -> list[Effect]:
        """Fail what is open. The frames that say goodbye stay queued."""
        reason = error if error is not None else NodeUnavailable("the session was closed before an answer came")
        # Each request gets an error of its own: raising one object in many places would mix their tracebacks.
        effects: list[Effect] = [Fail(each, from_wire(reason.code, reason.message, reason.details)) for each in self._requests]
        self._requests.clear()
        self._answers.open.clear()
        self._assembler.clear()
        effects.append(Closed(error))
        return effects

    def _local(self, event: Event) -> None:
        """Move by something we do. Raises `NodeUnavailable` after the end, `LocalProtocolError` where it makes no sense."""
        state = TRANSITIONS.get((self._state, event))
        if state is None:
            if self._state in (State.CLOSING, State.CLOSED):
                raise NodeUnavailable("the session is closed")
            raise LocalProtocolError(f"{event.value!r} is not possible while {self._state.value!r}")
        self._state = state

    def _remote(self, event: Event) -> None:
        """Move by something the peer did. Raises `WireError` where it makes no sense."""
        state = TRANSITIONS.get((self._state, event))
        if state is None:
            raise WireError(f"{event.value!r} does not belong where {self._state.value!r}")
        self._state = state

    # ------------------------------------------------------------ sending

    def request(self, message: Message, now: float, deadline: float) -> RequestId:
        """Queue a request; `Reply` or `Fail` will come for the id returned.

        Raises `QuotaExceeded` with too many requests open or bytes queued, `LocalProtocolError` for what cannot be sent.
        """
        self._local(Event.SEND)
        if len(self._requests) >= self._limits.max_open_requests:
            raise QuotaExceeded(f"{len(self._requests)} requests are open; wait for answers before you send more")
        self._check_queue()
        request_id = RequestId(self._next_request)
        remaining_ms = min(max(1, math.ceil((deadline - now) * 1000)), codec.MAX_REMAINING_MS)
        self._post(codec.encode(message, request_id, remaining_ms))
        self._next_request += 2
        self._requests[request_id] = deadline
        return request_id

    def notify(self, message: Message, now: float) -> None:
        """Queue a one-way message. Raises as `request`."""
        self._local(Event.SEND)
        self._check_queue()
        self._post(codec.encode(message))

    def reply(self, request_id: RequestId, message: Message, now: float) -> list[Effect]:
        """Answer a request. Nothing happens where nobody waits for the answer any more. Raises `LocalProtocolError`."""
        if request_id not in self._answers.open or self._state is not State.OPEN:
            return []
        if self._outgoing.queued_bytes > self._limits.max_chunked_bytes:
            refusal = QuotaExceeded("too many answers wait to be read; read them before you ask for more")
            message = Failure(error=ErrorInfo.of(refusal))
        frame = codec.encode(message, -request_id)
        self._answers.end(request_id, frame)
        self._post(frame)
        return self._check_patience_with_answers(now)

    def fail(self, request_id: RequestId, error: GridError, now: float) -> list[Effect]:
        """Answer a request with an error."""
        return self.reply(request_id, Failure(error=ErrorInfo.of(error)), now)

    def consumed(self, held: int) -> None:
        """The work on a delivered message is done; `held` is from its `Deliver`."""
        self._window.release(held)
        self._give_credit()

    def next_frame(self, now: float) -> list[Buffer] | None:
        """The next frame to send, as parts; None when there is none or the peer gives no credit for it."""
        frame = self._outgoing.next_frame()
        if frame is not None:
            self._pulse.said(now)
        return frame

    def _post(self, frame: list[Buffer]) -> None:
        self._outgoing.post(frame)

    def _check_queue(self) -> None:
        if self._outgoing.queued_bytes > self._limits.max_chunked_bytes:
            raise QuotaExceeded("too much waits to be sent to this peer; wait until it is drained")

    def _check_patience_with_answers(self, now: float) -> list[Effect]:
        """End the session with a peer that asks and never reads: even refusals would pile up."""
        if self._outgoing.queued_bytes <= 2 * self._limits.max_chunked_bytes + self.max_message_bytes:
            return []
        return self.close(QuotaExceeded("the peer does not read its answers"), now)

    def _give_credit(self) -> None:
        if self._state is State.OPEN:
            amount = self._window.due()
            if amount:
                self._outgoing.give(amount)

    # ------------------------------------------------------------ receiving

    def receive(self, frame: Buffer, now: float) -> list[Effect]:
        """What a frame of the peer means. A frame that breaks the rules ends the session with `WireError`."""
        if self._state in (State.NEW, State.CLOSED):
            return []
        self._pulse.heard(now)
        try:
            return self._frame(frame, now)
        except WireError as error:
            return self.close(error, now)

    def _frame(self, frame: Buffer, now: float) -> list[Effect]:
        length = len(frame)
        if length > MAX_FRAME_BYTES:
            raise WireError(f"a frame of {length} bytes is longer than the {MAX_FRAME_BYTES} allowed")
        if length > SMALL_BYTES:
            self._window.arrived(length)
        if frame[:4] == _CHUNK_KIND:
            if self._state is not State.OPEN and self._state is not State.CLOSING:
                raise WireError("a chunk came before Hello")
            whole = self._assembler.add(frame, min(self.max_message_bytes, self._limits.max_chunked_bytes))
            self._stalled_s = 0.0
            if whole is None:
                self._give_credit()
                return []
            if whole[:4] == _CHUNK_KIND:
                raise WireError("a chunk inside of chunks")
            return self._message(whole, now)
        return self._message(frame, now)

    def _message(self, frame: Buffer, now: float) -> list[Effect]:
        if len(frame) > self.max_message_bytes:
            raise WireError(f"a message of {len(frame)} bytes is longer than the {self.max_message_bytes} accepted here")
        message, request_id, remaining_ms = codec.decode(frame)
        control = _CONTROL.get(type(message))
        if control is not None:
            if request_id:
                raise WireError(f"{type(message).__name__} must not be a request or a reply")
            return control(self, message, now)
        if self._state is State.CLOSING:
            return []
        self._remote(Event.MESSAGE)
        if self._assembler.busy:
            raise WireError("a message came between the chunks of another")
        if request_id < 0:
            effects = self._answered(RequestId(-request_id), message)
            self._give_credit()
            return effects
        if request_id:
            early = self._asked(request_id, remaining_ms, now)
            if early is not None:
                self._give_credit()
                return early
        held = len(frame) if len(frame) > SMALL_BYTES else 0
        if held:
            self._window.hold(held)
            self._give_credit()
        return [Deliver(request_id or None, message, held)]

    def _asked(self, request_id: RequestId, remaining_ms: int, now: float) -> list[Effect] | None:
        """Note a request of the peer's; None where it is to be delivered, effects where it is answered already."""
        if (request_id % 2 == 1) is self._initiator:
            raise WireError("a request has an id of the other side's")
        answers = self._answers
        if answers.is_repeat(request_id):
            return self._repeated(request_id, now)
        if len(answers.open) >= self._limits.max_open_requests:
            answers.refuse(request_id)
            error = QuotaExceeded(f"{len(answers.open)} requests are open; wait for answers before you send more")
            self._post(codec.encode(Failure(error=ErrorInfo.of(error)), -request_id))
            return self._check_patience_with_answers(now)
        remaining_s = remaining_ms / 1000 if remaining_ms else self._limits.request_s
        answers.begin(request_id, now + remaining_s + EXPIRY_GRACE_S)
        return None

    def _repeated(self, request_id: RequestId, now: float) -> list[Effect]:
        """A request that came before: its answer again, or nothing while the first answer is still to come."""
        if request_id in self._answers.open:
            return []
        frame: list[Buffer]
        kept = self._answers.kept(request_id)
        if kept is not None:
            frame = [kept]
        else:
            error = InvalidRequest(f"request {request_id} was answered before, and the answer is not kept any more")
            frame = codec.encode(Failure(error=ErrorInfo.of(error)), -request_id)
        self._post(frame)
        return self._check_patience_with_answers(now)

    def _answered(self, request_id: RequestId, message: Message) -> list[Effect]:
        if (request_id % 2 == 1) is not self._initiator or request_id >= self._next_request:
            raise WireError("an answer came to a request that was never sent")
        if self._requests.pop(request_id, None) is None:
            return []  # its deadline passed, or this is the answer to a repeat
        if type(message) is Failure:
            return [Fail(request_id, message.error.to_error())]
        return [Reply(request_id, message)]

    # ------------------------------------------------------------ messages of the session itself

    def _on_hello(self, message: Message, now: float) -> list[Effect]:
        assert isinstance(message, Hello)
        if self._state is State.CLOSING:
            return []
        if not 0 <= message.oldest <= message.newest:
            raise WireError("a Hello's versions make no sense")
        version = min(NEWEST_VERSION, message.newest)
        if version < OLDEST_VERSION or version < message.oldest:
            raise WireError(
                f"no common version: this side speaks {OLDEST_VERSION} to {NEWEST_VERSION}, "
                f"the peer {message.oldest} to {message.newest}; update the older one"
            )
        self._remote(Event.HELLO)
        self.version = version
        if self._state is State.OPEN:
            self._outgoing.give(self._window.due())
        return [Opened(message)]

    def _on_ping(self, message: Message, now: float) -> list[Effect]:
        assert isinstance(message, Ping)
        if self._state is not State.CLOSING:
            self._remote(Event.MESSAGE)
            self._outgoing.pong(message.number)
        return []

    def _on_pong(self, message: Message, now: float) -> list[Effect]:
        if self._state is not State.CLOSING:
            self._remote(Event.MESSAGE)
        return []

    def _on_credit(self, message: Message, now: float) -> list[Effect]:
        assert isinstance(message, Credit)
        if self._state is not State.CLOSING:
            self._remote(Event.MESSAGE)
        if not 0 < message.amount <= MAX_CREDIT:
            raise WireError("a credit's amount is out of bounds")
        self._outgoing.credit(message.amount)
        return []

    def _on_goodbye(self, message: Message, now: float) -> list[Effect]:
        assert isinstance(message, Goodbye)
        was_closing = self._state is State.CLOSING
        self._remote(Event.GOODBYE)
        self._outgoing.clear()
        if was_closing:
            return []
        return self._ended(None if message.error is None else message.error.to_error())

    # ------------------------------------------------------------ time

    def next_tick(self, now: float) -> float:
        """The time by which `tick` is due: the next ping, deadline or end of patience."""
        if self._state not in LIVE:
            return math.inf
        if self._state is not State.OPEN:
            return self._started + self._limits.handshake_s
        due = [min(open_.values()) for open_ in (self._requests, self._answers.open) if open_]
        return self._pulse.plan(min(due, default=math.inf), now)

    def tick(self, now: float) -> list[Effect]:
        """Ping a silent peer, give up a dead one, fail what is too late."""
        if self._state not in LIVE:
            return []
        if self._state is not State.OPEN:
            if now < self._started + self._limits.handshake_s:
                return []
            return self.close(NodeUnavailable(f"the peer did not say hello within {self._limits.handshake_s:g} s"), now)
        silence = self._pulse.silence(now)
        if silence >= self._limits.patience_s:
            return self.lost(NodeUnavailable(f"the peer was silent for {silence:.1f} s"))
        if self._stalled(now):
            return self.close(DeadlineExceeded(f"a message stopped in the middle for {self._limits.patience_s:g} s"), now)
        ping = self._pulse.ping(now)
        if ping is not None:
            self._outgoing.ping(ping)
        return self._expire(now)

    def _stalled(self, now: float) -> bool:
        """Whether the peer has kept a message in the middle for too long: what has arrived of it costs us memory.

        Time does not count while the peer waits for our credit, and at most one heartbeat of it where we come late ourselves.
        """
        passed, self._ticked = min(now - self._ticked, self._limits.heartbeat_s), now
        if self._assembler.busy and self._window.open:
            self._stalled_s += passed
        else:
            self._stalled_s = 0.0
        return self._stalled_s >= self._limits.patience_s

    def _expire(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for request_id in [key for key, deadline in self._requests.items() if deadline <= now]:
            del self._requests[request_id]
            effects.append(Fail(request_id, DeadlineExceeded("no answer came before the request's deadline")))
        for request_id in [key for key, deadline in self._answers.open.items() if deadline <= now]:
            effects.append(Expired(request_id))
            effects += self.fail(request_id, DeadlineExceeded("the work was not done before the request's deadline"), now)
        return effects


_CHUNK_KIND = CHUNK.to_bytes(4, "little")

_CONTROL = MappingProxyType(
    {
        Hello: Session._on_hello,
        Ping: Session._on_ping,
        Pong: Session._on_pong,
        Credit: Session._on_credit,
        Goodbye: Session._on_goodbye,
    }
)
"""The messages that the session answers by itself."""
