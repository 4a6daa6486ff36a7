"""A committee as a client sees it: three nodes that compute on shares, and what this client has asked of them.

All three get the same numbered requests in the same order. Operations wait in one queue, which any thread may add to; the
client's loop numbers them and puts them into the sessions with the three nodes. A committee lives as long as these sessions: when
one is lost, everything on shares is, and `QuorumLost` names the node.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
import torch

from grid.client.connection import MAX_VALUE_BYTES, NodeConnection
from grid.client.dispatch import Handle, Place
from grid.client.flow import COMMAND_TIMEOUT_S, Home, again
from grid.client.origins import Origin, describe, origin
from grid.client.shapes import Shapes
from grid.client.shared import SharedTensor, wrap
from grid.client.tensors import RemoteTensor
from grid.crypto.keys import fresh_seed
from grid.crypto.prg import ring_elements
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, NodeUnavailable, OpNotSupported, QuorumLost, WireError
from grid.ids import CommitteeId, ObjectId, PeerId
from grid.smpc.interpreter import find, fraction_bits
from grid.smpc.replicated.opening import digest
from grid.tensors import fixed
from grid.tensors.buffers import short_dtype, torch_dtype
from grid.wire.messages import (
    CloseCommittee,
    Command,
    ExpectShare,
    FreeShares,
    GetShare,
    Inline,
    Message,
    OpenCommittee,
    SecureCommands,
    ShareInput,
    ShareObject,
    ShareValue,
    TensorFrame,
)

MAX_BATCH = 256
MAX_BATCH_BYTES = 1 << 20
MAX_FREES = 4096
MAX_ORIGINS = 100_000
"""Commands whose place in the user's program is remembered."""

MAX_REFUSED = 1000

SETTLE_S = 1.0
"""After a first error, time for others to come in: the one that explains most is raised."""

