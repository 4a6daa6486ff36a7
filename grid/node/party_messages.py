"""What a node and its party in a committee say to each other, whether they share a process or have a pipe between them.

The client's requests reach the party as they came; the id of each says whose they are (`place_of`), and the answer has the same
id. `FreeShares` has none. No peer can send these messages, since they stand in tables of their own.
"""

from __future__ import annotations

from grid.ids import ObjectId, PeerId
from grid.wire.codec import Table
from grid.wire.messages import (
    Buffer,
    ErrorInfo,
    ExpectShare,
    Failure,
    FreeShares,
    GetShare,
    GivenRows,
    Message,
    MoveShares,
    OfferShares,
    Ok,
    OwnerRule,
    PutSharedPlan,
    RunShared,
    SecureCommands,
    ShareInput,
    message,
    record,
)

Request = ShareInput | SecureCommands | PutSharedPlan | RunShared | ExpectShare | OfferShares | GetShare | MoveShares | FreeShares
"""What a client asks of its lane."""

PLACE_BITS = 4

TO_PARTY: dict[str, type[Message]] = {
    cls.tag: cls
    for cls in (ShareInput, SecureCommands, PutSharedPlan, RunShared, ExpectShare, OfferShares, GetShare, MoveShares, FreeShares)
}
FROM_PARTY: dict[str, type[Message]] = {cls.tag: cls for cls in (Ok, Failure)}


@record
class LinkKeys:
    """The keys of the link to the party of this rank, 32 bytes each."""

    rank: int
    sending: bytes
    receiving: bytes


@message("begin", TO_PARTY)
class Begin(Message):
    """Node -> party, first: be the party of this rank. A connected socket for each of `links`, in order, has come along.

    `names`: the nodes by rank. `own`, `following`, `common`: the committee's keys (`smpc.keystreams.Keys`). `clients`: how many
    lanes there are. `limits` are those that all three agreed on (`smpc.agreement.LIMITS`); `deadline_s` is for each operation.
    """

    rank: int
    names: tuple[str, ...]
    clients: int
    deadline_s: float
    own: bytes
    following: bytes
    common: bytes
    links: tuple[LinkKeys, ...]
    limits: tuple[int, ...]


@message("dealt", TO_PARTY)
class Dealt(Message):
    """Node -> party: another node's `DealShare`, which the `sender` was verified to send. Reply: Ok."""

    sender: PeerId
    object: ObjectId
    dtype: str
    shape: tuple[int, ...]
    owners: tuple[OwnerRule, ...]
    first: Buffer
    second: Buffer
    error: ErrorInfo | None = None


@message("end-lane", TO_PARTY)
class EndLane(Message):
    """Node -> party, one way: the work of one client is over."""

    place: int
    error: ErrorInfo


@message("ready", FROM_PARTY)
class Ready(Message):
    """Party -> node, once: it takes requests."""


CLIENT = "client "
"""Before the id of a client that has offered a value, where else the id of a node stands; no node's id has a space."""


@record
class Owner:
    """Somebody whose rows are behind a value: the node, and what it said of its dataset. Or a client that offered it."""

    node: PeerId
    rule: OwnerRule


@message("share-offer", FROM_PARTY)
class ShareOffer(Message):
    """Answer to GetShare, for the node alone until the owners permit that it goes (`openings`), and to MoveShares.

    What ShareValue holds, the dtype and shape of the value, the owners behind it, the ids of the plans that made it, "" for
    operations one by one, what of datasets was given to that plan, and the number of its call."""

    words: Buffer
    digest: bytes
    dtype: str
    shape: tuple[int, ...]
    owners: tuple[Owner, ...]
    made: tuple[str, ...]
    given: tuple[GivenRows, ...] = ()
    call: int = 0


@message("lane-broken", FROM_PARTY)
class LaneBroken(Message):
    """Party -> node: the work of one client has ended by what went wrong in it."""

    place: int
    error: ErrorInfo


@message("link-lost", FROM_PARTY)
class LinkLost(Message):
    """Party -> node, at most once: the link to the other two is over, and with it all work."""

    error: ErrorInfo


TO_PARTY_TABLE = Table(TO_PARTY)
FROM_PARTY_TABLE = Table(FROM_PARTY)


def place_of(request_id: int) -> int:
    """The place of the client whose request has this id."""
    return request_id & ((1 << PLACE_BITS) - 1)


def request_weight(message: Message) -> int:
    """How many of its client's requests this one counts for."""
    if isinstance(message, RunShared):
        return max(1, sum(max(1, call.count) for call in message.calls))
    return max(1, len(message.commands)) if isinstance(message, SecureCommands) else 1
