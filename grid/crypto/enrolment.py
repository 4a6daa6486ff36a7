"""The grid's root: it enrols peers and revokes them. Its key is used by people, offline; no service holds it.

`RootKey` keeps, in one private file, the key, what it enrolled, what it revoked and the serial of its revocation list.
`Token` is what `grid enroll` prints and a new node or client is started with: it holds a fresh enrolment key, so it is a
secret, and good for one identity.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from grid.crypto.cards import (
    DAY_S,
    MAX_CARD_BYTES,
    TOLERANCE_S,
    Enrolment,
    check_name,
    is_name,
    read_enrolment,
    sign_enrolment,
)
from grid.crypto.envelope import Fields, pack
from grid.crypto.files import hex_field, read_json, write_json
from grid.crypto.keys import KEY_BYTES, SigningKey, fresh_seed, id_of, is_id
from grid.crypto.revocations import MAX_REVOKED, sign_revocations
from grid.errors import AuthenticationFailed, InvalidRequest, NotFound
from grid.ids import GridId, PeerId

ROOT_FORMAT = "grid root 1"
TOKEN_PREFIX = "grid1-"
TOKEN_CHECK_BYTES = 4
MAX_TOKEN_LETTERS = 8192
MAX_URL_LETTERS = 2048
ENROLMENT_LIFE_S = 365 * DAY_S

ROOT_PREFIX = "root1-"


def format_root(public_key: bytes) -> str:
    """A root's public key as people pass it on (`grid gateway --root`)."""
    return ROOT_PREFIX + public_key.hex()


def parse_root(text: str) -> bytes:
    """The public key in what `format_root` gave; AuthenticationFailed if it is something else."""
    text = text.strip()
    try:
        key = bytes.fromhex(text.removeprefix(ROOT_PREFIX))
    except ValueError:
        key = b""
    if not text.startswith(ROOT_PREFIX) or len(key) != KEY_BYTES:
        raise AuthenticationFailed(f"a root's public key is {ROOT_PREFIX!r} and 64 hex digits; `grid root init` prints it")
    return key


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An enrolment, with its private key: a secret."""

    gateway_url: str
    enrolment: Enrolment
    enrolment_key: SigningKey

    @property
    def root(self) -> bytes:
        return self.enrolment.root

    def text(self) -> str:
        """The token in one printable word, with a checksum against incomplete copies."""
        data = pack({"url": self.gateway_url, "seed": self.enrolment_key.seed, "enrolment": self.enrolment.envelope})
        check = hashlib.sha256(data).digest()[:TOKEN_CHECK_BYTES]
        return TOKEN_PREFIX + base64.urlsafe_b64encode(check + data).decode("ascii").rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token; AuthenticationFailed, which never repeats it, if it is damaged or not one."""
        text = text.strip()
        if not text.startswith(TOKEN_PREFIX) or len(text) > MAX_TOKEN_LETTERS:
            raise AuthenticationFailed(f"this is no token: one starts with {TOKEN_PREFIX!r}, as `grid enroll` printed it")
        body = text.removeprefix(TOKEN_PREFIX)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except ValueError:
            data = b""
        check, data = data[:TOKEN_CHECK_BYTES], data[TOKEN_CHECK_BYTES:]
        if hashlib.sha256(data).digest()[:TOKEN_CHECK_BYTES] != check:
            raise AuthenticationFailed("the token is damaged or was copied incompletely; copy all of it, or have a new one made")
        fields = Fields(data, "token")
        enrolment = read_enrolment(fields.raw("enrolment", longest=MAX_CARD_BYTES))
        key = SigningKey(fields.raw("seed", length=KEY_BYTES))
        if key.public != enrolment.key:
            raise AuthenticationFailed("the token's key is not the one that the root enrolled")
        return cls(gateway_url=fields.text("url", longest=MAX_URL_LETTERS), enrolment=enrolment, enrolment_key=key)

    def __repr__(self) -> str:
        return f"Token({self.enrolment.role} {self.enrolment.name} of grid {id_of(self.root)})"


