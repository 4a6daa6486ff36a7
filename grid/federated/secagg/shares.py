"""Shares of a node's two secrets: sealed on their way to a holder (leg 1), and one of the two in the clear (leg 4).

A sealed share is the AES-256-GCM encryption, with an empty nonce, of both shares under a key that belongs to the pair, the
direction, the terms and the roster: it seals this one message.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from grid.crypto.keys import AgreementKey
from grid.errors import AuthenticationFailed, WireError
from grid.federated.secagg.masks import derive
from grid.federated.secagg.shamir import SHARE_BYTES, element
from grid.federated.secagg.statements import Member
from grid.ids import PeerId

SEALED_BYTES = 2 * SHARE_BYTES + 16
OF_MASK_KEY, OF_OWN_SEED = b"k", b"s"
"""Which secret a revealed share is of: the mask key of a node that was lost, the seed of the own mask of a survivor."""

_NONCE = bytes(12)


def seal_shares(mine: AgreementKey, me: PeerId, to: Member, context: bytes, of_mask_key: bytes, of_own_seed: bytes) -> bytes:
    """For the eyes of `to` alone. `AuthenticationFailed` for a key of small order."""
    key = derive(mine.agree(to.cipher), context, "grid sealed share 1", me, to.id)
    return AESGCM(key).encrypt(_NONCE, of_mask_key + of_own_seed, None)


def open_shares(mine: AgreementKey, me: PeerId, sender: Member, context: bytes, sealed: bytes) -> tuple[bytes, bytes]:
    """The sender's shares (of its mask key, of its own seed); `AuthenticationFailed`, naming it, for anything else."""
    key = derive(mine.agree(sender.cipher), context, "grid sealed share 1", sender.id, me)
    try:
        plain = AESGCM(key).decrypt(_NONCE, sealed, None)
        of_mask_key, of_own_seed = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
        for share in (of_mask_key, of_own_seed):
            element(share)
    except (InvalidTag, WireError):
        what = f"the share of {sender.card} was not sealed by it for this node and roster, or is none"
        raise AuthenticationFailed(what, peer=sender.id) from None
    return of_mask_key, of_own_seed


def revealed(kind: bytes, share: bytes) -> bytes:
    """What a node answers in leg 4 about one peer."""
    return kind + share


def read_revealed(data: bytes, kind: bytes) -> bytes:
    """The share in it; `WireError` if it is none, or one of the other secret."""
    if len(data) != 1 + SHARE_BYTES or data[:1] != kind:
        raise WireError("a revealed share has a wrong form, or is of the other secret than the survivors ask for")
    element(data[1:])
    return data[1:]
