"""What a round is, and what nodes sign about it.

Everything that is signed, and every key, is bound to the digest of the terms; from leg 1 on also to that of the roster, which
is all signed keys. So bytes of one job, round, attempt or model pass for no other's, and two nodes that were told different
things make masks that do not cancel and signatures that do not match.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgpack

from grid.crypto.cards import MAX_CARD_BYTES, NODE, Card
from grid.crypto.envelope import Fields, framed, pack, read, seal, unpack
from grid.crypto.identity import LocalIdentity
from grid.crypto.keys import KEY_BYTES
from grid.errors import AuthenticationFailed, WireError
from grid.federated.secagg.graph import MAX_COHORT, degree_and_threshold
from grid.federated.secagg.quantiser import Quantiser
from grid.ids import PeerId

KEYS_KIND = "grid round keys 1"
VERSION = 2
DIGEST_BYTES = 32
MAX_TERMS_BYTES = 4096
MAX_KEYS_BYTES = MAX_CARD_BYTES + 1024
MAX_JOB_LETTERS = 128
MAX_ROUND = 1 << 31

Verify = Callable[[bytes], Card]
"""The card in an envelope, if it is to be believed; else `AuthenticationFailed` (or `ClockSkew`)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One attempt of one round of a job.

    `index`: which of the rounds that the client has signed this is, from 1, and 0 for an evaluation alone; `round` is a number
    for this one, and lost ones count. `model`: SHA-256 of the weights' bytes and of the job's envelope. `size`: elements of the
    ring vector, of `bits` (32 or 64) each. `degree`: neighbours of each node, n - 1 in a complete graph. `threshold`: holders
    that open one secret.
    """

    job: str
    round: int
    attempt: int
    index: int
    model: bytes
    size: int
    bits: int
    degree: int
    threshold: int
    quantiser: Quantiser

    @classmethod
    def of(cls, quantiser: Quantiser, cohort: int, *, job: str, round: int, attempt: int, index: int, model: bytes) -> Terms:
        """The terms for so many nodes, with the graph that the table has for them. `InvalidRequest` for too many or too few."""
        degree, threshold = degree_and_threshold(cohort)
        return cls(
            job=job,
            round=round,
            attempt=attempt,
            index=index,
            model=model,
            size=quantiser.length,
            bits=quantiser.bits,
            degree=degree,
            threshold=threshold,
            quantiser=quantiser,
        )

    def encode(self) -> bytes:
        """What travels; the digest covers it."""
        named = [self.job, self.round, self.attempt, self.index, self.model, self.size, self.bits, self.degree, self.threshold]
        packed: bytes = msgpack.packb([VERSION, *named, self.quantiser.fields()])
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Terms:
        """Terms whose numbers are within bounds and fit together; `WireError` for anything else."""
        if len(data) > MAX_TERMS_BYTES:
            raise WireError(f"the terms of a round have at most {MAX_TERMS_BYTES} bytes")
        fields = unpack(data, "the terms of a round", error=WireError)
        if not isinstance(fields, list) or len(fields) != 11 or fields[0] != VERSION:
            raise WireError("the terms of a round have a wrong form, or are of another version")
        job, number, attempt, index, model, size, bits, degree, threshold = fields[1:10]
        quantiser = Quantiser.from_fields(fields[10])
        counts = (
            *((count, 0, MAX_ROUND) for count in (number, attempt, index)),
            *((count, 1, MAX_COHORT) for count in (degree, threshold)),
        )
        if not all(type(value) is int and least <= value <= most for value, least, most in counts):
            raise WireError("a number in the terms of a round is out of bounds")
        if not isinstance(job, str) or len(job) > MAX_JOB_LETTERS or not isinstance(model, bytes) or len(model) != DIGEST_BYTES:
            raise WireError("the terms of a round name no job or no model")
        if type(size) is not int or type(bits) is not int or (size, bits) != (quantiser.length, quantiser.bits):
            raise WireError("the terms of a round and their quantiser say different sizes")
        return cls(
            job=job,
            round=number,
            attempt=attempt,
            index=index,
            model=model,
            size=size,
            bits=bits,
            degree=degree,
            threshold=threshold,
            quantiser=quantiser,
        )

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(framed("grid round terms 1", self.encode())).digest()

    def __str__(self) -> str:
        return f"round {self.round} (attempt {self.attempt}) of job {self.job}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node's signed keys, verified. `cipher` seals shares, `mask` makes masks; `commitment` is the hash of its own mask's seed.

    `public`: what it puts in comes of data that anybody may have, so it hides nobody. `blob` is the bytes that they came in.
    """

    card: Card
    cipher: bytes
    mask: bytes
    commitment: bytes
    public: bool
    blob: bytes = dataclasses.field(repr=False)

    @property
    def id(self) -> PeerId:
        return self.card.id


