"""What a client has asked of a committee: requests in one queue, numbered, sent alike to three nodes, and their answers.

Any thread may add to the queue; the client's loop numbers what waits and puts it into the three sessions. Operations and calls of
plans that wait travel together, with what is freed between them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from grid.client.connection import MAX_VALUE_BYTES, NodeConnection
from grid.client.flow import COMMAND_TIMEOUT_S, Home
from grid.client.origins import Origin, describe
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, NodeUnavailable, QuorumLost, WireError, again
from grid.ids import CommitteeId, ObjectId
from grid.plans.ir import Plan
from grid.plans.lines import at_line
from grid.wire.messages import (
    Command,
    FreeShares,
    Inline,
    Message,
    RunShared,
    SecureCommands,
    SharedCall,
    ShareObject,
    TensorFrame,
)

MAX_BATCH = 256
MAX_BATCH_BYTES = 1 << 20
MAX_CALLS = 64
MAX_FREES = 4096
MAX_ORIGINS = 100_000
"""Commands whose place in the user's program is remembered."""

MAX_REFUSED = 1000

SETTLE_S = 1.0
"""After a first error, time for others to come in: the one that explains most is raised."""

GRACE_S = 5.0
"""Nodes keep the committee's deadline themselves, and say who was missing; this much later we stop waiting for that."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request to all three, of `count` numbers; `make` gives their messages. `source` is asked of one more session beside it.
    `plan` is the one that it runs."""

    make: Callable[[int], Sequence[Message]]
    what: str
    place: Origin = None
    answers: asyncio.Future[list[asyncio.Future[Message]]] | None = None
    timeout_s: float = COMMAND_TIMEOUT_S
    source: tuple[NodeConnection, Message, object] | None = None
    count: int = 1
    plan: Plan | None = None


Reply = TypeVar("Reply", bound=Message)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PlanCall:
    """A call of a plan; `nbytes` are those of its results at a node."""

    call: SharedCall
    frames: Sequence[TensorFrame]
    nbytes: int
    plan: Plan
    place: Origin


Entry = tuple[Command, Sequence[TensorFrame], Origin] | PlanCall | Request | int


