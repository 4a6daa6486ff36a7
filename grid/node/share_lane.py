"""One client's work in a committee, at one party: its shares, and its requests in order.

What is bounded: the elements of every operand and result, and the multiplications of a product (`max_secure_elements`), so that
one operation holds the node's loop for a fraction of a second at most; the shares that are kept (`max_objects_per_client`,
`max_bytes_per_client`); requests that wait (`max_queued_per_client`); words that come early; the time that an operation may wait
for the other parties (`deadline_s` of the committee).

Each request has keystreams of its own, derived from the committee's keys and from everything that the client has asked before, in
order (the transcript). A client that asks the parties for different things thus gets noise: nothing that one of them hides can be
compared with what another hides. Labels and operation numbers hold the client's place and the request's number, so the work of
two clients never meets.

An object belongs to the client that made it: ids are looked up here alone. Nothing but `GetShare` lets a component out, after the
rules of all owners behind it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from grid.clock import Clock
from grid.crypto.prg import SEED_BYTES, ring_elements
from grid.errors import (
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    NotFound,
    QuorumLost,
    QuotaExceeded,
    ReleaseDenied,
    WireError,
)
from grid.ids import ObjectId, PeerId
from grid.policy.rules import OPEN
from grid.rpc.channel import time_limit
from grid.settings import NodeSettings
from grid.smpc.interpreter import Call, Value, fraction_bits
from grid.smpc.keystreams import Keys
from grid.smpc.link import Mailbox, Words
from grid.smpc.party import STEPS, Operations, Party
from grid.smpc.protocol import Protocol
from grid.smpc.replicated.opening import digest, refreshed
from grid.smpc.shares import Shared
from grid.smpc.steps import Arrival, Task
from grid.tensors.buffers import from_frame, torch_dtype
from grid.tensors.ops import elements
from grid.wire.codec import encode
from grid.wire.messages import (
    Buffer,
    Command,
    DealShare,
    ExpectShare,
    FreeShares,
    GetShare,
    Inline,
    Message,
    Ok,
    OwnerRule,
    Ref,
    SecureCommands,
    ShareInput,
    ShareValue,
)

log = logging.getLogger(__name__)

NUMBER_BITS, OPERATION_BITS = 27, 28
"""Of a request's number, and of the operations of one request; the client's place has 3 bits above these."""

WORD_BYTES = 8
MAX_DIMS = 16
MAX_DEALT = 64
"""Values of other nodes that may have come before the client's word that they would."""

T = TypeVar("T")

Request = ShareInput | SecureCommands | ExpectShare | GetShare | FreeShares
Send = Callable[[int, int, Words], None]
"""To the party of this rank, under this label. Raises `GridError` where it cannot be reached."""


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """Somebody whose rows are behind a value: the node, and what it said of its dataset."""

    node: PeerId
    rule: OwnerRule


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """A value on shares, and whose rows are behind it."""

    value: Value
    owners: frozenset[Owner]


