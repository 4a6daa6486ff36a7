"""Limits that end a session's process, and other ends of it: one error for that client, nothing for anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch
from node_mesh import CLOCK, Mesh, RawClient, client, clients, dataset, mesh

from grid.crypto.identity import LocalIdentity
from grid.errors import ExecutionFailed, GridError, QuotaExceeded, ReleaseDenied
from grid.ids import ObjectId, TransferId, random_id
from grid.node import app
from grid.node import workers as workers_module
from grid.node.datasets import Dataset
from grid.node.nursery_messages import MAX_FILES
from grid.node.workers import Worker
from grid.plans.trace import trace
from grid.tensors.mapped import TensorFile
from grid.wire.messages import Command, Commands, ExpectObject, GetObject, Message, MoveObject, Ref

aten = torch.ops.aten

pytestmark = pytest.mark.asyncio(loop_scope="module")

HUGE = 6000
"""Side of a matrix whose product with itself takes many seconds of one thread."""

SETTINGS = {
    "processes": True,
    "max_command_s": 1.0,
    "max_plan_s": 1.0,
    "kill_grace_s": 0.5,
    "max_process_bytes": 700 << 20,
    "max_private_errors": 100,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made() -> AsyncIterator[Mesh]:
    async with mesh({"alice": [dataset()]}, settings=SETTINGS) as nodes:
        yield nodes


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def workers_have_ended(made: Mesh) -> AsyncIterator[None]:
    yield
    await ended(made)


async def until(holds: Callable[[], object]) -> None:
    """Return once this holds. What other processes do makes no event here."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def running(made: Mesh) -> list[Worker]:
    workers = made.nodes["alice"]._workers
    assert workers is not None
    return list(workers._workers.values())


async def begun(made: Mesh, count: int = 1) -> list[Worker]:
    """The workers, once that many run."""
    await until(lambda: len([worker for worker in running(made) if worker.pid]) >= count)
    return running(made)


async def at_work(worker: Worker) -> None:
    """Return once a worker has begun with something."""
    await until(lambda: worker.running.until)


async def pair(raw: RawClient) -> Ref:
    """Two column sums of the dataset, which may be released: (2,)."""
    (total,) = await raw.remote(lambda x: x.sum(0)[:2], await raw.open())
    return total


async def endless(raw: RawClient) -> Message:
    """One command that takes very long; returns when it is over, or raises why it is."""
    big = await raw.run(aten.expand.default, await raw.put(torch.ones(1, 1)), [HUGE, HUGE])
    command = Command(op="aten.mm.default", args=[big, big], kwargs={}, outputs=(ObjectId(next(raw.ids)),))
    return await raw.request(Commands(first=next(raw.numbers), commands=(command,)))


@contextlib.asynccontextmanager
async def two(made: Mesh) -> AsyncIterator[tuple[RawClient, RawClient]]:
    """Sessions of two clients."""
    async with client(made, "alice") as first, client(made, "alice") as second:
        yield first, second


async def test_a_command_that_runs_too_long_ends_the_process_and_nothing_else(made: Mesh) -> None:
    async with two(made) as (raw, other):
        value, others = await raw.put(torch.ones(2)), await other.put(torch.ones(2))
        total = await pair(raw)
        before = await raw.get(total)
        released = elements(made)
        doomed = asyncio.ensure_future(endless(raw))
        while not doomed.done():  # the other client's work goes on meanwhile
            assert torch.equal(await other.get(await other.run(aten.mul.Tensor, others, 2)), torch.full((2,), 2.0))
        with pytest.raises(QuotaExceeded, match=r"command \d+ \(aten\.mm\.default\) ran longer than 1 s \(max_command_s\)"):
            await doomed
        assert [error.details["limit"] for error in raw.failures.values()] == ["max_command_s"]
        for asked in (raw.get, raw.describe):
            with pytest.raises(QuotaExceeded, match=r"max_command_s.*connect again") as caught:
                await asked(value)
            assert caught.value.details["command"] in raw.failures
        # The ledger keeps its count, and fresh work in the same session goes on.
        assert elements(made) == released
        torch.testing.assert_close(await raw.get(await pair(raw)), before)
        assert elements(made) == released + 2
        assert torch.equal(await raw.get(await raw.put(torch.ones(2))), torch.ones(2))
        assert torch.equal(await other.get(others), torch.ones(2))