class ShareRequests:
    """See the module. `deadline_s` is the committee's."""

    def __init__(self, committee: CommitteeId, connections: Sequence[NodeConnection], home: Home, deadline_s: float) -> None:
        self._committee = committee
        self._connections = tuple(connections)
        self._names = tuple(one.place.name for one in connections)
        self._home = home
        self._deadline_s = deadline_s
        self._entries: deque[Entry] = deque()
        self._awake = False
        self._next = 1
        self._origins: dict[int, tuple[str, Plan | None]] = {}
        self._refused: dict[int, GridError] = {}
        self._dealing: set[asyncio.Future[Message]] = set()
        self.is_lost = False
        """Whether a node has said that the committee, or this client's work in it, is over."""

    def add(self, entry: Entry) -> None:
        """Queue something: a request, an operation, a call of a plan, or the id of shares to be freed."""
        self._entries.append(entry)
        self._wake()

    async def asked(
        self, messages: Callable[[int], Sequence[Message]], what: str, timeout_s: float | None, kind: type[Reply]
    ) -> list[Reply]:
        """Ask something of all three after all before it; their answers."""
        timeout_s = self._deadline_s + GRACE_S if timeout_s is None else timeout_s
        if not timeout_s > 0:
            raise InvalidRequest(f"timeout is {timeout_s}; it must be a number of seconds above 0")
        answers: asyncio.Future[list[asyncio.Future[Message]]] = self._home.loop.create_future()
        self._entries.append(Request(messages, what, answers=answers, timeout_s=timeout_s))
        self._flush()
        return await self._replies(await answers, kind)

    def forget(self) -> None:
        """Drop what waits."""
        self._entries.clear()

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
                self._tell(FreeShares(committee=self._committee, number=self._next, objects=freed))
                self._next += 1
            elif isinstance(head, Request):
                self._entries.popleft()
                self._send_request(head)
            elif isinstance(head, PlanCall):
                self._send_calls()
            else:
                self._send_commands()

    def _taken(self, wanted: Callable[[Entry], bool], most: int) -> list[Any]:
        taken: list[Any] = []
        while self._entries and len(taken) < most and wanted(self._entries[0]):
            taken.append(self._entries.popleft())
        return taken

    def _send_commands(self) -> None:
        first, nbytes = self._next, 0
        commands: list[Command] = []
        frees: list[tuple[ObjectId, ...]] = []
        tensors: list[TensorFrame] = []
        while self._entries and len(commands) < MAX_BATCH and nbytes < MAX_BATCH_BYTES:
            entry = self._entries[0]
            if not isinstance(entry, tuple):
                break
            self._entries.popleft()
            frees.append(tuple(self._taken(lambda one: isinstance(one, int), MAX_FREES)))
            command, frames, place = entry
            commands.append(
                dataclasses.replace(
                    command,
                    args=_shifted(command.args, len(tensors)),
                    kwargs={name: _shifted(arg, len(tensors)) for name, arg in command.kwargs.items()},
                )
            )
            tensors.extend(frames)
            nbytes += sum(len(frame.data) for frame in frames)
            self._note(self._next, command.op, place)
        message = SecureCommands(
            committee=self._committee,
            first=first,
            commands=tuple(commands),
            tensors=tuple(tensors),
            frees=tuple(frees) if any(frees) else (),
        )
        self._ask(message, "operations on shares")

    def _send_calls(self) -> None:
        """Calls of plans that wait, with what is freed between them, as one request."""
        first, nbytes = self._next, 0
        calls: list[SharedCall] = []
        tensors: list[TensorFrame] = []
        while self._entries and len(calls) < MAX_CALLS and nbytes < MAX_BATCH_BYTES:
            entry = self._entries[0]
            if not isinstance(entry, PlanCall):
                break
            self._entries.popleft()
            freed = tuple(self._taken(lambda one: isinstance(one, int), MAX_FREES))
            calls.append(dataclasses.replace(entry.call, inputs=_shifted(entry.call.inputs, len(tensors)), frees=freed))
            tensors.extend(entry.frames)
            nbytes += entry.nbytes + sum(len(frame.data) for frame in entry.frames)
            self._note(self._next, f"the plan {entry.plan.name}", entry.place, entry.call.count, entry.plan)
        message = RunShared(committee=self._committee, number=first, calls=tuple(calls), tensors=tuple(tensors))
        self._ask(message, "plans on shares")

    def _tell(self, message: Message) -> None:
        for connection in self._connections:
            connection.flow.tell(message)

    def _ask(self, message: Message, what: str) -> None:
        for connection in self._connections:
            connection.flow.ask(message, what, COMMAND_TIMEOUT_S).add_done_callback(self._seen)

    def _send_request(self, request: Request) -> None:
        messages = request.make(self._next)
        if request.count:
            self._note(self._next, request.what, request.place, request.count, request.plan)
        answers = [
            connection.flow.ask(message, request.what, request.timeout_s)
            for connection, message in zip(self._connections, messages, strict=True)
        ]
        for answer in answers:
            answer.add_done_callback(self._seen)
        if request.source is not None:
            owner, message, _ = request.source
            dealt = owner.flow.ask(message, request.what, COMMAND_TIMEOUT_S)
            self._dealing.add(dealt)
            object_id = int(message.object) if isinstance(message, ShareObject) else 0
            dealt.add_done_callback(lambda done: self._dealt(owner, object_id, done))
        if request.answers is not None and not request.answers.done():
            request.answers.set_result(answers)

    def _seen(self, answer: asyncio.Future[Message]) -> None:
        """Errors of operations come with the values that they made fail."""
        if not answer.cancelled() and isinstance(answer.exception(), QuorumLost | NodeUnavailable):
            self.is_lost = True

    def _note(self, number: int, what: str, place: Origin, count: int = 1, plan: Plan | None = None) -> None:
        self._next = number + count
        self._origins[number] = f"{what}, written at {describe(place)}" if place is not None else what, plan
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

    async def _replies(self, answers: Sequence[asyncio.Future[Message]], kind: type[Reply]) -> list[Reply]:
        """What all three answered. Raises the error that says most."""
        await settled(answers)
        errors: list[tuple[str, GridError]] = []
        replies: list[Reply] = []
        for name, answer in zip(self._names, answers, strict=True):
            if not answer.done() or answer.cancelled():
                continue
            error = answer.exception()
            if isinstance(error, GridError):
                errors.append((name, self.named(name, error)))
            elif error is not None:
                raise error
            elif not isinstance(reply := answer.result(), kind):
                errors.append((name, WireError(f"{name} answered a reveal with {type(reply).__name__}")))
            else:
                replies.append(reply)
        if errors:
            for _, error in errors:
                dealt = error.details.get("dealt")
                if isinstance(dealt, int) and dealt not in self._refused and self._dealing:
                    await asyncio.wait(self._dealing, timeout=SETTLE_S)
                if isinstance(dealt, int) and dealt in self._refused:
                    raise again(self._refused[dealt])
            raise telling(errors)
        return replies

    def named(self, name: str, error: GridError) -> GridError:
        if isinstance(error, NodeUnavailable):
            return QuorumLost(f"the committee needs {name}, which is gone: {error.message}", node=name)
        number, step = error.details.get("command"), error.details.get("step")
        where, plan = self._origins.get(number, ("", None)) if isinstance(number, int) else ("", None)
        known = plan is not None and isinstance(step, int) and 0 <= step < len(plan.steps)
        line = at_line(plan.steps[step].line) if known else ""  # type: ignore[union-attr, index]
        return type(error)(f"{name}: {error.message}{line}" + (f" [{where}]" if where else ""), **error.details)


def telling(errors: Sequence[tuple[str, GridError]]) -> GridError:
    """Of what nodes said, each beside its name, the error that says most. A node that says that it waits for another one, or has
    lost it, is not the one to be blamed by a third."""
    excused = {name for name, error in errors if isinstance(error, QuorumLost) and error.details.get("node") not in (None, name)}

    def rank(error: GridError) -> tuple[bool, bool, bool]:
        blamed = str(error.details.get("node", "")).split(" and ")
        return isinstance(error, DeadlineExceeded), isinstance(error, QuorumLost), not excused.isdisjoint(blamed)

    return min((error for _, error in errors), key=rank)


def check_size(nbytes: int) -> None:
    """A message that cannot be sent must not use up a number."""
    if nbytes > MAX_VALUE_BYTES:
        raise InvalidRequest(f"{nbytes} bytes are more than one message carries; share parts and torch.cat them there")


async def settled(answers: Sequence[asyncio.Future[Message]]) -> None:
    """Wait for all; once one has failed, only for `SETTLE_S` more."""
    for answer in answers:
        answer.add_done_callback(_seen)
    _, pending = await asyncio.wait(answers, return_when=asyncio.FIRST_EXCEPTION)
    if pending:
        await asyncio.wait(pending, timeout=SETTLE_S)


def _seen(answer: asyncio.Future[Message]) -> None:
    """Whoever waits for all of them raises what says most."""
    if not answer.cancelled():
        answer.exception()


def _shifted(arg: Any, by: int) -> Any:
    """The argument with its `Inline`s counted from `by`."""
    if type(arg) is Inline:
        return Inline(arg + by)
    return [_shifted(one, by) for one in arg] if by and isinstance(arg, list | tuple) else arg
