"""Every message that travels between peers: one frozen dataclass each, found by its tag in one table.

Two kinds of session speak these. A *hop* joins a node or client to the gateway: `Join`, `Announce`, `Search`, `OpenLink`,
`LinkData`, ... . A *channel* joins two peers end to end, sealed, over a link or a direct connection: `Commands`,
`PutPlan`, `GetObject`, `StartSum`, ... . Ids, limits and meaning of a field never change; new fields come with defaults.

Fields are plain: bool, int, float, str, bytes, None, tuples and dicts of these, other `record`s, `TensorFrame`, and `Arg`,
the argument tree of commands and plans. Raw tensor data is never inside the header: the codec carries it beside it.
`docs/reference/protocol.md` is generated from this table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, dataclass_transform

from grid.display import html
from grid.errors import Detail, GridError, from_wire
from grid.ids import CommitteeId, LinkId, ObjectId, PeerId, PlanId, SumId, TransferId

Buffer = bytes | bytearray | memoryview

T = TypeVar("T")

MESSAGES: dict[str, type[Message]] = {}
"""Tag -> class. Filled by the decorator below, at import, and not changed after."""

BOUNDED_TEXT = 65536
"""No string field holds more characters."""

NO_LIMIT = 1 << 62
"""A `max_elements` that no dataset reaches."""


class Message:
    """Base of all messages. `tag` is the name on the wire."""

    __slots__ = ()
    tag: ClassVar[str]


class Forwarded(Message):
    """A message that is handed on as it came. `frame`: the bytes that it was read from; unset in one that was made here."""

    __slots__ = ("frame",)
    frame: Buffer


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def message(tag: str, table: dict[str, type[Message]] = MESSAGES) -> Callable[[type[T]], type[T]]:
    """Make the class a frozen, keyword-only dataclass and enter it in the table under `tag`."""

    def enter(cls: type[T]) -> type[T]:
        made = dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(cls)
        if tag in table:
            raise RuntimeError(f"two messages have the tag {tag!r}")
        assert issubclass(made, Message)
        made.tag = tag
        table[tag] = made
        return made

    return enter


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def record(cls: type[T]) -> type[T]:
    """Make the class a frozen, keyword-only dataclass: a part of messages that is no message itself."""
    return dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(cls)


# ---------------------------------------------------------------- values


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorFrame:
    """A dense tensor: dtype by its short name (`grid.wire.codec.DTYPES`), shape, and little-endian row-major bytes.

    The codec checks that `data` has exactly the bytes that dtype and shape ask for.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Buffer


class Ref(int):
    """An object of this session, as an argument of a command or plan call; in a plan, one of its values."""

    __slots__ = ()


class Inline(int):
    """The tensor of this index among the message's `tensors`, as an argument."""

    __slots__ = ()


class DType(str):
    """A dtype, by its short name, as an argument."""

    __slots__ = ()


class MemoryFormat(str):
    """`contiguous`, `preserve` or `channels_last`, as an argument."""

    __slots__ = ()


Arg = Any
"""None | bool | int | float | str | Ref | Inline | DType | MemoryFormat | list[Arg]; at most 8 levels deep.

Order matters to the codec: `Ref` and `Inline` are ints, `DType` and `MemoryFormat` are strings, and stay what they are.
"""


@record
class Command:
    """One operation of the op table. `op` is "aten.<name>.<overload>"; `outputs` name its tensor results in order.

    An output 0 is not kept. An in-place operation has no outputs: it changes the object that its arguments name.
    """

    op: str
    args: list[Arg]
    kwargs: dict[str, Arg]
    outputs: tuple[ObjectId, ...]


@record
class OpenDataset:
    """Put `part` ("features", "targets" or "column") of a dataset under an id.

    `shape` and `dtype` are what the client expects from the dataset's card; if the dataset has changed, this fails.
    `blocks` picks whole blocks of min_rows rows (empty: all rows). Block b of n has min_rows rows, the last one the rest.
    """

    tag: ClassVar[str] = "open-dataset"
    dataset: str
    part: str
    object: ObjectId
    shape: tuple[int, ...]
    dtype: str
    column: str = ""
    blocks: tuple[int, ...] = ()


