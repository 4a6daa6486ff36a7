"""A worker that has been taken over: whatever it sends, it ends its own session's work at most, and no rule is skipped."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np
import pytest
import torch

from grid.crypto.identity import LocalIdentity
from grid.errors import ExecutionFailed, GridError, ReleaseDenied, WireError
from grid.ids import ObjectId, PlanId
from grid.node.custody import Custody
from grid.node.datasets import Dataset
from grid.node.desk import Desk
from grid.node.executor import Executor
from grid.node.pace import Running
from grid.node.processes import ProcessRuntime
from grid.node.work import FROM_WORKER, TO_WORKER, Account, Done, Offer, SumOffer
from grid.node.workers import Worker, WorkerUser
from grid.policy.claims import Claim, RowsClaim
from grid.settings import NodeSettings
from grid.store.memory import MemoryStore
from grid.tensors.buffers import to_frame
from grid.testing.clocks import FakeClock
from grid.transport.pipes import BlockingPipe, LoopPipe, pipe
from grid.wire.codec import decode, encode
from grid.wire.messages import (
    CommandFailed,
    Commands,
    DescribeObject,
    ErrorInfo,
    FreeObjects,
    Message,
    ObjectDescription,
    PutObject,
    StartSum,
)

ROWS = 40
CLIENT = LocalIdentity.create(name="scientist", role="client", clock=FakeClock()).id


class Hostile:
    """In the place of `Workers` and of a worker: the test speaks at its end of the pipe."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.cause: GridError | None = None
        self.running = Running(0.0, 0)
        self.killed = 0
        self.started = 0

    explained = Worker.explained

    def start(self, user: WorkerUser, lost: GridError | None) -> Hostile:
        self.user = user
        ours, theirs = pipe()
        self.pipe = LoopPipe(ours, max_bytes=1 << 20, on_frame=user.on_frame, on_end=user.on_end)
        self.far = BlockingPipe(theirs, 1 << 20)
        self.socket = theirs
        self.started += 1
        return self

    def kill(self, cause: GridError | None = None) -> None:
        self.killed += 1
        self.cause = self.cause or cause
        self.socket.close()
        if not self.ended.done():
            self.ended.set_result(-9)

    def say(self, *messages: Message) -> None:
        self.far.send([encode(message, table=FROM_WORKER) for message in messages])

    def asked(self) -> Message:
        return decode(self.far.receive(), TO_WORKER).message


class Bench:
    def __init__(self, executor: Executor) -> None:
        self.hostile = Hostile()
        self.store = MemoryStore()
        policy = {"release": "aggregate", "plans": "any", "min_rows": 10, "max_elements": 100}
        dataset = Dataset.from_tensors("d", {"features": torch.randn(ROWS, 3), "policy": policy})
        settings = NodeSettings()
        custody = Custody([dataset], store=self.store, settings=settings, dev=True, clock=FakeClock())
        self.runtime = ProcessRuntime(
            workers=self.hostile,  # type: ignore[arg-type]
            lane=executor.lane("client", 100),
            desk=Desk(gate=custody.gate, client=CLIENT, settings=settings),
            settings=settings,
            client=CLIENT,
            spawn=self.spawn,
        )
        self.failed: list[tuple[int, GridError]] = []
        self.runtime.on_failed = lambda command, error: self.failed.append((command, error))
        self.tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    @property
    def released(self) -> int:
        state = self.store.load("d")
        assert state is not None
        return state.elements


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Executor(1) as executor:
        made = Bench(executor)
        yield made
        await made.runtime.close()


def put() -> PutObject:
    return PutObject(object=ObjectId(1), tensor=to_frame(torch.ones(2)))


ACCOUNT = Account(plans=None, plan=None)
VALUE = to_frame(torch.ones(4))
DESCRIPTION = ObjectDescription(shape=(), dtype="f4", datasets=(), axis=-1)

NONSENSE: dict[str, bytes] = {
    "no frame": struct.pack("<Q", 16) + bytes(16),
    "a frame longer than any": struct.pack("<Q", 1 << 60),
    "an unknown message": struct.pack("<Q", 13) + struct.pack("<II", 1, 5) + b"\x93\xa1x\x00\x00",
    "a message of a client's": b"",
}


@pytest.mark.parametrize("case", NONSENSE)
async def test_bytes_that_are_no_answer_end_the_process_and_its_requests(bench: Bench, case: str) -> None:
    waiting = bench.runtime.submit(put())
    bench.hostile.asked()
    sent = NONSENSE[case]
    if not sent:
        parts = encode(FreeObjects(objects=()))
        sent = struct.pack("<Q", sum(len(part) for part in parts)) + b"".join(parts)
    bench.hostile.socket.sendall(sent)
    with pytest.raises(ExecutionFailed, match="went wrong and was ended"):
        await waiting
    assert bench.hostile.killed


