"""A federated job as its client sees it: reports as they come, the model at the end, from this process or another.

    for report in job: ...             # async for, in grid.aio
    model = job.result()               # waits; a copy of the module with the final weights
    job.cancel(); job.state; g.job(job.id)

The gateway and the nodes go on without the client. What is known of a job here is what it was last told.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from grid.client import reports
from grid.client.job_line import JobLine
from grid.client.progress import is_shown, quietly
from grid.client.reports import Report
from grid.client.training import layout_of
from grid.display import counted, html, printable, text_table
from grid.errors import GridError, InvalidRequest, WireError
from grid.federated.layouts import Layout
from grid.federated.spec import MAX_ROUNDS
from grid.ids import JobId, PeerId
from grid.wire.jobs import CancelJob, FetchWeights, JobCard, JobProgress, JobStatus, JobWeights

DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
OVER = (DONE, FAILED, CANCELLED)

LAST, BEST = "last", "best"

NUMPY_DTYPES = {"f4": "<f4", "f8": "<f8"}

MAX_REPORTS = MAX_ROUNDS + 1

COLUMNS = ("id", "name", "state", "round", "nodes", "strategy", "metrics")


class Job:
    """A job; `g.train`, `g.job` and `g.jobs` make it. Methods wait in a blocking client, and are awaited in `grid.aio`."""

    def __init__(
        self,
        card: JobCard,
        line: JobLine,
        wait: Callable[[Any], Any],
        *,
        blocking: bool,
        model: nn.Module | None = None,
        layout: Layout | None = None,
    ) -> None:
        self._card = card
        self._line = line
        self._wait = wait
        self._blocking = blocking
        self._model = model
        self._layout = layout
        self._reports: list[Report] = []
        self._error: GridError | None = None
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followed = False
        self._complete = False

    @classmethod
    async def found(cls, job: JobId, line: JobLine, wait: Callable[[Any], Any], *, blocking: bool) -> Self:
        """A job by its id alone, followed. Raises `NotFound`."""
        made = cls(_unknown(job), line, wait, blocking=blocking)
        made._followed = True
        await line.attach(job, made)
        return made

    def follow(self) -> None:
        """On the client's loop: have it told of from now on."""
        if not self._followed:
            self._followed = True
            self._line.watch(self.id, self)

    # ------------------------------------------------------------ what is known

    @property
    def id(self) -> JobId:
        """What `g.job` finds it by, from any process of this client."""
        return self._card.id

    @property
    def name(self) -> str:
        """What its client called it."""
        return self._card.name

    @property
    def state(self) -> str:
        """`waiting` (for nodes), `running`, `done`, `failed` or `cancelled`, as last told."""
        return self._card.state

    @property
    def text(self) -> str:
        """What it waits for, the gateway included, or why it ended."""
        absence = self._line.absence
        return (absence.text if absence is not None and not self.ended else "") or self._card.text

    @property
    def round(self) -> int:
        """The last finished round."""
        return self._card.round

    @property
    def rounds(self) -> int:
        """How many it is to have."""
        return self._card.rounds

    @property
    def reports(self) -> tuple[Report, ...]:
        """The reports that have come so far."""
        return tuple(self._reports)

    @property
    def error(self) -> GridError | None:
        """Why it failed, or cannot be followed any more."""
        if self._error is not None:
            return self._error
        return None if self._card.error is None else self._card.error.to_error()

    # ------------------------------------------------------------ as the line's watcher

    @property
    def count(self) -> int:
        """How many reports have come."""
        return len(self._reports)

    @property
    def ended(self) -> bool:
        """Whether nothing more will be told."""
        return self._error is not None or (self._card.state in OVER and self._complete)

    def answered(self, message: JobStatus) -> None:
        """Its state, as the gateway answers a request. It is complete once all reports are there, which `told` brings."""
        if not self._complete:  # what was told after the answer may have been read before it
            self._card = message.card
            self._tell()

    def told(self, message: JobProgress) -> None:
        """News of it."""
        known = self.count - message.first
        if known < 0:  # a gap, which no gateway of ours leaves: ask for what is missing
            self._line.watch(self.id, self)
            return
        fresh = message.reports[known:][: MAX_REPORTS - self.count]  # a gateway must not be able to feed us for ever
        self._reports += [Report.of(one, message.card.metrics) for one in fresh]
        self._card = message.card
        self._complete = not message.more and message.card.state in OVER
        self._tell()

    def lost(self, error: GridError) -> None:
        """It cannot be followed any more."""
        self._error = error
        self._tell()

    def _tell(self) -> None:
        self._news.set_result(None)
        self._news = asyncio.get_running_loop().create_future()

    # ------------------------------------------------------------ following

    def __iter__(self) -> Iterator[Report]:
        """Every report, from the first, as it comes; raises at the end why the job failed.

        While the gateway cannot be reached this waits, and says so; after `job_patience_s` it raises `NodeUnavailable`, and the
        job may be iterated again.
        """
        if not self._blocking:
            raise InvalidRequest("a job of grid.aio is followed by `async for report in job`")
        return self._blocking_reports()

    def _blocking_reports(self, until: float = math.inf) -> Iterator[Report]:
        at = 0
        while (report := self._report(at) or self._wait(self._next(at, until))) is not None:
            yield report
            at += 1

    async def __aiter__(self) -> AsyncIterator[Report]:
        """As `for`, for `grid.aio`."""
        at = 0
        while (report := await self._next(at)) is not None:
            yield report
            at += 1

    def _report(self, at: int) -> Report | None:
        return self._reports[at] if at < len(self._reports) else None

    async def _next(self, at: int, until: float = math.inf) -> Report | None:
        """The report of this number, or None at the end. Raises why the job failed, and as `JobLine.wait`."""
        self.follow()
        while True:
            news = self._news
            if (report := self._report(at)) is not None:
                return report
            if self.ended:
                if self._error is not None or self.state == FAILED:
                    raise self._failure()
                return None
            await self._line.wait(news, until)

    def _failure(self) -> GridError:
        error = self.error or GridError(f"job {self.id} failed: {self.text}")
        return type(error)(error.message, **error.details)

    async def _end(self, until: float = math.inf) -> None:
        at = len(self._reports)
        while await self._next(at, until) is not None:
            at += 1

    # ------------------------------------------------------------ result

    def result(self, *, best: bool = False, into: nn.Module | None = None, timeout: float | None = None) -> Any:
        """Wait for the end: a copy of the module with the final weights; with `best`, those of the best evaluation so far.

        For a job of another process, `into=` names a module of the same architecture, which is filled and returned. Of a
        cancelled job the model after the last finished round. `timeout` in seconds. While the gateway cannot be reached this says
        so and waits; the job goes on when it is back.

        Raises why the job failed; `InvalidRequest` where there is no module to put the weights into; `DeadlineExceeded` after
        `timeout`, and `NodeUnavailable` after `job_patience_s` without the gateway: both may be tried again.
        """
        self._check_module("result", into)
        until = self._line.moment(timeout)
        if self._blocking:
            self._follow(until)
        return self._wait(self._result(BEST if best else LAST, into, until))

    async def _result(self, which: str, into: nn.Module | None, until: float) -> nn.Module:
        await self._end(until)
        await self._line.reached(until)
        return await self._filled(which, into)

    def checkpoint(self, *, best: bool = False, into: nn.Module | None = None) -> Any:
        """A copy of the module with the weights of the last finished round, or the best one, now and whatever became of the job.

        `g.train` goes on from it as from any module; what a strategy remembers, such as momentum, begins anew. `into` as for
        `result`. Raises `InvalidRequest` where there is no module to put the weights into.
        """
        self._check_module("checkpoint", into)
        return self._wait(self._filled(BEST if best else LAST, into))

    def _check_module(self, method: str, into: nn.Module | None) -> None:
        if into is None and self._model is None:
            raise InvalidRequest(f"job {self.id} was started elsewhere: say which module to fill, job.{method}(into=model)")

    async def _filled(self, which: str, into: nn.Module | None) -> nn.Module:
        weights = await self._fetch(which)
        model = into if into is not None else copy.deepcopy(self._model)
        assert model is not None
        layout = self._layout if self._layout is not None else layout_of(model)
        layout.load_into(model, weights)
        return model

    async def _fetch(self, which: str) -> npt.NDArray[Any]:
        frame = (await self._line.ask(FetchWeights(job=self.id, which=which), JobWeights)).weights
        if frame.dtype not in NUMPY_DTYPES or len(frame.shape) != 1:
            raise WireError("the gateway sent a model that is no vector of float32 or float64")
        return np.frombuffer(frame.data, NUMPY_DTYPES[frame.dtype])

    def weights(self, *, best: bool = False) -> Any:
        """The model as one vector, after the last finished round or the best one; does not wait for the end."""
        return self._wait(self._fetch(BEST if best else LAST))

    def cancel(self) -> Any:
        """End the job after what is under way. Returns once the gateway has taken note."""
        return self._wait(self._cancel())

    async def _cancel(self) -> None:
        self.answered(await self._line.ask(CancelJob(job=self.id), JobStatus))

    # ------------------------------------------------------------ shown

    def _follow(self, until: float) -> None:
        """Wait for the end with a bar on the terminal, or a card in a notebook, where there is one."""
        handle = _notebook_handle(self)
        if handle is not None:
            for _ in self._blocking_reports(until):
                handle.update(self)
            handle.update(self)
        elif is_shown() and not self.ended:
            with reports.bar_of(self._beside) as bar, quietly():
                task = bar.add_task(printable(self.name or "training"), total=self.rounds)
                for report in self._blocking_reports(until):
                    bar.update(task, completed=min(report.round, self.rounds))

    def _beside(self) -> str:
        """Beside the bar: the last metrics, and what it waits for."""
        return "; ".join(filter(None, (reports.last_line(self._reports), printable(self.text))))

    def __repr__(self) -> str:
        name = f" {printable(self.name)}" if self.name else ""
        told = f", {line}" if (line := reports.last_line(self._reports)) else ""
        return f"<Job {self.id[:8]}{name}: {self.state}, round {self.round} of {self.rounds}{told}>"

    def _repr_html_(self) -> str:
        done = self.round / self.rounds if self.rounds else float(self.state == DONE)
        return html(
            self.name or f"job {self.id[:8]}",
            "federated training",
            facts=reports.facts_of(self._card, self._reports, self.text),
            picture=reports.curve(self._reports, done),
        )


