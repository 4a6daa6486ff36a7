"""A party of one committee: a lane for each client, and one link to the other two parties that all of them share.

It is told what to do by messages (`handle`) and answers by `tell`; nothing in it knows whether it runs inside the node or in a
process of its own. Words of the other parties go to the lane whose client's place is in their label; what comes for a lane that
has ended is dropped. One lane's trouble is its own; trouble of the link is told to the node, which knows more about the others
and ends the party.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from grid.clock import Clock
from grid.errors import GridError, InvalidRequest, WireError
from grid.node.party_messages import Begin, Dealt, EndLane, LaneBroken, LinkLost, Ready, place_of
from grid.node.share_lane import EARLY_BYTES, NUMBER_BITS, OPERATION_BITS, WORD_BYTES, Held, Name, ShareLane
from grid.settings import NodeSettings
from grid.smpc.agreement import LIMITS
from grid.smpc.keystreams import Keys
from grid.smpc.link import Words
from grid.smpc.party import STEPS
from grid.smpc.socket_link import Channel, SocketLink
from grid.smpc.steps import Arrival
from grid.wire.messages import ErrorInfo, Failure, FreeShares, Message, Ok

log = logging.getLogger(__name__)

PLACE_SHIFT = NUMBER_BITS + OPERATION_BITS + STEPS.bit_length() - 1

Tell = Callable[[Message, int], None]
"""A message to the node; with the id of the request that it answers, or 0."""


class PartyWork:
    """See the module. `sockets` are connected ones to the peers, by rank, and this object's from now on."""

    def __init__(self, begin: Begin, sockets: Mapping[int, Any], *, settings: NodeSettings, clock: Clock, tell: Tell) -> None:
        self._tell = tell
        self._most_words = EARLY_BYTES // WORD_BYTES + 2 * settings.max_secure_elements
        channels = {link.rank: Channel(sockets[link.rank], link.sending, link.receiving) for link in begin.links}
        self._lanes: list[ShareLane] = []
        self._link = SocketLink(
            begin.rank, channels, patience=patience(begin.deadline_s), failed=self._lost, inbox=self, lingers=True
        )
        for place in range(begin.clients):
            self._lanes.append(
                ShareLane(
                    rank=begin.rank,
                    place=place,
                    link=self._link,
                    keys=Keys(begin.own, begin.following, begin.common),
                    settings=settings,
                    clock=clock,
                    deadline_s=begin.deadline_s,
                    names=begin.names,
                    broken=partial(self._broken, place),
                    hand=partial(self._hand, place),
                )
            )
        loop = asyncio.get_running_loop()
        self._watches = [loop.create_task(lane.watch(), name="watch over a client's work") for lane in self._lanes]
        self._is_over = False
        tell(Ready(), 0)

    # ------------------------------------------------------------ the node

    def handle(self, message: Message, request_id: int) -> None:
        """Do what the node says."""
        if isinstance(message, EndLane):
            self._lanes[message.place].end(message.error.to_error())
            return
        lane = self._lanes[place_of(request_id)]
        if isinstance(message, Dealt):
            try:
                lane.deal(message)
            except GridError as error:
                self._answer(request_id, error)
            else:
                self._answer(request_id, Ok())
        else:
            answered = _nobody if isinstance(message, FreeShares) else partial(self._answer, request_id)
            lane.submit(message, answered)  # type: ignore[arg-type]

    def _hand(self, giver: int, place: int, name: Name, held: Held) -> None:
        """One client's value for another one. Raises what that one's lane has against it."""
        if not 0 <= place < len(self._lanes) or place == giver:
            raise InvalidRequest("a value is offered to another client of the committee, by its place in their list")
        self._lanes[place].take(name, held)

    def _answer(self, request_id: int, outcome: Message | GridError) -> None:
        answer = Failure(error=ErrorInfo.of(outcome)) if isinstance(outcome, GridError) else outcome
        if not self._is_over:
            self._tell(answer, request_id)

    def _broken(self, place: int, error: GridError) -> None:
        if not self._is_over:
            self._tell(LaneBroken(place=place, error=ErrorInfo.of(error)), 0)

    def _lost(self, error: GridError) -> None:
        if not self._is_over:
            self._tell(LinkLost(error=ErrorInfo.of(error)), 0)

    def end(self, error: GridError) -> None:
        """Nothing goes on: the sockets are closed, the shares forgotten."""
        if not self._is_over:
            self._is_over = True
            for lane in self._lanes:
                lane.end(error)
            for watch in self._watches:
                watch.cancel()
            self._link.fail(error)
            self._link.drop()

    # ------------------------------------------------------------ the other parties, as the link's inbox

    def admit(self, sender: int, label: int, count: int) -> None:
        """Words are on their way. Raises what ends the link: no lane that there ever was, or more than any message holds."""
        lane = self._lane(sender, label)
        if count > self._most_words:
            raise WireError(f"party {sender} sent {count} words in one message", party=sender)
        if lane.error is None:
            try:
                lane.mailbox.admit(sender, label, count)
            except GridError as error:
                lane.break_off(error)

    def deliver(self, sender: int, label: int, words: Words) -> None:
        """Words have come."""
        lane = self._lane(sender, label)
        if lane.error is None:
            lane.deliver(sender, label, words)

    def receive(self, sender: int, label: int, count: int) -> Arrival[Words]:
        """For the lanes."""
        return self._lanes[label >> PLACE_SHIFT].mailbox.receive(sender, label, count)

    def fail(self, error: GridError) -> None:
        """The link is over; `_lost` hears of it, too."""

    @property
    def waits(self) -> list[int]:
        """The ranks of the peers that lanes wait for."""
        return sorted({rank for lane in self._lanes for rank in lane.mailbox.waits})

    def _lane(self, sender: int, label: int) -> ShareLane:
        place = label >> PLACE_SHIFT
        if place >= len(self._lanes):
            raise WireError(f"party {sender} sent words for no work of the committee", party=sender)
        return self._lanes[place]


def _nobody(outcome: Message | GridError) -> None:
    """Hears how `FreeShares` went."""


def patience(deadline_s: float) -> float:
    """For how long a party may say nothing at all. Less than operations may take, as this names the right one for certain: who
    waits too long for a message may wait for one that waits itself."""
    return min(max(deadline_s / 2, 0.5), 30.0)


def agreed_settings(settings: NodeSettings, begin: Begin) -> NodeSettings:
    """The node's settings with the limits that all three nodes keep."""
    limits: dict[str, Any] = dict(zip(LIMITS, begin.limits, strict=True))
    return dataclasses.replace(settings, **limits)
