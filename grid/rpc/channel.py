"""The sealed channel between two peers, over any transport: relayed by a gateway that nobody trusts, or direct.

    initiator -> responder   opening: prologue {version, grid, initiator's id, responder's id}, and Noise message 1
    responder -> initiator   Noise message 2: its card and its revocation list
    initiator -> responder   Noise message 3: its card and its revocation list
    responder -> initiator   sealed: accepted, or the error with which it refused
    either    -> either      sealed frames

The prologue goes into the handshake, so a changed word of it, or a version or id that differs at the two ends, makes the
handshake fail. Each side checks the other's card (`Trust`), that it is of the peer asked for, and that its Noise key is
the one that the far end has just proven to hold. Frames are AES-256-GCM under one key per direction, the n-th with nonce
n: a frame that was changed, dropped, repeated, moved or cut opens as nothing, and the channel ends there.

Before a peer has proven who it is, it costs one transport, a few KiB and at most `handshake_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import weakref
from collections.abc import AsyncIterator, Callable, Sequence

import msgpack

from grid.clock import Clock
from grid.crypto.cards import CLIENT, GATEWAY, NODE, TOLERANCE_S, Card, Expected
from grid.crypto.envelope import unpack
from grid.crypto.identity import LocalIdentity
from grid.crypto.keys import KEY_BYTES, is_id
from grid.crypto.noise import MAX_MESSAGE_BYTES, TAG_BYTES, CipherState, Handshake
from grid.crypto.trust import Trust
from grid.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    GridError,
    LocalProtocolError,
    NodeUnavailable,
    WireError,
    from_wire,
)
from grid.ids import GridId, PeerId
from grid.logs import session_of
from grid.settings import SessionLimits
from grid.transport.base import MAX_FRAME_BYTES, Buffer, Transport, size_of

CHANNEL_VERSION = 1
RESUMABLE_VERSION = 2
"""The version that the initiator names: 2 where both sides can go on over another connection (`resumable`)."""

MAGIC = b"grid channel"
MAX_OPENING_BYTES = 256

HANDSHAKE = 1
REFUSAL = 0
"""First byte of a frame before the channel is open."""

MAX_REASON_LETTERS = 300
MAX_PAYLOAD_BYTES = MAX_FRAME_BYTES - TAG_BYTES
"""The largest frame that a channel carries over a transport."""

CUT = "the connection ended during the handshake: the far end refused it and could not say why, or somebody between us cut it"


@dataclasses.dataclass(frozen=True, slots=True)
class Prologue:
    """What both sides must agree on before anything is secret. Its encoding opens the first frame."""

    version: int
    grid: GridId
    initiator: PeerId
    responder: PeerId

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb([MAGIC, self.version, self.grid, self.initiator, self.responder])
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Prologue:
        """Total: a prologue in its one encoding, or WireError."""
        parts = unpack(data, "opening of a channel", error=WireError)
        if isinstance(parts, list) and len(parts) == 5 and parts[0] == MAGIC and type(parts[1]) is int:
            if all(isinstance(one, str) and is_id(one) for one in parts[2:]):
                prologue = cls(parts[1], GridId(parts[2]), PeerId(parts[3]), PeerId(parts[4]))
                if prologue.encode() == data:
                    return prologue
        raise WireError("the first frame does not open a channel of this kind")


class _Side:
    """What one side brings to a handshake, and how far it has come in being able to say why it ends."""

    def __init__(self, transport: Transport, me: LocalIdentity, trust: Trust, grid: GridId, clock: Clock) -> None:
        self.transport = transport
        self.me = me
        self.trust = trust
        self.grid = grid
        self.clock = clock
        self.sending: CipherState | None = None

    async def send(self, *parts: Buffer) -> None:
        await self.transport.send(bytes([HANDSHAKE]), *parts)

    async def receive(self, longest: int = MAX_MESSAGE_BYTES) -> bytes:
        """The next handshake frame, without its first byte."""
        return self.unwrapped(await self.receive_frame(), longest)

    def unwrapped(self, frame: Buffer, longest: int) -> bytes:
        """What a handshake frame holds after its first byte."""
        if not 1 <= len(frame) <= 1 + longest:
            raise WireError(f"a handshake frame has 1 to {1 + longest} bytes, this one {len(frame)}")
        if frame[0] == REFUSAL:
            reason = printable(bytes(frame[1:]).decode("utf-8", "replace"))
            raise AuthenticationFailed(f"the far end, or somebody between us, refused the channel: {reason}")
        if frame[0] != HANDSHAKE:
            raise WireError("a handshake frame of unknown kind")
        return bytes(frame[1:])

    async def receive_frame(self) -> Buffer:
        try:
            return await self.transport.receive()
        except NodeUnavailable as error:
            raise NodeUnavailable(f"{CUT} ({error.message})") from error

    async def answer(self, error: GridError | None) -> None:
        """The responder's sealed last word on the initiator's card."""
        assert self.sending is not None  # set when the handshake has finished
        code, message = (error.code, error.message[:MAX_REASON_LETTERS]) if error else ("", "")
        await self.transport.send(self.sending.seal(msgpack.packb([code, message])))

    async def refuse(self, error: GridError) -> None:
        """Tell the far end why this ends: sealed if that is possible, in the clear if not."""
        with contextlib.suppress(GridError):  # it may be gone already; the error that we raise is the one that counts
            if self.sending is not None:
                await self.answer(error)
            else:
                await self.transport.send(bytes([REFUSAL]), error.message[:MAX_REASON_LETTERS].encode("utf-8"))

    def credentials(self) -> bytes:
        packed: bytes = msgpack.packb([self.me.card_for(self.clock), self.trust.revocations])
        return packed

    def check(self, payload: bytes, handshake: Handshake, expect: Expected) -> Card:
        """The far end's card, once it is believed, expected, and of the key that the far end has proven to hold."""
        parts = unpack(payload, "handshake")
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, bytes) for part in parts)):
            raise AuthenticationFailed("handshake: the far end shows no card and revocation list")
        card_envelope, revocations = parts
        if not card_envelope:
            raise AuthenticationFailed("handshake: the far end shows no card")
        self.trust.merge_revocations(revocations)
        verify = self.trust.verify_gateway if expect.role == GATEWAY else self.trust.verify_card
        card = verify(card_envelope, wall=self.clock.wall())
        expect.check(card)
        if card.noise_key != handshake.remote_static:
            raise AuthenticationFailed(f"the far end shows the card of {card} and holds another channel key: it is not that peer")
        self.trust.pin(card, self.grid)
        return card