def _unknown(job: JobId) -> JobCard:
    """A job of which nothing is known yet but its id."""
    return JobCard(
        id=job,
        name="",
        client=PeerId(""),
        state="waiting",
        round=0,
        rounds=0,
        nodes=(),
        secure=True,
        strategy="",
        started=0.0,
    )


def _notebook_handle(job: Job) -> Any:
    """A card of the job in the running notebook cell, to be updated; None elsewhere."""
    shell = sys.modules.get("IPython")
    if shell is None or getattr(shell.get_ipython(), "kernel", None) is None:
        return None
    with contextlib.suppress(ImportError):
        from IPython.display import display

        return display(job, display_id=True)  # type: ignore[no-untyped-call]
    return None


class JobList(list[Job]):
    """Jobs: a list that shows as a table."""

    def __repr__(self) -> str:
        return text_table(counted(len(self), "job"), COLUMNS, [_row(one) for one in self])

    def _repr_html_(self) -> str:
        return html(counted(len(self), "job"), columns=COLUMNS, rows=[_row(one) for one in self])


def _row(job: Job) -> Sequence[str]:
    card, told = job._card, reports.last_line(job.reports)
    return card.id, card.name, card.state, f"{card.round} of {card.rounds}", str(len(card.nodes)), card.strategy, told
