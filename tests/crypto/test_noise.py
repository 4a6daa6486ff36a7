"""The Noise handshake against the published vectors, against an independent implementation, and with everything wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from grid.crypto.keys import AgreementKey
from grid.crypto.noise import LAST_NONCE, PROTOCOL_NAME, CipherState, Handshake
from grid.errors import AuthenticationFailed, GridError, LocalProtocolError, WireError

SHARED_DATA = Path(os.environ.get("GRID_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
VECTORS = SHARED_DATA / "noise-vectors.json"


def published() -> list[Any]:
    if not VECTORS.exists():
        reason = f"{VECTORS.name} is not on this machine; set GRID_SHARED_DATA to its folder"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    vectors = json.loads(VECTORS.read_text())["vectors"]
    return [
        pytest.param(one, id=f"{one['source']}-{number}")
        for number, one in enumerate(vectors)
        if one["protocol_name"] == PROTOCOL_NAME.decode()
    ]


def from_vector(vector: dict[str, Any], side: str) -> Handshake:
    return Handshake(
        initiator=side == "init",
        static=AgreementKey(bytes.fromhex(vector[f"{side}_static"])),
        ephemeral=AgreementKey(bytes.fromhex(vector[f"{side}_ephemeral"])),
        prologue=bytes.fromhex(vector[f"{side}_prologue"]),
    )


@pytest.mark.parametrize("vector", published())
def test_published_vector(vector: dict[str, Any]) -> None:
    initiator, responder = from_vector(vector, "init"), from_vector(vector, "resp")
    messages = [(bytes.fromhex(one["payload"]), bytes.fromhex(one["ciphertext"])) for one in vector["messages"]]
    assert len(messages) > 3
    for number, (payload, ciphertext) in enumerate(messages[:3]):
        writer, reader = (initiator, responder) if number % 2 == 0 else (responder, initiator)
        assert writer.write(payload) == ciphertext
        assert reader.read(ciphertext) == payload
    assert initiator.finished and responder.finished
    assert initiator.hash == responder.hash
    if "handshake_hash" in vector:
        assert initiator.hash.hex() == vector["handshake_hash"]
    ciphers = initiator.split(), responder.split()
    for number, (payload, ciphertext) in enumerate(messages[3:], start=3):
        writing, reading = (0, 1) if number % 2 == 0 else (1, 0)
        assert ciphers[writing][0].seal(payload) == ciphertext
        assert ciphers[reading][1].open(ciphertext) == payload


def test_there_are_vectors_for_this_pattern_where_the_file_is() -> None:
    if not VECTORS.exists():
        pytest.skip(f"{VECTORS.name} is not on this machine")
    assert len(published()) >= 2


def independent(*, initiator: bool, static: AgreementKey, prologue: bytes) -> NoiseConnection:
    other = NoiseConnection.from_name(PROTOCOL_NAME)
    other.set_as_initiator() if initiator else other.set_as_responder()
    other.set_prologue(prologue)
    other.set_keypair_from_private_bytes(Keypair.STATIC, static.seed)
    other.start_handshake()
    return other


@pytest.mark.parametrize("we_initiate", [True, False])
@pytest.mark.parametrize("payloads", [(b"", b"", b""), (b"one", b"two" * 100, b"x" * 40_000)])
def test_with_an_independent_implementation(we_initiate: bool, payloads: tuple[bytes, bytes, bytes]) -> None:
    ours, theirs, prologue = AgreementKey.generate(), AgreementKey.generate(), b"both know this"
    we = Handshake(initiator=we_initiate, static=ours, prologue=prologue)
    they = independent(initiator=not we_initiate, static=theirs, prologue=prologue)
    for number, payload in enumerate(payloads):
        if we_initiate == (number % 2 == 0):
            assert bytes(they.read_message(we.write(payload))) == payload
        else:
            assert we.read(bytes(they.write_message(payload))) == payload
    assert we.finished and they.handshake_finished
    assert we.remote_static == theirs.public
    assert we.hash == they.get_handshake_hash()
    sending, receiving = we.split()
    for number in range(5):
        text = b"frame %d" % number
        assert bytes(they.decrypt(sending.seal(text))) == text
        assert receiving.open(bytes(they.encrypt(text))) == text


def test_the_independent_implementation_refuses_another_prologue() -> None:
    we = Handshake(initiator=True, static=AgreementKey.generate(), prologue=b"this")
    they = independent(initiator=False, static=AgreementKey.generate(), prologue=b"that")
    they.read_message(we.write())
    with pytest.raises(AuthenticationFailed):
        we.read(bytes(they.write_message()))


def pair(prologues: tuple[bytes, bytes] = (b"p", b"p")) -> tuple[Handshake, Handshake]:
    return (
        Handshake(initiator=True, static=AgreementKey.generate(), prologue=prologues[0]),
        Handshake(initiator=False, static=AgreementKey.generate(), prologue=prologues[1]),
    )


def test_each_side_learns_the_others_key_and_nobody_else_sees_a_payload() -> None:
    alice, bob = AgreementKey.generate(), AgreementKey.generate()
    first = Handshake(initiator=True, static=alice, prologue=b"")
    second = Handshake(initiator=False, static=bob, prologue=b"")
    opening = first.write()
    second.read(opening)
    answer = second.write(b"responder's secret card")
    assert first.read(answer) == b"responder's secret card"
    last = first.write(b"initiator's secret card")
    assert second.read(last) == b"initiator's secret card"
    assert first.remote_static == bob.public and second.remote_static == alice.public
    seen = opening + answer + last
    for secret in (b"secret card", alice.public, bob.public):
        assert secret not in seen


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_flipped_bit_survives(data: st.DataObject) -> None:
    first, second = pair()
    which = data.draw(st.integers(0, 2), label="message")
    messages = 0
    with pytest.raises(GridError) as caught:
        for writer, reader in ((first, second), (second, first), (first, second)):
            message = bytearray(writer.write(b"card" * 10))
            if messages == which:
                position = data.draw(st.integers(0, 8 * len(message) - 1), label="bit")
                message[position // 8] ^= 1 << position % 8
            assert reader.read(bytes(message)) == b"card" * 10 or which == 0
            messages += 1
    assert isinstance(caught.value, (AuthenticationFailed, WireError))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2), st.binary(max_size=300))
def test_reading_is_total(which: int, garbage: bytes) -> None:
    first, second = pair()
    for number, (writer, reader) in enumerate(((first, second), (second, first), (first, second))):
        if number == which:
            if which == 0 and len(garbage) >= 32:
                return  # any 32 bytes may open a handshake; the next message shows that they are nobody's
            with pytest.raises((AuthenticationFailed, WireError)):
                reader.read(garbage)
            with pytest.raises(LocalProtocolError):
                reader.read(garbage)
            return
        reader.read(writer.write())


def test_messages_out_of_turn_or_too_long_are_refused() -> None:
    first, second = pair()
    with pytest.raises(LocalProtocolError, match="turn"):
        second.write()
    with pytest.raises(LocalProtocolError, match="not finished"):
        first.split()
    with pytest.raises(LocalProtocolError, match="not known"):
        _ = first.remote_static
    with pytest.raises(LocalProtocolError, match="at most 65535"):
        first.write(bytes(65536))
    with pytest.raises(LocalProtocolError):
        first.write()  # a handshake that failed is of no use
    with pytest.raises(WireError, match="at most 65535"):
        second.read(bytes(65536))


@pytest.mark.parametrize("key", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 19).to_bytes(32, "little")])
def test_a_key_of_small_order_is_refused(key: bytes) -> None:
    _, second = pair()
    second.read(key)
    with pytest.raises(AuthenticationFailed, match="proper X25519"):
        second.write()


def test_a_cipher_opens_in_order_only() -> None:
    key = os.urandom(32)
    sealing, opening = CipherState(key), CipherState(key)
    frames = [sealing.seal(b"%d" % number) for number in range(3)]
    with pytest.raises(AuthenticationFailed):
        opening.open(frames[1])
    assert opening.open(frames[0]) == b"0"
    with pytest.raises(AuthenticationFailed):
        opening.open(frames[0])
    assert opening.open(memoryview(frames[1])) == b"1"
    with pytest.raises(WireError, match="at least 16"):
        opening.open(b"short")


def test_a_cipher_never_repeats_a_number() -> None:
    cipher = CipherState(os.urandom(32))
    cipher.count = LAST_NONCE
    cipher.seal(b"the last")
    with pytest.raises(LocalProtocolError, match="open a new channel"):
        cipher.seal(b"one more")
