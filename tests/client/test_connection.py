"""A session with a node: pipelining, bounds, errors with the user's line, frees, moves, plans."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_node import SmallNode, served

import grid.client.flow as flow
from grid.client.modules import send
from grid.client.tensors import RemoteTensor
from grid.errors import DeadlineExceeded, ExecutionFailed, InvalidRequest, NodeUnavailable, ReleaseDenied
from grid.plans.trace import trace
from grid.wire.messages import Commands, FreeObjects, GetObject, MoveObject, PutPlan, RunPlan


def put(node: SmallNode, value: torch.Tensor) -> RemoteTensor:
    return node.connection().put(value, None)


def here() -> str:
    """`file:line` of the caller."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return f"{frame.f_back.f_code.co_filename}:{frame.f_back.f_lineno}"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - each turn of the loop may make it true
            await asyncio.sleep(0)


async def test_commands_travel_in_batches_and_nothing_waits() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(3))
        for _ in range(1000):
            x = x + 1
        assert (await x.get()).tolist() == [1001.0] * 3
        batches = [len(one.commands) for one in alice.seen if isinstance(one, Commands)]
        assert sum(batches) == 1000 and len(batches) < 10
        assert next(one.first for one in alice.seen if isinstance(one, Commands)) == 1


async def test_a_value_that_was_sent_is_what_it_was_then() -> None:
    async with served("alice") as [alice]:
        value = torch.zeros(2)
        x = put(alice, value)
        y = x + value
        z = torch.cat([value, x])
        value.fill_(7)
        assert (await y.get()).tolist() == [0.0, 0.0] and (await x.get()).tolist() == [0.0, 0.0]
        assert (await z.get()).tolist() == [0.0] * 4


async def test_inline_tensors_of_one_batch_keep_their_commands() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.zeros(2))
        results = [torch.stack([x + torch.full((2,), float(i)), torch.full((2,), float(-i)) + x]) for i in range(5)]
        for i, result in enumerate(results):
            assert (await result.get()).tolist() == [[i, i], [-i, -i]]


async def test_a_failure_names_the_operation_and_the_line_and_comes_at_the_next_get() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.randn(3, 3))
        singular = put(alice, torch.zeros(3, 3))
        broken, line = torch.linalg.solve_ex(singular, x, check_errors=True).result, here()
        later = broken * 2
        with pytest.raises(ExecutionFailed) as caught:
            await later.get()
        assert line in caught.value.message and "linalg_solve" in caught.value.message and "alice" in caught.value.message
        assert (await x.get()).shape == (3, 3)  # told once; what did not fail is there
        with pytest.raises(ExecutionFailed, match="linalg_solve"):
            await broken.get()


async def test_a_failure_nobody_asked_about_is_raised_by_a_get_of_something_else() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(2, 2))
        torch.linalg.solve_ex(put(alice, torch.zeros(2, 2)), x, check_errors=True)
        with pytest.raises(ExecutionFailed, match="linalg_solve"):
            await (x + 1).get()
        assert (await (x + 1).get()).tolist() == [[2, 2], [2, 2]]


async def test_a_refusal_of_one_get_leaves_another_failure_to_be_told() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(2, 2))
        torch.linalg.solve_ex(put(alice, torch.zeros(2, 2)), x, check_errors=True)
        alice.refuse[GetObject] = ReleaseDenied("the owner says no", rule="rows")
        with pytest.raises(ReleaseDenied) as caught:
            await x.get()
        assert caught.value.details == {"rule": "rows"}
        alice.refuse.clear()
        with pytest.raises(ExecutionFailed, match="linalg_solve"):
            await x.get()


async def test_values_are_freed_by_reference_count_in_order() -> None:
    gc.collect()
    gc.disable()
    try:
        async with served("alice") as [alice]:
            here = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
            model = send(here, lambda tensor: put(alice, tensor))
            optimizer = torch.optim.Adam(model.parameters())
            x, y = put(alice, torch.randn(6, 4)), put(alice, torch.randn(6, 1))
            for _ in range(20):
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
            await loss.get()
            kept = len(alice.objects)
            assert kept <= 4 * 4 + 2 + 1  # parameter, gradient, two moments each; x, y, loss
            await model.get()
            del model, optimizer, loss, x, y
            await until(lambda: not alice.objects)
            assert len(alice.freed) == len(set(alice.freed))
    finally:
        gc.enable()


