"""What every `Runtime` must do, on both kinds: same requests, same results, same errors, same order."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import torch
from node_mesh import LIMITS, Mesh, RawClient, client, clients, dataset, mesh, secure_sum

from grid.errors import (
    DeadlineExceeded,
    ExecutionFailed,
    GridError,
    InvalidRequest,
    NotFound,
    PlanRejected,
    QuotaExceeded,
    ReleaseDenied,
)
from grid.ids import ObjectId, PeerId, PlanId, SumId, TransferId, random_id
from grid.node.desk import Desk
from grid.node.neighbours import Neighbour
from grid.node.work import Offer
from grid.plans.trace import trace
from grid.tensors.buffers import to_frame
from grid.transport.base import Buffer, Transport
from grid.wire.messages import (
    Command,
    Commands,
    DescribeObject,
    ExpectObject,
    GetObject,
    Inline,
    MoveObject,
    OpenDataset,
    PutObject,
    PutPlan,
    Ref,
)

aten = torch.ops.aten

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"max_bytes_per_client": 16 << 20, "max_objects_per_client": 600, "max_queued_per_client": 500}


@pytest.fixture(scope="module", params=[False, True], ids=["threads", "processes"])
def processes(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(processes: bool) -> AsyncIterator[Mesh]:
    datasets = {name: [dataset(seed=seed)] for seed, name in enumerate(("alice", "bob"))}
    async with mesh(datasets, settings={**SETTINGS, "processes": processes}) as nodes:
        yield nodes


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def workers_have_ended(made: Mesh) -> AsyncIterator[None]:
    """A session's process ends soon after the session; a test ends after that."""
    yield
    async with asyncio.timeout(60):
        while any(len(node._workers or ()) for node in made.nodes.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest_asyncio.fixture(loop_scope="module")
async def raw(made: Mesh) -> AsyncIterator[RawClient]:
    async with client(made, "alice") as session:
        yield session


async def test_commands_are_not_waited_for_and_run_in_order(raw: RawClient) -> None:
    total = await raw.put(torch.zeros(1))
    futures = []
    for number in range(100):
        command = Command(op="aten.add_.Tensor", args=[total, float(number)], kwargs={}, outputs=())
        futures.append(raw.peer.start_request(Commands(first=number + 1, commands=(command,))))
        double = Command(op="aten.mul_.Tensor", args=[total, 0.5], kwargs={}, outputs=())
        futures.append(raw.peer.start_request(Commands(first=number + 1000, commands=(double,))))
    expected = 0.0
    for number in range(100):
        expected = (expected + number) * 0.5
    assert (await raw.get(total)).item() == pytest.approx(expected)
    await asyncio.gather(*futures)


async def test_a_value_is_offered_as_it_is_in_its_place_in_the_order(raw: RawClient) -> None:
    """What is written after a get does not change what the get returns, however late it is read."""
    value = await raw.put(torch.zeros(1 << 18))
    answer = raw.peer.start_request(GetObject(object=ObjectId(int(value))))
    command = Command(op="aten.add_.Tensor", args=[value, 1.0], kwargs={}, outputs=())
    done = raw.peer.start_request(Commands(first=1, commands=(command,)))
    reply: Any = await answer
    await done
    assert not torch.frombuffer(bytearray(reply.tensor.data), dtype=torch.float32).any()
    assert (await raw.get(value)).sum() == 1 << 18


@pytest.mark.parametrize("value", [torch.tensor(3.0), torch.zeros(0, 3), torch.arange(7), torch.ones(2, 3, dtype=torch.bool)])
async def test_values_come_back_as_they_were_sent(raw: RawClient, value: torch.Tensor) -> None:
    found = await raw.get(await raw.put(value))
    assert found.dtype == value.dtype and found.shape == value.shape and torch.equal(found, value)


async def test_what_depends_on_a_failure_fails_with_its_error_and_the_rest_works(raw: RawClient) -> None:
    a, b = await raw.put(torch.ones(2, 3)), await raw.put(torch.ones(2, 3))
    wrong = await raw.run(aten.mm.default, a, b)
    number = next(iter(raw.failures))
    later = await raw.run(aten.neg.default, await raw.run(aten.neg.default, wrong))
    fine = await raw.run(aten.add.Tensor, a, b)
    assert list(raw.failures) == [number]  # only the cause is reported
    for ref in (wrong, later):
        for asked in (raw.get, raw.describe):
            with pytest.raises(InvalidRequest, match=r"aten\.mm\.default") as caught:
                await asked(ref)
            assert caught.value.details["command"] == number
    assert torch.equal(await raw.get(fine), torch.full((2, 3), 2.0))


BROKEN = {
    "too many results named": Command(op="aten.neg.default", args=[Ref(1)], kwargs={}, outputs=(ObjectId(7), ObjectId(8))),
    "no result named": Command(op="aten.neg.default", args=[Ref(1)], kwargs={}, outputs=()),
    "a result of an in-place operation": Command(op="aten.neg_.default", args=[Ref(1)], kwargs={}, outputs=(ObjectId(7),)),
    "an inline tensor that is not there": Command(op="aten.neg.default", args=[Inline(3)], kwargs={}, outputs=(ObjectId(7),)),
    "text for a tensor": Command(op="aten.neg.default", args=["x"], kwargs={}, outputs=(ObjectId(7),)),
    "an unknown argument": Command(op="aten.neg.default", args=[Ref(1)], kwargs={"x": 1}, outputs=(ObjectId(7),)),
    "a negative id": Command(op="aten.neg.default", args=[Ref(1)], kwargs={}, outputs=(ObjectId(-7),)),
    "no such operation": Command(op="aten.neg.default; import os", args=[Ref(1)], kwargs={}, outputs=(ObjectId(7),)),
    "a name from outside the table": Command(op="os.system", args=["true"], kwargs={}, outputs=(ObjectId(7),)),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_commands_that_make_no_sense_fail_alone(raw: RawClient, case: str) -> None:
    await raw.put(torch.ones(2))
    await raw.request(Commands(first=5, commands=(BROKEN[case],)))
    assert isinstance(raw.failures[5], InvalidRequest)
    with pytest.raises(GridError):
        await raw.get(Ref(7))
    assert torch.equal(await raw.get(await raw.put(torch.ones(1))), torch.ones(1))


async def test_datasets_are_opened_described_and_released_by_the_rules(made: Mesh, raw: RawClient) -> None:
    rows = await raw.open()
    described = await raw.describe(rows)
    assert (described.shape, described.dtype, described.datasets, described.axis) == ((40, 3), "f4", ("d",), 0)
    with pytest.raises(ReleaseDenied) as caught:
        await raw.get(rows)
    assert caught.value.details["rule"] == "rows"
    (total, largest) = await raw.remote(lambda x: (x.sum(0), x.max(0).values), rows)
    torch.testing.assert_close(await raw.get(total), made.nodes["alice"].datasets["d"].features.sum(0))
    with pytest.raises(ReleaseDenied) as caught:
        await raw.get(largest)
    assert caught.value.details["rule"] == "mixed" and caught.value.details["step"]
    with pytest.raises(ReleaseDenied):
        await raw.get(await raw.open(part="targets"))
    column = await raw.open(part="column", column="x1")
    (total,) = await raw.remote(lambda x: x.view(40, 1).sum(0), column)
    torch.testing.assert_close(await raw.get(total), made.nodes["alice"].datasets["d"].features[:, 1].sum()[None])


async def test_blocks_are_the_same_rows_in_every_session(made: Mesh) -> None:
    """One block's sum is released once; it may be again, also to another session, since it is of the same rows."""
    found = []
    async with client(made, "bob") as first, client(made, "bob") as second:
        for raw in (first, second):
            (total,) = await raw.remote(lambda x: x.sum(0), await raw.open(blocks=(1,), rows=10))
            found.append(await raw.get(total))
        few = await first.open(blocks=(0,), rows=10)
        assert (await first.describe(few)).axis == 0
        with pytest.raises(InvalidRequest):
            await first.describe(await first.open(blocks=(0, 0), rows=20))
    assert torch.equal(*found)


async def test_a_dataset_that_is_not_there_or_not_as_expected_is_refused(raw: RawClient) -> None:
    command = OpenDataset(dataset="d", part="features", object=ObjectId(77), shape=(41, 3), dtype="f4")
    wrong: list[tuple[dict[str, str], type[GridError]]]
    wrong = [({}, InvalidRequest), ({"dataset": "e"}, NotFound), ({"part": "rows"}, NotFound)]
    for number, (change, error) in enumerate(wrong, 1):
        await raw.ask(dataclasses.replace(command, **change))
        assert isinstance(raw.failures[number], error)
        with pytest.raises(error):
            await raw.get(Ref(77))


async def test_a_dataset_cannot_be_written(made: Mesh, raw: RawClient) -> None:
    before = made.nodes["alice"].datasets["d"].features.clone()
    rows = await raw.open()
    await raw.run(aten.zero_.default, rows, outputs=0)
    (failure,) = raw.failures.values()
    assert isinstance(failure, InvalidRequest) and "clone()" in failure.message
    assert torch.equal(made.nodes["alice"].datasets["d"].features, before)


async def test_plans_run_with_constants_and_several_results_or_fail_whole(raw: RawClient) -> None:
    table = torch.tensor([1.0, 2.0, 3.0])
    plan = trace(lambda x: (x + table, table * 2), torch.zeros(3))
    first, second = await raw.plan(plan, torch.ones(3))
    assert (await raw.get(first)).tolist() == [2, 3, 4] and (await raw.get(second)).tolist() == [2, 4, 6]
    await raw.run(aten.zero_.default, second, outputs=0)
    again = (await raw.plan(plan, torch.ones(3)))[1]
    assert (await raw.get(again)).tolist() == [2, 4, 6]  # constants are not what a client writes into
    (wrong, _) = await raw.call(plan.id, 2, torch.ones(4, 4))
    with pytest.raises((InvalidRequest, PlanRejected)):
        await raw.get(wrong)
    await raw.request(PutPlan(plan=PlanId("0" * 64), encoding=b"nonsense"))
    (refused,) = await raw.call(PlanId("0" * 64), 1, torch.zeros(2))
    with pytest.raises(PlanRejected):
        await raw.get(refused)
    (unknown,) = await raw.call(PlanId("2" * 64), 1, torch.zeros(2))
    with pytest.raises(NotFound):
        await raw.get(unknown)


async def test_refused_plans_cost_a_session_and_not_the_node(processes: bool) -> None:
    settings = {"processes": processes, "max_plan_bytes": 1000}
    async with mesh({"alice": [dataset()]}, settings=settings) as m, client(m, "alice") as raw, client(m, "alice") as two:
        with pytest.raises(PlanRejected, match="1001 bytes, and 1000 are allowed"):
            await raw.request(PutPlan(plan=PlanId("0" * 64), encoding=bytes(1001)))
        for number in range(4):
            await raw.request(PutPlan(plan=PlanId(f"{number}" * 64), encoding=bytes(1000)))
        with pytest.raises(QuotaExceeded, match="too many plans"):
            await raw.request(PutPlan(plan=PlanId("5" * 64), encoding=bytes(1000)))
        assert (await two.get(await two.put(torch.ones(2)))).tolist() == [1, 1]


async def test_a_plan_that_runs_too_long_fails_alone(processes: bool) -> None:
    settings = {"processes": processes, "max_plan_s": 0.05, "kill_grace_s": 60.0}
    plan = trace(_many_products, torch.zeros(200, 200))
    async with mesh({"alice": [dataset()]}, settings=settings) as made, client(made, "alice") as raw:
        kept = await raw.put(torch.ones(2))
        (result,) = await raw.plan(plan, torch.ones(200, 200))
        with pytest.raises(QuotaExceeded, match=r"step \d+ .*max_plan_s.*smaller batches") as caught:
            await raw.get(result)
        assert caught.value.details["limit"] == "max_plan_s" and caught.value.details["command"] in raw.failures
        assert torch.equal(await raw.get(kept), torch.ones(2))


def _many_products(x: torch.Tensor) -> torch.Tensor:
    for _ in range(2000):
        x = x @ x * 0.001
    return x


async def test_memory_objects_and_queue_are_limited(raw: RawClient) -> None:
    large = await raw.put(torch.zeros(3 << 20))
    with pytest.raises(QuotaExceeded, match="bytes"):
        await raw.put(torch.zeros(2 << 20))
    grown = await raw.run(aten.repeat.default, large, [2])
    with pytest.raises(QuotaExceeded):
        await raw.get(grown)
    raw.free(large, grown)
    small = [await raw.put(torch.zeros(1)) for _ in range(SETTINGS["max_objects_per_client"])]
    with pytest.raises(QuotaExceeded, match="objects"):
        await raw.put(torch.zeros(1))
    raw.free(*small, Ref(12345))
    with pytest.raises(NotFound):
        await raw.get(small[0])
    command = Command(op="aten.zeros.default", args=[[1]], kwargs={}, outputs=(ObjectId(0),))
    with pytest.raises(QuotaExceeded, match="commands wait"):
        await raw.request(Commands(first=1, commands=(command,) * 501))
    await raw.request(Commands(first=1, commands=(command,) * 500))


class Unread(Transport):
    """A transport whose owner stops reading for a while."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, *parts: Buffer) -> None:
        await self.inner.send(*parts)

    async def receive(self) -> Buffer:
        await self.reads.wait()
        return await self.inner.receive()

    async def close(self, reason: str = "") -> None:
        await self.inner.close(reason)


async def test_a_client_that_asks_and_does_not_read_costs_a_few_values_at_a_time(
    made: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 answers of 2 MiB are asked for at once, of a value with a label, so that each passes the desk."""
    released: list[Offer] = []
    release = Desk.release

    def counted(desk: Desk, offer: Offer) -> None:
        released.append(offer)
        release(desk, dataclasses.replace(offer, claim=None))

    monkeypatch.setattr(Desk, "release", counted)
    unread: list[Unread] = []

    def wrap(transport: Transport) -> Transport:
        unread.append(Unread(transport))
        return unread[0]

    async with client(made, "alice", wrap=wrap) as raw, client(made, "alice") as other:
        (total,) = await raw.remote(lambda x: x.sum(0), await raw.open())
        large = await raw.run(aten.repeat.default, total, [175_000])
        unread[0].reads.clear()
        answers = [raw.peer.start_request(GetObject(object=ObjectId(int(large)))) for _ in range(64)]
        small = await other.put(torch.zeros(1))
        while len(released) < 2:
            await other.describe(small)
        for _ in range(200):  # time enough for all of them, were it not for the pause
            await other.describe(small)
        assert len(released) < 10
        unread[0].reads.set()
        replies: list[Any] = await asyncio.gather(*answers)
        assert {len(reply.tensor.data) for reply in replies} == {4 * 525_000}


# ---------------------------------------------------------------- what goes to other nodes


async def test_a_value_moves_and_what_comes_after_waits_for_it(made: Mesh) -> None:
    async with clients(made) as raw:
        alice, bob = raw["alice"], raw["bob"]
        value = await alice.put(torch.arange(3.0))
        transfer, target = TransferId(random_id()), ObjectId(next(bob.ids))
        await bob.request(ExpectObject(transfer=transfer, sender=alice.node.id, object=target, shape=(3,), dtype="f4"))
        double = Command(op="aten.mul.Tensor", args=[Ref(target), 2.0], kwargs={}, outputs=(ObjectId(900),))
        waiting = [
            bob.peer.start_request(Commands(first=7, commands=(double,))),
            bob.peer.start_request(GetObject(object=ObjectId(900))),
        ]
        await alice.request(MoveObject(object=ObjectId(int(value)), to=bob.node.id, transfer=transfer))
        replies: list[Any] = await asyncio.gather(*waiting)
        assert torch.frombuffer(bytearray(replies[1].tensor.data), dtype=torch.float32).tolist() == [0, 2, 4]
        rows = await alice.open()
        with pytest.raises(ReleaseDenied):
            await alice.request(MoveObject(object=ObjectId(int(rows)), to=bob.node.id, transfer=TransferId(random_id())))


async def test_a_value_that_does_not_arrive_leaves_its_reason(made: Mesh) -> None:
    async with clients(made) as raw:
        alice, bob = raw["alice"], raw["bob"]
        value = await alice.put(torch.ones(3))
        transfer, target = TransferId(random_id()), ObjectId(next(bob.ids))
        await bob.request(ExpectObject(transfer=transfer, sender=alice.node.id, object=target, shape=(4,), dtype="f4"))
        with pytest.raises(InvalidRequest, match="another shape"):
            await alice.request(MoveObject(object=ObjectId(int(value)), to=bob.node.id, transfer=transfer))
        with pytest.raises(InvalidRequest, match="another shape"):
            await bob.get(Ref(target))
        expect = ExpectObject(transfer=TransferId(random_id()), sender=alice.node.id, object=target, shape=(1,), dtype="f4")
        await bob.request(expect)
        bob.free(Ref(target))
        assert (await bob.get(await bob.put(torch.ones(1)))).item() == 1


async def test_moves_that_cannot_leave_yet_are_bounded_in_bytes(made: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 6 MiB fit into the quota of 16 MiB while their receiver is dialled; what is refused leaves nothing behind."""
    neighbours, dialled = made.nodes["alice"].neighbours, asyncio.Event()
    session = neighbours.session

    async def slow(node: PeerId) -> Neighbour:
        await dialled.wait()
        return await session(node)

    async with client(made, "alice") as alice:
        value = ObjectId(int(await alice.put(torch.zeros(6 << 18))))

        def move() -> asyncio.Future[Any]:
            to = made.nodes["bob"].id
            return alice.peer.start_request(MoveObject(object=value, to=to, transfer=TransferId(random_id())))

        monkeypatch.setattr(neighbours, "session", slow)
        waiting = [move(), move()]
        for _ in range(3):
            with pytest.raises(QuotaExceeded, match="max_bytes_per_client"):
                await asyncio.wait_for(move(), 20)
        assert not any(one.done() for one in waiting)
        dialled.set()
        for one in waiting:
            with pytest.raises(NotFound):  # it has left: nobody expects it
                await one
        with pytest.raises(NotFound):
            await move()


async def test_a_secure_sum_over_datasets(made: Mesh) -> None:
    plan = trace(lambda x: x.sum(0), torch.zeros(40, 3))
    async with clients(made) as raw:
        refs = {name: (await one.plan(plan, await one.open()))[0] for name, one in raw.items()}
        total, errors = await secure_sum(raw, refs)
        assert not errors and total is not None
        expected = sum(node.datasets["d"].features.double().sum(0) for node in made.nodes.values())
        torch.testing.assert_close(total, torch.as_tensor(expected), atol=1e-5, rtol=0)
        pointers = {name: (await one.remote(lambda x: x.sum(0), await one.open()))[0] for name, one in raw.items()}
        total, errors = await secure_sum(raw, pointers)
        assert total is None and all(isinstance(error, ReleaseDenied) for error in errors.values())
        own = {name: await one.put(torch.ones(2)) for name, one in raw.items()}
        total, errors = await secure_sum(raw, own)
        assert total is not None and total.tolist() == [2, 2]


async def test_operands_of_sums_that_go_on_are_bounded_in_bytes(made: Mesh) -> None:
    """Sums with a node that does not know of them: two operands of 6 MiB fit into the quota of 16 MiB."""
    async with clients(made) as raw:
        alice, roster = raw["alice"], [one.node.id for one in raw.values()]
        value = await alice.put(torch.zeros(6 << 17))
        names = [SumId(random_id()) for _ in range(2)]
        waiting = [asyncio.ensure_future(alice.start_sum(name, roster, value)) for name in names]
        for _ in range(3):
            with pytest.raises(QuotaExceeded, match="max_bytes_per_client"):
                await asyncio.wait_for(alice.start_sum(SumId(random_id()), roster, value), 20)
        others = await raw["bob"].put(torch.ones(6 << 17))
        for name, one in zip(names, waiting, strict=True):
            assert (await raw["bob"].start_sum(name, roster, others)).shape == (await one).shape
        total, errors = await secure_sum(raw, {"alice": value, "bob": others})
        assert not errors and total is not None and (total == 1).all()


# ---------------------------------------------------------------- failures that depend on rows, and the end


async def test_a_failure_on_rows_is_told_only_with_what_may_leave_and_is_counted(processes: bool) -> None:
    settings = {"processes": processes, "max_private_errors": 2}
    table = torch.zeros(2, 3)
    async with mesh({"alice": [dataset()]}, settings=settings) as made, client(made, "alice") as raw:
        codes = await raw.run(aten.add.Tensor, await raw.open(part="targets"), 5)
        looked_up = await raw.run(aten.embedding.default, table, codes)
        (total,) = await raw.remote(lambda x: x.sum(0), looked_up)
        assert not raw.failures
        with pytest.raises(ReleaseDenied):
            await raw.get(looked_up)
        with pytest.raises(ExecutionFailed, match="private") as caught:
            await raw.get(total)
        assert caught.value.details["command"]
        with pytest.raises(GridError):
            await raw.get(total)
        error = await asyncio.wait_for(raw.peer.wait_closed(), 20)
        assert isinstance(error, ReleaseDenied) and error.details["rule"] == "private_errors"


async def test_two_clients_do_not_see_each_others_values(made: Mesh) -> None:
    async with client(made, "alice") as first, client(made, "alice") as second:
        value = await first.put(torch.ones(2))
        with pytest.raises(NotFound):
            await second.get(value)


async def test_a_value_that_never_arrives_fails_after_a_time(processes: bool, made: Mesh) -> None:
    quick = dataclasses.replace(LIMITS, request_s=0.2)
    async with mesh({"carol": []}, settings={"session": quick, "processes": processes}) as other, client(other, "carol") as raw:
        target = ObjectId(next(raw.ids))
        expect = ExpectObject(transfer=TransferId("t"), sender=made.nodes["bob"].id, object=target, shape=(1,), dtype="f4")
        await raw.request(expect)
        with pytest.raises(DeadlineExceeded):
            await raw.peer.request(DescribeObject(object=target), timeout_s=20)


async def test_a_frame_that_is_no_tensor_is_refused(raw: RawClient) -> None:
    frame = dataclasses.replace(to_frame(torch.zeros(2, dtype=torch.bool)), data=b"\x02\x01")
    with pytest.raises(InvalidRequest):
        await raw.request(PutObject(object=ObjectId(3), tensor=frame))
    with pytest.raises(InvalidRequest):
        await raw.request(PutObject(object=ObjectId(-3), tensor=to_frame(torch.zeros(1))))
