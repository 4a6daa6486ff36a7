"""One client's work in a committee, at one party: its shares, and its requests in order.

A lane runs in a party (`party_work`), in the node or in a process of its own, and knows nothing of that. It is a program of
`smpc.steps`: a message of another party, or a request, makes it go on within the call that brings it.

What is bounded: the elements of every operand and result, and the multiplications of a product (`max_secure_elements`); the
shares that are kept (`max_objects_per_client`, `max_bytes_per_client`); words that come early; the time that an operation may
wait for the other parties (`deadline_s` of the committee). These limits are the lowest of the three nodes', so that all parties
refuse the same. Requests that wait are counted by the node.

Each request has keystreams of its own, derived from the committee's keys, from everything that the client has asked before, in
order (the transcript; what it frees stands there, too, so that an id never means different values at two parties), and from what
each holder of a component was dealt of the inputs behind it. A client that asks the parties for different things, or deals them
shares that do not fit together, thus gets noise: nothing that one of them hides can be compared with what another hides. Labels
and operation numbers hold the client's place and the request's number, so the work of two clients never meets.

An object belongs to the client that made it: ids are looked up here alone. Nothing but `GetShare` and `MoveShares` let a
component out, as an offer to the node, which asks the rules of all owners behind it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from grid.clock import Clock
from grid.crypto.prg import SEED_BYTES, ring_elements
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, NotFound, QuorumLost, QuotaExceeded, again
from grid.ids import OFFERED, ObjectId, PeerId
from grid.node.party_messages import CLIENT, Dealt, Owner, Request, ShareOffer, request_weight
from grid.node.shared_plans import SharedPlans, inline
from grid.policy.rules import OPEN
from grid.settings import NodeSettings
from grid.smpc.interpreter import Call, Value, fraction_bits
from grid.smpc.keystreams import Keys, Seen
from grid.smpc.link import Link, Mailbox, Words
from grid.smpc.party import PARTIES, Operations, Party
from grid.smpc.protocol import Protocol
from grid.smpc.replicated.opening import digest, refreshed
from grid.smpc.shares import Shared
from grid.smpc.steps import Arrival, Task
from grid.tensors.buffers import from_frame, short_dtype, torch_dtype
from grid.tensors.exhausted import is_exhausted
from grid.tensors.ops import elements
from grid.wire.codec import encode
from grid.wire.messages import (
    Buffer,
    Command,
    ExpectShare,
    FreeShares,
    GetShare,
    GivenRows,
    Inline,
    Message,
    MoveShares,
    OfferShares,
    Ok,
    OwnerRule,
    PutSharedPlan,
    Ref,
    RunShared,
    SecureCommands,
    SharedCall,
    ShareInput,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

NUMBER_BITS, OPERATION_BITS = 27, 28
"""Of a request's number, and of the operations of one request; the client's place has 3 bits above these."""

WORD_BYTES = 8
MAX_DIMS = 16
EARLY_BYTES = 1 << 20
"""What may come of another party before it is asked for, beside two whole values: it is a step ahead at most."""

MAX_DEALT = 64
"""Values of one other node that may have come before the client's word that they would; a quarter of all memory at most."""

TURN_S = 0.005
"""How long a lane works without a turn of the loop, where the other lanes of the party, and its link, wait."""

Numbered = ShareInput | SecureCommands | RunShared | ExpectShare | OfferShares | GetShare | MoveShares | FreeShares
"""Requests that are in the transcript. A plan need not be, as its calls name it by its hash."""