@record
class RunPlan:
    """Run a plan. `inputs` are Refs and Inlines in order; `outputs` name its tensor results in order."""

    tag: ClassVar[str] = "run-plan"
    plan: PlanId
    inputs: list[Arg]
    outputs: tuple[ObjectId, ...]


@record
class ErrorInfo:
    """A `GridError` in transit."""

    code: str
    message: str
    details: dict[str, Detail] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, error: GridError) -> ErrorInfo:
        return cls(code=error.code, message=error.message, details=dict(error.details))

    def to_error(self) -> GridError:
        return from_wire(self.code, self.message, self.details)


# ---------------------------------------------------------------- session


@message("ok")
class Ok(Message):
    """Either way: the request was done; there is nothing to say about it."""


@message("error")
class Failure(Message):
    """Either way, in place of a reply: the request failed."""

    error: ErrorInfo


@message("hello")
class Hello(Message):
    """First message of each side. The accepting side speaks first. Both then use the lower of the two `newest` versions.

    `greeting` is set by a gateway alone. A version below the other side's `oldest` ends the session with `WireError`.
    """

    oldest: int
    newest: int
    software: str
    greeting: Greeting | None = None


@record
class Greeting:
    """What a gateway says of itself before anyone sends it anything.

    `grid` is the id of the root key, or the gateway's own id where `dev` is set. `nonce` is 32 bytes, to be signed in `Join`.
    `wall` is the gateway's wall clock in seconds.
    """

    grid: str
    dev: bool
    gateway_key: bytes
    nonce: bytes
    wall: float


@message("ping")
class Ping(Message):
    """Either way, when nothing was heard for a while. Answer: Pong with the same number."""

    number: int


@message("pong")
class Pong(Message):
    """Answer to Ping."""

    number: int


@message("credit")
class Credit(Message):
    """Either way: `amount` more bytes of large values may be sent."""

    amount: int


@message("goodbye")
class Goodbye(Message):
    """Either way, last message: the session ends. `error` says why where something was wrong."""

    error: ErrorInfo | None = None


# ---------------------------------------------------------------- hop: joining


@message("join")
class Join(Message):
    """Peer -> gateway, first request. Reply: Welcome. Errors: AuthenticationFailed, ClockSkew.

    `card` is the peer's signed card. `signature` is by the card's key over `join_statement(greeting, nonce, card)` in
    `grid.crypto.identity`; `nonce` is 32 bytes of the peer's own.
    """

    card: bytes
    nonce: bytes
    signature: bytes


@message("welcome")
class Welcome(Message):
    """Gateway -> peer. `signature` is by the gateway's key over the peer's nonce and id; `revocations` the newest list or b''."""

    peer: PeerId
    signature: bytes
    revocations: bytes


@message("revocations")
class Revocations(Message):
    """Gateway -> peer and peer -> gateway, one way: a signed revocation list. The higher serial wins."""

    envelope: bytes


@record
class ColumnCard:
    """A column as its owner describes it; nothing here is computed from rows.

    `kind`: "number", "category" or "text". `role`: "feature", "target" or "other". `missing`: "error", "category" or
    "mean-of-bounds". `minimum` and `maximum` are None where the owner gives none.
    """

    name: str
    kind: str
    role: str
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str, ...] = ()
    missing: str = "error"


@record
class PolicyCard:
    """An owner's rules for one dataset, as clients may read them.

    `allow`: ids of plans, each perhaps with the arguments that it is to have on shares (`policy.rules`). `share`: whether it may
    be split for sums over nodes. `parties`: the nodes, by name or id, that may hold shares of its rows in a committee beside its
    own, ("*",) for whichever a client names. `updates`: "summed" where what federated jobs learn leaves in sums alone,
    "single" where an update may go to the gateway by itself. `same_organisation`: whether two nodes of one organisation may
    take part in those sums. `min_cohort`: how many nodes must be in a sum over nodes. `batches`: "known" where a job's seed tells
    which rows make a batch, "secret" where a secret of the node is in it as well.
    """

    release: str
    plans: str
    min_rows: int
    max_elements: int
    allow: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()
    share: bool = True
    parties: tuple[str, ...] = ()
    updates: str = "summed"
    same_organisation: bool = False
    min_cohort: int = 3
    batches: str = "secret"

    @property
    def summary(self) -> str:
        """What may leave, in a few words."""
        return self.release if self.release != "aggregate" else f"aggregates of {self.min_rows} rows or more"

    def _repr_html_(self) -> str:
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        facts |= {"max_elements": "no limit" if self.max_elements >= NO_LIMIT else self.max_elements}
        facts |= {"allow": ", ".join(self.allow), "sinks": ", ".join(self.sinks)}
        facts |= {"parties": ", ".join(self.parties)}
        return html("policy", self.summary, facts=list(facts.items()))