def elements(made: Mesh) -> int:
    state = made.nodes["alice"]._custody.gate._store.load("d")
    assert state is not None
    return state.elements


async def test_a_step_of_a_plan_that_hangs_ends_the_process_and_plans_are_known_to_the_next(made: Mesh) -> None:
    slow = trace(lambda x: (x.expand(HUGE, HUGE) @ x.expand(HUGE, HUGE)).sum(), torch.ones(1, 1))
    quick = trace(lambda x: x + 1, torch.ones(3))
    async with client(made, "alice") as raw:
        (sum_of,) = await raw.plan(quick, torch.ones(3))
        with pytest.raises(QuotaExceeded, match=rf"plan {slow.id[:16]} .*max_plan_s"):
            await raw.plan(slow, torch.ones(1, 1))
        with pytest.raises(QuotaExceeded, match="max_plan_s"):
            await raw.get(sum_of)
        (again,) = await raw.call(quick.id, 1, torch.ones(3))  # it was sent before the end
        assert (await raw.get(again)).tolist() == [2, 2, 2]


async def test_what_uses_lost_values_fails_with_the_same_error_and_is_not_reported_again(made: Mesh) -> None:
    async with client(made, "alice") as raw:
        value = await raw.put(torch.ones(2))
        with pytest.raises(QuotaExceeded):
            await endless(raw)
        count = len(raw.failures)
        later = await raw.run(aten.neg.default, value)
        with pytest.raises(QuotaExceeded, match="max_command_s"):
            await raw.get(later)
        assert len(raw.failures) == count


async def test_an_allocation_over_the_limit_fails_alone(made: Mesh) -> None:
    async with client(made, "alice") as raw:
        value = await raw.put(torch.ones(2))
        large = await raw.run(aten.zeros.default, [200 << 20])
        with pytest.raises(QuotaExceeded, match=r"aten\.zeros\.default.*max_process_bytes.*smaller batches") as caught:
            await raw.get(large)
        assert caught.value.details["limit"] == "max_process_bytes"
        rows = await raw.open()
        wide = await raw.run(aten.repeat.default, rows, [1, 2_000_000])
        with pytest.raises(QuotaExceeded, match="max_process_bytes"):
            await raw.get(wide)
        assert torch.equal(await raw.get(value), torch.ones(2))
        assert (await begun(made))[0].running.until == 0


async def test_a_plan_over_the_limit_of_memory_fails_alone(made: Mesh) -> None:
    plan = trace(lambda x: x.repeat(200 << 20).sum(), torch.ones(1))
    async with client(made, "alice") as raw:
        value = await raw.put(torch.ones(2))
        (result,) = await raw.plan(plan, torch.ones(1))
        with pytest.raises(QuotaExceeded, match=r"step \d+ .*max_process_bytes"):
            await raw.get(result)
        assert torch.equal(await raw.get(value), torch.ones(2))


async def test_a_request_that_does_not_fit_into_the_process_ends_it() -> None:
    async with mesh({"alice": []}, settings={**SETTINGS, "max_process_bytes": 64 << 20}) as small, client(small, "alice") as raw:
        value = await raw.put(torch.ones(2))
        with pytest.raises(QuotaExceeded, match=r"took more memory than .*max_process_bytes"):
            await raw.put(torch.zeros(50 << 20))
        with pytest.raises(QuotaExceeded, match="max_process_bytes"):
            await raw.get(value)
        assert torch.equal(await raw.get(await raw.put(torch.ones(2))), torch.ones(2))
    await ended(small)


