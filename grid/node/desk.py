"""The gate as one client's session meets it: what is offered on the client's behalf leaves here, or does not.

The same for values in this process and in others. Every method may wait for the store, so they are for a thread of the
executor, and in the order in which the client asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial

from grid.errors import GridError, InvalidRequest, PlanRejected, ReleaseDenied, WireError
from grid.ids import PeerId, PlanId
from grid.node.one_sum import Operand
from grid.node.work import Account, Offer, SumOffer
from grid.plans.ir import decode
from grid.policy.approvals import Content
from grid.policy.claims import RowsClaim
from grid.policy.gate import Gate
from grid.policy.rules import OPEN
from grid.settings import NodeSettings
from grid.smpc import ring
from grid.smpc.interpreter import fraction_bits
from grid.tensors import fixed
from grid.tensors.buffers import from_frame, to_frame
from grid.tensors.rows import Choice
from grid.wire.dtypes import DTYPES, tensor_bytes
from grid.wire.messages import ErrorInfo, OwnerRule, PutPlan, TensorFrame

log = logging.getLogger(__name__)

MESSAGE_ROOM = 4096
"""Bytes of a message beside the value in it."""

BLOCKS = " in blocks"
"""After the part of a dataset, where some rows of it alone are shared."""

MAX_SHOWN_PLAN = 1 << 20
MAX_SHOWN_PLANS = 16
"""Bytes of a plan, and plans of one session, that are kept to be shown to an owner."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dealing:
    """A value that goes to a committee: its ring elements, its own dtype, and whose rows are in it. The shares keep `rules`."""

    frame: TensorFrame
    dtype: str
    rules: tuple[OwnerRule, ...]
    rows: tuple[RowsClaim, ...]


def check_size(nbytes: int, settings: NodeSettings) -> None:
    """Raise `InvalidRequest` where no message holds a value of so many bytes."""
    if nbytes + MESSAGE_ROOM > settings.session.max_message_bytes:
        raise InvalidRequest(f"the value has {nbytes} bytes, more than one message carries; send or sum parts of it")