@record
class DatasetCard:
    """What everybody may know of a dataset. `feature_names` are the columns of `ds.features`, one-hot ones as "column=value".

    `feature_shape` is the shape of one row of features, `target_shape` of one row of targets (() for a scalar); the dtypes
    are short names; `target_dtype` is "" where there is no target. `classes` is the number of the target's categories, 0
    where it is a number.
    """

    name: str
    description: str
    tags: tuple[str, ...]
    rows: int
    columns: tuple[ColumnCard, ...]
    policy: PolicyCard
    feature_names: tuple[str, ...]
    feature_shape: tuple[int, ...]
    feature_dtype: str
    target_shape: tuple[int, ...] = ()
    target_dtype: str = ""
    classes: int = 0


@message("announce")
class Announce(Message):
    """Node -> gateway: all its datasets, and where it listens for direct links ("" for nowhere). Reply: Ok."""

    datasets: tuple[DatasetCard, ...]
    address: str = ""


@record
class NodeCard:
    """A node as the gateway knows it. `card` is the node's signed card; `state` is "online" or "offline".

    `since` is the wall time in seconds from which on it has been so; 0 where the gateway is of an older version. A node that is
    offline is listed with what it announced last. `dataset_count` is how many datasets it has; `datasets` may be left out.
    """

    id: PeerId
    name: str
    organisation: str
    state: str
    address: str
    card: bytes
    datasets: tuple[DatasetCard, ...]
    since: float = 0.0
    dataset_count: int = 0


@message("list-nodes")
class ListNodes(Message):
    """Client or node -> gateway. Reply: NodeList."""


@message("node-list")
class NodeList(Message):
    """Answer to ListNodes, by name. In a large grid the later nodes come without their datasets; `Search` finds all of them."""

    nodes: tuple[NodeCard, ...]


@message("search")
class Search(Message):
    """Client -> gateway: datasets of online nodes that have every tag, and every word of `text`; with `offline` of known nodes
    that have gone, too. Reply: Found.

    Words are looked for in the dataset's name, its node's name, its tags and its description, whatever their case.
    """

    tags: tuple[str, ...]
    offset: int = 0
    limit: int = 1000
    offline: bool = False
    text: str = ""


@record
class FoundDataset:
    """A dataset and the node that has it, with the node's `state` and `since` as in NodeCard."""

    node: PeerId
    node_name: str
    dataset: DatasetCard
    state: str = "online"
    since: float = 0.0


@message("found")
class Found(Message):
    """Answer to Search: one page, which may be shorter than asked for, and how many there are in all."""

    datasets: tuple[FoundDataset, ...]
    total: int


# ---------------------------------------------------------------- hop: relayed links


@message("open-link")
class OpenLink(Message):
    """Peer -> gateway: relay to the peer `to`, an id. Reply: Ok. Errors: NotFound, NodeUnavailable, QuotaExceeded.

    The sender chooses `link`, odd and not in use on its connection.
    """

    link: LinkId
    to: PeerId


@message("link-offer")
class LinkOffer(Message):
    """Gateway -> peer, one way: `sender` opened a link to you. `link` is even.

    Nothing here can be trusted: the channel proves it.
    """

    link: LinkId
    sender: PeerId


@message("link-data")
class LinkData(Message):
    """Either way, one way: one opaque frame of a link.

    It may be sent while the link's credit is above zero (`LINK_START` at first) and spends its length and
    `LINK_FRAME_COST` of it.
    """

    link: LinkId
    frame: Buffer


