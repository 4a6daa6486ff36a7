"""The handshake Noise_XX_25519_AESGCM_SHA256 (Noise Protocol Framework, revision 34), without I/O.

    -> e
    <- e, ee, s, es
    -> s, se

Either side proves that it holds its static key, each learns the other's, and neither static key is visible to a
listener. `Handshake` takes and gives messages; when it has `finished`, `split` gives one `CipherState` per direction. A
failed read leaves the handshake of no use: every call after it raises.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from grid.crypto.keys import KEY_BYTES, AgreementKey
from grid.errors import AuthenticationFailed, LocalProtocolError, WireError

PROTOCOL_NAME = b"Noise_XX_25519_AESGCM_SHA256"

PATTERN: tuple[tuple[str, ...], ...] = (("e",), ("e", "ee", "s", "es"), ("s", "se"))
"""The tokens of each message; even messages are the initiator's."""

AGREEMENTS: Mapping[str, tuple[str, str]] = {"ee": ("e", "e"), "es": ("e", "s"), "se": ("s", "e")}
"""Token -> (the initiator's key, the responder's key) that go into the agreement."""

MAX_MESSAGE_BYTES = 65535
TAG_BYTES = 16
LAST_NONCE = 2**64 - 2
"""2**64 - 1 is reserved by Noise."""


class CipherState:
    """AES-256-GCM under one key with a counter for nonce: what was sealed n-th must be opened n-th."""

    __slots__ = ("_aead", "count")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self.count = 0

    def _nonce(self) -> bytes:
        if self.count > LAST_NONCE:
            raise LocalProtocolError("this key has sealed all the frames it may; open a new channel")
        return self.count.to_bytes(12, "big")

    def seal(self, data: bytes | bytearray | memoryview, associated: bytes | None = None) -> bytes:
        """Ciphertext and tag. The number is used up, whatever happens to the result."""
        nonce = self._nonce()
        self.count += 1
        return self._aead.encrypt(nonce, data, associated)

    def open(self, data: bytes | bytearray | memoryview, associated: bytes | None = None) -> bytearray:
        """The plaintext, in a fresh buffer that may be written to. Nothing of it is given where the tag does not hold."""
        if len(data) < TAG_BYTES:
            raise WireError(f"a sealed frame has at least {TAG_BYTES} bytes, this one {len(data)}")
        plain = bytearray(len(data) - TAG_BYTES)
        try:
            self._aead.decrypt_into(self._nonce(), data, associated, plain)
        except InvalidTag:
            raise AuthenticationFailed("a sealed message was changed on the way, or sealed with another key") from None
        self.count += 1
        return plain


def _expand(chaining_key: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """HKDF as Noise has it: two outputs of 32 bytes."""
    temporary = hmac.digest(chaining_key, secret, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")


class Handshake:
    """One side of one handshake. Call `write` and `read` in turn; the initiator writes first.

    `ephemeral` is for the published vectors alone; a handshake makes its own.
    """

    def __init__(self, *, initiator: bool, static: AgreementKey, prologue: bytes, ephemeral: AgreementKey | None = None) -> None:
        self._initiator = initiator
        self._keys = {"s": static, "e": ephemeral or AgreementKey.generate()}
        self._remote: dict[str, bytes] = {}
        self._step = 0
        self._broken = False
        self._cipher: CipherState | None = None
        # The name has 28 bytes; Noise pads one of up to 32 with zeros instead of hashing it.
        self._hash = self._chaining_key = PROTOCOL_NAME.ljust(32, b"\0")
        self._mix_hash(prologue)

    @property
    def finished(self) -> bool:
        return self._step == len(PATTERN)

    @property
    def remote_static(self) -> bytes:
        """The far end's static key; proven once its message was read."""
        if "s" not in self._remote:
            raise LocalProtocolError("the far end's static key is not known yet")
        return self._remote["s"]

    @property
    def hash(self) -> bytes:
        """32 bytes that both sides share and no other handshake has; not secret."""
        if not self.finished:
            raise LocalProtocolError("the handshake hash is not final before the handshake has finished")
        return self._hash

    def write(self, payload: bytes = b"") -> bytes:
        """Our next message. `payload` is readable by anyone in message 1, by the far end alone after that."""
        tokens = self._begin(writing=True)
        out = bytearray()
        for token in tokens:
            if token == "e":
                out += self._keys["e"].public
                self._mix_hash(self._keys["e"].public)
            elif token == "s":
                out += self._encrypt(self._keys["s"].public)
            else:
                self._agree(token)
        out += self._encrypt(payload)
        if len(out) > MAX_MESSAGE_BYTES:
            raise LocalProtocolError(f"a handshake message has at most {MAX_MESSAGE_BYTES} bytes, this one {len(out)}")
        self._end()
        return bytes(out)

    def read(self, message: bytes) -> bytes:
        """The payload of the far end's next message. WireError for a wrong length, AuthenticationFailed for a wrong key."""
        tokens = self._begin(writing=False)
        if len(message) > MAX_MESSAGE_BYTES:
            raise WireError(f"a handshake message has at most {MAX_MESSAGE_BYTES} bytes, this one {len(message)}")
        rest = memoryview(message)
        for token in tokens:
            if token in ("e", "s"):
                size = KEY_BYTES + (TAG_BYTES if token == "s" and self._cipher else 0)
                if len(rest) < size:
                    raise WireError("a handshake message ends early")
                self._remote[token] = self._take_key(token, bytes(rest[:size]))
                rest = rest[size:]
            else:
                self._agree(token)
        payload = self._decrypt(bytes(rest))
        self._end()
        return payload

    def export(self) -> bytes:
        """32 bytes that only the two sides have, and which tell nothing of the channel's keys; once finished.

        A third output of the split (Noise, "additional symmetric keys").
        """
        if not self.finished:
            raise LocalProtocolError("the handshake has not finished")
        temporary = hmac.digest(self._chaining_key, b"", "sha256")
        _, second = _expand(self._chaining_key, b"")
        return hmac.digest(temporary, second + b"\x03", "sha256")

    def split(self) -> tuple[CipherState, CipherState]:
        """(for sending, for receiving), once finished."""
        if not self.finished:
            raise LocalProtocolError("the handshake has not finished")
        first, second = (CipherState(key) for key in _expand(self._chaining_key, b""))
        return (first, second) if self._initiator else (second, first)

    def _begin(self, *, writing: bool) -> tuple[str, ...]:
        ours = self._initiator == (self._step % 2 == 0)
        if self._broken or self.finished or ours != writing:
            raise LocalProtocolError("the handshake has failed, has finished, or it is the other side's turn")
        self._broken = True  # until `_end`: an error on the way leaves it so
        return PATTERN[self._step]

    def _end(self) -> None:
        self._broken = False
        self._step += 1

    def _take_key(self, token: str, data: bytes) -> bytes:
        if token == "s":
            return self._decrypt(data)
        self._mix_hash(data)
        return data

    def _agree(self, token: str) -> None:
        initiators, responders = AGREEMENTS[token]
        own, remote = (initiators, responders) if self._initiator else (responders, initiators)
        secret = self._keys[own].agree(self._remote[remote])
        self._chaining_key, key = _expand(self._chaining_key, secret)
        self._cipher = CipherState(key)

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _encrypt(self, data: bytes) -> bytes:
        sealed = self._cipher.seal(data, self._hash) if self._cipher else data
        self._mix_hash(sealed)
        return sealed

    def _decrypt(self, data: bytes) -> bytes:
        plain = bytes(self._cipher.open(data, self._hash)) if self._cipher else data
        self._mix_hash(data)
        return plain