Wrap = Callable[[Transport, bytes], Transport]
"""What carries a channel once it is open, made of what carried its handshake and a secret that only the two sides have."""


async def open_channel(
    transport: Transport,
    *,
    me: LocalIdentity,
    trust: Trust,
    expect: Expected,
    grid: GridId,
    limits: SessionLimits,
    clock: Clock,
    wrap: Wrap | None = None,
) -> SecureChannel:
    """Open a channel as initiator to the peer `expect`, which must say an id. The channel owns the transport from then on.

    With `wrap` the channel is a resumable one. It is called when the far end has accepted.
    Raises AuthenticationFailed (ClockSkew) or WireError if the far end is not that peer or somebody interferes,
    NodeUnavailable if the connection ends, DeadlineExceeded after `handshake_s`; the transport is closed then.
    """
    if expect.id is None:
        raise LocalProtocolError("a channel is opened to a peer whose id is known")
    side = _Side(transport, me, trust, grid, clock)
    async with _handshake_of(side, limits):
        me.card_for(clock)  # without a card that counts, there is no point in troubling anybody
        version = CHANNEL_VERSION if wrap is None else RESUMABLE_VERSION
        prologue = Prologue(version, grid, me.id, expect.id).encode()
        handshake = Handshake(initiator=True, static=me.noise, prologue=prologue)
        await side.send(bytes([len(prologue)]), prologue, handshake.write())
        payload = _read(handshake, await side.receive(), expect.name or expect.id)
        card = side.check(payload, handshake, expect)
        await side.send(handshake.write(side.credentials()))
        sending, receiving = handshake.split()
        _believe(_open_frame(receiving, await side.receive_frame(), card), card)
        carrier = transport if wrap is None else wrap(transport, handshake.export())
        session = session_of(handshake.hash)
        return SecureChannel(carrier, card, trust, clock, sending, receiving, session, resumable=wrap is not None)