@message("link-credit")
class LinkCredit(Message):
    """Either way, one way: `amount` more bytes of the link may be sent. What is given and unspent stays within `LINK_WINDOW`."""

    link: LinkId
    amount: int


@message("close-link")
class CloseLink(Message):
    """Either way, one way: the link is gone. `error` says why where something was wrong."""

    link: LinkId
    error: ErrorInfo | None = None


LINK_START = 256 << 10
"""Credit that each direction of a link starts with, on each hop: many new links at once must not flood a receiver."""

LINK_FRAME_COST = 256
"""Credit that a frame costs beside its length, so that a window full of tiny frames is bounded as well."""

LINK_WINDOW = 4 << 20
"""Most credit that one direction of a link may have on one hop; a receiver that keeps up gives this much."""


# ---------------------------------------------------------------- channel: objects and commands, in order, from one client


@message("put-object")
class PutObject(Message):
    """Client -> node: keep this value under an id that the client chose. Reply: Ok, for flow control."""

    object: ObjectId
    tensor: TensorFrame


@message("commands")
class Commands(Forwarded):
    """Client -> node: what to do, in order: operations, parts of datasets to open, plans to run. Reply: Ok once done.

    The first has number `first`, the next `first + 1`, ... An operation travels as its record, anything else as a map of its tag
    to its record.

    The client does not wait for the reply; it only bounds how much is under way.

    What fails leaves its outputs failed: any later use of them, `GetObject` included, gives that error. An in-place
    operation that fails leaves its target failed. The node also sends `CommandFailed` at once.

    `frees`: for each command in order, the objects that are not needed after it; the rest of them may be left out.
    """

    first: int
    commands: tuple[Command | OpenDataset | RunPlan, ...]
    tensors: tuple[TensorFrame, ...] = ()
    frees: tuple[tuple[ObjectId, ...], ...] = ()


@message("command-failed")
class CommandFailed(Message):
    """Node -> client, one way: command number `command` failed. Details may name op and step."""

    command: int
    error: ErrorInfo


@message("free-objects")
class FreeObjects(Message):
    """Client -> node, one way: these objects are not needed any more. Unknown ids are ignored."""

    objects: tuple[ObjectId, ...]


@message("get-object")
class GetObject(Message):
    """Client -> node: release an object's value. Reply: ObjectValue. Errors: NotFound, ReleaseDenied, or what failed it."""

    object: ObjectId


@message("object-value")
class ObjectValue(Message):
    """Answer to GetObject."""

    tensor: TensorFrame


@message("put-plan")
class PutPlan(Message):
    """Client -> node: a plan in its canonical encoding. Reply: Ok, as Commands.

    One that is refused makes its calls fail with PlanRejected.
    """

    plan: PlanId
    encoding: Buffer


@message("describe-object")
class DescribeObject(Message):
    """Client -> node: what is known of an object without its value. Reply: ObjectDescription. Also a way to wait for commands."""

    object: ObjectId


@message("object-description")
class ObjectDescription(Message):
    """Answer to DescribeObject.

    `axis`: the dimension that holds rows, -1 for none, -2 for mixed; `reason` for mixed or failed.
    """

    shape: tuple[int, ...]
    dtype: str
    datasets: tuple[str, ...]
    axis: int
    reason: str = ""


# ---------------------------------------------------------------- channel: from node to node


@message("move-object")
class MoveObject(Message):
    """Client -> node: send an object to the node `to` under this transfer. Reply: Ok. Errors: as GetObject, NodeUnavailable."""

    object: ObjectId
    to: PeerId
    transfer: TransferId


@message("expect-object")
class ExpectObject(Message):
    """Client -> node: the node `sender` may deliver one object under this transfer; keep it as `object`. Reply: Ok.

    With a `roster` it comes in shares, one from each of these nodes, and `sender` is the first of them.
    """

    transfer: TransferId
    sender: PeerId
    object: ObjectId
    shape: tuple[int, ...]
    dtype: str
    roster: tuple[PeerId, ...] = ()


