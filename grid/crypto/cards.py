"""Cards: what a peer says of itself, signed; and the enrolment by which a grid's root vouches for it.

A card joins an Ed25519 key (whose hash is the id), the X25519 key of its channels, name, role and organisation. Its own
key signs it, so nobody can put another's key on a card. With a root, the card carries an enrolment {enrolment key, name,
role, organisation, expiry}, signed by the root, and the enrolment key signs the card too; without one (`--dev`) the card
vouches for itself. `read_card` checks that a card is consistent; whether to believe it is for `trust.Trust`.
"""

from __future__ import annotations

import dataclasses
import datetime
import re

from grid.crypto.envelope import Fields, pack, read, seal
from grid.crypto.keys import KEY_BYTES, SigningKey, id_of
from grid.errors import AuthenticationFailed, ClockSkew, InvalidRequest
from grid.ids import PeerId

CARD_KIND = "grid card 1"
ENROLMENT_KIND = "grid enrolment 1"

NODE = "node"
CLIENT = "client"
GATEWAY = "gateway"
ROLES = (NODE, CLIENT, GATEWAY)

DAY_S = 24 * 3600
CARD_LIFE_S = 30 * DAY_S
MAX_CARD_LIFE_S = 90 * DAY_S
"""A withheld revocation works until the card expires, so no card may live longer."""

TOLERANCE_S = 300
"""Clocks may differ by this much."""

MAX_CARD_BYTES = 4096
MAX_NAME_LETTERS = 64
MAX_ORGANISATION_LETTERS = 200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_name(text: str) -> bool:
    """Whether a peer may have this name: letters, digits, ".", "_" and "-", at most 64, the first a letter or digit."""
    return len(text) <= MAX_NAME_LETTERS and _NAME.fullmatch(text) is not None


def is_organisation(text: str) -> bool:
    """Whether an organisation may have this name: printable, at most 200 characters, or empty."""
    return len(text) <= MAX_ORGANISATION_LETTERS and (text == "" or text.isprintable())


def check_name(name: str, role: str, organisation: str) -> None:
    """Raise `InvalidRequest` with the rule unless a peer may be called that."""
    if not is_name(name):
        raise InvalidRequest(f"a name has 1 to {MAX_NAME_LETTERS} of A-Z a-z 0-9 . _ - and starts with a letter or digit")
    if role not in ROLES:
        raise InvalidRequest(f"a role is one of {', '.join(ROLES)}")
    if not is_organisation(organisation):
        raise InvalidRequest(f"an organisation's name is printable and has at most {MAX_ORGANISATION_LETTERS} characters")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """The root's word for one enrolment key. `root` is the root's public key; `expires` is wall time in seconds."""

    root: bytes
    key: bytes
    name: str
    role: str
    organisation: str
    expires: int
    serial: int
    envelope: bytes = dataclasses.field(repr=False)

    @property
    def id(self) -> PeerId:
        return id_of(self.key)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A peer as its signed card describes it. `not_before` and `expires` are wall time in seconds.

    `envelope` is the signed bytes that the rest was read from. A card that came from `read_card` is only consistent; one
    that came from `Trust.verify_card`, or from a channel's `peer`, is believed.
    """

    key: bytes
    noise_key: bytes
    name: str
    role: str
    organisation: str
    not_before: int
    expires: int
    serial: int
    enrolment: Enrolment | None
    envelope: bytes = dataclasses.field(repr=False)

    @property
    def id(self) -> PeerId:
        return id_of(self.key)

    def __str__(self) -> str:
        return f"{self.role} {self.name} ({self.id})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Whom a connection is meant for; None where anyone will do."""

    id: PeerId | None = None
    name: str | None = None
    role: str | None = None

    def check(self, card: Card) -> None:
        """Raise `AuthenticationFailed` unless `card` is of the peer that was asked for."""
        for what, wanted, found in (("id", self.id, card.id), ("name", self.name, card.name), ("role", self.role, card.role)):
            if wanted is not None and wanted != found:
                raise AuthenticationFailed(
                    f"asked for the peer with {what} {wanted!r} and reached {card}: the connection led to the wrong peer"
                )


def sign_enrolment(root: SigningKey, *, key: bytes, name: str, role: str, organisation: str, expires: int, serial: int) -> bytes:
    """The envelope by which the root vouches for an enrolment key."""
    check_name(name, role, organisation)
    fields = {"key": key, "name": name, "role": role, "organisation": organisation, "expires": expires, "serial": serial}
    return seal(ENROLMENT_KIND, pack(fields), root)