ANSWERS: dict[str, list[Message]] = {
    "more done than asked": [Done(count=2)],
    "nothing done": [Done(count=0)],
    "a negative number done": [Done(count=-1)],
    "a value that nobody asked for": [Offer(tensor=VALUE)],
    "a description that nobody asked for": [DESCRIPTION],
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_answers_that_belong_to_no_request_end_the_process(bench: Bench, case: str) -> None:
    waiting = bench.runtime.submit(put())
    bench.hostile.asked()
    bench.hostile.say(*ANSWERS[case])
    with pytest.raises(ExecutionFailed, match="went wrong"):
        await waiting
    bench.runtime.submit(put())
    assert bench.hostile.started == 2


async def test_done_is_no_answer_to_a_question(bench: Bench) -> None:
    waiting = bench.runtime.submit(DescribeObject(object=ObjectId(1)))
    bench.hostile.asked()
    bench.hostile.say(Done(count=1))
    with pytest.raises(ExecutionFailed, match="went wrong"):
        await waiting


async def test_an_answer_without_a_request_ends_the_process(bench: Bench) -> None:
    waiting = bench.runtime.submit(put())
    bench.hostile.asked()
    bench.hostile.say(Done(count=1), Done(count=1))
    await waiting
    async with asyncio.timeout(20):
        while not bench.hostile.killed:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def rows(**changes: Any) -> RowsClaim:
    claim = RowsClaim(dataset="d", axis=None, choice="WHOLE", every=True, ids=b"", blame="")
    return dataclasses.replace(claim, **changes)


def ids(*values: int) -> bytes:
    return np.resize(np.array(values, dtype="<i4"), ROWS).tobytes()


def claim(*parts: RowsClaim, mixed: str = "") -> Claim:
    return Claim(mixed=mixed, instead="", step="", rows=parts)


CLAIMS: dict[str, tuple[Claim, type[GridError]]] = {
    "no rows at all": (claim(), ReleaseDenied),
    "another node's rows": (claim(rows(dataset="e")), ReleaseDenied),
    "its own and another's": (claim(rows(), rows(dataset="bob/d (elsewhere)")), ReleaseDenied),
    "an unknown choice": (claim(rows(choice="NONE")), WireError),
    "too few ids": (claim(rows(every=False, ids=bytes(4 * ROWS - 4))), WireError),
    "half an id": (claim(rows(every=False, ids=bytes(4 * ROWS + 2))), WireError),
    "negative ids": (claim(rows(every=False, ids=ids(1, -1))), WireError),
    "ids that would take much memory": (claim(rows(every=False, ids=ids(1, 1 << 30))), WireError),
    "no row involved": (claim(rows(every=False, ids=ids(0))), ReleaseDenied),
    "no ids": (claim(rows(every=False)), ReleaseDenied),
    "cells that are too small": (claim(rows(every=False, ids=ids(*range(1, 9)))), ReleaseDenied),
    "rows along a dimension": (claim(rows(axis=0)), ReleaseDenied),
    "mixed": (claim(rows(), mixed="rows were mixed"), ReleaseDenied),
}


@pytest.mark.parametrize("case", CLAIMS)
async def test_claims_that_make_no_sense_release_nothing(bench: Bench, case: str) -> None:
    claimed, error = CLAIMS[case]
    sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answer = bench.runtime.release(ObjectId(1), sent)
    bench.hostile.asked()
    bench.hostile.say(Offer(tensor=VALUE, claim=claimed, account=ACCOUNT))
    with pytest.raises(error):
        await answer
    assert bench.released == 0


async def test_rows_without_an_account_release_nothing(bench: Bench) -> None:
    sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answer = bench.runtime.release(ObjectId(1), sent)
    bench.hostile.asked()
    bench.hostile.say(Offer(tensor=VALUE, claim=claim(rows())))
    with pytest.raises(WireError, match="account"):
        await answer
    assert bench.released == 0


async def test_what_is_counted_is_what_is_there(bench: Bench) -> None:
    """The claim says nothing of how much a value holds; the node counts."""
    sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for number in range(1, 4):
        answer = bench.runtime.release(ObjectId(1), sent)
        bench.hostile.asked()
        bench.hostile.say(Offer(tensor=to_frame(torch.ones(30)), claim=claim(rows()), account=ACCOUNT))
        assert (await answer).tensor.shape == (30,)
        assert bench.released == 30 * number
    answer = bench.runtime.release(ObjectId(1), sent)
    bench.hostile.say(Offer(tensor=to_frame(torch.ones(30)), claim=claim(rows()), account=ACCOUNT))
    with pytest.raises(ReleaseDenied, match="max_elements"):
        await answer
    assert bench.released == 90


@pytest.mark.parametrize("tensor", [None, to_frame(torch.ones(4))], ids=["nothing", "floats"])
async def test_an_operand_that_is_none_goes_into_no_sum(bench: Bench, tensor: Any) -> None:
    def never() -> None:
        raise AssertionError("the sum was claimed")

    message = StartSum(sum="s", roster=(), object=ObjectId(1), fraction_bits=16, deadline_s=1.0)  # type: ignore[arg-type]
    operand = bench.runtime.take_operand(message, never)
    bench.hostile.asked()
    account = Account(plans=(PlanId("1" * 64),), plan=PlanId("1" * 64))
    bench.hostile.say(SumOffer(tensor=tensor, claim=claim(rows()), account=account))
    with pytest.raises(WireError):
        await operand


async def test_failures_are_told_as_they_come(bench: Bench) -> None:
    waiting = bench.runtime.submit(Commands(first=1, commands=()))
    bench.hostile.asked()
    bench.hostile.say(CommandFailed(command=7, error=ErrorInfo(code="no such code", message="x" * 1000)), Done(count=1))
    await waiting
    ((number, error),) = bench.failed
    assert number == 7 and type(error) is GridError