GRACE_S = 5.0
"""Nodes keep the committee's deadline themselves, and say who was missing; this much later we stop waiting for that."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """The committee as a place."""

    name: str
    id: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """A request to all three; `make` gives their messages. `source` is asked of one more session beside it."""

    make: Callable[[int], Sequence[Message]]
    what: str
    place: Origin = None
    answers: asyncio.Future[list[asyncio.Future[Message]]] | None = None
    timeout_s: float = COMMAND_TIMEOUT_S
    source: tuple[NodeConnection, Message, object] | None = None


_Entry = tuple[Command, Sequence[TensorFrame], Origin] | _Request | int


class Committee:
    """Three nodes that compute on shares. Made by `g.committee(...)`; `grid.client.dispatch.Outbox` of its tensors."""

    def __init__(
        self,
        connections: Sequence[NodeConnection],
        *,
        committee: CommitteeId,
        clients: tuple[PeerId, ...],
        home: Home,
        shapes: Shapes,
        wait: Callable[[Any], Any],
        deadline_s: float,
    ) -> None:
        self.id = committee
        self.clients = clients
        self.shapes = shapes
        self.wait = wait
        self._connections = tuple(connections)
        self._names = tuple(one.place.name for one in connections)
        self._roster = tuple(PeerId(one.place.id) for one in connections)
        self._home = home
        self._deadline_s = deadline_s
        self._ids = itertools.count(1)
        self._entries: deque[_Entry] = deque()
        self._awake = False
        self._next = 1
        self._origins: dict[int, str] = {}
        self._refused: dict[int, GridError] = {}
        self._dealing: set[asyncio.Future[Message]] = set()
        self._closed = False
        self.new_id: Callable[[], ObjectId] = self._ids.__next__  # type: ignore[assignment]

    # ------------------------------------------------------------ for users

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes, in the order of their ranks."""
        return self._names

    def share(self, value: torch.Tensor) -> SharedTensor:
        """The value on shares. A local tensor is split here, and no node sees more than random numbers; one at a node is split
        there, if its owner's rules let it be shared. Returns at once; a refusal comes with `reveal()`."""
        self._check_open()
        if isinstance(value, RemoteTensor):
            return self._share_remote(value)
        if not isinstance(value, torch.Tensor):
            raise InvalidRequest("a committee shares tensors")
        _check_size(8 * value.numel())
        words = fixed.encode(value, fraction_bits(value.dtype), 1).cpu().numpy().view(np.uint64)
        dtype, shape = short_dtype(value.dtype), tuple(value.shape)
        seeds = (fresh_seed(), fresh_seed())
        flat = words.reshape(-1)
        rest: Any = flat - sum(ring_elements(seed, flat.size).view(np.uint64) for seed in seeds)
        last = rest.astype("<u8").tobytes()
        parts = ((seeds[0], seeds[1]), (seeds[1], last), (last, seeds[0]))
        made = self._made(value.shape, value.dtype)
        object_id = made._handle.object_id

        def messages(number: int) -> Sequence[Message]:
            return [
                ShareInput(
                    committee=self.id, number=number, object=object_id, dtype=dtype, shape=shape, first=first, second=second
                )
                for first, second in parts
            ]

        self._add(_Request(messages, "sharing a tensor", origin(2)))
        return made

    def _share_remote(self, value: RemoteTensor) -> SharedTensor:
        connection = value._handle.outbox
        if not isinstance(connection, NodeConnection) or connection.shapes is not self.shapes:
            raise InvalidRequest("a committee shares tensors of its own client, which are at a node and not on shares yet")
        fraction_bits(value.dtype)
        made = self._made(value.shape, value.dtype)
        object_id, dtype, shape = made._handle.object_id, short_dtype(value.dtype), tuple(value.shape)
        owner = PeerId(connection.place.id)
        deal = ShareObject(committee=self.id, roster=self._roster, source=value._handle.object_id, object=object_id)

        def messages(number: int) -> Sequence[Message]:
            expect = ExpectShare(
                committee=self.id, number=number, owner=owner, object=object_id, dtype=dtype, shape=shape
            )
            return [expect] * len(self._connections)

        what = f"sharing a tensor at {connection.place.name}"
        self._add(_Request(messages, what, origin(3), source=(connection, deal, value._handle)))
        return made

    def close(self) -> None:
        """Be done with the committee: the nodes forget this client's shares. Returns at once; may be called twice."""
        if not self._closed:
            self._closed = True
            self._entries.clear()
            with suppress(GridError):
                self._home.call(self._say_goodbye)

    def _say_goodbye(self) -> None:
        for connection in self._connections:
            connection.flow.tell(CloseCommittee(committee=self.id))

    def __enter__(self) -> Committee:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Committee {', '.join(self._names)}{', closed' if self._closed else ''}>"

    # ------------------------------------------------------------ as the outbox of shared tensors

    @property
    def place(self) -> Place:
        return _Where(name=f"the committee of {', '.join(self._names)}", id=self.id)

    def emit(self, command: Command, tensors: Sequence[TensorFrame], place: Origin, what: str) -> None:
        """Queue a command."""
        self._check_open()
        try:
            find(command.op)
            for frame in tensors:
                fraction_bits(torch_dtype(frame.dtype))
                _check_size(len(frame.data))
        except OpNotSupported as error:
            raise OpNotSupported(f"{error.message} (at {describe(place)})", **error.details) from None
        self._add((command, tensors, place))

    def free(self, object_id: ObjectId) -> None:
        """The shares are not needed any more. Called from finalizers: takes no lock, never raises."""
        self._entries.append(object_id)
        with suppress(GridError):
            self._wake()

    async def read(self, tensor: Any, timeout_s: float | None) -> torch.Tensor:
        """Open a value to this client."""
        self._check_open()
        object_id = ObjectId(int(tensor._handle.ref))  # makes a transpose that nothing has used yet

        def messages(number: int) -> Sequence[Message]:
            return [GetShare(committee=self.id, number=number, object=object_id)] * len(self._connections)

        timeout_s = self._deadline_s + GRACE_S if timeout_s is None else timeout_s
        if not timeout_s > 0:
            raise InvalidRequest(f"timeout is {timeout_s}; it must be a number of seconds above 0")
        answers: asyncio.Future[list[asyncio.Future[Message]]] = self._home.loop.create_future()
        self._entries.append(_Request(messages, "revealing a value", answers=answers, timeout_s=timeout_s))
        self._flush()
        replies = await self._replies(await answers)
        words = self._put_together(replies, tensor.numel())
        value = torch.from_numpy(words.view(np.int64)).reshape(tensor.shape)
        return fixed.decode(value, fraction_bits(tensor.dtype), tensor.dtype)

    async def move(self, tensor: Any, to: Place, timeout_s: float | None) -> NoReturn:
        """Shares stay where they are."""
        raise InvalidRequest("a value on shares does not move; x.reveal() opens it to this client")

    def run_plan(self, plan: Any, leaves: Sequence[Any]) -> NoReturn:
        """Not there yet."""
        raise InvalidRequest("plans do not run on shares yet: call the function itself on shared tensors")

    # ------------------------------------------------------------ the queue

    def _made(self, shape: Sequence[int], dtype: torch.dtype) -> SharedTensor:
        return wrap(self.shapes.meta(shape, dtype), Handle(self, self.new_id()))

    def _check_open(self) -> None:
        self._home.check_process()
        if self._closed:
            raise InvalidRequest("the committee was closed; open another one with g.committee(...)")

    def _add(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._home.call(self._flush)

    def _flush(self) -> None:
        """On the loop: number what waits, and put it into the three sessions."""
        self._awake = False
        while self._entries:
            head = self._entries[0]
            if isinstance(head, int):
                freed = tuple(self._taken(lambda one: isinstance(one, int), MAX_FREES))
                for connection in self._connections:
                    connection.flow.tell(FreeShares(committee=self.id, objects=freed))
            elif isinstance(head, _Request):
                self._entries.popleft()
                self._send_request(head)
            else:
                self._send_commands()

    def _taken(self, wanted: Callable[[_Entry], bool], most: int) -> list[Any]:
        taken: list[Any] = []
        while self._entries and len(taken) < most and wanted(self._entries[0]):
            taken.append(self._entries.popleft())
        return taken

    def _send_commands(self) -> None:
        first, nbytes = self._next, 0
        commands: list[Command] = []
        tensors: list[TensorFrame] = []
        while self._entries and len(commands) < MAX_BATCH and nbytes < MAX_BATCH_BYTES:
            entry = self._entries[0]
            if not isinstance(entry, tuple):
                break
            self._entries.popleft()
            command, frames, place = entry
            commands.append(_shifted(command, len(tensors)))
            tensors.extend(frames)
            nbytes += sum(len(frame.data) for frame in frames)
            self._note(self._next, command.op, place)
        message = SecureCommands(committee=self.id, first=first, commands=tuple(commands), tensors=tuple(tensors))
        for connection in self._connections:
            connection.flow.ask(message, "operations on shares", COMMAND_TIMEOUT_S).add_done_callback(_seen)

    def _send_request(self, request: _Request) -> None:
        messages = request.make(self._next)
        self._note(self._next, request.what, request.place)
        answers = [
            connection.flow.ask(message, request.what, request.timeout_s)
            for connection, message in zip(self._connections, messages, strict=True)
        ]
        for answer in answers:
            answer.add_done_callback(_seen)
        if request.source is not None:
            owner, message, _ = request.source
            dealt = owner.flow.ask(message, request.what, COMMAND_TIMEOUT_S)
            self._dealing.add(dealt)
            object_id = int(message.object) if isinstance(message, ShareObject) else 0
            dealt.add_done_callback(lambda done: self._dealt(owner, object_id, done))
        if request.answers is not None and not request.answers.done():
            request.answers.set_result(answers)

    def _note(self, number: int, what: str, place: Origin) -> None:
        self._next = number + 1
        self._origins[number] = f"{what}, written at {describe(place)}" if place is not None else what
        if len(self._origins) > MAX_ORIGINS:
            del self._origins[next(iter(self._origins))]

    def _dealt(self, owner: NodeConnection, object_id: int, done: asyncio.Future[Message]) -> None:
        """What a node said to sharing its value. A refusal is told where the value, or what depends on it, is asked for."""
        self._dealing.discard(done)
        error = None if done.cancelled() else done.exception()
        if isinstance(error, GridError):
            self._refused[object_id] = owner.flow.explained(error)
            if len(self._refused) > MAX_REFUSED:
                del self._refused[next(iter(self._refused))]

    # ------------------------------------------------------------ answers

    async def _replies(self, answers: Sequence[asyncio.Future[Message]]) -> list[ShareValue]:
        """What all three answered. Raises the error that says most."""
        await _settled(answers)
        errors: list[GridError] = []
        replies: list[ShareValue] = []
        for name, answer in zip(self._names, answers, strict=True):
            if not answer.done() or answer.cancelled():
                continue
            error = answer.exception()
            if isinstance(error, GridError):
                errors.append(self._named(name, error))
            elif error is not None:
                raise error
            elif not isinstance(reply := answer.result(), ShareValue):
                errors.append(WireError(f"{name} answered a reveal with {type(reply).__name__}"))
            else:
                replies.append(reply)
        if errors:
            for error in errors:
                dealt = error.details.get("dealt")
                if isinstance(dealt, int) and dealt not in self._refused and self._dealing:
                    await asyncio.wait(self._dealing, timeout=SETTLE_S)
                if isinstance(dealt, int) and dealt in self._refused:
                    raise again(self._refused[dealt])
            raise min(errors, key=lambda error: (isinstance(error, DeadlineExceeded), isinstance(error, QuorumLost)))
        return replies

    def _named(self, name: str, error: GridError) -> GridError:
        if isinstance(error, NodeUnavailable):
            return QuorumLost(f"the committee needs {name}, which is gone: {error.message}", node=name)
        number = error.details.get("command")
        where = self._origins.get(number) if isinstance(number, int) else None
        said = f"{name}: {error.message}" + (f" [{where}]" if where else "")
        return type(error)(said, **error.details)

    def _put_together(self, replies: Sequence[ShareValue], count: int) -> Any:
        """The value from three components, each vouched for by its second holder."""
        components = []
        for name, reply in zip(self._names, replies, strict=True):
            if memoryview(reply.words).nbytes != 8 * count:
                raise WireError(f"{name} sent a component of another size than the value has")
            components.append(np.frombuffer(reply.words, "<u8").astype(np.uint64))
        for number, component in enumerate(components):
            if digest(component) != replies[number - 1].digest:
                raise WireError(
                    f"{self._names[number]} and {self._names[number - 1]} do not agree on their component of the result: one of"
                    " them does not follow the protocol"
                )
        return components[0] + components[1] + components[2]


def _check_size(nbytes: int) -> None:
    """A message that cannot be sent must not use up a number."""
    if nbytes > MAX_VALUE_BYTES:
        raise InvalidRequest(f"{nbytes} bytes are more than one message carries; share parts and torch.cat them there")


async def _settled(answers: Sequence[asyncio.Future[Message]]) -> None:
    """Wait for all; once one has failed, only for `SETTLE_S` more."""
    for answer in answers:
        answer.add_done_callback(_seen)
    _, pending = await asyncio.wait(answers, return_when=asyncio.FIRST_EXCEPTION)
    if pending:
        await asyncio.wait(pending, timeout=SETTLE_S)


def _seen(answer: asyncio.Future[Message]) -> None:
    """Errors of operations come with the values that they made fail."""
    if not answer.cancelled():
        answer.exception()


def _shifted(command: Command, by: int) -> Command:
    """The command with its `Inline` arguments counted from `by`."""
    if not by:
        return command

    def shift(arg: Any) -> Any:
        if type(arg) is Inline:
            return Inline(arg + by)
        return [shift(one) for one in arg] if isinstance(arg, list) else arg

    return dataclasses.replace(
        command, args=shift(list(command.args)), kwargs={name: shift(arg) for name, arg in command.kwargs.items()}
    )


async def open_committee(
    connections: Sequence[NodeConnection],
    *,
    committee: CommitteeId,
    clients: tuple[PeerId, ...],
    home: Home,
    shapes: Shapes,
    wait: Callable[[Any], Any],
    deadline_s: float,
) -> Committee:
    """Have three nodes agree. Raises `QuorumLost` naming one that is gone, and what a node refuses by."""
    made = Committee(
        connections, committee=committee, clients=clients, home=home, shapes=shapes, wait=wait, deadline_s=deadline_s
    )
    message = OpenCommittee(committee=committee, roster=made._roster, clients=clients, deadline_s=deadline_s)
    asks = [one.flow.ask(message, "opening a committee", deadline_s + GRACE_S) for one in connections]
    await _settled(asks)
    errors = []
    for name, ask in zip(made._names, asks, strict=True):
        error = ask.exception() if ask.done() and not ask.cancelled() else None
        if isinstance(error, GridError):
            errors.append(made._named(name, error))
        elif error is not None:
            raise error
    if errors or not all(ask.done() for ask in asks):
        made.close()
        raise min(errors, key=lambda error: (isinstance(error, DeadlineExceeded), isinstance(error, QuorumLost)))
    return made