async def accept_channel(
    transport: Transport,
    *,
    me: LocalIdentity,
    trust: Trust,
    grid: GridId,
    limits: SessionLimits,
    clock: Clock,
    roles: Sequence[str] = (CLIENT, NODE),
    first: Buffer | None = None,
    wrap: Wrap | None = None,
) -> SecureChannel:
    """Answer a channel as responder to any believed peer of one of `roles`; `peer` of the result says who it is.

    `first` is the first frame where it has been received already. `wrap` is called where the initiator wants a resumable
    channel; without it that is refused.
    Raises as `open_channel`; the transport is closed then.
    """
    side = _Side(transport, me, trust, grid, clock)
    async with _handshake_of(side, limits):
        prologue, message = await _opening(side, first, resumable=wrap is not None)
        handshake = Handshake(initiator=False, static=me.noise, prologue=prologue.encode())
        handshake.read(message)
        await side.send(handshake.write(side.credentials()))
        payload = _read(handshake, await side.receive(), prologue.initiator)
        side.sending, receiving = handshake.split()
        card = side.check(payload, handshake, Expected(id=prologue.initiator))
        if card.role not in roles:
            raise AuthenticationFailed(f"{card} may not open a channel here: only a {' or '.join(roles)} may")
        await side.answer(None)
        resumable = wrap is not None and prologue.version == RESUMABLE_VERSION
        carrier = wrap(transport, handshake.export()) if resumable and wrap is not None else transport
        session = session_of(handshake.hash)
        return SecureChannel(carrier, card, trust, clock, side.sending, receiving, session, resumable=resumable)


async def _opening(side: _Side, first: Buffer | None, *, resumable: bool) -> tuple[Prologue, bytes]:
    frame = await side.receive(MAX_OPENING_BYTES) if first is None else side.unwrapped(first, MAX_OPENING_BYTES)
    size = frame[0] if frame else 0
    prologue, first = Prologue.decode(frame[1 : 1 + size]), frame[1 + size :]
    if prologue.version != CHANNEL_VERSION and not (resumable and prologue.version == RESUMABLE_VERSION):
        newest = RESUMABLE_VERSION if resumable else CHANNEL_VERSION
        raise WireError(f"the far end opens a channel of version {prologue.version}; here runs version {newest}")
    if prologue.grid != side.grid:
        raise AuthenticationFailed(f"the far end belongs to the grid {prologue.grid}, this peer to {side.grid}")
    if prologue.responder != side.me.id:
        raise AuthenticationFailed(f"the channel is meant for {prologue.responder} and reached {side.me.id}")
    if len(first) != KEY_BYTES:
        raise WireError(f"the first message of a handshake has {KEY_BYTES} bytes, this one {len(first)}")
    return prologue, first


def _read(handshake: Handshake, message: bytes, who: str) -> bytes:
    try:
        return handshake.read(message)
    except AuthenticationFailed as error:
        raise AuthenticationFailed(f"the handshake with {who} failed: {error.message}") from error


def _open_frame(receiving: CipherState, frame: Buffer, peer: Card) -> bytearray:
    number = receiving.count
    try:
        return receiving.open(frame)
    except (AuthenticationFailed, WireError) as error:
        raise AuthenticationFailed(
            f"frame {number} from {peer} does not open: somebody between us changed, dropped, repeated or reordered frames."
            " The channel is closed, and nothing of the frame was used"
        ) from error


def printable(reason: str) -> str:
    """A far end's words, fit for a terminal and a log."""
    return "".join(letter for letter in reason[:MAX_REASON_LETTERS] if letter.isprintable())


def _believe(answer: bytearray, peer: Card) -> None:
    """Raise what the responder says is wrong with our card, if anything."""
    parts = unpack(bytes(answer), "answer to the handshake", error=WireError)
    if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
        raise WireError(f"the answer of {peer} to the handshake makes no sense")
    code, message = parts
    if code:
        raise from_wire(code, f"{peer} refused us: {printable(message)}", {})


@contextlib.asynccontextmanager
async def _handshake_of(side: _Side, limits: SessionLimits) -> AsyncIterator[None]:
    """Bound a handshake in time; where it fails, tell the far end and close the transport."""
    try:
        async with time_limit(side.clock, limits.handshake_s, "the handshake of a channel"):
            yield
    except GridError as error:
        if isinstance(error, (AuthenticationFailed, WireError)):
            await side.refuse(error)
        await side.transport.close(error.message[:100])
        raise
    except BaseException:
        await side.transport.close("the handshake was given up")
        raise


