"""A client's values in a process of its own: requests go over a pipe as they come, answers come back in the same order.

Nothing waits for the process: a request is encoded and written, and its future kept in line. What the rules have to say of an
offered value is asked in a lane of the executor, in the order of offers, while the process goes on with later requests.

When the process ends, whatever ended it, everything that it was asked fails with one error that says so, and so does every
later use of values that it had. The session goes on: the next request gets a fresh process, which is told the plans again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from grid.errors import ExecutionFailed, GridError, NodeUnavailable, QuotaExceeded, WireError
from grid.ids import ObjectId, PeerId, PlanId
from grid.node.desk import Dealing, Desk
from grid.node.executor import Lane
from grid.node.one_sum import Operand
from grid.node.pace import Running, time_advice
from grid.node.runtime import PAUSE_BYTES, Runtime
from grid.node.threads import kept
from grid.node.transfers import Delivery
from grid.node.work import FROM_WORKER, TO_WORKER, Done, Offer, SumOffer, TakeValue
from grid.node.workers import ENDING_S, Spawn, Worker, Workers, WorkerUser, memory_advice
from grid.settings import NodeSettings
from grid.smpc import ring
from grid.wire.codec import decode, encode
from grid.wire.messages import (
    Buffer,
    CommandFailed,
    Commands,
    DescribeObject,
    Failure,
    Message,
    ObjectDescription,
    ObjectValue,
    Ok,
    OpenDataset,
    PutPlan,
    RunPlan,
    StartSum,
    TensorFrame,
)

T = TypeVar("T")

OK = Ok()

LOST = ". The values that this session had here are gone: send and open them again, or connect again"

ANSWERS: dict[type[Message], type[Message]] = {DescribeObject: ObjectDescription, TakeValue: Offer, StartSum: SumOffer}
"""Request -> its answer, where that is not `Ok`."""

KEPT_PLAN_BYTES = 16 << 20
"""Encodings of one session's plans that the node keeps, for another process if the first one is ended."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False, slots=True)
class _Asked:
    """A request, and what becomes of its answer or error. `weight`: the commands it counts for."""

    message: Message
    weight: int
    answered: Callable[[Message], None]
    failed: Callable[[GridError], None]

    @property
    def answer(self) -> type[Message]:
        return ANSWERS.get(type(self.message), Ok)


@dataclasses.dataclass(eq=False, slots=True)
class _Hold:
    until: asyncio.Future[None]
    begun: asyncio.Future[None]


