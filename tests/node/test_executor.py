"""Lanes: each client's jobs in order, clients side by side, the event loop never blocked."""

from __future__ import annotations

import asyncio
import threading

import pytest

from grid.errors import InvalidRequest, NodeUnavailable, QuotaExceeded
from grid.node.executor import Executor


async def test_jobs_of_a_lane_run_in_order_and_never_together() -> None:
    async with Executor(4) as executor:
        lane = executor.lane("client", 10_000)
        running, order = threading.Lock(), list[int]()

        def job(number: int) -> int:
            assert running.acquire(blocking=False)
            order.append(number)
            running.release()
            return number

        results = await asyncio.gather(*(lane.submit(lambda n=n: job(n)) for n in range(500)))
        assert results == order == list(range(500))
        await lane.close()


async def test_two_lanes_run_side_by_side() -> None:
    async with Executor(2) as executor:
        first, second = executor.lane("a", 10), executor.lane("b", 10)
        together = threading.Barrier(2, timeout=30)
        await asyncio.gather(first.submit(together.wait), second.submit(together.wait))  # either alone would wait for ever
        await first.close()
        await second.close()


async def test_a_long_queue_does_not_starve_another_client() -> None:
    async with Executor(1) as executor:
        long, short = executor.lane("long", 10_000), executor.lane("short", 10)
        tick = threading.Event()
        queued = [long.submit(lambda: tick.wait(0.005)) for _ in range(400)]
        await short.submit(lambda: None)
        assert not queued[-1].done()
        await long.close()
        await short.close()


async def test_errors_go_to_whom_they_belong_and_the_next_job_runs() -> None:
    async with Executor(1) as executor:
        lane = executor.lane("client", 10)

        def fails() -> None:
            raise InvalidRequest("no")

        failed, fine = lane.submit(fails), lane.submit(lambda: 5)
        with pytest.raises(InvalidRequest):
            await failed
        assert await fine == 5
        await lane.close()


async def test_the_queue_is_bounded_by_weight() -> None:
    async with Executor(1) as executor:
        lane = executor.lane("client", 5)
        go = threading.Event()
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def first() -> None:
            loop.call_soon_threadsafe(started.set)
            go.wait(30)

        running = lane.submit(first)
        await started.wait()
        waiting = lane.submit(lambda: None, weight=4)
        with pytest.raises(QuotaExceeded):
            lane.submit(lambda: None, weight=2)
        last = lane.submit(lambda: None)
        go.set()
        await asyncio.gather(running, waiting, last)
        assert await lane.submit(lambda: 1, weight=5) == 1
        await lane.close()


async def test_a_hold_stops_the_lane_until_its_future_is_done() -> None:
    async with Executor(1) as executor:
        lane = executor.lane("client", 10)
        until: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        order: list[str] = []
        begun = lane.hold(until)
        after = lane.submit(lambda: order.append("after"))
        await begun
        other = executor.lane("other", 10)
        await other.submit(lambda: order.append("other"))
        assert order == ["other"] and not after.done()
        until.set_result(None)
        await after
        assert order == ["other", "after"]
        await lane.close()
        await other.close()


async def test_closing_drops_what_waits_and_waits_for_what_runs() -> None:
    async with Executor(1) as executor:
        lane = executor.lane("client", 10)
        go, ended = threading.Event(), threading.Event()
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def first() -> None:
            loop.call_soon_threadsafe(started.set)
            go.wait(30)
            ended.set()

        lane.submit(first)
        dropped = lane.submit(lambda: None)
        await started.wait()
        closing = asyncio.ensure_future(lane.close())
        await asyncio.sleep(0)
        assert lane.closed and not closing.done()
        go.set()
        await closing
        assert ended.is_set() and isinstance(dropped.exception(), NodeUnavailable)
        with pytest.raises(NodeUnavailable):
            lane.submit(lambda: None)


async def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    async with Executor(3) as executor:
        lane = executor.lane("client", 10)
        await lane.submit(lambda: None)
        await lane.close()
    assert threading.active_count() <= before + 1  # the loop's own default thread may be new