async def test_no_command_ever_meets_a_freed_object() -> None:
    """A thread emits and frees while the loop sends: any wrong order would show as NotFound."""
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(2))

        def work() -> RemoteTensor:
            y = x
            for _ in range(5000):
                y = (y * 1) + 0
            return y

        results = await asyncio.gather(*(asyncio.to_thread(work) for _ in range(3)))
        for result in results:
            assert (await result.get()).tolist() == [1, 1]
        del result, results
        await until(lambda: len(alice.objects) == 1)


async def test_a_thread_that_is_faster_than_its_node_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "MAX_BACKLOG", 1000)
    async with served("alice") as [alice]:
        alice.gate.clear()
        x = put(alice, torch.ones(2))
        done, emitted = threading.Event(), []

        def work() -> None:
            y = x
            for number in range(5000):
                y = y + 1
                emitted.append(number)
            done.set()

        running = asyncio.create_task(asyncio.to_thread(work))
        await until(lambda: len(emitted) >= 490)  # each is followed by the freed value of the one before
        for _ in range(100):
            await asyncio.sleep(0)
        assert not done.is_set() and len(emitted) <= 1001
        alice.gate.set()
        await running
        assert done.is_set()


async def test_drained_is_how_an_asynchronous_program_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "MAX_BACKLOG", 1000)
    async with served("alice") as [alice]:
        alice.gate.clear()
        x = put(alice, torch.ones(2))
        for _ in range(2000):
            x = x + 1
        waiting = asyncio.create_task(alice.connection().flow.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
        alice.gate.set()
        await waiting
        assert (await x.get()).tolist() == [2001, 2001]


async def test_a_lost_session_fails_everything_clearly() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(2))
        await x.get()
        alice.gate.clear()
        pending = asyncio.ensure_future(x.get())
        await asyncio.sleep(0)
        alice.cut()
        await asyncio.wait([pending])
        await until(lambda: alice.connection().flow.error is not None)
        with pytest.raises(NodeUnavailable, match="alice"):
            x + 1
        with pytest.raises(NodeUnavailable, match="alice"):
            await x.get()


async def test_cancelling_a_get_leaves_the_session_usable() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(2))
        getting = asyncio.ensure_future(x.get())
        await asyncio.sleep(0)
        getting.cancel()
        await asyncio.wait([getting])
        assert (await (x + 1).get()).tolist() == [2, 2]


async def test_move_goes_from_node_to_node() -> None:
    async with served("alice", "bob") as [alice, bob]:
        x = put(alice, torch.arange(3.0))
        y = await x.move(bob)
        assert y.location.name == "bob" and (await (y + 1).get()).tolist() == [1, 2, 3] and (await x.get()).tolist() == [0, 1, 2]
        with pytest.raises(InvalidRequest, match="already"):
            await y.move(bob)
        with pytest.raises(InvalidRequest, match=r"alice and at bob.*move"):
            x + y
        with pytest.raises(InvalidRequest, match="node of this client"):
            await x.move("bob")


async def test_a_refused_move_frees_what_the_receiver_waits_for() -> None:
    async with served("alice", "bob") as [alice, bob]:
        x = put(alice, torch.arange(3.0))
        alice.refuse[MoveObject] = ReleaseDenied("not to bob", rule="sinks")
        with pytest.raises(ReleaseDenied) as kept:
            await x.move(bob)
        await until(lambda: bool(bob.freed))
        assert kept.value.details == {"rule": "sinks"} and bob.freed == list(bob.expected.values())


async def test_two_sessions_do_not_mix() -> None:
    async with served("alice") as [one], served("alice") as [other]:
        with pytest.raises(InvalidRequest, match="two sessions"):
            put(one, torch.ones(1)) + put(other, torch.ones(1))
        x, y = put(one, torch.ones(1)), put(other, torch.ones(1))
        with pytest.raises(InvalidRequest, match="another client"):
            await x.move(y.location)