def read_enrolment(envelope: bytes) -> Enrolment:
    """A consistent enrolment, signed by the key in its `root`: believe it only if that is your grid's root."""
    opened = read(envelope, "enrolment")
    if len(opened.signers) != 1:
        raise AuthenticationFailed("enrolment: it must have the root's signature and no other")
    fields = Fields(opened.verified(ENROLMENT_KIND, *opened.signers), "enrolment")
    return Enrolment(
        root=opened.signers[0],
        key=fields.raw("key", length=KEY_BYTES),
        name=fields.text("name", longest=MAX_NAME_LETTERS, check=is_name),
        role=fields.choice("role", ROLES),
        organisation=fields.text("organisation", longest=MAX_ORGANISATION_LETTERS, check=is_organisation),
        expires=fields.number("expires"),
        serial=fields.number("serial"),
        envelope=envelope,
    )


def sign_card(
    key: SigningKey,
    *,
    noise_key: bytes,
    name: str,
    role: str,
    organisation: str,
    not_before: int,
    expires: int,
    serial: int,
    enrolment: Enrolment | None = None,
    enrolment_key: SigningKey | None = None,
) -> bytes:
    """A card's envelope, signed by its own key and, where it is enrolled, by the enrolment key."""
    check_name(name, role, organisation)
    fields = {
        "key": key.public,
        "noise_key": noise_key,
        "name": name,
        "role": role,
        "organisation": organisation,
        "not_before": not_before,
        "expires": expires,
        "serial": serial,
        "enrolment": enrolment.envelope if enrolment else b"",
    }
    return seal(CARD_KIND, pack(fields), key, *([enrolment_key] if enrolment_key else []))


def read_card(envelope: bytes) -> Card:
    """A card whose signatures hold and whose parts agree; not yet one to believe. Raises `AuthenticationFailed`."""
    if len(envelope) > MAX_CARD_BYTES:
        raise AuthenticationFailed(f"card: {len(envelope)} bytes are over the limit of {MAX_CARD_BYTES}")
    opened = read(envelope, "card")
    fields = Fields(opened.verified(CARD_KIND, *opened.signers), "card")
    chain = fields.raw("enrolment", longest=MAX_CARD_BYTES)
    card = Card(
        key=fields.raw("key", length=KEY_BYTES),
        noise_key=fields.raw("noise_key", length=KEY_BYTES),
        name=fields.text("name", longest=MAX_NAME_LETTERS, check=is_name),
        role=fields.choice("role", ROLES),
        organisation=fields.text("organisation", longest=MAX_ORGANISATION_LETTERS, check=is_organisation),
        not_before=fields.number("not_before"),
        expires=fields.number("expires"),
        serial=fields.number("serial"),
        enrolment=read_enrolment(chain) if chain else None,
        envelope=bytes(envelope),
    )
    _check_consistent(card, opened.signers)
    return card


def _check_consistent(card: Card, signers: tuple[bytes, ...]) -> None:
    if card.key not in signers:
        raise AuthenticationFailed(f"the card of {card} is not signed by its own key")
    if not 0 <= card.expires - card.not_before <= MAX_CARD_LIFE_S:
        raise AuthenticationFailed(f"the card of {card} may be valid for at most {MAX_CARD_LIFE_S // DAY_S} days")
    if card.enrolment is None:
        return
    if card.enrolment.key not in signers:
        raise AuthenticationFailed(f"the card of {card} is not signed by its enrolment key")
    if card.expires > card.enrolment.expires:
        raise AuthenticationFailed(f"the card of {card} is meant to outlive its enrolment")
    if (card.name, card.role, card.organisation) != (card.enrolment.name, card.enrolment.role, card.enrolment.organisation):
        raise AuthenticationFailed(f"the card of {card} says another name, role or organisation than its enrolment")


def check_times(card: Card, wall: float) -> None:
    """Raise `ClockSkew` for a card of the future, `AuthenticationFailed` for one that has expired."""
    ahead = card.not_before - wall
    if ahead > TOLERANCE_S:
        raise ClockSkew(
            f"the card of {card} was signed {describe_s(ahead)} in our future: the clock there is ahead or ours is behind;"
            f" they may differ by {TOLERANCE_S // 60} minutes",
            seconds=round(ahead),
        )
    if wall > card.expires + TOLERANCE_S:
        raise AuthenticationFailed(
            f"the card of {card} expired on {describe_date(card.expires)}, {describe_s(wall - card.expires)} ago by our clock;"
            " restart it there with a new token if it does not renew itself"
        )


def describe_s(seconds: float) -> str:
    """A length of time for people."""
    for size, unit in ((DAY_S, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def describe_date(wall: float) -> str:
    """A date for people, in UTC."""
    try:
        return datetime.datetime.fromtimestamp(wall, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"second {wall:.0f}"