@message("deliver-object")
class DeliverObject(Message):
    """Node -> node: the value of a transfer that the receiver's client expects. Reply: Ok. Errors: NotFound.

    `datasets` name the sender's datasets in its label (empty: the client's own value); they stay on the object for ever.
    """

    transfer: TransferId
    tensor: TensorFrame
    datasets: tuple[str, ...] = ()


# ---------------------------------------------------------------- channel: secure sum


@message("start-sum")
class StartSum(Message):
    """Client -> each node of the roster: put `object` into the sum. Reply: SumPart. Errors: ReleaseDenied, QuorumLost, ...

    `roster` is the same at all of them, in order, without repeats. `fraction_bits`: 2**fraction_bits is the fixed-point scale.
    """

    sum: SumId
    roster: tuple[PeerId, ...]
    object: ObjectId
    fraction_bits: int
    deadline_s: float


@message("sum-part")
class SumPart(Message):
    """Node -> client: the sum of the shares that this node holds, int64 mod 2**64. All parts together make the sum."""

    tensor: TensorFrame


@message("sum-announcement")
class SumAnnouncement(Message):
    """Node -> node, one way: a signed statement {sum id, roster, plan id, argument hash, shape, rows, ...}, before any share."""

    sum: SumId
    envelope: bytes


@message("sum-share")
class SumShare(Message):
    """Node -> node, one way: one random share, int64 mod 2**64, of the sender's value. `tensor` is None where it withdraws."""

    sum: SumId
    tensor: TensorFrame | None = None
    error: ErrorInfo | None = None


# ---------------------------------------------------------------- channel: computing on shares


@message("open-committee")
class OpenCommittee(Message):
    """Client -> each node of the roster: be a party of this committee. Reply: Ok once all three agree. Errors: QuorumLost, ...

    `committee` is 32 random hexadecimal digits, used once. `roster` has three nodes in the order of their ranks, `clients` up
    to 8, and both are the same at all nodes; each of the clients may open the committee and then has objects of its own in it.
    `deadline_s`: for the agreement, and later for each command.
    """

    committee: CommitteeId
    roster: tuple[PeerId, ...]
    clients: tuple[PeerId, ...]
    deadline_s: float


@message("close-committee")
class CloseCommittee(Message):
    """Client -> node, one way: this client is done with the committee; its shares are forgotten."""

    committee: CommitteeId


@message("committee-statement")
class CommitteeStatement(Message):
    """Node -> node, one way: a signed statement {committee, roster, clients, node, expiry, nonce, limits}, and for the receiver
    alone the sender's contributions to keys, 32 random bytes each: to the key of these two nodes, and to that of all three."""

    committee: CommitteeId
    envelope: bytes
    pair: bytes
    common: bytes


@message("committee-ready")
class CommitteeReady(Message):
    """Node -> the node of a lower rank, one way: the sender agrees, and expects the receiver's party at `address`, HOST:PORT.

    Without an address, or where it does not answer, `CommitteeLink` says that all goes over this session."""

    committee: CommitteeId
    address: str


@message("committee-link")
class CommitteeLink(Message):
    """Node -> the node of a higher rank, one way: how the parties of the two are connected: by a socket of their own (`direct`),
    or by `CommitteeBytes` over this session."""

    committee: CommitteeId
    direct: bool


@message("committee-bytes")
class CommitteeBytes(Message):
    """Node -> node, one way: bytes of the sender's party for the receiver's, which are sealed between these two.

    `taken`: how many bytes the sender's party has taken from the other direction; at most 1 MiB is under way or not taken.
    `over`: nothing more comes.
    """

    committee: CommitteeId
    data: Buffer
    taken: int
    over: bool = False


@message("committee-over")
class CommitteeOver(Message):
    """Node -> node, one way: the sender cannot go on; with a `client`, in the work of that client alone."""

    committee: CommitteeId
    error: ErrorInfo
    client: PeerId | None = None