class ShareLane:
    """See the module. `rank` is this party's; `place` the client's in the committee's list. `broken` is told what ends it."""

    def __init__(
        self,
        *,
        rank: int,
        place: int,
        send: Send,
        settings: NodeSettings,
        clock: Clock,
        deadline_s: float,
        names: Callable[[int], str],
        node_name: Callable[[PeerId], str],
        broken: Callable[[GridError], None],
    ) -> None:
        self._rank, self._place, self._send = rank, place, send
        self._keys = Keys(b"", b"", b"")
        self._settings, self._clock, self._deadline_s = settings, clock, deadline_s
        self._names, self._node_name, self._broken = names, node_name, broken
        self._mailbox = Mailbox(max_early_bytes=max(1 << 20, 4 * WORD_BYTES * settings.max_secure_elements))
        self._objects: dict[ObjectId, Held | GridError] = {}
        self._bytes = 0
        self._dealt: dict[tuple[PeerId, ObjectId], DealShare] = {}
        self._dealt_bytes = 0
        self._due: tuple[tuple[PeerId, ObjectId], asyncio.Future[DealShare]] | None = None
        self._queue: asyncio.Queue[tuple[Request, asyncio.Future[Message]]] = asyncio.Queue()
        self._queued = 0
        self._next = 1
        self._transcript = b""
        self._error: GridError | None = None
        self._task: Task[Any] | None = None
        self._current: asyncio.Future[Message] | None = None

    # ------------------------------------------------------------ from the session and the other parties

    def submit(self, message: Request) -> asyncio.Future[Message]:
        """Do a request after all before it. Raises what ended the lane, `QuotaExceeded` where too many wait."""
        if self._error is not None:
            raise again(self._error)
        weight = _weight(message)
        if self._queued + weight > self._settings.max_queued_per_client:
            raise QuotaExceeded("too many requests of this client to the committee wait here; wait for some first")
        self._queued += weight
        done: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((message, done))
        return done

    def deliver(self, sender: int, label: int, words: Words) -> None:
        """Another party's words. Whatever is wrong with them ends the lane, at all parties."""
        if self._error is not None:
            return
        try:
            if label // STEPS >> (NUMBER_BITS + OPERATION_BITS) != self._place:
                raise WireError(f"party {sender} sent words for no work of this client", party=sender)
            self._mailbox.deliver(sender, label, words)
        except GridError as error:
            self._broken(self._named(error))

    def deal(self, sender: PeerId, message: DealShare) -> None:
        """Components of another node's value. Kept until the client's word is there that it should come."""
        if self._error is not None:
            raise again(self._error)
        key = (sender, message.object)
        if self._due is not None and self._due[0] == key:
            if not self._due[1].done():
                self._due[1].set_result(message)
            return
        size = _nbytes(message.first) + _nbytes(message.second)
        if key in self._dealt:
            raise InvalidRequest("a value was dealt twice")
        if len(self._dealt) >= MAX_DEALT or self._dealt_bytes + size > self._settings.max_bytes_per_client:
            raise QuotaExceeded("too many values were dealt that nobody has asked for")
        self._dealt[key] = message
        self._dealt_bytes += size

    def end(self, error: GridError) -> None:
        """Forget everything; whoever waits gets the error."""
        if self._error is not None:
            return
        self._error = error
        self._mailbox.fail(error)
        task, self._task = self._task, None
        if task is not None:
            task.end()
        if self._due is not None and not self._due[1].done():
            self._due[1].set_exception(again(error))
            self._due[1].exception()
        if self._current is not None:
            _settle(self._current, again(error))
        while not self._queue.empty():
            _settle(self._queue.get_nowait()[1], again(error))
        self._objects.clear()
        self._dealt.clear()
        self._bytes = self._dealt_bytes = 0
        self._keys = Keys(b"", b"", b"")

    # ------------------------------------------------------------ the work

    async def run(self, keys: Keys) -> None:
        """Do requests until the lane ends; whoever cancels this ends the lane before."""
        self._keys = keys
        while self._error is None:
            message, done = await self._queue.get()
            self._current = done
            try:
                outcome: Message | GridError = await self._answer(message)
            except GridError as error:
                outcome = error
            except Exception:
                log.exception("a request of a committee failed")
                outcome = GridError("something went wrong inside the node; its log says what")
                self._broken(outcome)
            finally:
                self._queued -= _weight(message)
                self._current = None
            _settle(done, outcome)

    async def _answer(self, message: Request) -> Message:
        if isinstance(message, FreeShares):
            for object_id in message.objects:
                self._forget(object_id)
            return Ok()
        self._begin(message)
        try:
            if isinstance(message, ShareInput):
                self._attempt((message.object,), lambda: self._keep_input(message))
                return Ok()
            if isinstance(message, ExpectShare):
                await self._expect(message)
                return Ok()
            if isinstance(message, GetShare):
                return await self._opened(message)
            return await self._run_commands(message)
        except GridError as error:
            if self._error is not None:
                raise again(self._error) from None
            raise error

    def _begin(self, message: ShareInput | SecureCommands | ExpectShare | GetShare) -> None:
        """Number and transcript. A request out of step ends the lane: what follows could only be noise."""
        first = message.first if isinstance(message, SecureCommands) else message.number
        count = len(message.commands) if isinstance(message, SecureCommands) else 1
        if first != self._next or not count or self._next + count >= 1 << NUMBER_BITS:
            error = InvalidRequest(f"request {first} of this client to the committee came where {self._next} was due")
            self._broken(error)
            raise error
        self._next += count
        public = dataclasses.replace(message, first=b"", second=b"") if isinstance(message, ShareInput) else message
        seen = hashlib.sha256(self._transcript)
        seen.update(bytes([self._place]))
        for part in encode(public):
            seen.update(part)
        self._transcript = seen.digest()

    def _protocol(self, number: int) -> tuple[Party, Protocol]:
        """The protocol for one request, with keys, operation numbers and labels that no other one has."""
        from grid.smpc.replicated.protocol import Replicated  # loads a compiler; `Committees` has done so off the loop

        start = (self._place << NUMBER_BITS | number) << OPERATION_BITS
        digest = hashlib.sha256(self._transcript + number.to_bytes(4, "little")).digest()
        party = Party(self._rank, _Link(self._send, self._mailbox), self._keys.of_program(digest))
        return party, Replicated(party, Operations(start, start + (1 << OPERATION_BITS)))

    # ------------------------------------------------------------ values that come in

    def _keep_input(self, message: ShareInput) -> None:
        self._put(message.object, Held(_components(self._rank, message, self._settings), frozenset()))

    async def _expect(self, message: ExpectShare) -> None:
        key = (message.owner, message.object)
        dealt = self._dealt.pop(key, None)
        if dealt is not None:
            self._dealt_bytes -= _nbytes(dealt.first) + _nbytes(dealt.second)
        else:
            due: asyncio.Future[DealShare] = asyncio.get_running_loop().create_future()
            self._due = (key, due)
            try:
                async with time_limit(self._clock, self._deadline_s, "the shares of a node's value"):
                    dealt = await due
            except DeadlineExceeded as error:
                self._put(message.object, error)
                raise
            finally:
                self._due = None
        found = dealt

        def keep() -> None:
            if found.error is not None:
                raise found.error.to_error()
            if (found.dtype, found.shape) != (message.dtype, message.shape):
                raise InvalidRequest("the value that was dealt has another shape or dtype than the client has named")
            owners = frozenset(Owner(message.owner, rule) for rule in found.owners)
            self._put(message.object, Held(_components(self._rank, found, self._settings), owners))

        self._attempt((message.object,), keep)

    # ------------------------------------------------------------ commands

    async def _run_commands(self, message: SecureCommands) -> Message:
        first_error: GridError | None = None
        tensors = [from_frame(frame) for frame in message.tensors]
        for number, command in enumerate(message.commands, message.first):
            try:
                await self._run_command(number, command, tensors)
            except GridError as error:
                if self._error is not None:
                    raise
                told = type(error)(error.message, **{"command": number, **error.details})
                for object_id in command.outputs:
                    self._put(object_id, told)
                first_error = first_error or told
        if first_error is not None:
            raise again(first_error)
        return Ok()

    async def _run_command(self, number: int, command: Command, tensors: list[Any]) -> None:
        owners: set[Owner] = set()

        def resolved(arg: Any) -> Any:
            if type(arg) is Ref:
                held = self._get(ObjectId(int(arg)))
                owners.update(held.owners)
                return held.value
            if type(arg) is Inline:
                if int(arg) >= len(tensors):
                    raise InvalidRequest(f"the message brings {len(tensors)} tensors, and number {int(arg)} was named")
                return tensors[int(arg)]
            return [resolved(item) for item in arg] if type(arg) is list else arg

        args = [resolved(arg) for arg in command.args]
        kwargs = {name: resolved(arg) for name, arg in command.kwargs.items()}
        call = Call(command.op, args, kwargs, most=self._settings.max_secure_elements)
        if len(command.outputs) != len(call.results):
            raise InvalidRequest(f"{command.op} gives {len(call.results)} tensors, and {len(command.outputs)} were named")
        results = await self._finished(Task(call.run(self._protocol(number)[1])))
        for object_id, result in zip(command.outputs, results, strict=True):
            if result is not None:
                self._put(object_id, Held(result, frozenset(owners)))
            elif object_id > 0:
                self._put(object_id, InvalidRequest(f"{command.op} gives its first result alone on shares"))

    async def _finished(self, task: Task[T]) -> T:
        """Wait for the other parties; one that does not say its part in time ends the lane."""
        if not task.outcome.done:
            arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            task.outcome.tell(lambda: None if arrived.done() else arrived.set_result(None))
            self._task = task
            try:
                async with time_limit(self._clock, self._deadline_s, "an operation on shares"):
                    await arrived
            except DeadlineExceeded:
                waits = " and ".join(map(self._names, self._mailbox.waits)) or "nobody"
                late = f"an operation on shares waited longer than {self._deadline_s:g} s for node {waits}"
                error = QuorumLost(late, node=waits)
                self._broken(error)
                raise error from None
            finally:
                self._task = None
                if not task.outcome.done:
                    task.end()
        try:
            return task.outcome.result()
        except InvalidRequest:
            raise  # decided on public facts, and alike at all parties
        except GridError as error:
            told = self._named(error)
            self._broken(told)
            raise told from None

    def _named(self, error: GridError) -> GridError:
        """The error with the name of the node that it calls a party."""
        party = error.details.get("party")
        if not isinstance(party, int) or "node" in error.details:
            return error
        name = self._names(party)
        return type(error)(f"{error.message} (party {party} is node {name})", **{**error.details, "node": name})

    # ------------------------------------------------------------ results

    async def _opened(self, message: GetShare) -> ShareValue:
        held = self._get(message.object)
        for owner in sorted(held.owners, key=lambda one: (one.node, one.rule.dataset)):
            if owner.rule.release != OPEN:
                name = self._node_name(owner.node)
                raise ReleaseDenied(
                    f"the result depends on rows of dataset {owner.rule.dataset!r} of node {name}, whose owner's rule for"
                    f" releases is {owner.rule.release!r}; results on shares leave under \"open\" alone for now. Results of plans"
                    " that the owner lists in `allow` come in a later version",
                    rule="committee.release",
                    dataset=owner.rule.dataset,
                    node=name,
                    instead="pointers, plans and grid.sum on that dataset, under its own rules",
                )
        party, protocol = self._protocol(message.number)
        value = held.value
        if value.is_bits:
            value = await self._finished(Task(value.numeric(protocol)))
        last = ((self._place << NUMBER_BITS | message.number) + 1 << OPERATION_BITS) - 1
        fresh = refreshed(party, Operations(last), value.shared.flat())
        first, second = fresh.parts
        return ShareValue(words=np.ascontiguousarray(first).tobytes(), digest=digest(second))

    # ------------------------------------------------------------ objects

    def _attempt(self, made: Iterable[ObjectId], work: Callable[[], None]) -> None:
        try:
            work()
        except GridError as error:
            for object_id in made:
                self._put(object_id, again(error))
            raise

    def _get(self, object_id: ObjectId) -> Held:
        found = self._objects.get(object_id)
        if found is None:
            raise NotFound("this client has no shares under this id in the committee")
        if isinstance(found, GridError):
            raise again(found)
        return found

    def _put(self, object_id: ObjectId, held: Held | GridError) -> None:
        if object_id <= 0:
            return
        if isinstance(held, Held):
            most, size = self._settings.max_bytes_per_client, _size(held)
            if object_id in self._objects:
                raise InvalidRequest("an id of shares was used twice")
            if len(self._objects) >= self._settings.max_objects_per_client or self._bytes + size > most:
                raise QuotaExceeded(f"the shares of this client here would take more than {most} bytes; free some (del x)")
            self._bytes += size
        elif object_id in self._objects or len(self._objects) >= self._settings.max_objects_per_client:
            return
        self._objects[object_id] = held

    def _forget(self, object_id: ObjectId) -> None:
        found = self._objects.pop(object_id, None)
        if isinstance(found, Held):
            self._bytes -= _size(found)


