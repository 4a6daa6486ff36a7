"""The plans that one client runs on shares, at one party: checked, and prepared for what they are called with.

A plan from a client is hostile until it is decoded, validated and has the hash that it is named by; then its dry run (`Prepared`)
keeps the node's limits before anything is computed. What all parties decide alike here depends on public facts alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from grid.errors import GridError, InvalidRequest, NotFound, PlanRejected, QuotaExceeded, again
from grid.ids import ObjectId, PeerId, PlanId
from grid.node.party_messages import CLIENT, Owner
from grid.plans.ir import Plan, decode
from grid.settings import NodeSettings
from grid.smpc import protocol as smpc
from grid.smpc.dataflow import OPERATION_NUMBERS
from grid.smpc.interpreter import Value
from grid.smpc.keystreams import Seen
from grid.smpc.programs import Given, Limits, Preparations, Prepared, request_numbers
from grid.smpc.steps import Work
from grid.wire.messages import GivenRows, Inline, PutSharedPlan, Ref, SharedCall

MAX_PLANS = 1024

NOT_ROWS = GivenRows(node=PeerId(""), dataset="", part="")


class Shares(Protocol):
    """What a lane holds of a value."""

    @property
    def value(self) -> Value: ...
    @property
    def owners(self) -> frozenset[Owner]: ...
    @property
    def seen(self) -> Seen: ...
    @property
    def dealt(self) -> bool: ...


@dataclasses.dataclass(frozen=True, slots=True)
class PlanCall:
    """One call: whose rows are behind its results, and the plan's id where nothing else was done to these rows before; then
    `given` says for each argument what of a dataset it is."""

    prepared: Prepared
    inputs: list[Value | Tensor]
    owners: frozenset[Owner]
    seen: Seen
    made: str
    given: tuple[GivenRows, ...]

    def run(self, protocol: smpc.Protocol, goes_on: Callable[[], None]) -> Work[list[Value]]:
        """The results; `goes_on` hears when an operation begins."""
        protocols = protocol.split(len(self.prepared.order.operations), OPERATION_NUMBERS)

        def at(place: int) -> smpc.Protocol:
            goes_on()
            return protocols[place]

        return self.prepared.run(protocol, self.inputs, at)


class SharedPlans:
    """See the module. `max_early`: bytes that another party may send before they are asked for."""

    def __init__(self, settings: NodeSettings, max_early: int) -> None:
        self._max_bytes = settings.max_plan_bytes
        self._plans: dict[PlanId, Plan | GridError] = {}
        self._bytes = 0
        self._preparations = Preparations(
            Limits(
                most=settings.max_secure_elements,
                max_bytes=settings.max_bytes_per_client,
                max_flops=settings.max_plan_flops,
                max_steps=settings.max_plan_steps,
                max_early=max_early // 2,  # a party is one stage ahead at most
            )
        )

    def put(self, message: PutSharedPlan) -> None:
        """Take a plan. One that is refused makes its calls fail."""
        if message.plan in self._plans:
            return
        size = memoryview(message.encoding).nbytes
        if len(self._plans) >= MAX_PLANS or self._bytes + size > 4 * self._max_bytes:
            raise QuotaExceeded("too many plans of one client in one committee; open a new one")
        self._bytes += size  # of one that is refused, too: whoever sends such plans sends many
        try:
            plan = decode(message.encoding, self._max_bytes)
            if plan.id != message.plan:
                raise PlanRejected("the plan that came is not the one that was named")
            self._plans[message.plan] = plan
        except GridError as error:
            self._plans[message.plan] = error

    def call(self, asked: SharedCall, tensors: Sequence[Tensor], held: Callable[[ObjectId], Shares]) -> PlanCall:
        """A call as it is asked for, with the message's tensors; `held` finds shares of this client. Raises what refuses it,
        alike at all."""
        plan = self._plans.get(asked.plan)
        if plan is None:
            raise NotFound("this plan was not sent to the committee")
        if isinstance(plan, GridError):
            raise again(plan)
        if asked.count != request_numbers(plan):
            raise InvalidRequest(
                f"a call of the plan {plan.name} takes {request_numbers(plan)} numbers, and {asked.count} were named"
            )
        if len(asked.outputs) != len(plan.outputs):
            raise InvalidRequest(f"the plan {plan.name} gives {len(plan.outputs)} tensors, and {len(asked.outputs)} were named")
        given = [_input(arg, tensors, held) for arg in asked.inputs]
        inputs = [one if isinstance(one, Tensor) else one.value for one in given]
        prepared = self._preparations.of(plan, [Given.of(one) for one in inputs])
        shares = [one for one in given if not isinstance(one, Tensor)]
        made = str(plan.id) if all(one.dealt for one in shares if one.owners) else ""
        owners = frozenset(owner for one in shares for owner in one.owners)
        rows = tuple(map(_rows, given)) if made and owners else ()
        return PlanCall(prepared, inputs, owners, Seen.together(one.seen for one in shares), made, rows)


def _input(arg: Any, tensors: Sequence[Tensor], held: Callable[[ObjectId], Shares]) -> Shares | Tensor:
    if type(arg) is Ref:
        return held(ObjectId(int(arg)))
    if type(arg) is Inline:
        return inline(arg, tensors)
    raise InvalidRequest("an input of a plan is neither shares of this client nor a tensor of the message")


def _rows(given: Shares | Tensor) -> GivenRows:
    """What of a dataset an argument is: nothing, where it is not just what one node has dealt."""
    owners = () if isinstance(given, Tensor) else tuple(given.owners)
    if len(owners) == 1 and owners[0].rule.part and not owners[0].node.startswith(CLIENT):
        return GivenRows(node=owners[0].node, dataset=owners[0].rule.dataset, part=owners[0].rule.part)
    return NOT_ROWS


def inline(arg: Inline, tensors: Sequence[Tensor]) -> Tensor:
    """The tensor of a message that an argument names."""
    if int(arg) >= len(tensors):
        raise InvalidRequest(f"the message brings {len(tensors)} tensors, and number {int(arg)} was named")
    return tensors[int(arg)]