def commitment_to(secret: bytes) -> bytes:
    """Says nothing of a random secret of 32 bytes, and fits no other."""
    return hashlib.sha256(framed("grid mask commitment 1", secret)).digest()


def sign_keys(
    me: LocalIdentity, card: bytes, terms: Terms, *, cipher: bytes, mask: bytes, commitment: bytes, public: bool = False
) -> bytes:
    """What a node answers in leg 0: its card, and its keys signed for these terms, with its word on whether its data is open."""
    fields = {"terms": terms.digest, "cipher": cipher, "mask": mask, "commitment": commitment, "public": int(public)}
    payload = pack(fields)
    packed: bytes = msgpack.packb([card, seal(KEYS_KIND, payload, me.key)])
    return packed


def read_keys(blob: bytes, terms: Terms, verify: Verify) -> Member:
    """A node's keys for these terms, once its card and its signature hold.

    `WireError` for bytes of another form, `AuthenticationFailed` for a card or signature that does not hold and for keys that
    were signed for other terms.
    """
    if len(blob) > MAX_KEYS_BYTES:
        raise WireError(f"the keys of a node for a round have at most {MAX_KEYS_BYTES} bytes")
    parts = unpack(blob, "the keys of a node for a round", error=WireError)
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, bytes) for part in parts):
        raise WireError("the keys of a node for a round have a wrong form")
    card = verify(parts[0])
    if card.role != NODE:
        raise AuthenticationFailed(f"{card} can't take part in {terms}: only nodes do")
    what = f"the keys of {card} for {terms}"
    fields = Fields(read(parts[1], what).verified(KEYS_KIND, card.key), what)
    if fields.raw("terms", length=DIGEST_BYTES) != terms.digest:
        raise AuthenticationFailed(f"{what} were signed for another round, attempt, model or graph than this node was told of")
    return Member(
        card=card,
        cipher=fields.raw("cipher", length=KEY_BYTES),
        mask=fields.raw("mask", length=KEY_BYTES),
        commitment=fields.raw("commitment", length=DIGEST_BYTES),
        public=fields.number("public", most=1) == 1,
        blob=bytes(blob),
    )


class Roster(Mapping[PeerId, Member]):
    """The members of an attempt, in the order of their ids. `digest` is that of terms and roster: all keys are bound to it."""

    def __init__(self, terms: Terms, members: Iterable[Member]) -> None:
        """`AuthenticationFailed` where two members are one node or have a key in common."""
        ordered = sorted(members, key=lambda member: member.id)
        self._members = {member.id: member for member in ordered}
        keys = {key for member in ordered for key in (member.cipher, member.mask, member.commitment)}
        if len(self._members) != len(ordered) or len(keys) != 3 * len(ordered):
            raise AuthenticationFailed(f"{terms}: a node is in the roster twice, or two nodes announce the same key")
        self._points = {peer: place for place, peer in enumerate(self._members, 1)}
        self.digest = hashlib.sha256(framed("grid roster 1", terms.digest, *(member.blob for member in ordered))).digest()

    def __getitem__(self, peer: PeerId) -> Member:
        return self._members[peer]

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def point(self, peer: PeerId) -> int:
        """Where the polynomials of shares are evaluated for this member."""
        return self._points[peer]


def consent_statement(roster: bytes, survivors: Sequence[PeerId]) -> bytes:
    """What a node signs in leg 3, about the roster of this digest: that these, by their ids, are whose inputs make the sum."""
    return framed("grid round consent 1", roster, *(peer.encode("utf-8") for peer in sorted(survivors)))