async def test_plans_are_sent_once_and_run_where_their_inputs_are() -> None:
    plan = trace(lambda x, w: {"y": x @ w, "s": (x @ w).sum(0)}, torch.randn(4, 3), torch.randn(3, 2))
    async with served("alice", "bob") as [alice, bob]:
        w = torch.randn(3, 2)
        for rows in (4, 7):
            x = torch.randn(rows, 3)
            got = plan(put(alice, x), w)
            assert got["y"].shape == (rows, 2) and isinstance(got["s"], RemoteTensor)
            assert torch.allclose(await got["s"].get(), (x @ w).sum(0), atol=1e-5)
        runs = [one for message in alice.seen if isinstance(message, Commands) for one in message.commands]
        assert [type(one) for one in runs] == [RunPlan, RunPlan]
        assert len([one for one in alice.seen if isinstance(one, PutPlan)]) == 1
        with pytest.raises(InvalidRequest, match="bob"):
            plan(put(alice, torch.randn(4, 3)), put(bob, w))


async def test_a_failed_opening_names_the_dataset_and_the_line() -> None:
    async with served("alice") as [alice]:
        alice.fail_openings = InvalidRequest("the dataset has changed")
        opened, line = alice.connection().open_dataset("patients", "features", (10, 2), "f4"), here()
        total = opened.sum()
        with pytest.raises(InvalidRequest) as caught:
            await total.get()
        assert "patients" in caught.value.message and "changed" in caught.value.message and line in caught.value.message


async def test_frees_do_not_wait_for_a_full_batch() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(1))
        await x.get()
        del x
        await until(lambda: any(isinstance(one, FreeObjects) for one in alice.seen))


async def test_deepcopy_is_a_new_value_and_copy_is_not() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.zeros(2)).requires_grad_()
        deep, shallow = copy.deepcopy(x), copy.copy(x)
        with torch.no_grad():
            x += 1
        assert (await deep.get()).tolist() == [0, 0] and (await shallow.get()).tolist() == [1, 1]
        assert deep.requires_grad and shallow.requires_grad


async def test_a_timeout_counts_from_the_call_even_where_no_session_comes_up() -> None:
    x = put(SmallNode("alice"), torch.ones(1))
    with pytest.raises(DeadlineExceeded, match="alice did not answer get"):
        await x.get(timeout=0.01)


async def test_a_timeout_of_zero_is_no_time_at_all() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(2))
        await x.get()
        with pytest.raises(DeadlineExceeded, match="alice"):
            await x.get(timeout=0)
        for wrong in (-1, float("nan")):
            with pytest.raises(InvalidRequest, match="timeout is"):
                await x.get(timeout=wrong)
        assert (await x.get()).tolist() == [1.0, 1.0]


async def test_values_are_said_to_be_gone_only_where_there_were_some() -> None:
    async with served("alice") as [alice]:
        x = put(alice, torch.ones(2))
        await x.get()
        alice.cut()
        await until(lambda: alice.connection().flow.error is not None)
        with pytest.raises(NodeUnavailable, match=r"alice: .*values are gone"):
            await x.get()
    never = flow.Flow("bob", 1.0, flow.Home(asyncio.get_running_loop()))
    never.abandon(NodeUnavailable("it is offline"))
    assert never.error is not None and never.error.message == "bob: it is offline"


async def test_a_deadline_that_the_session_keeps_names_the_node() -> None:
    async with served("alice") as [alice]:
        alice.refuse[GetObject] = DeadlineExceeded("no answer came before the request's deadline")
        with pytest.raises(DeadlineExceeded, match="alice: no answer"):
            await put(alice, torch.ones(2)).get()


async def test_a_tensor_without_values_is_not_sent() -> None:
    async with served("alice") as [alice]:
        with pytest.raises(InvalidRequest, match="meta device"):
            put(alice, torch.ones(2, device="meta"))
        assert not alice.seen


def test_a_plan_that_cannot_be_saved_says_why(tmp_path: Path) -> None:
    plan = trace(lambda x: x + 1, torch.ones(2))
    for wrong in (tmp_path, tmp_path / "missing" / "plan"):
        with pytest.raises(InvalidRequest, match=r"cannot be saved as .*(directory|Directory)"):
            plan.save(wrong)