async def test_where_there_is_no_fork_a_warning_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "can_fork", lambda: False)
    async with mesh({"alice": [dataset()]}, settings={"processes": True}) as without, client(without, "alice") as raw:
        assert (await raw.get(await pair(raw))).shape == (2,)
    assert "cannot be enforced" in caplog.text


async def test_a_process_with_too_much_memory_is_ended(made: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process's own limit lets through, the node sees: here because it looks for less."""
    monkeypatch.setattr(workers_module, "SLACK_BYTES", (200 << 20) - int(SETTINGS["max_process_bytes"]))
    async with two(made) as (raw, other):
        value = await raw.put(torch.ones(2))
        with pytest.raises(QuotaExceeded, match="max_process_bytes"):
            await endless(raw)
        with pytest.raises(QuotaExceeded, match="took more memory"):
            await raw.get(value)
        assert torch.equal(await other.get(await other.put(torch.ones(2))), torch.ones(2))


async def test_a_process_that_is_killed_while_a_get_waits(made: Mesh) -> None:
    async with two(made) as (raw, other):
        value = await raw.put(torch.ones(2))
        (worker,) = await begun(made)
        others = await other.put(torch.ones(2))
        doomed = asyncio.ensure_future(endless(raw))
        await at_work(worker)
        waiting = raw.peer.start_request(GetObject(object=ObjectId(int(value))))
        os.kill(worker.pid, signal.SIGKILL)
        for lost in (waiting, doomed):
            with pytest.raises(ExecutionFailed, match=r"killed from outside.*are gone"):
                await lost
        assert torch.equal(await other.get(others), torch.ones(2))
        assert torch.equal(await raw.get(await raw.put(torch.ones(2))), torch.ones(2))


async def test_a_process_that_ends_while_it_has_nothing_to_do(made: Mesh) -> None:
    async with client(made, "alice") as raw:
        value = await raw.put(torch.ones(2))
        (worker,) = await begun(made)
        os.kill(worker.pid, signal.SIGSEGV)
        await worker.ended
        with pytest.raises(ExecutionFailed, match=f"ended by signal {int(signal.SIGSEGV)}"):
            await raw.get(value)
        assert torch.equal(await raw.get(await raw.put(torch.ones(2))), torch.ones(2))


async def test_the_nursery_is_killed_and_the_next_session_gets_a_new_one() -> None:
    async with mesh({"alice": [dataset()]}, settings=SETTINGS) as made:
        async with client(made, "alice") as raw:
            value = await raw.put(torch.ones(2))
            (worker,) = await begun(made)
            os.kill(psutil.Process(worker.pid).ppid(), signal.SIGKILL)
            with pytest.raises(ExecutionFailed, match="are gone"):
                while True:
                    await raw.get(value)
            torch.testing.assert_close(await raw.get(await pair(raw)), made.nodes["alice"].datasets["d"].features.sum(0)[:2])
        await ended(made)


async def test_ends_of_processes_that_had_rows_count_as_private_errors() -> None:
    settings = {**SETTINGS, "max_private_errors": 2}
    me = LocalIdentity.create(name="scientist", role="client", clock=CLOCK)
    async with mesh({"alice": [dataset()]}, settings=settings) as made:
        async with client(made, "alice", me) as raw:
            await raw.put(torch.ones(2))
            await kill_worker(made, raw)  # no rows: nothing is told of them
            total = await pair(raw)
            await kill_worker(made, raw)
            total = await pair(raw)
            assert (await raw.get(total)).shape == (2,)
            await kill_worker(made, raw)
            error = await asyncio.wait_for(raw.peer.wait_closed(), 20)
            assert isinstance(error, ReleaseDenied) and error.details["rule"] == "private_errors"
        async with client(made, "alice", me) as raw:
            with pytest.raises(ReleaseDenied, match="Try again in"):
                await raw.get(await pair(raw))


async def test_an_end_counts_and_the_session_goes_on_where_no_more_commands_may_wait() -> None:
    settings = {**SETTINGS, "max_private_errors": 1, "max_queued_per_client": 50}
    async with mesh({"alice": [dataset()]}, settings=settings) as made, client(made, "alice") as raw:
        await pair(raw)
        (worker,) = await begun(made)
        runtime: Any = worker.user
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        runtime._lane.pause(opened)
        waiting = [runtime.commit(list) for _ in range(50)]
        os.kill(worker.pid, signal.SIGKILL)
        await worker.ended
        await until(lambda: runtime._worker is None)
        assert torch.equal(await raw.get(await raw.put(torch.ones(2))), torch.ones(2))
        opened.set_result(None)
        error = await asyncio.wait_for(raw.peer.wait_closed(), 20)
        assert isinstance(error, ReleaseDenied) and error.details["rule"] == "private_errors"
        await asyncio.gather(*waiting, return_exceptions=True)


async def kill_worker(made: Mesh, raw: RawClient) -> None:
    (worker,) = await begun(made)
    os.kill(worker.pid, signal.SIGKILL)
    await worker.ended
    with contextlib.suppress(GridError):
        await raw.describe(Ref(1))


async def test_deliveries_to_a_process_that_is_busy_are_bounded_in_bytes() -> None:
    """Two of 6 MiB fit into the quota of 16 MiB; the sender hears of the third, and so does who uses it."""
    async with mesh({"alice": [], "bob": []}, settings={**SETTINGS, "max_bytes_per_client": 16 << 20}) as pair_of:
        async with clients(pair_of) as raw:
            alice, bob = raw["alice"], raw["bob"]
            value = await alice.put(torch.arange(6 << 18, dtype=torch.int32))
            await bob.put(torch.ones(1))
            (worker,) = pair_of.nodes["bob"]._workers._workers.values()  # type: ignore[union-attr]
            os.kill(worker.pid, signal.SIGSTOP)
            moved = [await move(raw, value, 6 << 18) for _ in range(2)]
            with pytest.raises(QuotaExceeded, match="max_bytes_per_client"):
                await move(raw, value, 6 << 18, Ref(99))
            os.kill(worker.pid, signal.SIGCONT)
            for ref in moved:
                assert torch.equal(await bob.get(ref), torch.arange(6 << 18, dtype=torch.int32))
                bob.free(ref)
            with pytest.raises(QuotaExceeded, match="max_bytes_per_client"):
                await bob.get(Ref(99))
            await bob.get(await move(raw, value, 6 << 18))


async def test_a_delivery_for_which_no_process_can_be_started_is_refused() -> None:
    async with mesh({"alice": [], "bob": []}, settings={**SETTINGS, "max_processes": 1}) as pair_of:
        async with client(pair_of, "bob") as other, clients(pair_of) as raw:
            await other.put(torch.ones(1))
            value = await raw["alice"].put(torch.ones(2, dtype=torch.int32))
            with pytest.raises(QuotaExceeded, match="max_processes"):
                await move(raw, value, 2)


async def move(raw: dict[str, RawClient], ref: Ref, elements: int, target: Ref | None = None) -> Ref:
    """Have int32 elements moved from alice to bob, whose object `target` they become."""
    target, transfer = target or Ref(next(raw["bob"].ids)), TransferId(random_id())
    sender, receiver = raw["alice"].node.id, raw["bob"].node.id
    expect = ExpectObject(transfer=transfer, sender=sender, object=ObjectId(int(target)), shape=(elements,), dtype="i4")
    await raw["bob"].request(expect)
    await raw["alice"].request(MoveObject(object=ObjectId(int(ref)), to=receiver, transfer=transfer))
    return target


# ---------------------------------------------------------------- what processes have and leave


async def test_many_sessions_come_and_go_and_leave_nothing(made: Mesh) -> None:
    async def one(value: float) -> None:
        async with client(made, "alice") as raw:
            await raw.open()
            assert (await raw.get(await raw.put(torch.tensor(value)))).item() == value

    await one(0.0)
    await ended(made)
    (nursery,) = [process for process in psutil.Process().children() if "grid.node.nursery" in process.cmdline()]
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), nursery.num_fds(), len(nursery.children())
    for _ in range(4):
        await asyncio.gather(*(one(float(number)) for number in range(8)))
    await ended(made)
    assert (len(os.listdir("/proc/self/fd")), nursery.num_fds(), len(nursery.children())) == before
    assert nursery.num_threads() == 1