class _Link:
    """The party's link: words go out by `send`, and come by the lane's mailbox."""

    def __init__(self, send: Send, mailbox: Mailbox) -> None:
        self._send = send
        self._mailbox = mailbox

    def send(self, to: int, label: int, words: Words) -> None:
        self._send(to, label, words)

    def receive(self, sender: int, label: int, count: int) -> Arrival[Words]:
        return self._mailbox.receive(sender, label, count)


def again(error: GridError) -> GridError:
    """A fresh instance: one that is kept would collect the traceback of each raise."""
    return type(error)(error.message, **error.details)


def _components(rank: int, message: ShareInput | DealShare, settings: NodeSettings) -> Value:
    """What a dealer sent this party, checked: seeds where those are due, words elsewhere."""
    if len(message.shape) > MAX_DIMS or any(size < 0 for size in message.shape):
        raise InvalidRequest("the shape of shares is none")
    count = elements(message.shape)
    if count > settings.max_secure_elements:
        raise QuotaExceeded(f"{count} elements, and {settings.max_secure_elements} are allowed here (max_secure_elements)")
    dtype = torch_dtype(message.dtype)
    fraction_bits(dtype)
    seeds = ((True, True), (True, False), (False, True))[rank]
    parts = []
    for data, is_seed in zip((message.first, message.second), seeds, strict=True):
        if _nbytes(data) != (SEED_BYTES if is_seed else WORD_BYTES * count):
            raise InvalidRequest("a component of shares has a wrong size")
        words = ring_elements(bytes(data), count).view(np.uint64) if is_seed else np.frombuffer(data, "<u8").astype(np.uint64)
        parts.append(words.reshape(message.shape))
    return Value(Shared(*parts), dtype)


def _size(held: Held) -> int:
    return held.value.nbytes


def _nbytes(data: Buffer) -> int:
    return memoryview(data).nbytes


def _weight(message: Request) -> int:
    return max(1, len(message.commands)) if isinstance(message, SecureCommands) else 1


def _settle(done: asyncio.Future[Message], outcome: Message | GridError) -> None:
    if done.done():
        return
    if isinstance(outcome, GridError):
        done.set_exception(outcome)
        done.exception()  # marks it as seen: the client may be gone
    else:
        done.set_result(outcome)
