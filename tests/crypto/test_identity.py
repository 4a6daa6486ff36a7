"""Local identities, roots and tokens: made, kept, renewed, and clear about what is wrong with them."""

from __future__ import annotations

import base64
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still_clock import StillClock

from grid.crypto.cards import CARD_LIFE_S, DAY_S, read_card
from grid.crypto.enrolment import RootKey, Token, parse_root
from grid.crypto.identity import (
    LocalIdentity,
    Trust,
    join_statement,
    verify_join,
    verify_welcome,
    welcome_statement,
)
from grid.errors import AuthenticationFailed, ClockSkew, InvalidRequest, NotFound
from grid.ids import PeerId
from grid.wire.messages import Greeting, Join, Welcome


def token_of(root: RootKey, clock: StillClock, name: str = "alice", role: str = "node", valid_s: float = 365 * DAY_S) -> Token:
    text = root.enroll(name=name, role=role, gateway_url="wss://g:1", wall=clock.wall(), organisation="Clinic", valid_s=valid_s)
    return Token.parse(text)


@pytest.fixture
def root(tmp_path: Path) -> RootKey:
    return RootKey.create(tmp_path / "root.json")


# ---------------------------------------------------------------- identities


def test_an_identity_is_kept_with_mode_0600(clock: StillClock, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    first = LocalIdentity.load_or_create(folder, name="alice", role="node", clock=clock)
    again = LocalIdentity.load_or_create(folder, name="alice", role="node", clock=clock)
    assert (again.id, again.card, again.noise.public) == (first.id, first.card, first.noise.public)
    assert stat.S_IMODE((folder / "identity.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["identity.json"]


def test_without_a_folder_each_identity_is_new(clock: StillClock) -> None:
    first, second = (LocalIdentity.load_or_create(None, name="alice", role="client", clock=clock) for _ in range(2))
    assert first.id != second.id


def test_repr_shows_no_secret(root: RootKey, clock: StillClock) -> None:
    token = token_of(root, clock)
    alice = LocalIdentity.create(role="node", clock=clock, token=token)
    for thing in (alice, alice.key, alice.noise, token, root):
        for secret in (alice.key.seed, alice.noise.seed, token.enrolment_key.seed):
            assert secret.hex() not in repr(thing) and repr(secret) not in repr(thing)
    assert alice.id in repr(alice)


def test_processes_that_start_at_once_agree_on_one_identity(clock: StillClock, tmp_path: Path) -> None:
    def start(_: int) -> str:
        return LocalIdentity.load_or_create(tmp_path, name="alice", role="client", clock=clock).id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(start, range(8)))) == 1


def test_a_folder_belongs_to_one_name_and_role(clock: StillClock, tmp_path: Path) -> None:
    LocalIdentity.load_or_create(tmp_path, name="alice", role="node", clock=clock)
    assert LocalIdentity.load_or_create(tmp_path, role="node", clock=clock).name == "alice"
    for name, role in (("bob", "node"), ("alice", "client")):
        with pytest.raises(InvalidRequest, match=r"node 'alice'.*its own folder"):
            LocalIdentity.load_or_create(tmp_path, name=name, role=role, clock=clock)


def test_a_name_is_needed(clock: StillClock) -> None:
    with pytest.raises(InvalidRequest, match="needs a name"):
        LocalIdentity.create(role="node", clock=clock)


@pytest.mark.parametrize("damage", ["", "{}", "[1]", "cut", "key", "noise_key", "card", "name", "enrolment", "other-card"])
def test_a_damaged_file_is_named_and_left_alone(clock: StillClock, tmp_path: Path, damage: str) -> None:
    LocalIdentity.load_or_create(tmp_path, name="alice", role="node", clock=clock)
    path = tmp_path / "identity.json"
    content = json.loads(path.read_text())
    if damage == "cut":
        path.write_text(path.read_text()[:-20])
    elif damage == "other-card":
        content["card"] = LocalIdentity.create(name="alice", role="node", clock=clock).card.hex()
        path.write_text(json.dumps(content))
    elif damage in content:
        content[damage] = "ab"
        path.write_text(json.dumps(content))
    else:
        path.write_text(damage)
    before = path.read_bytes()
    with pytest.raises(AuthenticationFailed, match=r"identity\.json: "):
        LocalIdentity.load_or_create(tmp_path, name=None, role="node", clock=clock)
    assert path.read_bytes() == before


def test_an_unreadable_file_is_named(clock: StillClock, tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir()
    with pytest.raises(AuthenticationFailed, match=r"identity\.json: cannot read"):
        LocalIdentity.load_or_create(tmp_path, name="alice", role="node", clock=clock)


# ---------------------------------------------------------------- renewal


def test_a_card_renews_itself_in_the_last_third_of_its_life(clock: StillClock, tmp_path: Path) -> None:
    alice = LocalIdentity.load_or_create(tmp_path, name="alice", role="node", clock=clock)
    first = alice.card
    clock.now += 19 * DAY_S
    assert alice.card_for(clock) == first
    clock.now += 2 * DAY_S
    second = read_card(alice.card_for(clock))
    assert second.envelope != first and second.id == alice.id
    assert second.expires == int(clock.now) + CARD_LIFE_S
    assert second.serial > read_card(first).serial
    assert LocalIdentity.load_or_create(tmp_path, role="node", clock=clock).card == second.envelope


def test_an_identity_that_slept_too_long_renews_when_it_starts(clock: StillClock, tmp_path: Path) -> None:
    LocalIdentity.load_or_create(tmp_path, name="alice", role="node", clock=clock)
    clock.now += 300 * DAY_S
    alice = LocalIdentity.load_or_create(tmp_path, role="node", clock=clock)
    Trust.dev().verify_card(alice.card, wall=clock.wall())


def test_a_card_never_outlives_its_enrolment(root: RootKey, clock: StillClock) -> None:
    start = clock.now
    alice = LocalIdentity.create(role="node", clock=clock, token=token_of(root, clock, valid_s=40 * DAY_S))
    trust = Trust.rooted(root.public)
    clock.now = start + 25 * DAY_S
    last = alice.card_for(clock)
    assert read_card(last).expires == int(start) + 40 * DAY_S
    clock.now = start + 39 * DAY_S
    assert alice.card_for(clock) == last
    trust.verify_card(last, wall=clock.wall())
    clock.now = start + 41 * DAY_S
    with pytest.raises(AuthenticationFailed, match=r"enrolment of alice expired.*new token"):
        alice.card_for(clock)


def test_a_clock_that_was_set_back_gives_a_card_that_counts_now(clock: StillClock) -> None:
    alice = LocalIdentity.create(name="alice", role="node", clock=clock)
    clock.now -= 100 * DAY_S
    Trust.dev().verify_card(alice.card_for(clock), wall=clock.wall())


def test_a_new_token_keeps_the_id(root: RootKey, clock: StillClock, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = LocalIdentity.load_or_create(folder, name="alice", role="node", clock=clock)
    second = LocalIdentity.load_or_create(folder, role="node", clock=clock, token=token_of(root, clock))
    clock.now += 370 * DAY_S
    with pytest.raises(AuthenticationFailed, match="new token"):
        LocalIdentity.load_or_create(folder, role="node", clock=clock)
    third = LocalIdentity.load_or_create(folder, role="node", clock=clock, token=token_of(root, clock))
    assert first.id == second.id == third.id
    assert third.organisation == "Clinic"
    Trust.rooted(root.public).verify_card(third.card, wall=clock.wall())
    assert LocalIdentity.load_or_create(folder, role="node", clock=clock).card == third.card


def test_a_token_is_for_its_name_and_role(root: RootKey, clock: StillClock) -> None:
    for name, role in (("bob", "node"), (None, "client")):
        with pytest.raises(InvalidRequest, match="token is for the node 'alice'"):
            LocalIdentity.create(name=name, role=role, clock=clock, token=token_of(root, clock))
    with pytest.raises(InvalidRequest, match="gateway is not enrolled"):
        LocalIdentity.create(role="gateway", clock=clock, token=token_of(root, clock))


# ---------------------------------------------------------------- tokens and roots


def test_a_token_comes_back_whole(root: RootKey, clock: StillClock) -> None:
    token = token_of(root, clock)
    again = Token.parse(f"  {token.text()}\n")
    assert again.gateway_url == "wss://g:1"
    assert again.root == root.public
    assert again.enrolment_key.seed == token.enrolment_key.seed
    assert (again.enrolment.name, again.enrolment.organisation) == ("alice", "Clinic")
    assert token.text().isprintable() and " " not in token.text()


def test_every_incomplete_token_is_refused_without_repeating_it(root: RootKey, clock: StillClock) -> None:
    text = token_of(root, clock).text()
    for cut in (*range(0, len(text), 7), len(text) - 1):
        with pytest.raises(AuthenticationFailed) as caught:
            Token.parse(text[:cut])
        assert cut < 20 or text[10:cut] not in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=100).map(lambda text: "grid1-" + text) | st.binary(max_size=200).map(lambda raw: "grid1-" + raw.hex()))
def test_reading_a_token_is_total(text: str) -> None:
    with pytest.raises(AuthenticationFailed):
        Token.parse(text)


def test_a_token_with_another_enrolments_key_is_refused(root: RootKey, clock: StillClock) -> None:
    first, second = token_of(root, clock), token_of(root, clock, "bob")
    mixed = Token(gateway_url="", enrolment=first.enrolment, enrolment_key=second.enrolment_key)
    with pytest.raises(AuthenticationFailed, match="not the one that the root enrolled"):
        Token.parse(mixed.text())


def test_a_root_is_kept_and_never_overwritten(root: RootKey, clock: StillClock, tmp_path: Path) -> None:
    path = tmp_path / "root.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InvalidRequest, match="never overwritten"):
        RootKey.create(path)
    root.enroll(name="alice", role="node", gateway_url="", wall=clock.wall())
    again = RootKey.load(path)
    assert (again.public, again.grid) == (root.public, root.grid)
    again.revoke("alice", wall=clock.wall())
    assert RootKey.load(path).revocations() == again.revocations() != b""
    assert parse_root(root.text) == root.public


def test_a_root_says_what_is_missing(root: RootKey, clock: StillClock, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="grid root init"):
        RootKey.load(tmp_path / "nowhere.json")
    with pytest.raises(NotFound, match="'zoe'"):
        root.revoke("zoe", wall=clock.wall())
    for options in ({"name": "a b"}, {"role": "boss"}, {"valid_s": 0}, {"gateway_url": "a\nb"}):
        with pytest.raises(InvalidRequest):
            root.enroll(**({"name": "alice", "role": "node", "gateway_url": "", "wall": clock.wall()} | options))
    for text in ("", "root1-", "root1-zz", root.public.hex(), "root1-" + "ab" * 31):
        with pytest.raises(AuthenticationFailed, match="64 hex digits"):
            parse_root(text)


@pytest.mark.parametrize("content", ["", "{}", '{"format": "grid root 1", "seed": "00"}', "null"])
def test_a_damaged_root_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(AuthenticationFailed, match=r"bad\.json: damaged"):
        RootKey.load(tmp_path / "bad.json")


def test_expired_enrolments_leave_the_revocation_list_and_its_serial_rises(root: RootKey, clock: StillClock) -> None:
    alice, trust = token_of(root, clock, valid_s=DAY_S), Trust.rooted(root.public)
    bob = LocalIdentity.create(role="node", clock=clock, token=token_of(root, clock, "bob"))
    trust.merge_revocations(root.revoke("alice", wall=clock.wall()))
    serial = trust.revocation_serial
    clock.now += 2 * DAY_S
    newest = root.revoke("bob", wall=clock.wall())
    assert alice.enrolment.id.encode() not in newest
    assert trust.merge_revocations(newest) and trust.revocation_serial > serial
    assert trust.revoked(bob.parsed_card)


# ---------------------------------------------------------------- joining a gateway


class Meeting:
    """A gateway that greets and a peer that joins it."""

    def __init__(self, clock: StillClock) -> None:
        self.clock = clock
        self.gateway = LocalIdentity.create(name="gateway", role="gateway", clock=clock)
        self.peer = LocalIdentity.create(name="alice", role="node", clock=clock)
        self.greeting = self.greet()
        self.nonce = b"n" * 32

    def greet(self, nonce: bytes = bytes(32)) -> Greeting:
        return Greeting(
            grid=self.gateway.id, dev=True, gateway_key=self.gateway.public_key, nonce=nonce, wall=self.clock.wall()
        )

    def join(self) -> Join:
        statement = join_statement(self.greeting, self.nonce, self.peer.card)
        return Join(card=self.peer.card, nonce=self.nonce, signature=self.peer.sign(statement))

    def welcome(self) -> Welcome:
        signature = self.gateway.sign(welcome_statement(self.greeting, self.nonce, self.peer.id))
        return Welcome(peer=self.peer.id, signature=signature, revocations=b"")


@pytest.fixture
def meeting(clock: StillClock) -> Meeting:
    return Meeting(clock)


def test_a_join_and_its_welcome_hold(meeting: Meeting, clock: StillClock) -> None:
    card = verify_join(Trust.dev(), meeting.greeting, meeting.join(), clock.wall())
    assert card.id == meeting.peer.id
    verify_welcome(Trust.dev(), meeting.greeting, meeting.nonce, meeting.peer.id, meeting.welcome())


def test_a_join_is_of_no_use_anywhere_else(meeting: Meeting, clock: StillClock) -> None:
    join, other = meeting.join(), Meeting(clock)
    for greeting in (meeting.greet(nonce=b"x" * 32), other.greeting):
        with pytest.raises(AuthenticationFailed, match="signature does not hold"):
            verify_join(Trust.dev(), greeting, join, clock.wall())


def test_a_join_with_another_card_nonce_or_signature_is_refused(meeting: Meeting, clock: StillClock) -> None:
    join, mallory = meeting.join(), LocalIdentity.create(name="alice", role="node", clock=clock)
    forged = mallory.sign(join_statement(meeting.greeting, join.nonce, join.card))
    for wrong in (
        Join(card=mallory.card, nonce=join.nonce, signature=join.signature),
        Join(card=join.card, nonce=b"y" * 32, signature=join.signature),
        Join(card=join.card, nonce=b"", signature=join.signature),
        Join(card=join.card, nonce=join.nonce, signature=forged),
        Join(card=b"", nonce=join.nonce, signature=join.signature),
    ):
        with pytest.raises(AuthenticationFailed):
            verify_join(Trust.dev(), meeting.greeting, wrong, clock.wall())


def test_a_gateway_cannot_join_a_gateway(meeting: Meeting, clock: StillClock) -> None:
    meeting.peer = LocalIdentity.create(name="other", role="gateway", clock=clock)
    with pytest.raises(AuthenticationFailed, match="nodes and clients join"):
        verify_join(Trust.dev(), meeting.greeting, meeting.join(), clock.wall())


def test_a_peer_whose_clock_is_ahead_is_told_by_how_much(meeting: Meeting, clock: StillClock) -> None:
    with pytest.raises(ClockSkew, match="20 minutes"):
        verify_join(Trust.dev(), meeting.greeting, meeting.join(), clock.wall() - 1200)


def test_a_welcome_of_somebody_else_is_refused(meeting: Meeting, clock: StillClock) -> None:
    good, other = meeting.welcome(), Meeting(clock)
    for greeting, nonce, peer in (
        (other.greeting, meeting.nonce, meeting.peer.id),
        (meeting.greeting, b"z" * 32, meeting.peer.id),
        (meeting.greeting, meeting.nonce, PeerId("a" * 26)),
    ):
        with pytest.raises(AuthenticationFailed):
            verify_welcome(Trust.dev(), greeting, nonce, peer, good)


def test_a_welcome_brings_the_revocation_list(root: RootKey, clock: StillClock) -> None:
    meeting, trust = Meeting(clock), Trust.rooted(root.public)
    token_of(root, clock)
    revoked = root.revoke("alice", wall=clock.wall())
    plain = meeting.welcome()
    welcome = Welcome(peer=plain.peer, signature=plain.signature, revocations=revoked)
    verify_welcome(trust, meeting.greeting, meeting.nonce, meeting.peer.id, welcome)
    assert trust.revocations == revoked


def test_statements_cannot_stand_in_for_each_other(meeting: Meeting) -> None:
    join = join_statement(meeting.greeting, meeting.nonce, b"")
    welcome = welcome_statement(meeting.greeting, meeting.nonce, PeerId(""))
    assert join != welcome
    assert base64.b64encode(join) != base64.b64encode(join_statement(meeting.greeting, b"", meeting.nonce))


