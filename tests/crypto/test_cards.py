"""Cards and enrolments: nobody can make one that says more than its signers said."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.crypto.cards import (
    CARD_KIND,
    CARD_LIFE_S,
    DAY_S,
    MAX_CARD_BYTES,
    MAX_CARD_LIFE_S,
    Expected,
    check_times,
    describe_s,
    read_card,
    read_enrolment,
    sign_card,
    sign_enrolment,
)
from grid.crypto.envelope import pack, seal
from grid.crypto.keys import AgreementKey, SigningKey, check_signature, id_of, is_id
from grid.errors import AuthenticationFailed, ClockSkew, InvalidRequest
from grid.ids import PeerId

NOW = 1_800_000_000
ROOT, ENROLLING, ALICE, MALLORY = (SigningKey(bytes([number]) * 32) for number in range(4))
NOISE = AgreementKey(bytes([9]) * 32)
ENROLMENT = read_enrolment(
    sign_enrolment(
        ROOT, key=ENROLLING.public, name="alice", role="node", organisation="Clinic", expires=NOW + 60 * DAY_S, serial=1
    )
)


def card_of(key: SigningKey = ALICE, **changes: Any) -> bytes:
    said: dict[str, Any] = {
        "noise_key": NOISE.public,
        "name": "alice",
        "role": "node",
        "organisation": "Clinic",
        "not_before": NOW,
        "expires": NOW + CARD_LIFE_S,
        "serial": 1,
        "enrolment": ENROLMENT,
        "enrolment_key": ENROLLING,
    }
    return sign_card(key, **(said | changes))


def test_a_card_says_what_was_signed() -> None:
    card = read_card(card_of())
    assert (card.name, card.role, card.organisation, card.serial) == ("alice", "node", "Clinic", 1)
    assert card.id == ALICE.id == id_of(card.key) and is_id(card.id)
    assert card.noise_key == NOISE.public
    assert card.enrolment is not None
    assert (card.enrolment.root, card.enrolment.id) == (ROOT.public, ENROLLING.id)
    assert len(card.envelope) < 1000
    assert "alice" in str(card) and card.envelope.hex() not in repr(card)


def test_nobody_can_put_anothers_key_on_a_card() -> None:
    # Mallory is enrolled and signs a card with alice's key on it; the proof that alice agreed is missing.
    fields = msgpack.unpackb(msgpack.unpackb(card_of())[1])
    stolen = seal(CARD_KIND, pack(fields), ENROLLING, MALLORY)
    with pytest.raises(AuthenticationFailed, match="not signed by its own key"):
        read_card(stolen)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enrolment_key": None}, "not signed by its enrolment key"),
        ({"enrolment_key": MALLORY}, "not signed by its enrolment key"),
        ({"name": "bob"}, "another name"),
        ({"role": "client"}, "another name, role"),
        ({"organisation": "Bank"}, "another name, role or organisation"),
        ({"not_before": NOW + 50 * DAY_S, "expires": NOW + 61 * DAY_S}, "outlive its enrolment"),
        ({"enrolment": None, "enrolment_key": None, "expires": NOW + MAX_CARD_LIFE_S + 1}, "at most 90 days"),
        ({"expires": NOW - 1}, "at most 90 days"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(AuthenticationFailed, match=reason):
        read_card(card_of(**changes))


@pytest.mark.parametrize(
    "changes", [{"name": ""}, {"name": "a b"}, {"name": "-x"}, {"name": "x" * 65}, {"role": "root"}, {"organisation": "a\nb"}]
)
def test_names_that_could_mislead_a_reader_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        card_of(**changes)
    fields = msgpack.unpackb(msgpack.unpackb(card_of())[1]) | changes
    with pytest.raises(AuthenticationFailed, match="field"):
        read_card(seal(CARD_KIND, pack(fields), ALICE, ENROLLING))


def test_an_enrolment_has_one_signature() -> None:
    _, payload, signatures = msgpack.unpackb(ENROLMENT.envelope)
    twice = msgpack.packb(["grid enrolment 1", payload, signatures * 2])
    with pytest.raises(AuthenticationFailed, match="no other"):
        read_enrolment(twice)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_changed_byte_of_a_card_survives(data: st.DataObject) -> None:
    original = card_of()
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AuthenticationFailed):
        read_card(bytes(changed))


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["key", "noise_key", "name", "role", "organisation", "not_before", "expires", "serial", "enrolment"]),
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=80) | st.binary(max_size=80) | st.lists(st.none()),
        max_size=3,
    )
)
def test_reading_a_signed_card_with_wrong_fields_is_total(changes: dict[str, Any]) -> None:
    fields = msgpack.unpackb(msgpack.unpackb(card_of())[1]) | changes
    try:
        card = read_card(seal(CARD_KIND, pack(fields), ALICE, ENROLLING))
    except AuthenticationFailed:
        return
    assert dataclasses.asdict(card)["name"] == "alice"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_reading_is_total(garbage: bytes) -> None:
    for reader in (read_card, read_enrolment):
        with pytest.raises(AuthenticationFailed):
            reader(garbage)


def test_a_card_is_bounded() -> None:
    with pytest.raises(AuthenticationFailed, match="limit"):
        read_card(bytes(MAX_CARD_BYTES + 1))


def test_expected_names_what_differs() -> None:
    card = read_card(card_of())
    Expected().check(card)
    Expected(id=ALICE.id, name="alice", role="node").check(card)
    for wrong, what in (
        (Expected(id=PeerId(MALLORY.id)), "id"),
        (Expected(name="bob"), "'bob'"),
        (Expected(role="client"), "role"),
    ):
        with pytest.raises(AuthenticationFailed, match=what):
            wrong.check(card)


def test_dates_allow_five_minutes_and_say_by_how_much() -> None:
    card = read_card(card_of())
    for wall in (NOW - 299, NOW, card.expires + 299):
        check_times(card, wall)
    with pytest.raises(ClockSkew, match="2 hours in our future") as skew:
        check_times(card, NOW - 7200)
    assert skew.value.details == {"seconds": 7200}
    with pytest.raises(AuthenticationFailed, match=r"expired on 2027-02-14 .*, 3 days ago"):
        check_times(card, card.expires + 3 * DAY_S)


def test_lengths_of_time_read_well() -> None:
    assert [describe_s(seconds) for seconds in (90, 301, 7300, 10 * DAY_S)] == ["90 seconds", "5 minutes", "2 hours", "10 days"]


def test_a_signature_of_wrong_length_or_key_is_refused() -> None:
    good = ALICE.sign(b"x")
    check_signature(ALICE.public, good, b"x", "thing")
    own = ALICE.public
    for key, signature, text in ((b"", good, b"x"), (own, b"", b"x"), (own, good, b"y"), (ROOT.public, good, b"x")):
        with pytest.raises(AuthenticationFailed, match="thing"):
            check_signature(key, signature, text, "thing")
