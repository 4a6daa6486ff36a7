"""Signed envelopes: what was signed is what is read, as the kind that it was signed as, or nothing is."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.crypto.envelope import MAX_ENVELOPE_BYTES, Fields, framed, pack, pre_authentication, read, seal
from grid.crypto.keys import SigningKey
from grid.errors import AuthenticationFailed, LocalProtocolError

ROOT, OTHER = SigningKey(bytes(32)), SigningKey(bytes([1]) * 32)


def test_the_signed_bytes_are_those_of_dsse() -> None:
    assert pre_authentication("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_payload_comes_back_once_every_signer_is_checked() -> None:
    envelope = read(seal("kind", b"payload", ROOT, OTHER))
    assert envelope.signers == (ROOT.public, OTHER.public)
    assert envelope.verified("kind", ROOT.public) == b"payload"
    assert envelope.verified("kind", ROOT.public, OTHER.public) == b"payload"


def test_another_kind_another_key_or_no_key_is_refused() -> None:
    envelope = read(seal("kind", b"payload", ROOT))
    with pytest.raises(AuthenticationFailed, match="a signed permit was expected"):
        envelope.verified("permit", ROOT.public)
    with pytest.raises(AuthenticationFailed, match="missing"):
        envelope.verified("kind", OTHER.public)
    with pytest.raises(AuthenticationFailed):
        envelope.verified("kind")


def test_a_kind_cannot_be_changed_after_signing() -> None:
    _, payload, signatures = msgpack.unpackb(seal("kind", b"payload", ROOT))
    forged = read(msgpack.packb(["permit", payload, signatures]))
    with pytest.raises(AuthenticationFailed, match="does not hold"):
        forged.verified("permit", ROOT.public)


def test_a_signature_under_anothers_name_is_refused() -> None:
    kind, payload, signatures = msgpack.unpackb(seal("kind", b"payload", OTHER))
    forged = read(msgpack.packb([kind, payload, [[ROOT.public, signatures[0][1]]]]))
    with pytest.raises(AuthenticationFailed, match="does not hold"):
        forged.verified("kind", ROOT.public)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_flipped_bit_survives(data: st.DataObject) -> None:
    envelope = bytearray(seal("kind", b"some payload", ROOT))
    envelope[data.draw(st.integers(0, len(envelope) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(AuthenticationFailed):
        read(bytes(envelope)).verified("kind", ROOT.public)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.integers(0, 9) | st.binary(), st.lists).map(msgpack.packb)))
def test_reading_is_total(garbage: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        read(garbage)


def test_reading_is_bounded() -> None:
    with pytest.raises(AuthenticationFailed, match="limit"):
        read(bytes(MAX_ENVELOPE_BYTES + 1))
    with pytest.raises(LocalProtocolError, match="limit"):
        seal("kind", bytes(MAX_ENVELOPE_BYTES), ROOT)
    with pytest.raises(AuthenticationFailed, match="damaged"):
        read(b"\x91" * 2000)  # two thousand lists inside each other
    with pytest.raises(AuthenticationFailed, match="damaged"):
        read(b"\xdd\xff\xff\xff\xff")  # claims four billion elements
    with pytest.raises(AuthenticationFailed, match="damaged"):
        read(msgpack.packb(msgpack.ExtType(5, b"x")))


def test_fields_are_typed_and_bounded() -> None:
    fields = Fields(pack({"text": "abc", "raw": b"abc", "number": 7, "flag": True, "ids": ["a", "b"], "new": None}), "thing")
    assert fields.text("text", longest=3) == "abc"
    assert fields.raw("raw", length=3) == b"abc"
    assert fields.number("number") == 7
    assert fields.choice("text", ("abc", "def")) == "abc"
    assert fields.texts("ids", most=2, check=str.isalpha) == ("a", "b")
    for wrong in (
        lambda: fields.text("text", longest=2),
        lambda: fields.text("raw", longest=3),
        lambda: fields.text("text", longest=3, check=str.isdigit),
        lambda: fields.raw("raw", length=4),
        lambda: fields.raw("text"),
        lambda: fields.number("number", most=6),
        lambda: fields.number("flag"),
        lambda: fields.number("absent"),
        lambda: fields.choice("text", ("def",)),
        lambda: fields.texts("ids", most=1, check=str.isalpha),
        lambda: fields.texts("ids", most=2, check=str.isdigit),
        lambda: Fields(pack([]), "thing"),  # type: ignore[arg-type]
    ):
        with pytest.raises(AuthenticationFailed, match="thing"):
            wrong()


@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.binary(max_size=20), max_size=5))
def test_framed_parts_cannot_be_shifted(first: list[bytes], second: list[bytes]) -> None:
    assert (framed("k", *first) == framed("k", *second)) == (first == second)
