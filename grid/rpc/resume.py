"""What a link needs to be resumed after a loss, as a state machine without I/O.

Below a sealed channel, both sides number frames from 0. A side keeps what it has sent until the far end says that it has it.
When the link is lost the initiator brings a new one, and before anything else goes over it:

    initiator -> responder   ask:   kind, session, attempt, frames received, proof
    responder -> initiator   reply: kind, attempt, frames received, proof

Each then sends again what the other lacks: the same sealed bytes, so no number of the channel's cipher is ever used for two
texts. Frames in between are acknowledged by short ones, which no sealed frame can be.

Nobody between the two can take a session over, or make them send twice what may be sent once:
* The proofs are under a key from the handshake, which only the two have; they cover everything that is said.
* Attempts only rise. An ask that was held back or is repeated is refused, and a reply belongs to one attempt.
* A frame that comes again, late, or from another link does not open in the channel above, which counts strictly.
A relay can forge acknowledgements, or drop everything: then a session is not resumed, and that is told.
"""

from __future__ import annotations

import hmac
import struct
from collections import deque

from grid.crypto.noise import TAG_BYTES
from grid.errors import AuthenticationFailed, NodeUnavailable, WireError
from grid.transport.base import Buffer

ASK = 2
REPLY = 3
"""First byte of a frame; the other kinds of first frames are in `channel`."""

SESSION_BYTES = 16
PROOF_BYTES = 16

ACK_FRAMES = 32
ACK_BYTES = 1 << 20
"""As many frames, or bytes of them, are acknowledged at once."""

_ACK = struct.Struct("<Q")
_SAID = struct.Struct("<QQ")
ASK_BYTES = 1 + SESSION_BYTES + _SAID.size + PROOF_BYTES
REPLY_BYTES = 1 + _SAID.size + PROOF_BYTES


def is_ask(frame: Buffer) -> bool:
    """Whether the first frame of a transport asks to resume a session, and does not open a channel."""
    return len(frame) == ASK_BYTES and frame[0] == ASK


def session_of(ask: Buffer) -> bytes:
    """Which session an ask is about."""
    return bytes(ask[1 : 1 + SESSION_BYTES])


def is_ack(frame: Buffer) -> bool:
    """Whether a frame of a resumable link is an acknowledgement; every sealed one is longer."""
    return len(frame) < TAG_BYTES


class Resumption:
    """One side's memory of a link: what it has sent and keeps, how much has come, and the proofs. `secret` is the handshake's."""

    def __init__(self, secret: bytes) -> None:
        self.session = hmac.digest(secret, b"grid resume: session", "sha256")[:SESSION_BYTES]
        self._key = hmac.digest(secret, b"grid resume: proofs", "sha256")
        self._kept: deque[Buffer] = deque()
        self._first = 0
        self._received = 0
        self._owed_frames = self._owed_bytes = 0
        self.kept_bytes = 0
        self.attempt = 0

    # ------------------------------------------------------------ while the link holds

    @property
    def sent(self) -> int:
        """How many frames there are to send in all; the next has this number."""
        return self._first + len(self._kept)

    def keep(self, frame: Buffer) -> None:
        """A frame that is sent, in order."""
        self._kept.append(frame)
        self.kept_bytes += len(frame)

    def frame(self, number: int) -> Buffer:
        """A frame that is kept."""
        return self._kept[number - self._first]

    def arrived(self, size: int) -> bool:
        """The next sealed frame has come; whether an acknowledgement is due."""
        self._received += 1
        self._owed_frames += 1
        self._owed_bytes += size
        return self.owes

    @property
    def owes(self) -> bool:
        """Whether an acknowledgement is due."""
        return self._owed_frames >= ACK_FRAMES or self._owed_bytes >= ACK_BYTES

    def ack(self) -> bytes:
        """The acknowledgement to send now."""
        self._owed_frames = self._owed_bytes = 0
        return _ACK.pack(self._received)

    def acked(self, ack: Buffer, before: int) -> None:
        """Forget what the far end has. Raises `WireError` for an acknowledgement that cannot be right.

        `before` is the number of the first frame that has not been put on the link.
        """
        if len(ack) != _ACK.size:
            raise WireError(f"an acknowledgement has {_ACK.size} bytes, this one {len(ack)}")
        (received,) = _ACK.unpack(ack)
        if not self._first <= received <= before:
            raise WireError(f"{received} frames were acknowledged, where {self._first} to {before} can be")
        self._forget(received)

    def _forget(self, before: int) -> None:
        while self._first < before:
            self.kept_bytes -= len(self._kept.popleft())
            self._first += 1

    # ------------------------------------------------------------ after a loss

    def ask(self) -> bytes:
        """Initiator: the first frame of a new link. Nothing more may come over the old one after this."""
        self.attempt += 1
        said = _SAID.pack(self.attempt, self._received)
        return bytes([ASK]) + self.session + said + self._proof(b"ask", said)

    def check_ask(self, ask: Buffer) -> None:
        """Responder: raises `AuthenticationFailed` unless the initiator has just said this; nothing has changed then.

        Raises `NodeUnavailable` where it lacks frames that are not kept any more.
        """
        said, proof = bytes(ask[1 + SESSION_BYTES : -PROOF_BYTES]), bytes(ask[-PROOF_BYTES:])
        if not is_ask(ask) or session_of(ask) != self.session or not hmac.compare_digest(proof, self._proof(b"ask", said)):
            raise AuthenticationFailed("whoever asks to resume this session does not hold its key")
        attempt, received = _SAID.unpack(said)
        if attempt <= self.attempt:
            raise AuthenticationFailed("this ask to resume a session is older than another that was answered")
        self.attempt = attempt
        self._check_kept(received)
        self._forget(received)

    def reply(self) -> bytes:
        """Responder: the answer to the ask that was checked. Nothing more may come over the old link after this."""
        said = _SAID.pack(self.attempt, self._received)
        return bytes([REPLY]) + said + self._proof(b"reply", said)

    def check_reply(self, reply: Buffer) -> None:
        """Initiator: raises `AuthenticationFailed` unless this answers the last ask; `NodeUnavailable` as `check_ask`."""
        said, proof = bytes(reply[1:-PROOF_BYTES]), bytes(reply[-PROOF_BYTES:])
        if len(reply) != REPLY_BYTES or reply[0] != REPLY or not hmac.compare_digest(proof, self._proof(b"reply", said)):
            raise AuthenticationFailed("the answer to resuming a session is not from its far end")
        attempt, received = _SAID.unpack(said)
        if attempt != self.attempt:
            raise AuthenticationFailed("the answer to resuming a session belongs to an earlier attempt")
        self._check_kept(received)
        self._forget(received)

    @property
    def resend_from(self) -> int:
        """Number of the first frame that the far end lacks, after a check of what it says."""
        return self._first

    def _check_kept(self, received: int) -> None:
        if not self._first <= received <= self.sent:
            raise NodeUnavailable("the far end lacks frames that are not kept any more: the session cannot be resumed")

    def _proof(self, what: bytes, said: bytes) -> bytes:
        return hmac.digest(self._key, what + self.session + said, "sha256")[:PROOF_BYTES]