class Desk:
    """See the module. `name` is the client's. `on_ended` is called, from any thread, when the client went too far."""

    def __init__(self, *, gate: Gate, client: PeerId, settings: NodeSettings, name: str = "") -> None:
        self.on_ended: Callable[[GridError], None] = lambda error: None
        self._gate = gate
        self._client = client
        self._name = name
        self._settings = settings
        self._plans: dict[PlanId, bytes] = {}

    def release(self, offer: Offer) -> None:
        """Raise what the rules have against the value. Only when they let it go is told of a failure that depends on rows."""
        if offer.claim is None:
            return
        account = offer.account
        if account is None:
            raise WireError("a value of rows was offered without an account of how it was made")
        self._gate.check_errors(self._client)
        elements, nbytes = _measure(offer.tensor)
        self._gate.release(
            offer.claim,
            account.origin,
            elements=elements,
            nbytes=nbytes,
            client=self._client,
            content=self._content(offer.tensor, account) if self._gate.needs_approval else None,
        )
        self._tell(offer.failure)

    def note_plan(self, message: PutPlan) -> None:
        """Keep a plan as it came, to show it to an owner who releases by hand. Only looked into when that is asked for."""
        if self._gate.needs_approval and len(message.encoding) <= MAX_SHOWN_PLAN:
            self._plans[message.plan] = bytes(message.encoding)
            if len(self._plans) > MAX_SHOWN_PLANS:
                del self._plans[next(iter(self._plans))]

    def _content(self, frame: TensorFrame, account: Account) -> Content:
        shape = ", ".join(map(str, frame.shape))
        made = account.part if account.plan is not None else ""
        digest = hashlib.sha256(frame.data).digest()
        return Content(made, f"{frame.dtype}[{shape}]", digest, partial(self._code, account), self._name)

    def _code(self, account: Account) -> str | None:
        """What made a value: the text of its plans, and what they were called with."""
        assert account.plan is not None  # else the gate has refused
        if account.calls is None:
            return None
        text = self._text(account.plan)
        for other in sorted(set(account.plans or ()) - {account.plan}):
            text += f"\n# It takes results of the plan {other}, too:\n{self._text(other)}"
        calls = "".join(f"\n{call}" for call in account.calls)
        return f"{text}\n# What it was called with. Values of the client's own can single out people, like constants.\n{calls}"

    def _text(self, wanted: PlanId) -> str:
        known = self._plans.get(wanted)
        if known is None:
            return f"The plan {wanted} is too large to be kept here, or came long ago: have its file sent to you.\n"
        try:
            plan = decode(known)
        except PlanRejected as error:
            return f"No valid plan: {error.message}\n"
        return plan.code if plan.id == wanted else "The client sent another plan under this id.\n"

    def allow_move(self, offer: Offer, to: str) -> None:
        """Raise `ReleaseDenied` unless the owners of the rows behind a value let it go to the node of this name."""
        if offer.claim is not None:
            self._gate.check_errors(self._client)
            self._gate.check_move(offer.claim, to)
            self._tell(offer.failure)

    def share(self, offer: Offer, nodes: Mapping[PeerId, str]) -> Dealing:
        """The value in ring elements for a committee. Raises `ReleaseDenied` where an owner does not let these nodes have shares
        of it (`Gate.check_share`).

        Elements of private values that shares cannot hold are dealt as the nearest that they can, NaN as 0.
        """
        rules: tuple[OwnerRule, ...] = ()
        private = False
        if offer.claim is not None:
            self._gate.check_errors(self._client)
            part = _part(offer.account)
            if part and any(one.choice != Choice.WHOLE.name for one in offer.claim.rows):
                part += BLOCKS  # another owner may let its rows go with the whole dataset alone
            shared = self._gate.check_share(offer.claim, nodes)
            rules = tuple(OwnerRule(dataset=name, release=release, part=part) for name, release in shared)
            private = any(release != OPEN for _, release in shared)
        value = from_frame(offer.tensor)
        bits = fraction_bits(value.dtype)
        if private:  # nothing is released and nothing counted by this, so it must not tell whether a value fits, or could be made
            if offer.failure is not None:
                log.info("a value for a committee could not be made (%s): what stands in its place is dealt", offer.failure.code)
            value = fixed.nearest(value, bits, 1)
        else:
            self._tell(offer.failure)
        encoded = fixed.encode(value, bits, 1)
        return Dealing(to_frame(encoded, copy=False), offer.tensor.dtype, rules, () if offer.claim is None else offer.claim.rows)

    def admit(self, offer: SumOffer, claim: Callable[[], None]) -> Operand:
        """The operand of a secure sum. Raises what the rules have against it; if nothing refuses it, `claim`s the sum."""
        claimed, account = offer.claim, offer.account
        if claimed is None:
            elements = _elements(offer)
            claim()
            return Operand(elements, None, "", 0, labelled=False, own=False, open=False, commit=lambda: None)
        self._gate.check_errors(self._client)
        rows = self._gate.check_sum(claimed, account.origin)
        self._tell(offer.failure)
        elements = _elements(offer)
        claim()
        commit = partial(
            self._gate.release_sum,
            claimed,
            account.origin,
            elements=elements.size,
            nbytes=elements.nbytes,
            client=self._client,
        )
        return Operand(
            elements,
            account.plan,
            account.arguments,
            rows,
            labelled=True,
            own=True,
            open=self._gate.is_open(claimed),
            cohort=self._gate.least_cohort(claimed),
            commit=commit,
        )

    def _tell(self, failure: ErrorInfo | None) -> None:
        """Raise the failure behind a value that was let go, if there is one, and count it."""
        if failure is not None:
            self.count_error()
            raise failure.to_error()

    def count_error(self) -> None:
        """An error that private values decide on tells a little about them; a few of these and the session is over."""
        count = self._gate.count_error(self._client)
        if count >= self._settings.max_private_errors:
            self.on_ended(
                ReleaseDenied(
                    f"{count} operations on private values failed within an hour, and each such failure tells a little about"
                    " them; the session is over",
                    rule="private_errors",
                )
            )


def _part(account: Account | None) -> str:
    """What of a dataset a value is, as it stands or whole blocks of it; "" for anything else."""
    straight = account is not None and account.plan is None and account.plans == ()
    return account.part if straight and account is not None else ""


def _measure(frame: TensorFrame) -> tuple[int, int]:
    """Elements and bytes of a value, from what is there and not from what is said of it."""
    nbytes = tensor_bytes(frame.dtype, frame.shape)
    return nbytes // DTYPES[frame.dtype], nbytes


def _elements(offer: SumOffer) -> ring.Elements:
    if offer.tensor is None or offer.tensor.dtype != "i8":
        raise WireError("what was offered for a sum is not int64")
    return ring.from_tensor(from_frame(offer.tensor))
