"""Revocation lists: the ids that no longer count, signed by the grid's root, with a serial that only rises.

An entry is the id of a peer's key or of an enrolment key; the second ends every card under that enrolment. A list replaces
the one before it as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grid.crypto.cards import Card
from grid.crypto.envelope import Fields, pack, read, seal
from grid.crypto.keys import SigningKey, is_id
from grid.ids import PeerId

REVOCATIONS_KIND = "grid revocations 1"

MAX_REVOKED = 2000
"""So a list (27 bytes an entry) fits one handshake message beside the card."""


@dataclasses.dataclass(frozen=True, slots=True)
class Revocations:
    """A list that the root signed. Serial 0 is the empty list from before the first."""

    serial: int = 0
    revoked: frozenset[str] = frozenset()
    envelope: bytes = dataclasses.field(default=b"", repr=False)

    def include(self, card: Card) -> bool:
        """Whether the card's key or its enrolment is revoked."""
        return card.id in self.revoked or (card.enrolment is not None and card.enrolment.id in self.revoked)


def sign_revocations(root: SigningKey, *, serial: int, revoked: Sequence[PeerId]) -> bytes:
    """The signed list, at most `MAX_REVOKED` ids."""
    return seal(REVOCATIONS_KIND, pack({"serial": serial, "revoked": list(revoked)}), root)


def read_revocations(envelope: bytes, root: bytes) -> Revocations:
    """The list in `envelope`, which the key `root` must have signed; else AuthenticationFailed."""
    fields = Fields(read(envelope, "revocation list").verified(REVOCATIONS_KIND, root), "revocation list")
    return Revocations(
        serial=fields.number("serial", least=1),
        revoked=frozenset(fields.texts("revoked", most=MAX_REVOKED, check=is_id)),
        envelope=bytes(envelope),
    )