@contextlib.asynccontextmanager
async def time_limit(clock: Clock, seconds: float, what: str) -> AsyncIterator[None]:
    """DeadlineExceeded, naming `what`, if the block takes longer than `seconds` of this clock."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as scope:

            async def expire() -> None:
                await clock.sleep(seconds)
                scope.reschedule(loop.time())

            timer = loop.create_task(expire(), name=f"time limit of {what}")  # owned here: it ends with the block
            try:
                yield
            finally:
                timer.cancel()
                await asyncio.wait([timer])
    except TimeoutError:
        raise DeadlineExceeded(f"{what} took longer than {seconds:g} s") from None


def _joined(parts: tuple[Buffer, ...]) -> Buffer:
    """The parts as one buffer of bytes, without a copy where there is one such part."""
    if len(parts) == 1:
        part = parts[0]
        if not isinstance(part, memoryview) or (part.format == "B" and part.ndim == 1 and part.c_contiguous):
            return part
    return b"".join(parts)


class SecureChannel(Transport):
    """A transport that seals: what it sends, only `peer` can read, and what it gives, only `peer` can have sent.

    `session` is its id in the log lines of both ends. It closes, with the reason, when a frame does not open, when the peer is
    revoked, and when its card has expired.
    """

    def __init__(
        self,
        transport: Transport,
        peer: Card,
        trust: Trust,
        clock: Clock,
        sending: CipherState,
        receiving: CipherState,
        session: str = "",
        *,
        resumable: bool = False,
    ) -> None:
        self.peer = peer
        self.session = session
        self.resumable = resumable
        self.max_payload = MAX_PAYLOAD_BYTES
        self._transport = transport
        self._trust = trust
        self._clock = clock
        self._sending = sending
        self._receiving = receiving
        self._fault: GridError | None = None
        self._waiting: asyncio.Task[object] | None = None  # in `receive`
        self._watch = self._watch_revocations()
        self._check_revoked()  # a list may have come between the check of the card and now

    async def send(self, *parts: Buffer) -> None:
        sealed = self._sealed(parts)
        try:
            await self._transport.send(sealed)
        except asyncio.CancelledError:
            # Whether the frame left is not known; a gap in the numbers would end the channel at the far end.
            self._fail(NodeUnavailable(f"sending to {self.peer} was given up in the middle; the channel cannot go on"))
            raise
        except GridError:
            self._check_open()  # ours may be the reason that the transport is gone
            raise

    def can_send_now(self) -> bool:
        return self._fault is None and self._transport.can_send_now()

    def send_now(self, *parts: Buffer) -> None:
        self._transport.send_now(self._sealed(parts))

    def _sealed(self, parts: tuple[Buffer, ...]) -> bytes:
        """A frame as it is sent. Its number is used up."""
        size = size_of(parts)
        if size > MAX_PAYLOAD_BYTES:
            raise LocalProtocolError(f"a sealed frame carries at most {MAX_PAYLOAD_BYTES} bytes, not {size}")
        self._check_open()
        return self._sending.seal(_joined(parts))

    async def receive(self) -> Buffer:
        self._check_open()
        frame = await self._next_frame()
        try:
            if self._clock.wall() > self.peer.expires + TOLERANCE_S:
                raise AuthenticationFailed(f"the card of {self.peer} has expired; open a new channel")
            return _open_frame(self._receiving, frame, self.peer)
        except GridError as error:
            self._fail(error)
            await self._transport.close(error.message[:100])
            raise

    async def _next_frame(self) -> Buffer:
        self._waiting = task = asyncio.current_task()
        assert task is not None  # who receives is a task
        before = task.cancelling()
        try:
            return await self._transport.receive()
        except asyncio.CancelledError:
            if self._waiting is not None or task.uncancel() > before:
                raise  # it was not, or not only, `_fail` that ended the wait
        except GridError:
            self._check_open()
            raise
        finally:
            self._waiting = None
        await self._transport.close("the channel failed" if self._fault is None else self._fault.message[:100])
        self._check_open()
        raise LocalProtocolError("a wait on a channel ended without a reason")

    def _watch_revocations(self) -> contextlib.ExitStack:
        """Hear of newer lists until closed, or until nobody has this channel any more: the trust outlives it."""
        watch, weak = contextlib.ExitStack(), weakref.ref(self)

        def on_newer_list() -> None:
            channel = weak()
            if channel is not None:
                channel._check_revoked()

        watch.enter_context(self._trust.on_revocations(on_newer_list))
        weakref.finalize(self, watch.close).atexit = False
        return watch

    def _check_revoked(self) -> None:
        if self._trust.revoked(self.peer):
            self._fail(AuthenticationFailed(f"{self.peer} was revoked by the grid's root; the channel is closed"))

    def _fail(self, error: GridError) -> None:
        """Let nothing more through, in either direction; wake up a waiting `receive`."""
        if self._fault is not None:
            return
        self._fault = error
        self._watch.close()
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.cancel()

    def _check_open(self) -> None:
        if self._fault is not None:
            raise self._fault

    async def close(self, reason: str = "") -> None:
        self._watch.close()
        await self._transport.close(reason)
