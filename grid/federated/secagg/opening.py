"""Leg 4 at a node: what it reveals once enough of the survivors have signed what it has signed.

An `Opening` holds, of each neighbour and of the node itself, the one share that belongs to the signed survivors, and nothing
else: so no node can give both shares of one peer, whatever it is asked. It may be kept (`to_bytes`) on the node's own disk, and
a node that was started anew can answer leg 4 from it; without, the round goes on with the others' shares, or is lost.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import msgpack

from grid.crypto.envelope import unpack
from grid.crypto.keys import KEY_BYTES, check_signature
from grid.errors import ReleaseDenied, WireError
from grid.federated.secagg.shamir import SHARE_BYTES
from grid.federated.secagg.statements import DIGEST_BYTES, consent_statement
from grid.ids import PeerId

VERSION = 1


class Memory(Protocol):
    """Names that are taken once and for all, across restarts, as long as the job may live."""

    def claim(self, *names: str) -> bool:
        """Take names, all of them or none: True for the first who asks for any of them. They are kept when this returns."""
        ...

    def claimed(self, name: str) -> bool:
        """Whether somebody has taken the name."""
        ...


def deny(where: str, rule: str, what: str, instead: str) -> NoReturn:
    """Refuse by a rule of secure aggregation."""
    raise ReleaseDenied(f"{where}: {what} (rule {rule}). Do instead: {instead}.", rule=rule, instead=instead)


def deny_opened(where: str) -> NoReturn:
    """Refuse a model that a sum was opened over."""
    deny(
        where,
        "secagg.model",
        "this node has helped to open a sum over this model before, and two sums would show who is in one of them only",
        "a round on another model",
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Opening:
    """`where` begins messages; `model` is what `Memory` calls the model of this job. `roster` is its digest.

    `survivors` are the keys (Ed25519) of those who may sign, `needed` of whom must. `shares` are the answer.
    """

    where: str
    model: str
    roster: bytes
    survivors: Mapping[PeerId, bytes]
    needed: int
    shares: Mapping[PeerId, bytes]

    def reveal(self, consents: Mapping[PeerId, bytes], memory: Memory) -> dict[PeerId, bytes]:
        """The shares, once the signatures hold. From then on the sum over this model counts as opened for this node, for ever.

        Raises `ReleaseDenied` for too few signatures, and where another sum over this model has been opened;
        `AuthenticationFailed` for a signature that does not hold.
        """
        statement = consent_statement(self.roster, list(self.survivors))
        this_sum = "secagg sum " + hashlib.sha256(statement).hexdigest()
        if memory.claimed(this_sum):
            return dict(self.shares)
        if not consents.keys() <= self.survivors.keys() or len(consents) < self.needed:
            deny(
                self.where,
                "secagg.consent",
                f"{self.needed} of the {len(self.survivors)} survivors must have signed, and nobody else",
                "the signatures of leg 3",
            )
        for peer, signature in consents.items():
            check_signature(
                self.survivors[peer], signature, statement, f"{self.where}: node {peer} under the survivors that this node signed"
            )
        if not memory.claim(self.model, this_sum):
            deny_opened(self.where)
        return dict(self.shares)

    def to_bytes(self) -> bytes:
        """For this node's own disk: shares are secret until they are revealed."""
        packed: bytes = msgpack.packb([VERSION, *(getattr(self, field.name) for field in dataclasses.fields(self))])
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Opening:
        """What `to_bytes` kept; `WireError` for anything else."""
        kept = unpack(data, "a kept opening", error=WireError)
        if not isinstance(kept, list) or len(kept) != 7 or kept[0] != VERSION or not _well_typed(kept[1:]):
            raise WireError("a kept opening has a wrong form")
        return cls(**{field.name: value for field, value in zip(dataclasses.fields(cls), kept[1:], strict=True)})


def _well_typed(parts: list[Any]) -> bool:
    where, model, roster, survivors, needed, shares = parts
    return (
        all(isinstance(text, str) for text in (where, model))
        and isinstance(roster, bytes)
        and len(roster) == DIGEST_BYTES
        and type(needed) is int
        and needed >= 2
        and _all_bytes(survivors, KEY_BYTES)
        and _all_bytes(shares, 1 + SHARE_BYTES)
    )


def _all_bytes(value: Any, length: int) -> bool:
    return isinstance(value, dict) and all(isinstance(one, bytes) and len(one) == length for one in value.values())
