"""Whom to believe. One `Trust` per process, in one of two forms.

* Rooted: a card counts if the grid's root enrolled it. The first identity seen under an enrolment key is remembered, and
  a second is refused, so a stolen or reused token makes no second peer.
* Dev: a card vouches for itself. The first identity seen under a node's name in a grid is pinned there; never by URL.

Both check dates (clocks may differ by five minutes) and, when rooted, the newest revocation list seen. With a folder all
of this is kept in `trust.json` there; without one it lasts as long as the process.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grid.crypto.cards import GATEWAY, NODE, TOLERANCE_S, Card, check_times, describe_s, read_card
from grid.crypto.files import hex_field, read_json, write_json
from grid.crypto.keys import KEY_BYTES, id_of, is_id
from grid.crypto.revocations import Revocations, read_revocations
from grid.errors import AuthenticationFailed, ClockSkew, QuotaExceeded
from grid.ids import GridId
from grid.wire.messages import Greeting

log = logging.getLogger(__name__)

FILE_NAME = "trust.json"
MAX_REMEMBERED = 20_000
"""Pins, and remembered enrolments: more than any grid has peers."""

NONCE_BYTES = 32


class Trust:
    """The rules for believing cards and lists, and what is remembered of them. Make one with `dev` or `rooted`."""

    def __init__(self, *, root: bytes | None, folder: Path | None) -> None:
        self._root = root
        self._path = folder / FILE_NAME if folder else None
        self._pins: dict[str, str] = {}
        self._enrolments: dict[str, str] = {}
        self._revocations = Revocations()
        self._listeners: list[Callable[[], None]] = []
        self._load()

    @classmethod
    def dev(cls, folder: Path | None = None) -> Trust:
        """Trust on first use. Pass no folder for a grid on one machine: its keys are new each time."""
        return cls(root=None, folder=folder)

    @classmethod
    def rooted(cls, root: bytes, folder: Path | None = None) -> Trust:
        """Believe what the root with this public key (32 bytes, `enrolment.parse_root`) vouches for."""
        if len(root) != KEY_BYTES:
            raise AuthenticationFailed(f"a root's public key has {KEY_BYTES} bytes, not {len(root)}")
        return cls(root=root, folder=folder)

    @property
    def is_dev(self) -> bool:
        return self._root is None

    @property
    def grid(self) -> GridId | None:
        """The id of the root's grid; None in dev, where each gateway is a grid."""
        return None if self._root is None else GridId(id_of(self._root))

    # ------------------------------------------------------------ the gateway's greeting

    def check_greeting(self, greeting: Greeting, wall: float) -> GridId:
        """The grid that a gateway says it serves, if it is one for us: call this before sending it anything."""
        if len(greeting.gateway_key) != KEY_BYTES or len(greeting.nonce) != NONCE_BYTES:
            raise AuthenticationFailed("the gateway's greeting is malformed: key and nonce have 32 bytes each")
        if self._root is None and not greeting.dev:
            raise AuthenticationFailed(
                "this grid has a root and we have none to check it with: connect with a token, which `grid enroll` makes"
                " (a node: --join TOKEN in place of --dev; `grid ls` and its like: --token TOKEN)"
            )
        if self._root is not None and greeting.dev:
            raise AuthenticationFailed(
                "this gateway runs with --dev and we were enrolled under a root: it cannot show that its peers are genuine."
                " Connect to the gateway of your grid, or without a token"
            )
        grid = self.grid or GridId(id_of(greeting.gateway_key))
        if greeting.grid != grid:
            raise AuthenticationFailed(f"this gateway serves another grid than {grid}; check its URL")
        skew = greeting.wall - wall
        if not abs(skew) <= TOLERANCE_S:
            raise ClockSkew(
                f"the gateway's clock is {describe_s(abs(skew))} {'ahead of' if skew > 0 else 'behind'} ours;"
                f" they may differ by {TOLERANCE_S // 60} minutes. Set the one that is wrong",
                seconds=round(skew) if abs(skew) < 2**53 else 0,
            )
        return grid

    # ------------------------------------------------------------ cards

    def verify_card(self, envelope: bytes, *, wall: float) -> Card:
        """The card in `envelope`, if it is to be believed; AuthenticationFailed or ClockSkew with the reason if not.

        The card says who somebody is, not that the far end is that somebody: a channel or `verify_join` shows that.
        """
        card = read_card(envelope)
        if self._root is None and card.enrolment is not None:
            raise AuthenticationFailed(f"{card} is enrolled under a root, and this is a --dev grid: start it without its token")
        if self._root is not None and (card.enrolment is None or card.enrolment.root != self._root):
            raise AuthenticationFailed(f"the card of {card} is not enrolled under this grid's root; it needs a token")
        check_times(card, wall)
        if self.revoked(card):
            raise AuthenticationFailed(f"{card} was revoked by the grid's root")
        if card.enrolment is not None:
            self._remember(self._enrolments, card.enrolment.id, card, "the enrolment is already in use by another identity")
        return card

    def verify_gateway(self, envelope: bytes, *, wall: float) -> Card:
        """The card of a gateway, which vouches for itself; AuthenticationFailed or ClockSkew if it is none.

        No root stands behind it. Whoever asks must know by its id which gateway it is to be.
        """
        card = read_card(envelope)
        if card.role != GATEWAY or card.enrolment is not None:
            raise AuthenticationFailed(f"{card} is no gateway")
        check_times(card, wall)
        return card

    def pin(self, card: Card, grid: GridId) -> None:
        """Hold a node's name to the id that `grid` was first seen to use for it; of use in dev alone.

        To be called when the far end has proven to be this card's holder. A root vouches for names, so nothing is pinned
        then; nor are the names of clients, which are labels only.
        """
        if self._root is None and card.role == NODE:
            self._remember(
                self._pins,
                f"{grid}/{card.name}",
                card,
                "in this grid the name belonged to another identity when it was first seen (--dev trusts the first)."
                " Start the node with the --state folder it had; if its keys were lost on purpose, start the others afresh",
            )

    def _remember(self, table: dict[str, str], key: str, card: Card, otherwise: str) -> None:
        known = table.get(key)
        if known is None:
            if len(table) >= MAX_REMEMBERED:
                raise QuotaExceeded(f"{MAX_REMEMBERED} identities are remembered here and no more fit")
            table[key] = card.id
            self._save()
            if self.is_dev:
                log.info("first sight of %s: trusted from now on", card)
        elif known != card.id:
            raise AuthenticationFailed(f"{card} is refused: {otherwise}")

    # ------------------------------------------------------------ revocations

    @property
    def revocations(self) -> bytes:
        """The newest list seen, as signed; b"" where there is none."""
        return self._revocations.envelope

    @property
    def revocation_serial(self) -> int:
        return self._revocations.serial

    def revoked(self, card: Card) -> bool:
        """Whether the newest list seen names this card's key or enrolment."""
        return self._revocations.include(card)

    def merge_revocations(self, envelope: bytes) -> bool:
        """Take over a list if it is newer; True if so. AuthenticationFailed if the root did not sign it.

        In dev nothing is revoked, and lists are ignored. Channels of a key that is now revoked close by themselves.
        """
        if not envelope or self._root is None or envelope == self._revocations.envelope:
            return False
        newer = read_revocations(envelope, self._root)
        if newer.serial <= self._revocations.serial:
            return False
        self._revocations = newer
        self._save()
        for listener in tuple(self._listeners):
            listener()
        return True

    @contextlib.contextmanager
    def on_revocations(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have `listener` called after each newer list, within the block."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    # ------------------------------------------------------------ keeping

    def _load(self) -> None:
        """Take in what the file says; where both know something, the file was first, and of two lists the newer counts."""
        content = read_json(self._path, "remembered trust") if self._path else None
        if content is None or self._path is None:
            return
        self._pins |= _ids(content, "pins", self._path)
        self._enrolments |= _ids(content, "enrolments", self._path)
        envelope = hex_field(content, "revocations", self._path)
        if envelope and self._root is not None:
            try:
                kept = read_revocations(envelope, self._root)
            except AuthenticationFailed as error:
                raise AuthenticationFailed(f"{self._path}: it belongs to a grid with another root, or is damaged") from error
            self._revocations = max(self._revocations, kept, key=lambda one: one.serial)

    def _save(self) -> None:
        if self._path:
            self._load()  # other processes of the same user may share the folder
            content = {"pins": self._pins, "enrolments": self._enrolments, "revocations": self._revocations.envelope.hex()}
            write_json(self._path, content)


def _ids(content: dict[str, Any], name: str, path: Path) -> dict[str, str]:
    table = content.get(name)
    if not isinstance(table, dict) or not all(isinstance(value, str) and is_id(value) for value in table.values()):
        raise AuthenticationFailed(f"{path}: damaged, {name!r} is not what it must be; restore it from a copy, or delete it")
    return table