class ProcessRuntime(Runtime, WorkerUser):
    """See the module. `lane` is for what the rules have to say, off the loop."""

    def __init__(
        self, *, workers: Workers, lane: Lane, desk: Desk, settings: NodeSettings, client: PeerId, spawn: Spawn
    ) -> None:
        self.on_failed = lambda command, error: None
        self._workers = workers
        self._client = client
        self._spawn = spawn
        self._lane = lane
        self._desk = desk
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._worker: Worker | None = None
        self._ending = False
        self._closed = False
        self._pending: deque[_Asked] = deque()
        self._first: deque[_Asked] = deque()
        self._waiting: deque[_Asked | _Hold] = deque()
        self._held: asyncio.Future[None] | None = None
        self._queued = 0
        self._plans: dict[PlanId, PutPlan] = {}
        self._plan_bytes = 0
        self._has_rows = False
        self._lost: GridError | None = None

    # ------------------------------------------------------------ what sessions ask

    def submit(self, message: Message, weight: int = 1) -> asyncio.Future[Message]:
        result: asyncio.Future[Message] = self._loop.create_future()
        self._ask(message, weight, partial(_settle, result), partial(_fail, result))
        return result

    def release(self, object_id: ObjectId, sent: asyncio.Future[None]) -> asyncio.Future[Message]:
        result: asyncio.Future[Message] = self._loop.create_future()
        self._ask(TakeValue(object=object_id), 1, partial(self._offered, result, sent), partial(_fail, result))
        return result

    def _offered(self, result: asyncio.Future[Message], sent: asyncio.Future[None], offer: Message) -> None:
        assert isinstance(offer, Offer)
        if result.done():  # nobody waits any more, so nothing is released
            return
        self._pause(offer.tensor, sent)
        value = ObjectValue(tensor=offer.tensor)
        if offer.claim is None:
            _settle(result, value)
        else:
            self._in_lane(result, partial(self._desk.release, offer), lambda _: value)

    def _pause(self, value: TensorFrame | None, until: asyncio.Future[Any]) -> None:
        """After a large value take no further one from the process before `until` is done."""
        if value is not None and len(value.data) > PAUSE_BYTES and self._worker is not None:
            pipe = self._worker.pipe
            pipe.pause()
            until.add_done_callback(lambda _: pipe.resume())

    def take(self, object_id: ObjectId) -> asyncio.Future[Offer]:
        result: asyncio.Future[Any] = self._loop.create_future()
        self._ask(TakeValue(object=object_id), 1, partial(_settle, result), partial(_fail, result))
        return result

    def allow_move(self, offer: Offer, to: str) -> asyncio.Future[None]:
        return self._lane.submit(partial(self._desk.allow_move, offer, to))

    def allow_share(self, offer: Offer, nodes: Mapping[PeerId, str]) -> asyncio.Future[Dealing]:
        return self._lane.submit(partial(self._desk.share, offer, nodes))

    def take_operand(self, message: StartSum, claim: Callable[[], None]) -> asyncio.Future[Operand]:
        result: asyncio.Future[Operand] = self._loop.create_future()

        def offered(offer: Message) -> None:
            assert isinstance(offer, SumOffer)
            if not result.done():
                self._pause(offer.tensor, result)  # then it is counted
                self._in_lane(result, partial(self._desk.admit, offer, claim), lambda operand: operand)

        self._ask(message, 1, offered, partial(_fail, result))
        return result

    def commit(self, work: Callable[[], list[ring.Elements]]) -> asyncio.Future[list[ring.Elements]]:
        return self._lane.submit(work)

    def _in_lane(self, result: asyncio.Future[T], work: Callable[[], Any], value: Callable[[Any], T]) -> None:
        """Let the lane do some work, and settle `result` with what `value` makes of its result."""

        def done(job: asyncio.Future[Any]) -> None:
            error = NodeUnavailable("this session is over") if job.cancelled() else job.exception()
            if error is None:
                _settle(result, value(job.result()))
            else:
                _fail(result, error)

        try:
            self._lane.submit(work).add_done_callback(done)
        except GridError as error:
            _fail(result, error)

    def hold(self, until: asyncio.Future[None]) -> asyncio.Future[None]:
        hold = _Hold(until, self._loop.create_future())
        self._count(1)
        self._waiting.append(hold)
        self._go_on()
        return hold.begun

    def keep(self, object_id: ObjectId, arrived: Delivery | GridError) -> asyncio.Future[None]:
        if self._closed:
            raise NodeUnavailable("this session is over")
        if isinstance(arrived, Delivery) and arrived.datasets:
            self._has_rows = True
        done: asyncio.Future[None] = self._loop.create_future()
        self._queued += 1
        self._first.append(_Asked(kept(object_id, arrived), 1, lambda _: _settle(done, None), partial(_fail, done)))
        self._go_on()
        return done

    async def close(self) -> None:
        self._closed = True
        try:
            await self._lane.close()
        finally:
            worker = self._worker
            over = NodeUnavailable("this session is over")
            if worker is not None:
                worker.pipe.close()
                worker.kill()
            self._fail_all([*self._pending, *self._first, *self._waiting], over)
            self._pending.clear()
            self._first.clear()
            self._waiting.clear()
            self._plans.clear()
            self._plan_bytes = 0
        if worker is not None:
            await asyncio.wait([worker.ended], timeout=ENDING_S)

    # ------------------------------------------------------------ asking

    def _count(self, weight: int) -> None:
        if self._closed:
            raise NodeUnavailable("this session is over")
        most = self._settings.max_queued_per_client
        if self._queued + weight > most:
            raise QuotaExceeded(f"more than {most} commands wait here; wait for some before sending more")
        self._queued += weight

    def _ask(
        self, message: Message, weight: int, answered: Callable[[Message], None], failed: Callable[[GridError], None]
    ) -> None:
        self._count(weight)
        self._waiting.append(_Asked(message, weight, answered, failed))
        self._go_on()

    def _go_on(self) -> None:
        """Send what may be sent: nothing while it is not known how the last process ended, little during a hold."""
        if self._ending or self._closed:
            return
        while self._first:
            self._send(self._first.popleft())
        while self._waiting and self._held is None:
            next_one = self._waiting.popleft()
            if isinstance(next_one, _Asked):
                self._send(next_one)
                continue
            self._queued -= 1
            self._held = next_one.until
            _settle(next_one.begun, None)
            self._held.add_done_callback(self._hold_ended)

    def _hold_ended(self, until: asyncio.Future[None]) -> None:
        self._held = None
        self._go_on()

    def _send(self, asked: _Asked) -> None:
        try:
            worker = self._worker or self._start()
            parts = _frame(asked.message)
        except GridError as error:
            self._queued -= asked.weight
            asked.failed(error)
            return
        if not self._has_rows and isinstance(asked.message, Commands):
            self._has_rows = any(type(one) is OpenDataset for one in asked.message.commands)
        self._pending.append(asked)
        worker.pipe.send(parts)

    def _start(self) -> Worker:
        """A fresh process, with the plans that the session has sent."""
        worker = self._worker = self._workers.start(self, self._lost)
        for plan in self._plans.values():
            self._queued += 1
            self._pending.append(_Asked(plan, 1, lambda _: None, lambda _: None))
            worker.pipe.send(encode(plan, table=TO_WORKER))
        return worker

    # ------------------------------------------------------------ what the process says

    def is_busy(self) -> bool:
        return bool(self._pending)

    def on_frame(self, frame: Buffer) -> None:
        """An answer. What makes no sense ends the process: something in it has gone wrong."""
        try:
            message = decode(frame, FROM_WORKER).message
            if isinstance(message, CommandFailed):
                self.on_failed(message.command, message.error.to_error())
            elif isinstance(message, Done):
                self._done(message.count)
            else:
                self._answered(message)
        except WireError as error:
            self._gone_wrong(error.message)

    def _done(self, count: int) -> None:
        if not 0 < count <= len(self._pending):
            raise WireError("more requests are said to be done than there are")
        for _ in range(count):
            self._answered(OK)

    def _answered(self, message: Message) -> None:
        asked = self._pending[0] if self._pending else None
        if asked is None or (type(message) is not asked.answer and not isinstance(message, Failure)):
            raise WireError("an answer does not belong to any request")
        self._pending.popleft()
        self._queued -= asked.weight
        if isinstance(message, Failure):
            asked.failed(message.error.to_error())
            return
        if isinstance(asked.message, PutPlan):
            self._keep(asked.message)
        asked.answered(message)

    def _keep(self, plan: PutPlan) -> None:
        """For a next process. What is too much for that has to be sent again then: this memory is the node's own."""
        size = memoryview(plan.encoding).nbytes
        if plan.plan not in self._plans and self._plan_bytes + size <= KEPT_PLAN_BYTES:
            self._plans[plan.plan] = plan
            self._plan_bytes += size

    def _gone_wrong(self, why: str) -> None:
        log.error("a worker sent what is no answer, and is ended: %s", why)
        worker = self._worker
        if worker is not None:
            worker.pipe.close()
            worker.kill(ExecutionFailed(f"the process of this session went wrong and was ended{LOST}"))
            self.on_end("")

    # ------------------------------------------------------------ its end

    def on_end(self, wrong: str) -> None:
        """The pipe has ended; nothing comes any more."""
        if wrong:
            self._gone_wrong(wrong)
        elif self._worker is not None and not self._ending and not self._closed:
            self._ending = True
            with contextlib.suppress(NodeUnavailable):  # the node is closing, and ends all of this
                self._spawn(self._end(self._worker), "the end of a worker")

    async def _end(self, worker: Worker) -> None:
        """Find out how the process ended, tell everybody who waits, and go on with what has not been sent yet."""
        worker.pipe.close()
        error = await worker.explained()
        if self._closed:
            return
        self._lost = error
        log.warning("client %s: %s", self._client, error.message)
        self._worker = None
        if self._has_rows:  # whether it ended may depend on them
            self._has_rows = False
            self._lane.submit_first(self._desk.count_error)  # however much waits in the lane
        pending, self._pending = self._pending, deque()
        if pending and isinstance(pending[0].message, Commands):
            self.on_failed(int(error.details.get("command", 0)), error)
        self._fail_all(pending, error)
        self._ending = False
        self._go_on()

    def _fail_all(self, asked: Iterable[_Asked | _Hold], error: GridError) -> None:
        for one in asked:
            fresh = type(error)(error.message, **error.details)
            if isinstance(one, _Asked):
                self._queued -= one.weight
                one.failed(fresh)
            else:
                self._queued -= 1
                _fail(one.begun, fresh)

    def overran(self, running: Running) -> GridError:
        what, number = self._work(running)
        limit = "max_plan_s" if what.startswith("plan") else "max_command_s"
        text = f"{what} ran longer than {time_advice(getattr(self._settings, limit), limit)}"
        return QuotaExceeded(text + LOST, limit=limit, command=number)

    def overate(self, running: Running) -> GridError:
        what, number = self._work(running)
        return QuotaExceeded(f"{what} {memory_advice(self._settings)}{LOST}", limit="max_process_bytes", command=number)

    def lost(self, how: str) -> GridError:
        assert self._worker is not None
        what, number = self._work(self._worker.running)
        return ExecutionFailed(f"the process of this session {how}, at {what}{LOST}", command=number)

    def _work(self, running: Running) -> tuple[str, int]:
        """What the process works on, in words, and the number of its command. It says itself which of those it was sent."""
        message = self._pending[0].message if self._pending else None
        if not isinstance(message, Commands) or not message.commands:
            return ("no request" if message is None else f"a request ({message.tag})"), 0
        at = min(max(running.command - message.first, 0), len(message.commands) - 1)
        number, command = message.first + at, message.commands[at]
        if isinstance(command, RunPlan):
            return f"plan {command.plan[:16]} (command {number})", number
        if isinstance(command, OpenDataset):
            return f"the opening of a dataset (command {number})", number
        return f"command {number} ({command.op[:100]})", number


def _frame(message: Message) -> list[Buffer]:
    """A request as a frame for the process: as it came, where it came from a peer, whose tables the process shares."""
    came = getattr(message, "frame", None)
    return encode(message, table=TO_WORKER) if came is None else [b"", came]


def _settle(result: asyncio.Future[T], value: T) -> None:
    if not result.done():
        result.set_result(value)


def _fail(result: asyncio.Future[Any], error: BaseException) -> None:
    if not result.done():
        result.set_exception(error)
        result.exception()  # marks it as seen: a client may be gone before anybody looks
