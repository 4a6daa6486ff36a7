"""Coroutines that messages resume: tasks, groups and pipelines of them, and how they end."""

from __future__ import annotations

import inspect

import pytest

from grid.errors import WireError
from grid.smpc.steps import Arrival, Task, Work, gather, pipeline

BROKEN = WireError("broken")


class Waiting:
    """Works that wait for arrivals of their own, and say where they are."""

    def __init__(self, count: int) -> None:
        self.arrivals: list[Arrival[int]] = [Arrival() for _ in range(count)]
        self.begun: list[int] = []
        self.closed: list[int] = []
        self.works = [self._work(number) for number in range(count)]

    async def _work(self, number: int) -> int:
        self.begun.append(number)
        try:
            return await self.arrivals[number]
        except GeneratorExit:
            self.closed.append(number)
            raise

    def dropped(self, number: int) -> Work[None]:
        async def work() -> None:
            await self.works[number]

        return work()


# ---------------------------------------------------------------- arrivals and tasks


def test_a_task_goes_on_within_the_call_that_brings_what_it_waits_for() -> None:
    waiting = Waiting(1)
    task = Task(waiting.works[0])
    assert not task.outcome.done
    waiting.arrivals[0].set(5)
    assert task.outcome.done
    assert task.outcome.result() == 5


def test_what_is_there_already_is_not_waited_for() -> None:
    waiting = Waiting(1)
    waiting.arrivals[0].set(5)
    assert Task(waiting.works[0]).outcome.result() == 5


def test_an_error_reaches_the_one_who_waits() -> None:
    waiting = Waiting(1)
    task = Task(waiting.works[0])
    waiting.arrivals[0].fail(BROKEN)
    assert task.outcome.error is BROKEN
    with pytest.raises(WireError, match="broken"):
        task.outcome.result()


def test_the_first_value_or_error_stays() -> None:
    arrival: Arrival[int] = Arrival()
    arrival.set(1)
    arrival.set(2)
    arrival.fail(BROKEN)
    assert arrival.result() == 1
    arrival = Arrival()
    arrival.fail(BROKEN)
    arrival.set(1)
    assert arrival.error is BROKEN


def test_a_task_that_is_ended_is_closed_and_never_resumed() -> None:
    waiting = Waiting(1)
    task = Task(waiting.works[0])
    task.end()
    assert waiting.closed == [0]
    waiting.arrivals[0].set(5)
    assert not task.outcome.done
    task.end()


def test_a_task_can_await_another() -> None:
    waiting = Waiting(1)
    inner = Task(waiting.works[0])

    async def outer() -> int:
        return 1 + await inner

    task = Task(outer())
    waiting.arrivals[0].set(5)
    assert task.outcome.result() == 6


def test_a_long_chain_of_arrivals_does_not_deepen_the_stack() -> None:
    arrivals: list[Arrival[int]] = [Arrival() for _ in range(5000)]

    async def work() -> int:
        return sum([await arrival for arrival in arrivals])

    task = Task(work())
    for arrival in arrivals:
        arrival.set(1)
    assert task.outcome.result() == 5000


# ---------------------------------------------------------------- groups


def test_results_come_in_the_order_of_the_works_whichever_ends_first() -> None:
    waiting = Waiting(3)
    task = Task(gather(waiting.works))
    assert waiting.begun == [0, 1, 2]
    for number in (2, 0, 1):
        assert not task.outcome.done
        waiting.arrivals[number].set(10 * number)
    assert task.outcome.result() == [0, 10, 20]


def test_no_works_end_at_once() -> None:
    assert Task(gather([])).outcome.result() == []


@pytest.mark.parametrize("failing", range(3))
def test_whichever_fails_ends_the_others_at_once(failing: int) -> None:
    waiting = Waiting(3)
    task = Task(gather(waiting.works))
    waiting.arrivals[failing].fail(BROKEN)
    assert task.outcome.error is BROKEN
    assert waiting.closed == [number for number in range(3) if number != failing]
    assert all(inspect.getcoroutinestate(work) == inspect.CORO_CLOSED for work in waiting.works)
    for arrival in waiting.arrivals:
        arrival.set(1)  # too late, and nobody is there


def test_one_that_fails_before_it_waits_ends_the_others() -> None:
    waiting = Waiting(2)
    waiting.arrivals[1].fail(BROKEN)
    task = Task(gather(waiting.works))
    assert task.outcome.error is BROKEN
    assert waiting.closed == [0]


def test_a_group_that_is_ended_ends_what_is_inside() -> None:
    waiting = Waiting(4)

    async def nested() -> None:
        await gather([gather(waiting.works[:2]), gather(waiting.works[2:])])

    task = Task(nested())
    waiting.arrivals[1].set(1)
    task.end()
    assert sorted(waiting.closed) == [0, 2, 3]


# ---------------------------------------------------------------- pipelines


def test_a_pipeline_keeps_so_many_under_way_and_begins_them_in_order() -> None:
    waiting = Waiting(6)
    task = Task(pipeline([waiting.dropped(number) for number in range(6)], 2))
    assert waiting.begun == [0, 1]
    waiting.arrivals[1].set(0)
    assert waiting.begun == [0, 1, 2]
    waiting.arrivals[2].set(0)
    waiting.arrivals[0].set(0)
    assert waiting.begun == [0, 1, 2, 3, 4]
    for number in (3, 4, 5):
        waiting.arrivals[number].set(0)
    assert task.outcome.done
    assert task.outcome.result() is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_pipeline_deeper_than_its_works(count: int) -> None:
    waiting = Waiting(count)
    for arrival in waiting.arrivals:
        arrival.set(0)
    assert Task(pipeline([waiting.dropped(number) for number in range(count)], 4)).outcome.done


def test_a_pipeline_that_fails_closes_what_has_not_begun() -> None:
    waiting = Waiting(5)
    works = [waiting.dropped(number) for number in range(5)]
    task = Task(pipeline(works, 2))
    waiting.arrivals[1].fail(BROKEN)
    assert task.outcome.error is BROKEN
    assert waiting.begun == [0, 1]
    assert waiting.closed == [0]
    assert all(inspect.getcoroutinestate(work) == inspect.CORO_CLOSED for work in works)
    for work in waiting.works:
        work.close()


def test_a_pipeline_that_is_ended_closes_all_works() -> None:
    waiting = Waiting(5)
    works = [waiting.dropped(number) for number in range(5)]
    task = Task(pipeline(works, 2))
    task.end()
    assert waiting.closed == [0, 1]
    assert all(inspect.getcoroutinestate(work) == inspect.CORO_CLOSED for work in works)
    for work in waiting.works:
        work.close()
