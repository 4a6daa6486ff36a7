"""Whom a process believes: roots, first use, revocations, and what is kept of them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grid.clock import Clock
from grid.crypto.cards import CARD_LIFE_S, DAY_S
from grid.crypto.enrolment import RootKey, Token
from grid.crypto.identity import LocalIdentity
from grid.crypto.keys import SigningKey, id_of
from grid.crypto.revocations import MAX_REVOKED, read_revocations, sign_revocations
from grid.crypto.trust import Trust
from grid.errors import AuthenticationFailed, ClockSkew
from grid.ids import GridId
from grid.wire.messages import Greeting

GRID = GridId("a" * 26)


@pytest.fixture
def root(tmp_path: Path) -> RootKey:
    return RootKey.create(tmp_path / "root.json")


def enrolled(root: RootKey, clock: Clock, name: str = "alice", role: str = "node", **options: float) -> LocalIdentity:
    token = Token.parse(root.enroll(name=name, role=role, gateway_url="ws://g", wall=clock.wall(), **options))
    return LocalIdentity.create(role=role, clock=clock, token=token)


def test_a_rooted_trust_believes_what_its_root_enrolled(root: RootKey, clock: Clock) -> None:
    alice = enrolled(root, clock)
    card = Trust.rooted(root.public).verify_card(alice.card, wall=clock.wall())
    assert (card.id, card.name, card.role, card.noise_key) == (alice.id, "alice", "node", alice.noise.public)


def test_a_rooted_trust_refuses_other_roots_and_self_signed_cards(root: RootKey, clock: Clock, tmp_path: Path) -> None:
    trust = Trust.rooted(root.public)
    stranger = enrolled(RootKey.create(tmp_path / "other.json"), clock)
    itself = LocalIdentity.create(name="alice", role="node", clock=clock)
    for identity in (stranger, itself):
        with pytest.raises(AuthenticationFailed, match="not enrolled under this grid's root"):
            trust.verify_card(identity.card, wall=clock.wall())


def test_dev_refuses_cards_that_a_root_enrolled(root: RootKey, clock: Clock) -> None:
    with pytest.raises(AuthenticationFailed, match="--dev grid"):
        Trust.dev().verify_card(enrolled(root, clock).card, wall=clock.wall())


def test_a_second_identity_under_one_enrolment_is_refused(root: RootKey, clock: Clock, tmp_path: Path) -> None:
    token = Token.parse(root.enroll(name="alice", role="node", gateway_url="ws://g", wall=clock.wall()))
    first, second = (LocalIdentity.create(role="node", clock=clock, token=token) for _ in range(2))
    trust = Trust.rooted(root.public, tmp_path / "state")
    trust.verify_card(first.card, wall=clock.wall())
    for again in (trust, Trust.rooted(root.public, tmp_path / "state")):
        again.verify_card(first.card, wall=clock.wall())
        with pytest.raises(AuthenticationFailed, match="already in use by another identity"):
            again.verify_card(second.card, wall=clock.wall())


def test_an_expired_card_and_one_of_the_future_are_refused(root: RootKey, clock: Clock) -> None:
    trust, alice = Trust.rooted(root.public), enrolled(root, clock)
    trust.verify_card(alice.card, wall=clock.wall() + CARD_LIFE_S)
    with pytest.raises(AuthenticationFailed, match="expired"):
        trust.verify_card(alice.card, wall=clock.wall() + CARD_LIFE_S + 301)
    with pytest.raises(ClockSkew, match="10 minutes in our future"):
        trust.verify_card(alice.card, wall=clock.wall() - 600)


def test_dev_pins_a_nodes_name_to_the_first_identity_in_each_grid(clock: Clock) -> None:
    trust = Trust.dev()
    first, second = (LocalIdentity.create(name="alice", role="node", clock=clock) for _ in range(2))
    cards = [trust.verify_card(one.card, wall=clock.wall()) for one in (first, second)]
    trust.pin(cards[0], GRID)
    trust.pin(cards[0], GRID)
    with pytest.raises(AuthenticationFailed, match=r"alice.*first seen"):
        trust.pin(cards[1], GRID)
    trust.pin(cards[1], GridId("b" * 26))


def test_clients_may_share_a_name_in_dev(clock: Clock) -> None:
    trust = Trust.dev()
    for _ in range(2):
        client = LocalIdentity.create(name="notebook", role="client", clock=clock)
        trust.pin(trust.verify_card(client.card, wall=clock.wall()), GRID)


def test_pins_are_kept_privately_where_a_folder_is_given(clock: Clock, tmp_path: Path) -> None:
    first, second = (LocalIdentity.create(name="alice", role="node", clock=clock).parsed_card for _ in range(2))
    Trust.dev(tmp_path).pin(first, GRID)
    with pytest.raises(AuthenticationFailed, match="first seen"):
        Trust.dev(tmp_path).pin(second, GRID)
    assert stat.S_IMODE((tmp_path / "trust.json").stat().st_mode) == 0o600


# ---------------------------------------------------------------- revocations


def test_revoking_a_name_ends_its_cards_and_its_enrolment(root: RootKey, clock: Clock) -> None:
    trust, alice, bob = Trust.rooted(root.public), enrolled(root, clock), enrolled(root, clock, "bob")
    assert trust.revocations == b"" and root.revocations() == b""
    assert trust.merge_revocations(root.revoke("alice", wall=clock.wall()))
    with pytest.raises(AuthenticationFailed, match=r"alice.*was revoked"):
        trust.verify_card(alice.card, wall=clock.wall())
    trust.verify_card(bob.card, wall=clock.wall())
    assert trust.revoked(alice.parsed_card) and not trust.revoked(bob.parsed_card)


def test_an_id_alone_can_be_revoked(root: RootKey, clock: Clock) -> None:
    trust, alice = Trust.rooted(root.public), enrolled(root, clock)
    trust.merge_revocations(root.revoke(alice.id, wall=clock.wall()))
    assert trust.revoked(alice.parsed_card)


def test_the_higher_serial_wins(root: RootKey, clock: Clock) -> None:
    trust, alice, bob = Trust.rooted(root.public), enrolled(root, clock), enrolled(root, clock, "bob")
    old, new = root.revoke("alice", wall=clock.wall()), root.revoke("bob", wall=clock.wall())
    assert trust.merge_revocations(new)
    assert not trust.merge_revocations(old)
    assert not trust.merge_revocations(new)
    assert trust.revocations == new
    assert trust.revoked(alice.parsed_card) and trust.revoked(bob.parsed_card)


def test_a_list_of_another_signer_is_refused(root: RootKey, clock: Clock) -> None:
    trust = Trust.rooted(root.public)
    forged = sign_revocations(SigningKey.generate(), serial=99, revoked=[])
    with pytest.raises(AuthenticationFailed):
        trust.merge_revocations(forged)
    assert trust.revocation_serial == 0


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_reading_a_list_is_total(garbage: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        read_revocations(garbage, SigningKey(bytes(32)).public)


def test_lists_are_stored(root: RootKey, clock: Clock, tmp_path: Path) -> None:
    alice = enrolled(root, clock)
    Trust.rooted(root.public, tmp_path / "s").merge_revocations(root.revoke("alice", wall=clock.wall()))
    assert Trust.rooted(root.public, tmp_path / "s").revoked(alice.parsed_card)


def test_a_full_list_fits_an_envelope() -> None:
    key = SigningKey(bytes(32))
    ids = [id_of(b"%d" % number) for number in range(MAX_REVOKED)]
    assert len(read_revocations(sign_revocations(key, serial=2**53, revoked=ids), key.public).revoked) == MAX_REVOKED


def test_listeners_hear_of_newer_lists_only_while_they_listen(root: RootKey, clock: Clock) -> None:
    trust, heard = Trust.rooted(root.public), []
    enrolled(root, clock)
    with trust.on_revocations(lambda: heard.append(trust.revocation_serial)):
        first = root.revoke("alice", wall=clock.wall())
        trust.merge_revocations(first)
        trust.merge_revocations(first)
    trust.merge_revocations(root.revoke("alice", wall=clock.wall()))
    assert len(heard) == 1


def test_dev_ignores_lists(root: RootKey, clock: Clock) -> None:
    enrolled(root, clock)
    assert not Trust.dev().merge_revocations(root.revoke("alice", wall=clock.wall()))


# ---------------------------------------------------------------- greetings


def greeting(clock: Clock, *, grid: str, dev: bool, ahead_s: float = 0) -> Greeting:
    return Greeting(grid=grid, dev=dev, gateway_key=SigningKey(bytes(32)).public, nonce=bytes(32), wall=clock.wall() + ahead_s)


def test_a_client_without_a_root_refuses_a_grid_that_has_one(root: RootKey, clock: Clock) -> None:
    with pytest.raises(AuthenticationFailed, match="connect with a token"):
        Trust.dev().check_greeting(greeting(clock, grid=root.grid, dev=False), clock.wall())


def test_an_enrolled_peer_refuses_a_dev_grid_and_another_roots_grid(root: RootKey, clock: Clock) -> None:
    trust = Trust.rooted(root.public)
    assert trust.check_greeting(greeting(clock, grid=root.grid, dev=False), clock.wall()) == root.grid
    with pytest.raises(AuthenticationFailed, match="--dev"):
        trust.check_greeting(greeting(clock, grid=root.grid, dev=True), clock.wall())
    with pytest.raises(AuthenticationFailed, match="another grid"):
        trust.check_greeting(greeting(clock, grid=GRID, dev=False), clock.wall())


def test_a_dev_grid_is_its_gateways_id(clock: Clock) -> None:
    own = SigningKey(bytes(32)).id
    assert Trust.dev().check_greeting(greeting(clock, grid=own, dev=True), clock.wall()) == own
    with pytest.raises(AuthenticationFailed, match="another grid"):
        Trust.dev().check_greeting(greeting(clock, grid=GRID, dev=True), clock.wall())


@pytest.mark.parametrize(("ahead_s", "text"), [(600, "10 minutes ahead of"), (-7200, "2 hours behind"), (float("nan"), "clock")])
def test_a_gateways_clock_that_is_wrong_is_named(clock: Clock, ahead_s: float, text: str) -> None:
    own = SigningKey(bytes(32)).id
    with pytest.raises(ClockSkew, match=text):
        Trust.dev().check_greeting(greeting(clock, grid=own, dev=True, ahead_s=ahead_s), clock.wall())
    Trust.dev().check_greeting(greeting(clock, grid=own, dev=True, ahead_s=299), clock.wall())


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "{}", '{"pins": {}, "enrolments": {}}', '{"pins": {"a": 1}, "enrolments": {}, "revocations": ""}']
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "trust.json").write_text(content)
    with pytest.raises(AuthenticationFailed, match=r"trust\.json: damaged"):
        Trust.dev(tmp_path)


def test_processes_that_share_a_folder_do_not_forget_for_each_other(root: RootKey, clock: Clock, tmp_path: Path) -> None:
    first, second = (Trust.rooted(root.public, tmp_path / "s") for _ in range(2))
    alice, bob = enrolled(root, clock), enrolled(root, clock, "bob")
    first.merge_revocations(root.revoke(bob.id, wall=clock.wall()))
    second.verify_card(alice.card, wall=clock.wall())
    content = json.loads((tmp_path / "s" / "trust.json").read_text())
    assert content["revocations"] == first.revocations.hex() == second.revocations.hex()
    assert list(content["enrolments"].values()) == [alice.id]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["pins", "enrolments", "revocations"]),
        st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
    )
)
def test_reading_a_file_is_total(tmp_path: Path, content: dict[str, object]) -> None:
    (tmp_path / "trust.json").write_text(json.dumps(content))
    try:
        trust = Trust.rooted(SigningKey(bytes(32)).public, tmp_path)
    except AuthenticationFailed as error:
        assert "trust.json" in error.message
    else:
        assert trust.revocations == b""


def test_a_file_of_another_root_is_named(root: RootKey, clock: Clock, tmp_path: Path) -> None:
    enrolled(root, clock)
    Trust.rooted(root.public, tmp_path / "s").merge_revocations(root.revoke("alice", wall=clock.wall()))
    assert json.loads((tmp_path / "s" / "trust.json").read_text())["revocations"]
    with pytest.raises(AuthenticationFailed, match="another root"):
        Trust.rooted(RootKey.create(tmp_path / "r2.json").public, tmp_path / "s")


def test_a_root_key_of_wrong_length_is_refused() -> None:
    with pytest.raises(AuthenticationFailed, match="32 bytes"):
        Trust.rooted(b"short")


def test_an_enrolment_may_be_longer_than_its_cards(root: RootKey, clock: Clock) -> None:
    alice = enrolled(root, clock, valid_s=400 * DAY_S)
    assert alice.parsed_card.expires == int(clock.wall()) + CARD_LIFE_S
    assert alice.enrolment is not None and alice.enrolment.expires == int(clock.wall() + 400 * DAY_S)
