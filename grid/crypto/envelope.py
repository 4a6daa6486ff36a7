"""Signed envelopes, after DSSE: the exact bytes are signed, and verified before anything parses them.

An envelope is msgpack [kind, payload, [[public key, signature], ...]]. Each signature covers the DSSE pre-authentication
encoding of kind and payload, so bytes signed as one kind of object can never pass as another. Reading goes

    read(envelope)                 splits the outer list; nothing in it is believed yet
    .verified(kind, keys)          the payload, once every one of `keys` has signed it as `kind`
    Fields(payload, what)          typed access to the payload's map, with bounds

`framed` makes byte strings unambiguous for the things that are signed without an envelope.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from grid.crypto.keys import SigningKey, check_signature
from grid.errors import AuthenticationFailed, GridError, LocalProtocolError

MAX_ENVELOPE_BYTES = 60_000
"""Largest signed object: a card and a revocation list of this size still fit one handshake message together."""

MAX_SIGNATURES = 4

MAX_KIND_LETTERS = 80


def pre_authentication(kind: str, payload: bytes) -> bytes:
    """The bytes that a DSSE signature covers."""
    name = kind.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def framed(kind: str, *parts: bytes) -> bytes:
    """`kind` and the parts with their lengths in front: no two different inputs give the same bytes."""
    pieces = [kind.encode("utf-8"), *parts]
    return b"".join(len(piece).to_bytes(8, "big") + piece for piece in pieces)


def seal(kind: str, payload: bytes, *signers: SigningKey) -> bytes:
    """The envelope of `payload`, signed by every one of `signers` as `kind`."""
    covered = pre_authentication(kind, payload)
    envelope: bytes = msgpack.packb([kind, payload, [[signer.public, signer.sign(covered)] for signer in signers]])
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise LocalProtocolError(f"a signed {kind} of {len(envelope)} bytes is over the limit of {MAX_ENVELOPE_BYTES}")
    return envelope


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope taken apart. The payload is not to be believed, or parsed, before `verified` returned it."""

    kind: str
    signatures: tuple[tuple[bytes, bytes], ...]
    unverified: bytes

    @property
    def signers(self) -> tuple[bytes, ...]:
        """The public keys that claim to have signed; hints, until `verified` has checked them."""
        return tuple(key for key, _ in self.signatures)

    def verified(self, kind: str, *keys: bytes) -> bytes:
        """The payload, once each of `keys` (at least one) has signed it as `kind`; else AuthenticationFailed."""
        if self.kind != kind or not keys:
            raise AuthenticationFailed(f"a signed {kind} was expected, and this is something else")
        by_key = dict(self.signatures)
        covered = pre_authentication(kind, self.unverified)
        for key in keys:
            if key not in by_key:
                raise AuthenticationFailed(f"{kind}: the signature of a key that must sign it is missing")
            check_signature(key, by_key[key], covered, kind)
        return self.unverified


def read(envelope: bytes, what: str = "signed object") -> Envelope:
    """Take an envelope apart, bounded and typed; AuthenticationFailed, naming `what`, if it is none."""
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise AuthenticationFailed(f"{what}: {len(envelope)} bytes are over the limit of {MAX_ENVELOPE_BYTES}")
    outer = unpack(envelope, what)
    if isinstance(outer, list) and len(outer) == 3:
        kind, payload, pairs = outer
        if isinstance(kind, str) and len(kind) <= MAX_KIND_LETTERS and isinstance(payload, bytes) and isinstance(pairs, list):
            if 1 <= len(pairs) <= MAX_SIGNATURES and all(_is_signature(pair) for pair in pairs):
                return Envelope(kind, tuple((pair[0], pair[1]) for pair in pairs), payload)
    raise AuthenticationFailed(f"{what}: this is no signed envelope")


def is_envelope(data: bytes) -> bool:
    """Whether these bytes are an envelope; nothing in it is believed by that."""
    try:
        read(data)
    except AuthenticationFailed:
        return False
    return True


def _is_signature(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, bytes) for part in pair)


def unpack(data: bytes, what: str, *, error: type[GridError] = AuthenticationFailed) -> Any:
    """Bounded msgpack: plain values only (no extensions), everything smaller than the bytes it came in."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, ext_hook=_refuse_extension)
    except (ValueError, msgpack.exceptions.UnpackException, OverflowError, RecursionError):
        raise error(f"{what}: the bytes are damaged") from None


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError("no extensions here")


def pack(fields: dict[str, Any]) -> bytes:
    """A payload: a msgpack map with the names of its fields."""
    packed: bytes = msgpack.packb(fields)
    return packed


class Fields:
    """The map in a verified payload. Each method gives one field or raises AuthenticationFailed naming it.

    Names that nobody asks for are ignored, so a newer version can add some.
    """

    __slots__ = ("_map", "_what")

    def __init__(self, payload: bytes, what: str) -> None:
        self._what = what
        self._map = unpack(payload, what)
        if not isinstance(self._map, dict):
            raise AuthenticationFailed(f"{what}: its payload is no map of fields")

    def text(self, name: str, *, longest: int, check: Callable[[str], bool] | None = None) -> str:
        value = self._map.get(name)
        if not isinstance(value, str) or len(value) > longest or (check is not None and not check(value)):
            raise self._wrong(name)
        return value

    def raw(self, name: str, *, length: int | None = None, longest: int = MAX_ENVELOPE_BYTES) -> bytes:
        value = self._map.get(name)
        if not isinstance(value, bytes) or len(value) > longest or (length is not None and len(value) != length):
            raise self._wrong(name)
        return value

    def number(self, name: str, *, least: int = 0, most: int = 2**53) -> int:
        value = self._map.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(name)
        return value

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        value = self._map.get(name)
        if not isinstance(value, str) or value not in allowed:
            raise self._wrong(name)
        return value

    def texts(self, name: str, *, most: int, check: Callable[[str], bool]) -> tuple[str, ...]:
        value = self._map.get(name)
        if not isinstance(value, list) or len(value) > most or not all(isinstance(one, str) and check(one) for one in value):
            raise self._wrong(name)
        return tuple(value)

    def _wrong(self, name: str) -> AuthenticationFailed:
        return AuthenticationFailed(f"{self._what}: the field {name!r} is missing or not what it must be")
