"""What the part of a node that holds a client's values is asked, and answers, beside the client's own messages.

The client's messages (`PutObject`, `Commands`, `PutPlan`, ...) reach it as they came. What is asked of the node's rules for a
value comes back as an `Offer` or a `SumOffer`: the value, what its label claims, and the failure behind it. Nothing of that is
for the client before the node's `Desk` has looked at it. Where the values lie in another process these messages travel
over a pipe, in the codec of the wire; no peer can send them, since they stand in a table of their own.
"""

from __future__ import annotations

from grid.ids import ObjectId, PlanId
from grid.policy.claims import Claim
from grid.policy.gate import Origin
from grid.wire.codec import Table
from grid.wire.messages import (
    CommandFailed,
    Commands,
    DescribeObject,
    ErrorInfo,
    Failure,
    FreeObjects,
    Message,
    ObjectDescription,
    PutObject,
    PutPlan,
    StartSum,
    TensorFrame,
    message,
    record,
)

REQUESTS: dict[str, type[Message]] = {
    cls.tag: cls for cls in (PutObject, Commands, FreeObjects, PutPlan, DescribeObject, StartSum)
}
"""What may be asked; the reply to `FreeObjects` is empty, too. Below it grows by what only the node itself asks."""

REPLIES: dict[str, type[Message]] = {cls.tag: cls for cls in (Failure, ObjectDescription, CommandFailed)}


@message("take-value", REQUESTS)
class TakeValue(Message):
    """Offer an object's present value, to be released or moved. Reply: Offer."""

    object: ObjectId


OPENED_FROM_SHARES = "opened from shares"
"""Stands for the sender of what a committee opened to this node; no node has such a name."""


@message("keep-delivery", REQUESTS)
class KeepDelivery(Message):
    """Keep what another node sent. `datasets` name those of the sender behind it; with any, the value is mixed for ever."""

    object: ObjectId
    tensor: TensorFrame
    datasets: tuple[str, ...]
    sender: str


@message("mark-failed", REQUESTS)
class MarkFailed(Message):
    """The object will not come; whoever uses it hears why."""

    object: ObjectId
    error: ErrorInfo


@record
class Account:
    """How a value was made, as `policy.gate.Origin`; `arguments` is the hash of a plan's arguments, "" where there is none.

    `part` names it as an argument of a further plan (`node.lineage`), "" where nothing can be said. `calls` is for an owner who
    releases by hand: what the plans behind it were called with, None where that is too much to be read.
    """

    plans: tuple[PlanId, ...] | None
    plan: PlanId | None
    arguments: str = ""
    part: str = ""
    calls: tuple[str, ...] | None = ()

    @classmethod
    def of(cls, origin: Origin, arguments: str = "", part: str = "", calls: tuple[str, ...] | None = ()) -> Account:
        plans = None if origin.plans is None else tuple(sorted(origin.plans))
        return cls(plans=plans, plan=origin.plan, arguments=arguments, part=part, calls=calls)

    @property
    def origin(self) -> Origin:
        return Origin(plans=None if self.plans is None else frozenset(self.plans), plan=self.plan)


@message("offer", REPLIES)
class Offer(Message):
    """A value. `claim` and `account` are None where it has no label: nobody asks how a client's own value was made.

    `failure`: what it stands in for, to be told where it would be released.
    """

    tensor: TensorFrame
    claim: Claim | None = None
    account: Account | None = None
    failure: ErrorInfo | None = None


@message("sum-offer", REPLIES)
class SumOffer(Message):
    """An operand of a secure sum as ring elements, int64, with its account in any case. `tensor` is None where it has failed."""

    tensor: TensorFrame | None
    claim: Claim | None
    account: Account
    failure: ErrorInfo | None = None


@message("done", REPLIES)
class Done(Message):
    """The next `count` requests, in order, are done; there is nothing to say about them."""

    count: int


TO_WORKER = Table(REQUESTS)
FROM_WORKER = Table(REPLIES)
