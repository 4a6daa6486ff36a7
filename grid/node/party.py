"""The party of a committee, as its node has it: requests go in, answers come back, and what ends is told once.

`PartyPort` is the same for all; `LocalParty` computes on the node's loop (grids in one process, systems without fork), and
`party_process.ProcessParty` in a process of its own, off the node's loop. One suite of tests runs on both.
"""

from __future__ import annotations

import abc
import asyncio
import dataclasses
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from grid.clock import Clock
from grid.errors import GridError, LocalProtocolError, QuotaExceeded, again
from grid.node.party_messages import (
    PLACE_BITS,
    Begin,
    Dealt,
    EndLane,
    LaneBroken,
    LinkLost,
    Ready,
    Request,
    request_weight,
)
from grid.settings import NodeSettings
from grid.wire.messages import ErrorInfo, Failure, FreeShares, Message, Ok, PutSharedPlan, ShareInput

MAX_QUEUED_BYTES = 256 << 20
"""Of one client's requests, and of what other nodes deal, that may wait for one party; a single larger one may."""


class PartyUser(Protocol):
    """What hears of a party: its committee."""

    def party_ready(self) -> None: ...

    def lane_broken(self, place: int, error: GridError) -> None:
        """One client's work has ended from inside."""

    def party_over(self, error: GridError) -> None:
        """The party cannot go on. `party` in the details is the rank of the one that is to blame, if it is another one."""


@dataclasses.dataclass(slots=True)
class _Lane:
    """The requests of one client that wait. `frees`: the ids of those that are not answered, and done once a later one is.
    `error`: what has ended its work."""

    requests: int = 0
    nbytes: int = 0
    error: GridError | None = None
    frees: deque[int] = dataclasses.field(default_factory=deque)


@dataclasses.dataclass(slots=True)
class _Asked:
    place: int
    weight: int
    nbytes: int
    answer: asyncio.Future[Message]


class PartyPort(abc.ABC):
    """The node's end of one party. Everything is called on the node's loop."""

    def __init__(self, user: PartyUser, settings: NodeSettings) -> None:
        self._user = user
        self._settings = settings
        self._lanes: list[_Lane] = []
        self._asked: dict[int, _Asked] = {}
        self._serial = 0
        self._dealt = 0
        self._error: GridError | None = None

    @property
    def busy(self) -> bool:
        """Whether it has been asked what it has not answered yet."""
        return bool(self._asked)

    def begin(self, begin: Begin, sockets: Mapping[int, Any]) -> None:
        """Start the party; `sockets` are connected ones to its peers, by rank, which are the party's from now on."""
        self._lanes = [_Lane() for _ in range(begin.clients)]
        self._start(begin, sockets)

    def submit(self, place: int, message: Request) -> asyncio.Future[Message]:
        """A request of the client at `place`; the future gets the answer, that of `FreeShares` at once. Raises what has ended
        the client's work.

        A request that cannot even wait here, which raises `QuotaExceeded`, ends it: the other parties would wait for it.
        """
        lane = self._live(place)
        weight, nbytes = request_weight(message), _nbytes(message)
        most = self._settings.max_queued_per_client
        if lane.requests and (lane.requests + weight > most or lane.nbytes + nbytes > MAX_QUEUED_BYTES):
            error = QuotaExceeded("too many requests of this client to the committee wait here; wait for some first")
            self.end_lane(place, error)
            self._user.lane_broken(place, error)
            raise again(error)
        lane.requests += weight
        lane.nbytes += nbytes
        if isinstance(message, FreeShares):
            done: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            done.set_result(Ok())
            lane.frees.append(self._next_id(place))
            self._tell(message, lane.frees[-1])
            return done
        return self._ask(_Asked(place, weight, nbytes, asyncio.get_running_loop().create_future()), message)

    def deal(self, place: int, message: Dealt) -> asyncio.Future[Message]:
        """Another node's value for the client at `place`; the future gets `Ok`. Raises `QuotaExceeded` where too much waits."""
        self._live(place)
        nbytes = _nbytes(message)
        if self._dealt and self._dealt + nbytes > MAX_QUEUED_BYTES:
            raise QuotaExceeded("too many values for this committee wait here; try again later")
        self._dealt += nbytes
        answer = self._ask(_Asked(place, 0, 0, asyncio.get_running_loop().create_future()), message)
        answer.add_done_callback(lambda _: self._taken(nbytes))
        return answer

    def _taken(self, nbytes: int) -> None:
        self._dealt -= nbytes

    def _live(self, place: int) -> _Lane:
        error = self._error or self._lanes[place].error
        if error is not None:
            raise again(error)
        return self._lanes[place]

    def _ask(self, asked: _Asked, message: Message) -> asyncio.Future[Message]:
        request_id = self._next_id(asked.place)
        self._asked[request_id] = asked
        self._tell(message, request_id)
        return asked.answer

    def _next_id(self, place: int) -> int:
        self._serial += 1
        return self._serial << PLACE_BITS | place

    def end_lane(self, place: int, error: GridError) -> None:
        """The work of one client is over; what waits gets the error."""
        if self._error is None and place < len(self._lanes) and self._lanes[place].error is None:
            self._lanes[place].error = error
            self._tell(EndLane(place=place, error=ErrorInfo.of(error)), 0)
            self._fail([one for one in self._asked.values() if one.place == place], error)

    def end(self, error: GridError) -> None:
        """The party is over; what waits gets the error."""
        if self._error is None:
            self._error = error
            self._fail(list(self._asked.values()), error)
            self._asked.clear()
            self._stop(error)

    def _fail(self, asked: list[_Asked], error: GridError) -> None:
        for one in asked:
            _settle(one.answer, again(error))

    # ------------------------------------------------------------ what the party says

    def heard(self, message: Message, request_id: int) -> None:
        """An answer, or an event. Raises `LocalProtocolError` for what makes no sense."""
        if self._error is not None:
            return
        if isinstance(message, Ready):
            self._user.party_ready()
        elif isinstance(message, LaneBroken):
            self._broken(message)
        elif isinstance(message, LinkLost):
            self._user.party_over(message.error.to_error())
        else:
            self._answered(request_id, message)

    def _broken(self, message: LaneBroken) -> None:
        if not 0 <= message.place < len(self._lanes):
            raise LocalProtocolError("a party speaks of a client that it does not have")
        lane, error = self._lanes[message.place], message.error.to_error()
        if lane.error is None:
            lane.error = error
            self._user.lane_broken(message.place, error)

    def _answered(self, request_id: int, message: Message) -> None:
        asked = self._asked.pop(request_id, None)
        if asked is None:
            raise LocalProtocolError("a party answers what it was not asked")
        lane = self._lanes[asked.place]
        lane.requests -= asked.weight
        lane.nbytes -= asked.nbytes
        while asked.weight and lane.frees and lane.frees[0] < request_id:
            lane.frees.popleft()
            lane.requests -= 1
        _settle(asked.answer, message.error.to_error() if isinstance(message, Failure) else message)

    # ------------------------------------------------------------ for subclasses

    @abc.abstractmethod
    def _start(self, begin: Begin, sockets: Mapping[int, Any]) -> None: ...

    @abc.abstractmethod
    def _tell(self, message: Message, request_id: int) -> None: ...

    @abc.abstractmethod
    def _stop(self, error: GridError) -> None: ...