@message("share-input")
class ShareInput(Message):
    """Client -> each node of the roster: a secret value in shares, kept as `object`. Reply: Ok, as SecureCommands.

    With seeds s0, s1 and streams G (`crypto.prg`): x0 = G(s0), x1 = G(s1), x2 = x - x0 - x1 mod 2**64. Rank 0 gets (s0, s1), rank
    1 (s1, x2), rank 2 (x2, s0); a seed has 32 bytes, x2 8 bytes an element. A floating-point dtype stands for fixed point with
    18 fraction bits, others for integers.
    """

    committee: CommitteeId
    number: int
    object: ObjectId
    dtype: str
    shape: tuple[int, ...]
    first: Buffer
    second: Buffer


@message("secure-commands")
class SecureCommands(Message):
    """Client -> each node of the roster: operations on shares, in order; numbers `first`, `first + 1`, ... Reply: Ok once done.

    All requests of a client to a committee (this, RunShared, ShareInput, ExpectShare, OfferShares, GetShare, MoveShares,
    FreeShares) are numbered on from 1 without gaps, and are the same at all three nodes but for shares. What fails leaves its
    outputs failed, and the first failure is the reply. `frees`, where it is not empty, has the shares that are not needed after
    each of the commands.
    """

    committee: CommitteeId
    first: int
    commands: tuple[Command, ...]
    tensors: tuple[TensorFrame, ...] = ()
    frees: tuple[tuple[ObjectId, ...], ...] = ()


@message("put-shared-plan")
class PutSharedPlan(Message):
    """Client -> each node of the roster: a plan in its canonical encoding, for RunShared. Reply: Ok, as SecureCommands.

    One that is refused makes its calls fail with PlanRejected.
    """

    committee: CommitteeId
    plan: PlanId
    encoding: Buffer


@record
class SharedCall:
    """One call of a plan on shares.

    `inputs` are Refs to shares of this client and Inlines, which are public, in the plan's order; `outputs` name its results, and
    `frees` shares that are not needed after it. It takes `count` numbers: one for every 16 steps of the plan, rounded up, at
    least one.
    """

    plan: PlanId
    count: int
    inputs: list[Arg]
    outputs: tuple[ObjectId, ...]
    frees: tuple[ObjectId, ...] = ()


@message("run-shared")
class RunShared(Message):
    """Client -> each node of the roster: run plans on shares, one after the other. Reply: Ok, as SecureCommands.

    The numbers of the calls follow each other, the first one's from `number` on.
    """

    committee: CommitteeId
    number: int
    calls: tuple[SharedCall, ...]
    tensors: tuple[TensorFrame, ...] = ()


@message("free-shares")
class FreeShares(Message):
    """Client -> each node of the roster, one way: these shares are not needed after what was sent before.

    It has a number among the requests: an id that is free at all three nodes, or none, never stands for different values.
    """

    committee: CommitteeId
    number: int
    objects: tuple[ObjectId, ...]


@message("offer-shares")
class OfferShares(Message):
    """Client -> each node of the roster: another client of the committee may compute with these shares. Reply: Ok.

    `client` is who offers, `to` the other one's place in the list of clients, which asks for them by `name`, a random number
    (ExpectShare, with `client` as owner). What depends on them opens where it is a direct result of one of `plans`; whatever it
    is where `freely`.
    """

    committee: CommitteeId
    number: int
    object: ObjectId
    client: PeerId
    to: int
    name: ObjectId
    plans: tuple[PlanId, ...] = ()
    freely: bool = False


@message("get-share")
class GetShare(Message):
    """Client -> each node of the roster: open a result. Reply: ShareValue, or Ok where it opens to a node. Errors: NotFound,
    ReleaseDenied, ...

    Every owner of rows behind it must permit it, to each of the three. It opens to this client; with a `recipient`, to that node
    alone, which this client has told to expect it (ExpectObject) under `transfer`.
    """

    committee: CommitteeId
    number: int
    object: ObjectId
    recipient: PeerId | None = None
    transfer: TransferId | None = None


@message("move-shares")
class MoveShares(Message):
    """Client -> each node of the roster: deal a value on to another committee. Reply: Ok once it is there. Errors: NotFound,
    ReleaseDenied, ...

    Each of the three deals its first component, refreshed, to the nodes of `roster`, which are the committee `to` of this
    client, by a DealShare under `name`; there, ExpectShare with all three as owners adds them up. Only for a value with no rows
    behind it, and no other client's value.
    """

    committee: CommitteeId
    number: int
    object: ObjectId
    to: CommitteeId
    roster: tuple[PeerId, ...]
    name: ObjectId


