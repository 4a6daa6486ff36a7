"""Ed25519 and X25519 keys as bytes: ids, signatures, key agreement.

All that the package needs of public-key cryptography, over `cryptography` alone. Failures are `AuthenticationFailed`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import secrets

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from grid.errors import AuthenticationFailed
from grid.ids import PeerId

KEY_BYTES = 32
SIGNATURE_BYTES = 64
ID_LETTERS = 26


@functools.lru_cache(maxsize=4096)
def id_of(public_key: bytes) -> PeerId:
    """The id that belongs to an Ed25519 public key: base32(SHA-256(key))[:26], lower case (130 bits)."""
    return PeerId(base64.b32encode(hashlib.sha256(public_key).digest()).decode("ascii").lower()[:ID_LETTERS])


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id."""
    return len(text) == ID_LETTERS and all(letter in "abcdefghijklmnopqrstuvwxyz234567" for letter in text)


def fresh_seed() -> bytes:
    """32 bytes from the operating system: a private key or a seed of `prg`."""
    return secrets.token_bytes(KEY_BYTES)


class SigningKey:
    """An Ed25519 key pair. `repr` shows the public half only."""

    __slots__ = ("_private", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(fresh_seed())

    @property
    def id(self) -> PeerId:
        return id_of(self.public)

    def sign(self, statement: bytes) -> bytes:
        """64 bytes. `statement` must say what it is for (`envelope.framed`): a key signs several kinds of things."""
        return self._private.sign(statement)

    def __repr__(self) -> str:
        return f"SigningKey({self.id})"


def check_signature(public_key: bytes, signature: bytes, statement: bytes, what: str) -> None:
    """Raise `AuthenticationFailed` naming `what` unless `signature` is `public_key`'s over `statement`."""
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise AuthenticationFailed(f"{what}: a key has {KEY_BYTES} bytes and a signature {SIGNATURE_BYTES}")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, statement)
    except (InvalidSignature, ValueError):
        raise AuthenticationFailed(f"{what}: the signature does not hold") from None


class AgreementKey:
    """An X25519 key pair."""

    __slots__ = ("_private", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._private = X25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> AgreementKey:
        return cls(fresh_seed())

    def agree(self, public_key: bytes) -> bytes:
        """The shared secret with the holder of `public_key`; a key of small order is refused."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public_key))
        except ValueError:
            raise AuthenticationFailed("the far end sent a key that is not a proper X25519 key") from None

    def __repr__(self) -> str:
        return f"AgreementKey({self.public.hex()[:8]}..)"
