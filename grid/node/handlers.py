"""Which message does what at a node: one table for clients, one for other nodes. Anything else is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Mapping
from typing import Any

from grid.node.committee import FromPeer
from grid.node.neighbours import Neighbour
from grid.node.services import Services
from grid.node.session import ClientSession
from grid.rpc.dispatch import Handler
from grid.wire.messages import (
    AskPermit,
    CloseCommittee,
    Commands,
    CommitteeBytes,
    CommitteeLink,
    CommitteeOver,
    CommitteeReady,
    CommitteeStatement,
    DealShare,
    DeliverObject,
    DeliverShare,
    DescribeObject,
    ExpectObject,
    ExpectShare,
    FreeObjects,
    FreeShares,
    GetObject,
    GetShare,
    Message,
    MoveObject,
    MoveShares,
    OfferShares,
    Ok,
    OpenCommittee,
    PutObject,
    PutPlan,
    PutSharedPlan,
    RunShared,
    SecureCommands,
    ShareInput,
    ShareObject,
    StartSum,
    SumAnnouncement,
    SumShare,
)

CLIENT_HANDLERS: Mapping[type[Any], Handler] = {
    PutObject: ClientSession.put,
    Commands: ClientSession.commands,
    FreeObjects: ClientSession.free,
    GetObject: ClientSession.get,
    PutPlan: ClientSession.put_plan,
    DescribeObject: ClientSession.describe,
    MoveObject: ClientSession.move,
    ExpectObject: ClientSession.expect,
    StartSum: ClientSession.start_sum,
    OpenCommittee: ClientSession.open_committee,
    CloseCommittee: ClientSession.close_committee,
    ShareInput: ClientSession.on_shares,
    SecureCommands: ClientSession.on_shares,
    PutSharedPlan: ClientSession.put_shared_plan,
    RunShared: ClientSession.on_shares,
    ExpectShare: ClientSession.on_shares,
    OfferShares: ClientSession.on_shares,
    GetShare: ClientSession.on_shares,
    MoveShares: ClientSession.on_shares,
    FreeShares: ClientSession.free_shares,
    ShareObject: ClientSession.share_object,
}
"""The context is the client's session."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class NodeContext:
    """The context of a session with another node."""

    neighbour: Neighbour
    services: Services


async def _deliver(context: NodeContext, message: DeliverObject) -> Message:
    card = context.neighbour.card
    await context.services.transfers.deliver(card.id, card.name, message)
    return Ok()


def _sum(context: NodeContext, message: SumAnnouncement | SumShare) -> None:
    context.services.sums.received(context.neighbour, message)


def _committee(context: NodeContext, message: FromPeer) -> None:
    context.services.committees.received(context.neighbour, message)


def _deal(context: NodeContext, message: DealShare) -> Awaitable[Message]:
    return context.services.committees.deal(context.neighbour, message)


async def _permit(context: NodeContext, message: AskPermit) -> Message:
    return await context.services.permits.ask(context.neighbour.id, message)


async def _opened(context: NodeContext, message: DeliverShare) -> Message:
    services = context.services
    await services.transfers.deliver_share(context.neighbour.id, message, services.names)
    return Ok()


NODE_HANDLERS: Mapping[type[Any], Handler] = {
    DeliverObject: _deliver,
    SumAnnouncement: _sum,
    SumShare: _sum,
    CommitteeStatement: _committee,
    CommitteeOver: _committee,
    CommitteeReady: _committee,
    CommitteeLink: _committee,
    CommitteeBytes: _committee,
    DealShare: _deal,
    AskPermit: _permit,
    DeliverShare: _opened,
}
"""The context is a `NodeContext`."""