async def ended(made: Mesh) -> None:
    await until(lambda: not running(made))


async def test_a_worker_has_no_files_but_its_pipe_and_no_secret_of_the_environment(
    made: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(made, "alice") as raw:
        await raw.put(torch.ones(2))
        (worker,) = await begun(made)
        process = psutil.Process(worker.pid)
        files = {int(name): os.readlink(f"/proc/{worker.pid}/fd/{name}") for name in os.listdir(f"/proc/{worker.pid}/fd")}
        assert set(files) == {0, 1, 2, 3} and files[3].startswith("socket:")
        assert files[0] == files[1] == "/dev/null"
        assert process.nice() == psutil.Process().nice() + 5
        assert resource.prlimit(worker.pid, resource.RLIMIT_CORE) == (0, 0)
        assert not [name for name in process.environ() if name.startswith(("GRID", "PYTEST"))]


async def test_too_many_sessions_at_once_are_refused_and_the_others_go_on() -> None:
    async with mesh({"alice": []}, settings={"processes": True, "max_processes": 2}) as made:
        async with client(made, "alice") as first, client(made, "alice") as second, client(made, "alice") as third:
            for raw in (first, second):
                await raw.put(torch.ones(1))
            with pytest.raises(QuotaExceeded, match="max_processes"):
                await third.put(torch.ones(1))
            await first.put(torch.ones(1))
        await ended(made)


async def test_many_datasets_in_files_of_their_own_reach_the_workers() -> None:
    tensors = []
    for number in range(2 * MAX_FILES + 1):
        file = TensorFile.of(torch.full((40, 1), float(number)))
        tensors.append(file.tensor())
        file.close()
    policy = {"release": "open"}
    many = [Dataset.from_tensors(f"d{number}", {"features": tensor, "policy": policy}) for number, tensor in enumerate(tensors)]
    many = [dataclasses.replace(one, features=tensor) for one, tensor in zip(many, tensors, strict=True)]
    async with mesh({"alice": many}, settings=SETTINGS) as made, client(made, "alice") as raw:
        for number in (0, MAX_FILES, 2 * MAX_FILES):
            assert (await raw.get(await raw.open(f"d{number}"))).tolist() == [[float(number)]] * 40


async def test_sessions_do_not_share_random_numbers(made: Mesh) -> None:
    found: list[Any] = []
    async with two(made) as sessions:
        for raw in sessions:
            kept = await raw.run(aten.native_dropout.default, await raw.put(torch.ones(64)), 0.5, True, outputs=2)
            found.append(await raw.get(kept[0]))
    assert not torch.equal(*found)


async def test_ending_the_node_ends_sessions_that_work() -> None:
    async with contextlib.AsyncExitStack() as outer:
        async with mesh({"alice": [dataset()]}, settings={"processes": True}) as made:
            raw = await outer.enter_async_context(client(made, "alice"))
            doomed = asyncio.ensure_future(endless(raw))
            (worker,) = await begun(made)
            await at_work(worker)
        with pytest.raises(GridError):
            await doomed
        assert not psutil.pid_exists(worker.pid)
