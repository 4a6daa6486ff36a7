"""Coroutines of a protocol, resumed by the message that they wait for.

A party's program waits for messages of two peers, many thousand times. A future of asyncio takes a turn of the event loop for
each of them, 10 to 20 us; here `Arrival.set` resumes the coroutine that waits within the call that brought the message. So
nothing of asyncio may be awaited inside: a program awaits arrivals, tasks and `gather`, and `Task.outcome` tells the outside.

Everything happens on one thread. A task that fails fails whoever awaits it; the tasks beside it in a `gather` are ended.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Work = Coroutine[Any, Any, T]


class Arrival(Generic[T]):
    """A value that comes later: awaited by one task, or told to one listener, at most once."""

    __slots__ = ("_done", "_error", "_told", "_value")

    def __init__(self) -> None:
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._told: Callable[[], None] | None = None

    @property
    def done(self) -> bool:
        return self._done

    def set(self, value: T) -> None:
        """The value is here; whoever waits goes on at once, within this call."""
        if not self._done:
            self._value, self._done = value, True
            if self._told is not None:
                self._tell()

    def fail(self, error: BaseException) -> None:
        """It will not come; whoever waits gets the error. Nothing happens where it was there already."""
        if not self._done:
            self._error, self._done = error, True
            self._tell()

    @property
    def error(self) -> BaseException | None:
        """What it failed with."""
        return self._error

    def result(self) -> T:
        """The value, or the error raised, once it is done."""
        assert self._done
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def tell(self, listener: Callable[[], None] | None) -> None:
        """Call `listener` once it is done; None takes that back."""
        self._told = listener
        if self._done and listener is not None:
            self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            told()

    def __await__(self) -> Generator[Arrival[Any], None, T]:
        if not self._done:
            yield self
        return self.result()


class Task(Generic[T]):
    """A coroutine that has started, and runs by itself whenever what it awaits is there."""

    __slots__ = ("_awaited", "_work", "outcome")

    def __init__(self, work: Work[T]) -> None:
        self.outcome: Arrival[T] = Arrival()
        self._work = work
        self._awaited: Arrival[Any] | None = None
        self._step()

    def _step(self) -> None:
        self._awaited = None
        try:
            awaited = self._work.send(None)
        except StopIteration as end:
            self.outcome.set(end.value)
        except Exception as error:
            self.outcome.fail(error)
        else:
            self._awaited = awaited
            awaited.tell(self._step)

    def end(self) -> None:
        """Go no further. Its outcome never comes."""
        if self._awaited is not None:
            self._awaited.tell(None)
            self._awaited = None
        self._work.close()

    def __await__(self) -> Generator[Arrival[Any], None, T]:
        return self.outcome.__await__()


async def gather(works: Iterable[Work[T]]) -> list[T]:
    """Run all of them at the same time: their messages share rounds. Results in the order of `works`.

    The first that fails ends the others at once, whichever they wait for.
    """
    tasks = [Task(work) for work in works]
    missing = len(tasks)
    last: Arrival[None] = Arrival()

    def ended(task: Task[T]) -> None:
        nonlocal missing
        missing -= 1
        if task.outcome.error is not None:
            last.fail(task.outcome.error)
        elif missing == 0:
            last.set(None)

    try:
        for task in tasks:
            task.outcome.tell(functools.partial(ended, task))
        if tasks:
            await last
        return [task.outcome.result() for task in tasks]
    except BaseException:
        for task in tasks:
            task.end()
        raise


async def pipeline(works: Sequence[Work[None]], depth: int) -> None:
    """Run all of them, at most `depth` at a time, begun in their order."""
    waiting = iter(works)

    async def lane() -> None:
        for work in waiting:
            await work

    try:
        await gather([lane() for _ in range(min(depth, len(works)))])
    finally:
        for work in waiting:
            work.close()
