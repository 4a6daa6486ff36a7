"""A client's session with a node: order, failures and what depends on them, quotas, plans, moves, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import threading
from collections.abc import AsyncIterator

import pytest
import torch
from node_mesh import CLOCK, LIMITS, Mesh, RawClient, client, clients, dataset, mesh

from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import (
    AuthenticationFailed,
    DatasetError,
    ExecutionFailed,
    GridError,
    InvalidRequest,
    NodeUnavailable,
    NotFound,
    OpNotSupported,
    PlanRejected,
    QuotaExceeded,
)
from grid.ids import ObjectId, PlanId, TransferId, random_id
from grid.node.objects import ObjectStore
from grid.node.places import MAX_SESSIONS_PER_CLIENT
from grid.plans.trace import trace
from grid.rpc.channel import open_channel
from grid.transport.memory import memory_pair
from grid.wire.messages import (
    Command,
    Commands,
    ExpectObject,
    Join,
    MoveObject,
    OpenDataset,
    PutPlan,
    Ref,
    RunPlan,
)

aten = torch.ops.aten


@pytest.fixture
async def made() -> AsyncIterator[Mesh]:
    async with mesh({"alice": [dataset()], "bob": [dataset(seed=1)]}) as nodes:
        yield nodes


@pytest.fixture
async def raw(made: Mesh) -> AsyncIterator[RawClient]:
    async with client(made, "alice") as session:
        yield session


# ---------------------------------------------------------------- commands


async def test_a_failure_in_the_middle_of_a_batch_leaves_the_others(raw: RawClient) -> None:
    a = await raw.put(torch.ones(2))
    commands = (
        Command(op="aten.neg.default", args=[a], kwargs={}, outputs=(ObjectId(100),)),
        Command(op="aten.nothing.default", args=[a], kwargs={}, outputs=(ObjectId(101),)),
        Command(op="aten.neg.default", args=[Ref(100)], kwargs={}, outputs=(ObjectId(102),)),
    )
    await raw.request(Commands(first=50, commands=commands))
    assert list(raw.failures) == [51] and isinstance(raw.failures[51], OpNotSupported)
    assert torch.equal(await raw.get(Ref(102)), torch.ones(2))


async def test_an_in_place_operation_that_fails_marks_its_target(raw: RawClient) -> None:
    target, other = await raw.put(torch.ones(2)), await raw.put(torch.ones(3))
    await raw.run(aten.add_.Tensor, target, other, outputs=0)
    with pytest.raises(InvalidRequest):
        await raw.get(target)
    third = await raw.put(torch.ones(2))
    await raw.run(aten.add_.Tensor, third, target, outputs=0)  # by a failed operand, too
    with pytest.raises(InvalidRequest):
        await raw.get(third)


async def test_results_that_nobody_wants_are_not_kept(raw: RawClient) -> None:
    a = await raw.put(torch.tensor([[1.0, 5.0]]))
    command = Command(op="aten.max.dim", args=[a, 1], kwargs={}, outputs=(ObjectId(0), ObjectId(9)))
    await raw.request(Commands(first=1, commands=(command,)))
    assert (await raw.get(Ref(9))).tolist() == [1]
    with pytest.raises(NotFound):
        await raw.get(Ref(0))


async def test_what_was_sent_does_not_change_with_the_senders_copy(raw: RawClient) -> None:
    value = torch.ones(4)
    a = await raw.put(value)
    await raw.run(aten.add_.Tensor, a, 1.0, outputs=0)
    assert torch.equal(value, torch.ones(4)) and torch.equal(await raw.get(a), torch.full((4,), 2.0))


# ---------------------------------------------------------------- datasets


async def test_a_dataset_that_is_not_what_the_client_thinks_is_refused(raw: RawClient) -> None:
    def opened(**changes: object) -> OpenDataset:
        fields = {"dataset": "d", "part": "features", "object": ObjectId(77), "shape": (40, 3), "dtype": "f4"}
        return OpenDataset(**{**fields, **changes})  # type: ignore[arg-type]

    wrong = [
        (opened(shape=(41, 3)), InvalidRequest),
        (opened(dtype="f8"), InvalidRequest),
        (opened(dataset="e"), NotFound),
        (opened(part="rows"), NotFound),
        (opened(part="column", column="x9", shape=(40,)), NotFound),
        (opened(blocks=(0, 0), shape=(20, 3)), InvalidRequest),
        (opened(blocks=(9,), shape=(10, 3)), InvalidRequest),
        (opened(blocks=(-1,), shape=(10, 3)), InvalidRequest),
    ]
    for number, (command, error) in enumerate(wrong, 1):
        await raw.ask(command)
        assert isinstance(raw.failures[number], error), command
        with pytest.raises(error):
            await raw.get(Ref(77))


async def test_an_opened_dataset_is_described_without_its_values(raw: RawClient) -> None:
    described = await raw.describe(await raw.open())
    assert (described.shape, described.dtype, described.datasets, described.axis) == ((40, 3), "f4", ("d",), 0)
    (total, mixed) = await raw.remote(lambda x: (x.sum(0), x.sort(0).values), await raw.open())
    assert (await raw.describe(total)).axis == -1
    late = await raw.describe(mixed)
    assert late.axis == -2 and late.reason
    own = await raw.describe(await raw.put(torch.zeros(2)))
    assert own.datasets == () and own.axis == -1


async def test_a_column_is_contiguous_as_clients_expect(raw: RawClient) -> None:
    column = await raw.open(part="column", column="x1")
    shaped = await raw.run(aten.view.default, column, [8, 5])
    assert (await raw.describe(shaped)).shape == (8, 5) and not raw.failures


# ---------------------------------------------------------------- quotas


async def test_the_datasets_own_memory_is_nobodys_quota() -> None:
    settings = {"max_bytes_per_client": 5000}
    async with mesh({"alice": [dataset(1000, 10)]}, settings=settings) as made, client(made, "alice") as raw:
        (total,) = await raw.remote(lambda x: x.sum(0), await raw.open())
        assert (await raw.get(total)).shape == (10,)


async def test_sessions_of_one_client_are_limited(made: Mesh) -> None:
    me = LocalIdentity.create(name="scientist", role="client", clock=CLOCK)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_SESSIONS_PER_CLIENT):
            await stack.enter_async_context(client(made, "alice", me))
        with pytest.raises(QuotaExceeded, match="close some first"):
            await stack.enter_async_context(client(made, "alice", me))
        await stack.enter_async_context(client(made, "alice"))  # another client is welcome


async def test_one_client_leaves_half_of_the_processes_to_others() -> None:
    me = LocalIdentity.create(name="scientist", role="client", clock=CLOCK)
    async with mesh({"alice": []}, settings={"processes": True, "max_processes": 3}) as made:
        async with client(made, "alice", me) as one, client(made, "alice", me) as two:
            for raw in (one, two):
                await raw.put(torch.ones(1))
            with pytest.raises(QuotaExceeded, match="close some first"):
                async with client(made, "alice", me):
                    pass
            async with client(made, "alice") as other:
                await other.put(torch.ones(1))


# ---------------------------------------------------------------- plans


async def test_a_plan_that_is_refused_makes_its_calls_fail(raw: RawClient) -> None:
    plan = trace(lambda x: x + 1, torch.zeros(2))
    for name, encoding in ((plan.id, b"nonsense"), (PlanId("0" * 64), plan.encoding), (PlanId("1" * 64), b"")):
        await raw.request(PutPlan(plan=name, encoding=encoding))
        (result,) = await raw.call(name, 1, torch.zeros(2))
        with pytest.raises(PlanRejected):
            await raw.get(result)
    (unknown,) = await raw.call(PlanId("2" * 64), 1, torch.zeros(2))
    with pytest.raises(NotFound):
        await raw.get(unknown)


async def test_a_plan_with_wrong_inputs_fails_with_the_reason(raw: RawClient) -> None:
    plan = trace(lambda x, y: x @ y, torch.zeros(4, 3), torch.zeros(3))
    a, b = await raw.put(torch.zeros(4, 3)), await raw.put(torch.zeros(3))
    cases: list[tuple[Ref | torch.Tensor, ...]] = [(a,), (a, a), (a, torch.zeros(3, dtype=torch.float64)), (b, a)]
    await raw.request(PutPlan(plan=plan.id, encoding=plan.encoding))
    for inputs in cases:
        (result,) = await raw.call(plan.id, 1, *inputs)
        with pytest.raises((InvalidRequest, PlanRejected)):
            await raw.get(result)
    for inputs, outputs in (([a, b], (ObjectId(901), ObjectId(902))), ([a, 5], (ObjectId(904),))):
        raw.failures.clear()
        await raw.ask(RunPlan(plan=plan.id, inputs=inputs, outputs=outputs))
        (failure,) = raw.failures.values()
        assert isinstance(failure, InvalidRequest)


async def test_a_plan_runs_on_own_values_with_constants_and_several_results(raw: RawClient) -> None:
    table = torch.tensor([1.0, 2.0, 3.0])
    plan = trace(lambda x: (x + table, table * 2), torch.zeros(3))
    first, second = await raw.plan(plan, torch.ones(3))
    assert (await raw.get(first)).tolist() == [2, 3, 4] and (await raw.get(second)).tolist() == [2, 4, 6]
    await raw.run(aten.zero_.default, second, outputs=0)
    again = (await raw.plan(plan, torch.ones(3)))[1]
    assert (await raw.get(again)).tolist() == [2, 4, 6]  # constants are not what a client writes into


# ---------------------------------------------------------------- moves


async def move(
    raw: dict[str, RawClient], ref: Ref, source: str, target: str, shape: tuple[int, ...] = (3,), dtype: str = "f4"
) -> Ref:
    transfer, made = TransferId(random_id()), Ref(next(raw[target].ids))
    expect = ExpectObject(transfer=transfer, sender=raw[source].node.id, object=ObjectId(int(made)), shape=shape, dtype=dtype)
    await raw[target].request(expect)
    await raw[source].request(MoveObject(object=ObjectId(int(ref)), to=raw[target].node.id, transfer=transfer))
    return made


async def test_a_value_moves_and_later_commands_find_it(made: Mesh) -> None:
    async with clients(made) as raw:
        x = await raw["alice"].put(torch.tensor([1.0, 2.0, 3.0]))
        moved = await move(raw, x, "alice", "bob")
        doubled = await raw["bob"].run(aten.mul.Tensor, moved, 2.0)
        assert (await raw["bob"].get(doubled)).tolist() == [2, 4, 6]
        assert (await raw["alice"].get(x)).tolist() == [1, 2, 3]
        back = await move(raw, doubled, "bob", "alice")
        assert (await raw["alice"].get(back)).tolist() == [2, 4, 6]


async def test_a_move_that_does_not_fit_or_is_not_expected_fails(made: Mesh) -> None:
    async with clients(made) as raw:
        alice, bob = raw["alice"], raw["bob"]
        x = await alice.put(torch.ones(3))
        with pytest.raises(NotFound):
            await alice.request(MoveObject(object=ObjectId(int(x)), to=bob.node.id, transfer=TransferId(random_id())))
        transfer, target = TransferId(random_id()), ObjectId(next(bob.ids))
        expect = ExpectObject(transfer=transfer, sender=alice.node.id, object=target, shape=(4,), dtype="f4")
        await bob.request(expect)
        with pytest.raises(InvalidRequest, match="another shape"):
            await alice.request(MoveObject(object=ObjectId(int(x)), to=bob.node.id, transfer=transfer))
        with pytest.raises(InvalidRequest):
            await bob.get(Ref(target))
        from_bob = dataclasses.replace(expect, transfer=TransferId(random_id()), sender=bob.node.id, object=ObjectId(500))
        await bob.request(from_bob)
        with pytest.raises(NotFound):  # expected, but from another node
            await alice.request(MoveObject(object=ObjectId(int(x)), to=bob.node.id, transfer=from_bob.transfer))
        bob.free(Ref(500))
        with pytest.raises(InvalidRequest):
            await alice.request(MoveObject(object=ObjectId(int(x)), to=alice.node.id, transfer=TransferId(random_id())))


async def test_freeing_an_object_that_is_awaited_ends_the_wait(made: Mesh) -> None:
    async with client(made, "bob") as bob:
        target = ObjectId(next(bob.ids))
        expect = ExpectObject(transfer=TransferId("t"), sender=made.nodes["alice"].id, object=target, shape=(1,), dtype="f4")
        await bob.request(expect)
        with pytest.raises(InvalidRequest):
            await bob.request(expect)  # the same transfer twice
        bob.free(Ref(target))
        assert (await bob.get(await bob.put(torch.ones(1)))).item() == 1


async def test_a_move_to_a_node_that_is_offline_says_so(made: Mesh) -> None:
    async with client(made, "alice") as raw:
        x = await raw.put(torch.ones(3))
        await made.cut("bob")
        with pytest.raises(NodeUnavailable, match="bob"):
            await raw.request(MoveObject(object=ObjectId(int(x)), to=made.nodes["bob"].id, transfer=TransferId("t")))


# ---------------------------------------------------------------- the session itself


async def test_everything_of_a_client_is_freed_when_it_goes(made: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    freed = asyncio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "objects are freed" in record.getMessage():
                freed.set()

    logger, listener = logging.getLogger("grid.node.session"), Listener()
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(listener)
    try:
        async with client(made, "alice") as raw:
            await raw.put(torch.zeros(100))
            (store,) = [value for value in gc.get_objects() if type(value) is ObjectStore and len(value)]
        await asyncio.wait_for(freed.wait(), 20)
        assert len(store) == 0 and store.used_bytes == 0
    finally:
        logger.removeHandler(listener)


async def test_long_computations_do_not_stop_heartbeats_or_other_clients(made: Mesh) -> None:
    """One client's job waits for another client's answer; were they on one thread, or on the loop, this would never end."""
    gate = threading.Event()
    node = made.nodes["alice"]
    busy = node._executor.lane("busy", 10)
    waiting = busy.submit(lambda: gate.wait(30))
    async with client(made, "alice") as raw:
        assert torch.equal(await raw.get(await raw.put(torch.ones(2))), torch.ones(2))
    gate.set()
    assert await waiting
    await busy.close()


async def test_only_peers_of_the_grid_get_in(made: Mesh) -> None:
    other_grid = LocalIdentity.create(name="x", role="gateway", clock=CLOCK).id
    me = LocalIdentity.create(name="eve", role="client", clock=CLOCK)
    near, far = memory_pair()
    made.nodes["alice"].accept(far)
    with pytest.raises(GridError):
        await open_channel(
            near,
            me=me,
            trust=Trust.dev(),
            expect=Expected(id=made.nodes["alice"].id),
            grid=other_grid,  # type: ignore[arg-type]
            limits=LIMITS,
            clock=CLOCK,
        )
    with pytest.raises(AuthenticationFailed):
        near, far = memory_pair()
        made.nodes["alice"].accept(far)
        await open_channel(
            near,
            me=me,
            trust=Trust.dev(),
            expect=Expected(id=made.nodes["bob"].id),
            grid=made.grid,
            limits=LIMITS,
            clock=CLOCK,
        )


async def test_messages_of_other_conversations_are_refused(raw: RawClient) -> None:
    with pytest.raises(InvalidRequest, match="makes no sense"):
        await raw.request(Join(card=b"", nonce=b"", signature=b""))


async def test_a_node_ends_with_its_clients_connected_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as outer:
        async with mesh({"alice": [dataset()]}) as made:
            raw = await outer.enter_async_context(client(made, "alice"))
            await raw.put(torch.ones(1))
        error = await asyncio.wait_for(raw.peer.wait_closed(), 20)
        assert error is None or isinstance(error, NodeUnavailable)
    assert asyncio.all_tasks() == before


async def test_two_datasets_of_one_name_are_an_error() -> None:
    with pytest.raises(DatasetError, match="same name"):
        async with mesh({"alice": [dataset(), dataset()]}):
            pass


async def test_an_error_of_the_clients_own_values_keeps_its_text_and_does_not_count(raw: RawClient) -> None:
    table, index = await raw.put(torch.zeros(5, 2)), await raw.put(torch.tensor([7]))
    for _ in range(7):
        await raw.run(aten.embedding.default, table, index)
    assert all(isinstance(error, ExecutionFailed) and not error.details["private"] for error in raw.failures.values())
    assert torch.equal(await raw.get(table), torch.zeros(5, 2))