class Parties(abc.ABC):
    """Makes the parties of one node."""

    @abc.abstractmethod
    async def prepare(self, off_loop: Callable[[Callable[[], list[Any]]], Awaitable[Any]]) -> None:
        """Do what the first committee needs. `off_loop` runs work in a thread."""

    @abc.abstractmethod
    def open(self, user: PartyUser) -> PartyPort:
        """A party that has not begun. Raises `GridError` where there is no room for it."""

    @abc.abstractmethod
    async def close(self) -> None:
        """The node ends, and all parties with it."""


class LocalParties(Parties):
    """Parties on the node's own loop."""

    def __init__(self, settings: NodeSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def prepare(self, off_loop: Callable[[Callable[[], list[Any]]], Awaitable[Any]]) -> None:
        await off_loop(_compile)

    def open(self, user: PartyUser) -> PartyPort:
        return LocalParty(user, self._settings, self._clock)

    async def close(self) -> None:
        pass


def _compile() -> list[Any]:
    from grid.smpc.replicated.compiling import warm_up  # loads a compiler, which a node without committees does not need

    warm_up()
    return []


class LocalParty(PartyPort):
    """A party on the node's own loop."""

    def __init__(self, user: PartyUser, settings: NodeSettings, clock: Clock) -> None:
        super().__init__(user, settings)
        self._clock = clock
        self._work: Any = None

    def _start(self, begin: Begin, sockets: Mapping[int, Any]) -> None:
        from grid.node.party_work import PartyWork, agreed_settings

        settings = agreed_settings(self._settings, begin)
        self._work = PartyWork(begin, sockets, settings=settings, clock=self._clock, tell=self.heard)

    def _tell(self, message: Message, request_id: int) -> None:
        self._work.handle(message, request_id)

    def _stop(self, error: GridError) -> None:
        if self._work is not None:
            self._work.end(error)


def _nbytes(message: Message) -> int:
    """Of its buffers, roughly: what a queue of such messages takes."""
    if isinstance(message, ShareInput | Dealt):
        return memoryview(message.first).nbytes + memoryview(message.second).nbytes
    if isinstance(message, PutSharedPlan):
        return memoryview(message.encoding).nbytes
    return sum(len(frame.data) for frame in getattr(message, "tensors", ()))


def _settle(answer: asyncio.Future[Message], outcome: Message | GridError) -> None:
    if answer.done():
        return
    if isinstance(outcome, GridError):
        answer.set_exception(outcome)
        answer.exception()  # marks it as seen: the client may be gone
    else:
        answer.set_result(outcome)