@message("share-value")
class ShareValue(Message):
    """Answer to GetShare: the first component of this node, 64-bit words, and the SHA-256 of its second; both refreshed."""

    words: Buffer
    digest: bytes


@record
class OwnerRule:
    """Whose rows are behind a share, and how that owner lets values leave (`release` of the policy).

    `part`: what of the dataset was shared, as it stands ("features", "targets", "column:age"), or whole blocks of it ("features
    in blocks"); "" for anything that was computed before. `allow`: in place of all that, the plans of an OfferShares.
    """

    dataset: str
    release: str
    part: str = ""
    allow: tuple[PlanId, ...] = ()


@record
class GivenRows:
    """An argument of a plan on shares: the part of a dataset that its node dealt (`OwnerRule`); all "" for any other value."""

    node: PeerId
    dataset: str
    part: str


@record
class Opening:
    """A result that a client asks the parties of a committee to open, as each of them has it in its own record.

    `plan` is the id of the plan that it is a direct result of, where nothing but that plan made it of values as they were shared;
    else "". `given` are the arguments of that plan, in order, `call` the number of the request that ran it: with `object`, a name
    that no other value of this client in this committee has. `recipient` is the client itself, or a node.
    """

    committee: CommitteeId
    client: PeerId
    number: int
    object: ObjectId
    recipient: PeerId
    plan: str
    dtype: str
    shape: tuple[int, ...]
    given: tuple[GivenRows, ...] = ()
    call: int = 0


@message("ask-permit")
class AskPermit(Message):
    """Party -> a node whose rows are behind a result: may it be opened? Reply: Permit, once all three parties have asked for the
    same. Errors: ReleaseDenied, BudgetExhausted, QuotaExceeded, ...

    `rules`: what that node said of its values when it dealt them."""

    opening: Opening
    rules: tuple[OwnerRule, ...]


@message("permit")
class Permit(Message):
    """Answer to AskPermit: an envelope that the owner's node has signed, {the fields of both, expiry, nonce}."""

    envelope: bytes


@record
class RowsBehind:
    """A dataset of a node, by its id, whose rows are behind a value."""

    node: PeerId
    dataset: str


@message("deliver-share")
class DeliverShare(Message):
    """Party -> the node that a result opens to: `words` and `digest` as in ShareValue. Reply: Ok once the value is kept there.

    `behind` are the datasets whose rows are in it; all fields but words and digest are the same from all three parties."""

    transfer: TransferId
    opening: Opening
    behind: tuple[RowsBehind, ...]
    words: Buffer
    digest: bytes


@message("share-object")
class ShareObject(Message):
    """Client -> the node that has `source`: deal this value to the parties, as `object`. Reply: Ok. Errors: ReleaseDenied, ...

    The parties must have been told to expect it (ExpectShare) for it to be kept."""

    committee: CommitteeId
    roster: tuple[PeerId, ...]
    source: ObjectId
    object: ObjectId


@message("expect-share")
class ExpectShare(Message):
    """Client -> each node of the roster: the node `owner` deals a value to be kept as `object`, or the client `owner` offers one
    under that name (OfferShares). Reply: Ok, as SecureCommands.

    With `others`, two more nodes: each of the three deals a component, and the value is their sum (MoveShares)."""

    committee: CommitteeId
    number: int
    owner: PeerId
    object: ObjectId
    dtype: str
    shape: tuple[int, ...]
    others: tuple[PeerId, ...] = ()


@message("deal-share")
class DealShare(Message):
    """Node -> node: components for `client`, as in ShareInput, of a value with rows of these datasets of the sender.

    With an `error`, the sender does not share it. Reply: Ok."""

    committee: CommitteeId
    client: PeerId
    object: ObjectId
    dtype: str
    shape: tuple[int, ...]
    owners: tuple[OwnerRule, ...]
    first: Buffer
    second: Buffer
    error: ErrorInfo | None = None