class RootKey:
    """The root key and its register, in one file. Made by `create` or `load`."""

    def __init__(self, path: Path, key: SigningKey, register: dict[str, Any]) -> None:
        self._path = path
        self._key = key
        self._register = register

    @classmethod
    def create(cls, path: Path) -> RootKey:
        """A new root at `path`, mode 0600; InvalidRequest if something is there: no root is ever overwritten."""
        root = cls(path, SigningKey(fresh_seed()), {"issued": [], "revoked": {}, "revocation_serial": 0})
        if not root._save(only_new=True):
            raise InvalidRequest(f"{path} exists; a root key is never overwritten. Choose another file")
        return root

    @classmethod
    def load(cls, path: Path) -> RootKey:
        """The root at `path`; NotFound, or AuthenticationFailed if the file is damaged."""
        content = read_json(path, "a root key")
        if content is None:
            raise NotFound(f"there is no root key at {path}; `grid root init` makes one")
        seed = hex_field(content, "seed", path, length=KEY_BYTES)
        register = {name: content.get(name) for name in ("issued", "revoked", "revocation_serial")}
        if content.get("format") != ROOT_FORMAT or not _is_register(register):
            raise AuthenticationFailed(f"{path}: damaged, not a root key; restore it from a copy")
        return cls(path, SigningKey(seed), register)

    @property
    def public(self) -> bytes:
        return self._key.public

    @property
    def grid(self) -> GridId:
        """The id of the grid that this root makes."""
        return GridId(self._key.id)

    @property
    def text(self) -> str:
        """The public key as `grid gateway --root` takes it."""
        return format_root(self.public)

    def enroll(
        self, *, name: str, role: str, gateway_url: str, wall: float, organisation: str = "", valid_s: float = ENROLMENT_LIFE_S
    ) -> str:
        """Vouch for a fresh enrolment key and note it; the token that a node or client is started with."""
        check_name(name, role, organisation)
        if len(gateway_url) > MAX_URL_LETTERS or not gateway_url.isprintable():
            raise InvalidRequest(f"a gateway's URL is printable and has at most {MAX_URL_LETTERS} characters")
        if valid_s <= 0:
            raise InvalidRequest("an enrolment must be valid for more than no time")
        enrolment_key = SigningKey.generate()
        issued = self._register["issued"]
        serial, expires = len(issued) + 1, int(wall + valid_s)
        envelope = sign_enrolment(
            self._key, key=enrolment_key.public, name=name, role=role, organisation=organisation, expires=expires, serial=serial
        )
        issued.append({"id": enrolment_key.id, "name": name, "role": role, "expires": expires, "serial": serial})
        self._save()
        return Token(gateway_url=gateway_url, enrolment=read_enrolment(envelope), enrolment_key=enrolment_key).text()

    def revoke(self, who: str, *, wall: float) -> bytes:
        """Revoke every enrolment of the name `who`, or one id (of a peer or enrolment); the new signed list.

        By name is the stronger way: it ends the enrolment, so no new identity can be made under it.
        """
        found = {one["id"]: one["expires"] for one in self._register["issued"] if who in (one["name"], one["id"])}
        if not found and is_id(who):
            found = {who: None}
        if not found:
            raise NotFound(f"this root enrolled nobody called {who!r}, and it is not an id")
        kept = {
            one: expires
            for one, expires in self._register["revoked"].items()
            if expires is None or expires + TOLERANCE_S >= wall  # an expired enrolment needs no revocation
        }
        kept.update(found)
        if len(kept) > MAX_REVOKED:
            raise InvalidRequest(f"a revocation list holds at most {MAX_REVOKED} entries; make a new root and enrol afresh")
        self._register["revoked"] = kept
        # At least the time, so the serial rises even if this file was once restored from an old copy.
        self._register["revocation_serial"] = max(self._register["revocation_serial"] + 1, int(wall))
        self._save()
        return self.revocations()

    def revocations(self) -> bytes:
        """The newest revocation list, signed; b"" where nothing was ever revoked."""
        serial = self._register["revocation_serial"]
        if not serial:
            return b""
        return sign_revocations(self._key, serial=serial, revoked=[PeerId(one) for one in sorted(self._register["revoked"])])

    def _save(self, *, only_new: bool = False) -> bool:
        content = {"format": ROOT_FORMAT, "public": self.text, "seed": self._key.seed.hex(), **self._register}
        return write_json(self._path, content, only_new=only_new)

    def __repr__(self) -> str:
        return f"RootKey({self.grid})"


def _is_register(register: dict[str, Any]) -> bool:
    issued, revoked = register["issued"], register["revoked"]
    return (
        isinstance(issued, list)
        and all(_is_issued(one) for one in issued)
        and isinstance(revoked, dict)
        and all(is_id(one) and (expires is None or type(expires) is int) for one, expires in revoked.items())
        and type(register["revocation_serial"]) is int
        and register["revocation_serial"] >= 0
    )


def _is_issued(one: Any) -> bool:
    if not isinstance(one, dict):
        return False
    name, key_id = one.get("name"), one.get("id")
    named = isinstance(name, str) and is_name(name) and isinstance(key_id, str) and is_id(key_id)
    return named and type(one.get("expires")) is int