Answered = Callable[[Message | GridError], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """A value on shares, and whose rows are behind it.

    `dealt`: it is an input, as a node or the client has dealt it. `made`: the id of the plan that it is a result of, where all
    values with owners in that call were dealt; "" otherwise. So nothing but that plan saw the owners' rows on the way to it.
    `given`: what was dealt to that plan, argument by argument, in the call of this number. `seen`: what this party was dealt of
    the inputs behind it.
    """

    value: Value
    owners: frozenset[Owner]
    seen: Seen
    dealt: bool = False
    made: str = ""
    given: tuple[GivenRows, ...] = ()
    call: int = 0


Name = tuple[PeerId, ObjectId]
"""What is dealt or offered to a lane: by whom, and as which object of its own."""

Hand = Callable[[int, Name, Held], None]


class ShareLane:
    """See the module. `rank` is this party's; `place` the client's in the committee's list; `names` are the nodes', by rank.

    `link` brings words of this lane's labels to `mailbox`. `broken` is told what ends the lane from inside. `hand` gives a value
    to the lane of another place, under a name.
    """

    def __init__(
        self,
        *,
        rank: int,
        place: int,
        link: Link,
        keys: Keys,
        settings: NodeSettings,
        clock: Clock,
        deadline_s: float,
        names: tuple[str, ...],
        broken: Callable[[GridError], None],
        hand: Hand,
    ) -> None:
        self._hand = hand
        self._rank, self._place, self._link, self._keys = rank, place, link, keys
        self._settings, self._clock, self._deadline_s = settings, clock, deadline_s
        self._names, self._tell_broken = names, broken
        self.mailbox = Mailbox(max_early_bytes=EARLY_BYTES + 2 * WORD_BYTES * settings.max_secure_elements)
        self._plans = SharedPlans(settings, EARLY_BYTES + 2 * WORD_BYTES * settings.max_secure_elements)
        self._objects: dict[ObjectId, Held | GridError] = {}
        self._bytes = 0
        self._dealt: dict[Name, Dealt | Held] = {}
        self._due: tuple[Name, Arrival[Dealt | Held]] | None = None
        self._queue: deque[tuple[Request, Answered]] = deque()
        self._idle: Arrival[None] | None = None
        self._current: Answered | None = None
        self._next = 1
        self._transcript = b""
        self._waits_since: float | None = None
        self._turn_began = 0.0
        self._loop = asyncio.get_running_loop()
        self.error: GridError | None = None
        self._work = Task(self._run())

    # ------------------------------------------------------------ from the client and the other parties

    def submit(self, message: Request, answered: Answered) -> None:
        """Do a request after all before it; `answered` gets its answer, or the error."""
        if self.error is not None:
            answered(again(self.error))
            return
        self._queue.append((message, answered))
        if self._idle is not None:
            self._turn_began = self._loop.time()
            self._idle.set(None)

    def deliver(self, sender: int, label: int, words: Words) -> None:
        """Another party's words. Whatever is wrong with them ends the lane, at all parties."""
        try:
            self.mailbox.deliver(sender, label, words)
        except GridError as error:
            self.break_off(error)

    def deal(self, message: Dealt) -> None:
        """Components of another node's value. Kept until the client's word is there that it should come."""
        self.take((message.sender, message.object), message)

    def take(self, key: Name, found: Dealt | Held) -> None:
        """The same for whatever is dealt, or offered by another client."""
        if self.error is not None:
            raise again(self.error)
        if self._due is not None and self._due[0] == key and not self._due[1].done:
            self._due[1].set(found)
            return
        if key in self._dealt:
            raise InvalidRequest("a value was dealt twice")
        own = [other for name, other in self._dealt.items() if name[0] == key[0]]
        most = self._settings.max_bytes_per_client
        sizes = [sum(map(_waiting, some)) + _waiting(found) for some in (own, self._dealt.values())]
        if len(own) >= MAX_DEALT or len(self._dealt) >= 8 * MAX_DEALT or sizes[0] > most // 4 or sizes[1] > most:
            raise QuotaExceeded("too many values were dealt that nobody has asked for")
        self._dealt[key] = found

    def break_off(self, error: GridError) -> None:
        """End from inside: tell whoever has the lane, too. Parties in the error get the names of their nodes."""
        if self.error is None:
            named = self._named(error)
            self._tell_broken(named)  # before what waits here gets it as an answer
            self.end(named)

    def end(self, error: GridError) -> None:
        """Forget everything; whoever waits gets the error."""
        if self.error is not None:
            return
        self.error = error
        self.mailbox.fail(error)
        if self._due is not None:
            self._due[1].fail(error)
        current, self._current = self._current, None
        if current is not None:
            current(again(error))
        while self._queue:
            self._queue.popleft()[1](again(error))
        if self._idle is not None:
            self._idle.set(None)
        self._objects.clear()
        self._dealt.clear()
        self._bytes = 0
        self._keys = Keys(b"", b"", b"")

    async def watch(self) -> None:
        """End what waits too long for the other parties. A task of the party's own, beside the lane."""
        while self.error is None:
            since = self._waits_since
            now = self._clock.monotonic()
            if since is not None and now >= since + self._deadline_s:
                self._late()
            else:
                await self._clock.sleep((now if since is None else since) + self._deadline_s - now)

    def _late(self) -> None:
        if self._due is not None:
            self._waits_since = None
            late = f"the shares of a node's value took longer than {self._deadline_s:g} s"
            if self._due[0][1] >= OFFERED:
                late = f"no client has made this offer to this one, or not within {self._deadline_s:g} s; ask for another offer"
            self._due[1].fail(DeadlineExceeded(late))
            return
        waits = " and ".join(self._names[rank] for rank in self.mailbox.waits) or "nobody"
        late = f"an operation on shares waited longer than {self._deadline_s:g} s for node {waits}"
        self.break_off(QuorumLost(late, node=waits))

    # ------------------------------------------------------------ the work

    async def _run(self) -> None:
        """Do requests until the lane ends."""
        while self.error is None:
            if not self._queue:
                self._idle = Arrival()
                await self._idle
                self._idle = None
                continue
            message, self._current = self._queue.popleft()
            try:
                outcome: Message | GridError = await self._answer(message)
            except GridError as error:
                outcome = error
            except Exception as error:
                log.exception("a request of a committee failed")
                outcome = GridError("something went wrong inside the node; its log says what")
                if is_exhausted(error):
                    advice = "free values (del x), or give it smaller batches"
                    outcome = QuotaExceeded(f"the party's process has no memory left (max_process_bytes); {advice}")
                self.break_off(outcome)
            current, self._current = self._current, None
            if current is not None:
                current(outcome)
            await self._turn()

    async def _turn(self) -> None:
        """Let others of this loop go on, if this lane has worked for long."""
        if self._loop.time() - self._turn_began > TURN_S:
            turn: Arrival[None] = Arrival()
            self._loop.call_soon(turn.set, None)
            await turn
            self._turn_began = self._loop.time()

    async def _answer(self, message: Request) -> Message:
        if isinstance(message, PutSharedPlan):
            self._plans.put(message)
            return Ok()
        self._begin(message)
        if isinstance(message, FreeShares):
            for object_id in message.objects:
                self._forget(object_id)
            return Ok()
        try:
            if isinstance(message, ShareInput):
                self._attempt((message.object,), lambda: self._keep_input(message))
                return Ok()
            if isinstance(message, ExpectShare):
                await self._expect(message)
                return Ok()
            if isinstance(message, OfferShares):
                return self._offer_to_client(message)
            if isinstance(message, GetShare | MoveShares):
                return await self._offer(message)
            if isinstance(message, RunShared):
                return await self._run_plans(message)
            return await self._run_commands(message)
        except GridError as error:
            if self.error is not None:
                raise again(self.error) from None
            raise error

    def _begin(self, message: Numbered) -> None:
        """Number and transcript. A request out of step ends the lane: what follows could only be noise."""
        first = message.first if isinstance(message, SecureCommands) else message.number
        count = len(message.commands) if isinstance(message, SecureCommands) else request_weight(message)
        numbered = not isinstance(message, RunShared) or all(call.count > 0 for call in message.calls)
        if first != self._next or count < 1 or not numbered or self._next + count >= 1 << NUMBER_BITS:
            error = InvalidRequest(f"request {first} of this client to the committee came where {self._next} was due")
            self.break_off(error)
            raise error
        self._next += count
        public = dataclasses.replace(message, first=b"", second=b"") if isinstance(message, ShareInput) else message
        seen = hashlib.sha256(self._transcript)
        seen.update(bytes([self._place]))
        for part in encode(public):
            seen.update(part)
        self._transcript = seen.digest()

    def _protocol(self, number: int, seen: Seen, count: int = 1) -> tuple[Party, Protocol]:
        """The protocol for one request of so many numbers, with keys, operation numbers and labels that no other one has.

        `seen` is of its operands: a dealer that gave the parties what does not fit together gets noise."""
        from grid.smpc.replicated.protocol import Replicated  # loads a compiler, which whoever makes a party has done before

        start = (self._place << NUMBER_BITS | number) << OPERATION_BITS
        digest = hashlib.sha256(self._transcript + number.to_bytes(4, "little")).digest()
        party = Party(self._rank, self._link, self._keys.of_program(digest, seen))
        return party, Replicated(party, Operations(start, start + (count << OPERATION_BITS)))

    # ------------------------------------------------------------ values that come in

    def _keep_input(self, message: ShareInput) -> None:
        value, seen = _components(self._rank, message, self._settings), Seen.dealt(message.first, message.second)
        self._put(message.object, Held(value, frozenset(), seen, dealt=True))

    async def _expect(self, message: ExpectShare) -> None:
        dealers = (message.owner, *message.others)
        if message.object in self._objects:
            raise InvalidRequest("an offer is taken once, and a value dealt once: there are shares under this id here already")
        if message.others and not len(dealers) == len(set(dealers)) == PARTIES:
            raise InvalidRequest(f"a value that moves is dealt by {PARTIES} different nodes")
        try:
            found = [await self._arrival((dealer, message.object)) for dealer in dealers]
        except DeadlineExceeded as error:
            self._put(message.object, again(error))
            raise

        def keep() -> None:
            parts = [
                one if isinstance(one, Held) else self._dealt_value(dealer, one)
                for dealer, one in zip(dealers, found, strict=True)
            ]
            held = _together(parts) if message.others else parts[0]
            if (short_dtype(held.value.dtype), held.value.shape) != (message.dtype, message.shape):
                raise InvalidRequest("the value that was dealt has another shape or dtype than the client has named")
            self._put(message.object, held)

        self._attempt((message.object,), keep)

    async def _arrival(self, key: Name) -> Dealt | Held:
        """What is dealt or offered under this name, once it is here."""
        if key in self._dealt:
            return self._dealt.pop(key)
        due: Arrival[Dealt | Held] = Arrival()
        self._due, self._waits_since = (key, due), self._clock.monotonic()
        try:
            return await due
        finally:
            self._due = self._waits_since = None

    def _dealt_value(self, owner: PeerId, found: Dealt) -> Held:
        """What a node has dealt, or its refusal raised."""
        if found.error is not None:
            raise found.error.to_error()
        owners = frozenset(Owner(node=owner, rule=rule) for rule in found.owners)
        value, seen = _components(self._rank, found, self._settings), Seen.dealt(found.first, found.second)
        return Held(value, owners, seen, dealt=True)

    def _offer_to_client(self, message: OfferShares) -> Message:
        """Hand shares to another client's lane. Of its own value a client says what may be opened; that never counts for rows."""
        held = self._get(message.object)
        rule = OwnerRule(dataset="", release=OPEN if message.freely else "plans", allow=message.plans)
        owners = held.owners | {Owner(node=PeerId(CLIENT + message.client), rule=rule)}
        # The other lane's requests say nothing of this one's, and parties that offer different things must not agree there.
        offered = Held(held.value, owners, held.seen.told(self._transcript), dealt=held.dealt or not held.owners)
        self._hand(message.to, (message.client, message.name), offered)
        return Ok()

    # ------------------------------------------------------------ commands

    async def _run_commands(self, message: SecureCommands) -> Message:
        first_error: GridError | None = None
        tensors, frees = [from_frame(frame) for frame in message.tensors], list(message.frees)
        for number, command in enumerate(message.commands, message.first):
            try:
                await self._run_command(number, command, tensors)
            except GridError as error:
                if self.error is not None:
                    raise
                told = self._failed(number, command.outputs, error)
                first_error = first_error or told
            for object_id in frees.pop(0) if frees else ():
                self._forget(object_id)
            await self._turn()
        if first_error is not None:
            raise again(first_error)
        return Ok()

    async def _run_command(self, number: int, command: Command, tensors: list[Any]) -> None:
        operands: list[Held] = []

        def resolved(arg: Any) -> Any:
            if type(arg) is Ref:
                operands.append(self._get(ObjectId(int(arg))))
                return operands[-1].value
            if type(arg) is Inline:
                return inline(arg, tensors)
            return [resolved(item) for item in arg] if type(arg) is list else arg

        args = [resolved(arg) for arg in command.args]
        kwargs = {name: resolved(arg) for name, arg in command.kwargs.items()}
        call = Call(command.op, args, kwargs, most=self._settings.max_secure_elements)
        if len(command.outputs) != len(call.results):
            raise InvalidRequest(f"{command.op} gives {len(call.results)} tensors, and {len(command.outputs)} were named")
        owners = frozenset(owner for held in operands for owner in held.owners)
        seen = Seen.together(held.seen for held in operands)
        results = await self._finished(Task(call.run(self._protocol(number, seen)[1])))
        for object_id, result in zip(command.outputs, results, strict=True):
            self._put(object_id, Held(result, owners, seen))

    async def _run_plans(self, message: RunShared) -> Message:
        """Run plans one after the other. The first error is the answer; the others come with what depends on them."""
        first_error: GridError | None = None
        tensors = [from_frame(frame) for frame in message.tensors]
        number = message.number
        for call in message.calls:
            try:
                await self._run_plan(number, call, tensors)
            except GridError as error:
                if self.error is not None:
                    raise
                told = self._failed(number, call.outputs, error)
                first_error = first_error or told
            for object_id in call.frees:
                self._forget(object_id)
            number += call.count
            await self._turn()
        if first_error is not None:
            raise again(first_error)
        return Ok()

    async def _run_plan(self, number: int, asked: SharedCall, tensors: list[Any]) -> None:
        """Run a plan; its results get their ids."""
        call = self._plans.call(asked, tensors, self._get)
        _, protocol = self._protocol(number, call.seen, asked.count)
        results = await self._finished(Task(call.run(protocol, self._goes_on)))
        for object_id, result in zip(asked.outputs, results, strict=True):
            self._put(object_id, Held(result, call.owners, call.seen, made=call.made, given=call.given, call=number))

    def _goes_on(self) -> None:
        """The next operation of a plan begins: the deadline is for one."""
        if self._waits_since is not None:
            self._waits_since = self._clock.monotonic()

    def _failed(self, number: int, outputs: Iterable[ObjectId], error: GridError) -> GridError:
        """Leave the outputs of a command failed, and tell which one it was."""
        told = type(error)(error.message, **{"command": number, **error.details})
        for object_id in outputs:
            self._put(object_id, told)
        return told

    async def _finished(self, task: Task[T]) -> T:
        """Wait for the other parties. What goes wrong between them ends the lane; what all refuse alike fails the request."""
        try:
            if not task.outcome.done:
                self._waits_since = self._clock.monotonic()
            return await task
        except InvalidRequest:
            raise  # decided on public facts, and alike at all parties
        except GridError as error:
            self.break_off(error)
            raise again(self.error or error) from None
        finally:
            self._waits_since = None

    def _named(self, error: GridError) -> GridError:
        """The error with the name of the node that it calls a party."""
        party = error.details.get("party")
        if not isinstance(party, int) or "node" in error.details:
            return error
        name = self._names[party]
        return type(error)(f"{error.message} (party {party} is node {name})", **{**error.details, "node": name})

    # ------------------------------------------------------------ results

    async def _offer(self, message: GetShare | MoveShares) -> ShareOffer:
        """This party's part of a value, as nobody has seen it before. What else must allow that it leaves, the node knows."""
        held = self._get(message.object)
        party, protocol = self._protocol(message.number, held.seen)
        value = held.value
        if not value.is_numeric:
            value = await self._finished(Task(value.numeric(protocol)))
        last = ((self._place << NUMBER_BITS | message.number) + 1 << OPERATION_BITS) - 1
        fresh = refreshed(party, Operations(last), value.shared.flat())
        first, second = fresh.parts
        owners = tuple(sorted(held.owners, key=lambda one: (one.node, *dataclasses.astuple(one.rule))))
        return ShareOffer(
            words=np.ascontiguousarray(first).tobytes(),
            digest=digest(second),
            dtype=short_dtype(held.value.dtype),
            shape=held.value.shape,
            owners=owners,
            made=(held.made,),
            given=held.given,
            call=held.call,
        )

    # ------------------------------------------------------------ objects

    def _attempt(self, made: Iterable[ObjectId], work: Callable[[], object]) -> None:
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


def _together(parts: Sequence[Held]) -> Held:
    """The value that each of these is a component of. One that moves here has nobody's rows behind it."""
    if any(one.owners for one in parts) or len({(one.value.dtype, one.value.shape) for one in parts}) > 1:
        raise InvalidRequest("what was dealt are not the components of one value that moves here")
    first = parts[0].value.shared
    rest = [part.value.shared.flat() for part in parts[1:]]
    words = [sum((one.parts[at] for one in rest), start).reshape(first.shape) for at, start in enumerate(first.flat().parts)]
    return Held(Value(Shared(*words), parts[0].value.dtype), frozenset(), Seen.together(part.seen for part in parts))


def _components(rank: int, message: ShareInput | Dealt, settings: NodeSettings) -> Value:
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
        parts.append(np.require(words, requirements=("C", "W")).reshape(message.shape))  # kernels are compiled for these
    return Value(Shared(*parts), dtype)


def _size(held: Held) -> int:
    return held.value.nbytes


def _waiting(found: Dealt | Held) -> int:
    """Bytes of what waits to be asked for."""
    return _size(found) if isinstance(found, Held) else _nbytes(found.first) + _nbytes(found.second)


def _nbytes(data: Buffer) -> int:
    return memoryview(data).nbytes
