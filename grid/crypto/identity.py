"""Who this process is: `LocalIdentity`, with its keys; and, from here, all that others use of identities.

Keys are kept in `identity.json` in a folder, mode 0600, or in memory alone. The card renews itself while the enrolment
stands; a self-signed one (a gateway's, or with `--dev`) always does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grid.clock import Clock
from grid.crypto.cards import (
    CARD_LIFE_S,
    GATEWAY,
    TOLERANCE_S,
    Card,
    Enrolment,
    Expected,
    check_name,
    describe_date,
    read_card,
    read_enrolment,
    sign_card,
)
from grid.crypto.enrolment import RootKey, Token, format_root, parse_root
from grid.crypto.files import hex_field, read_json, text_field, write_json
from grid.crypto.joining import join_statement, verify_join, verify_welcome, welcome_statement
from grid.crypto.keys import KEY_BYTES, AgreementKey, SigningKey, id_of
from grid.crypto.trust import Trust
from grid.errors import AuthenticationFailed, InvalidRequest
from grid.ids import PeerId

__all__ = [
    "Card",
    "Enrolment",
    "Expected",
    "LocalIdentity",
    "RootKey",
    "Token",
    "Trust",
    "format_root",
    "id_of",
    "join_statement",
    "parse_root",
    "verify_join",
    "verify_welcome",
    "welcome_statement",
]

FILE_NAME = "identity.json"
FORMAT = "grid identity 1"


class LocalIdentity:
    """This process's keys, card and enrolment. Made by `create` or `load_or_create`. `repr` shows no secrets."""

    def __init__(
        self,
        *,
        name: str,
        role: str,
        organisation: str,
        key: SigningKey,
        noise: AgreementKey,
        enrolment: Enrolment | None,
        enrolment_key: SigningKey | None,
        path: Path | None,
    ) -> None:
        self.name = name
        self.role = role
        self.organisation = organisation
        self.key = key
        self.noise = noise
        self.enrolment = enrolment
        self._enrolment_key = enrolment_key
        self._path = path
        self._card: Card | None = None

    @classmethod
    def create(
        cls,
        *,
        name: str | None = None,
        role: str,
        clock: Clock,
        token: Token | None = None,
        organisation: str = "",
        path: Path | None = None,
    ) -> LocalIdentity:
        """New keys, in memory (or at `path` once its card is signed), enrolled with `token` or, without one, self-signed.

        With a token its name and organisation count; a different `name`, or a role that is not the token's, is an error.
        """
        if token is not None:
            name, organisation = _enrolled_name(token, name, role), token.enrolment.organisation
        if name is None:
            raise InvalidRequest(f"a {role} needs a name, or a token that gives it one")
        check_name(name, role, organisation)
        me = cls(
            name=name,
            role=role,
            organisation=organisation,
            key=SigningKey.generate(),
            noise=AgreementKey.generate(),
            enrolment=token.enrolment if token else None,
            enrolment_key=token.enrolment_key if token else None,
            path=path,
        )
        me._sign_card(clock.wall())
        return me

    @classmethod
    def load_or_create(
        cls,
        folder: Path | None,
        *,
        name: str | None = None,
        role: str,
        clock: Clock,
        token: Token | None = None,
        organisation: str = "",
    ) -> LocalIdentity:
        """The identity kept in `folder`, or a new one kept there; in memory where `folder` is None.

        A token that the kept identity does not have yet is taken over: its keys, and so its id, stay.
        """
        if folder is None:
            return cls.create(name=name, role=role, clock=clock, token=token, organisation=organisation)
        path = folder / FILE_NAME
        me = cls._load(path)
        if me is None:
            me = cls.create(name=name, role=role, clock=clock, token=token, organisation=organisation, path=path)
            if me._save(only_new=True):
                return me
            me = cls._load(path)  # another process made it meanwhile
        if me is None:
            raise AuthenticationFailed(f"{path} vanished while it was read; start again")
        me._check_same(name, role, token)
        me._take_over(token, clock)
        me.card_for(clock)
        return me

    @classmethod
    def read(cls, folder: Path) -> LocalIdentity | None:
        """The identity kept in `folder` as it is, nothing renewed or written; None where there is none."""
        return cls._load(folder / FILE_NAME)

    @property
    def id(self) -> PeerId:
        return self.key.id

    @property
    def public_key(self) -> bytes:
        """The Ed25519 public key, 32 bytes; the id is its hash."""
        return self.key.public

    @property
    def card(self) -> bytes:
        """The card's envelope as it was last signed; `card_for` renews it first where that is due."""
        return self.parsed_card.envelope

    @property
    def parsed_card(self) -> Card:
        assert self._card is not None  # each way to make one signs or loads it
        return self._card

    def sign(self, statement: bytes) -> bytes:
        """64 bytes by this identity's key. The statement must begin with what it is for, as `envelope.framed` does."""
        return self.key.sign(statement)

    def card_for(self, clock: Clock) -> bytes:
        """The card's envelope, signed anew if less than a third of its life is left.

        Raises AuthenticationFailed once the enrolment has expired, and the card with it.
        """
        card, wall = self.parsed_card, clock.wall()
        left, life = card.expires - wall, card.expires - card.not_before
        if left < life / 3 or wall < card.not_before:
            may_live_to = int(wall) + CARD_LIFE_S
            if self.enrolment is None or min(may_live_to, self.enrolment.expires) > card.expires or wall < card.not_before:
                self._sign_card(wall)
                self._save()
        if self.enrolment is not None and wall > self.enrolment.expires + TOLERANCE_S:
            raise AuthenticationFailed(
                f"the enrolment of {self.name} expired on {describe_date(self.enrolment.expires)};"
                " ask whoever holds the root for a new token (`grid enroll`)"
            )
        return self.card

    def _sign_card(self, wall: float) -> None:
        not_before = int(wall)
        expires = not_before + CARD_LIFE_S
        if self.enrolment is not None:
            expires = min(expires, self.enrolment.expires)
            not_before = min(not_before, expires)  # an expired enrolment gives an expired card, which says so to whoever reads it
        self._card = read_card(
            sign_card(
                self.key,
                noise_key=self.noise.public,
                name=self.name,
                role=self.role,
                organisation=self.organisation,
                not_before=not_before,
                expires=expires,
                serial=max(self._card.serial + 1 if self._card else 1, int(wall)),
                enrolment=self.enrolment,
                enrolment_key=self._enrolment_key,
            )
        )

    # ------------------------------------------------------------ keeping

    def _check_same(self, name: str | None, role: str, token: Token | None) -> None:
        if token is not None:
            name = _enrolled_name(token, name, role)
        if role != self.role or (name is not None and name != self.name):
            raise InvalidRequest(
                f"{self._path} holds the keys of the {self.role} {self.name!r}, not of a {role} {name!r};"
                " give each its own folder"
            )

    def _take_over(self, token: Token | None, clock: Clock) -> None:
        if token is None or (self.enrolment is not None and self.enrolment.key == token.enrolment.key):
            return
        self.enrolment, self._enrolment_key = token.enrolment, token.enrolment_key
        self.organisation = token.enrolment.organisation
        self._sign_card(clock.wall())
        self._save()

    @classmethod
    def _load(cls, path: Path) -> LocalIdentity | None:
        content = read_json(path, "an identity")
        if content is None:
            return None
        if content.get("format") != FORMAT:
            raise AuthenticationFailed(f"{path}: no identity of this version; restore it from a copy, or delete it and join anew")
        try:
            me = cls._from_file(content, path)
        except AuthenticationFailed as error:
            if str(path) in error.message:
                raise
            raise AuthenticationFailed(f"{path}: damaged; restore it from a copy, or delete it and join anew") from error
        card = me.parsed_card
        said = (card.key, card.noise_key, card.name, card.role, card.organisation)
        if said != (me.key.public, me.noise.public, me.name, me.role, me.organisation):
            raise AuthenticationFailed(f"{path}: damaged, its card says something else than the rest; restore it from a copy")
        return me

    @classmethod
    def _from_file(cls, content: dict[str, Any], path: Path) -> LocalIdentity:
        enrolment = hex_field(content, "enrolment", path)
        me = cls(
            name=text_field(content, "name", path),
            role=text_field(content, "role", path),
            organisation=text_field(content, "organisation", path),
            key=SigningKey(hex_field(content, "key", path, length=KEY_BYTES)),
            noise=AgreementKey(hex_field(content, "noise_key", path, length=KEY_BYTES)),
            enrolment=read_enrolment(enrolment) if enrolment else None,
            enrolment_key=SigningKey(hex_field(content, "enrolment_key", path, length=KEY_BYTES)) if enrolment else None,
            path=path,
        )
        me._card = read_card(hex_field(content, "card", path))
        return me

    def _save(self, *, only_new: bool = False) -> bool:
        if self._path is None:
            return True
        content = {
            "format": FORMAT,
            "id": self.id,
            "name": self.name,
            "role": self.role,
            "organisation": self.organisation,
            "key": self.key.seed.hex(),
            "noise_key": self.noise.seed.hex(),
            "enrolment": self.enrolment.envelope.hex() if self.enrolment else "",
            "enrolment_key": self._enrolment_key.seed.hex() if self._enrolment_key else "",
            "card": self.card.hex(),
        }
        return write_json(self._path, content, only_new=only_new)

    def __repr__(self) -> str:
        return f"LocalIdentity({self.role} {self.name}, {self.id})"


def _enrolled_name(token: Token, name: str | None, role: str) -> str:
    """The name that a token gives; InvalidRequest where it is for somebody else."""
    if role == GATEWAY:
        raise InvalidRequest("a gateway is not enrolled: it is trusted with nothing that a token could prove")
    if token.enrolment.role != role or (name is not None and name != token.enrolment.name):
        asked = f"a {role} {name!r}" if name else f"a {role}"
        raise InvalidRequest(f"the token is for the {token.enrolment.role} {token.enrolment.name!r}, not for {asked}")
    return token.enrolment.name
