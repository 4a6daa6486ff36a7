"""`grid jobs`: the training jobs of a grid, one of them as it goes on, and its end.

As the other commands that look around, it joins as this user's client and does not load torch.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from grid.cli_look import Access, access_options, with_job_channel
from grid.cli_support import JSON_OPTION, show_table
from grid.display import printable
from grid.errors import NodeUnavailable, NotFound, WireError
from grid.rpc.peer import Peer
from grid.wire.jobs import CancelJob, JobCard, JobList, JobProgress, JobStatus, ListJobs, RoundReport, WatchJob
from grid.wire.messages import Message

OVER = ("done", "failed", "cancelled")

COLUMNS = ("id", "name", "state", "round", "nodes", "strategy", "started", "description")

NO_JOBS = "No training job of yours is in this grid. g.train(...) starts one; in a --dev grid those of all are listed here."

News = asyncio.Queue[JobProgress]


@click.command("jobs")
@click.argument("job", required=False)
@click.option("--cancel", is_flag=True, help="end JOB after what is under way")
@access_options
@JSON_OPTION
def jobs(job: str | None, cancel: bool, access: Access, as_json: bool) -> None:
    """List the training jobs of a grid; with JOB, an id or its beginning, follow that one until it ends.

    Under a root these are the jobs of this user's client, in a --dev grid those of all.
    """
    if job is None:
        if cancel:
            raise click.UsageError("say which job to cancel: grid jobs JOB --cancel")
        _list(access, as_json)
    elif cancel:
        card = with_job_channel(access, lambda peer, news: _cancel(peer, job))
        click.echo(json.dumps(card.facts()) if as_json else f"{card.id} {card.state}: {printable(card.text)}")
    else:
        card = with_job_channel(access, lambda peer, news: _follow(peer, news, job, as_json))
        if card.state == "failed":
            raise card.error.to_error() if card.error is not None else NotFound(f"the job failed: {card.text}")


COMMANDS: tuple[click.Command, ...] = (jobs,)


def _list(access: Access, as_json: bool) -> None:
    found = with_job_channel(access, lambda peer, news: _cards(peer))
    if as_json:
        click.echo(json.dumps([card.facts() for card in found]))
    else:
        show_table("Jobs", COLUMNS, [_row(card) for card in found], NO_JOBS)


async def _cards(peer: Peer) -> Sequence[JobCard]:
    answer = await peer.request(ListJobs())
    if not isinstance(answer, JobList):
        raise WireError(f"the gateway answered a request for its jobs with {answer.tag!r}")
    return answer.jobs


async def _found(peer: Peer, job: str) -> JobCard:
    """The job whose id begins so. Raises `NotFound`."""
    matching = [card for card in await _cards(peer) if card.id.startswith(job)]
    if len(matching) != 1:
        raise NotFound(f"{len(matching)} jobs have an id that begins with {job[:40]!r}; `grid jobs` lists them")
    return matching[0]


async def _cancel(peer: Peer, job: str) -> JobCard:
    return _card_in(await peer.request(CancelJob(job=(await _found(peer, job)).id)))


async def _follow(peer: Peer, news: News, job: str, as_json: bool) -> JobCard:
    """Print each report as it comes. On a terminal a bar says how far it is."""
    card = _card_in(await peer.request(WatchJob(job=(await _found(peer, job)).id)))
    with _Bar(card, shown=not as_json and sys.stderr.isatty()) as bar:
        while True:
            told = await _next(peer, news)
            card = told.card
            for report in told.reports:
                bar.print(json.dumps(report.facts(card.metrics)) if as_json else _line(report, card.metrics))
            bar.show(card)
            if card.state in OVER and not told.more:
                break
    if not as_json:
        click.echo(f"{card.state} after round {card.round} of {card.rounds}{': ' + printable(card.text) if card.text else ''}")
    return card


async def _next(peer: Peer, news: News) -> JobProgress:
    """What is told next. Raises `NodeUnavailable` where the gateway is gone first."""
    telling, ending = asyncio.ensure_future(news.get()), asyncio.ensure_future(peer.wait_closed())
    try:
        await asyncio.wait({telling, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not telling.done():
            raise NodeUnavailable("the connection to the gateway was lost; the job goes on, and this command finds it again")
        return telling.result()
    finally:
        telling.cancel()
        ending.cancel()


def _card_in(answer: Message) -> JobCard:
    if not isinstance(answer, JobStatus):
        raise WireError(f"the gateway answered a question about a job with {answer.tag!r}")
    return answer.card


class _Bar:
    """Lines on stdout, and on a terminal a bar below them."""

    def __init__(self, card: JobCard, *, shown: bool) -> None:
        self._progress: Any = None
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(printable(card.name), total=card.rounds, completed=card.round)

    def __enter__(self) -> _Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def print(self, line: str) -> None:
        """One line for the user or a script."""
        click.echo(line)
        sys.stdout.flush()

    def show(self, card: JobCard) -> None:
        """How far it is."""
        if self._progress is not None:
            self._progress.update(self._task, completed=card.round)


def _line(report: RoundReport, names: Sequence[str]) -> str:
    metrics = "".join(f"  {printable(name, 40)} {value:.4f}" for name, value in _metrics(report, names).items())
    told = f"  {printable(report.text)}" if report.text else ""
    return f"round {report.round:4}{metrics}  {report.nodes} nodes  {report.seconds:.2f} s{told}"


def _metrics(report: RoundReport, names: Sequence[str]) -> Mapping[str, float]:
    return {name: math.nan if value is None else value for name, value in zip(names, report.metrics, strict=False)}


def _row(card: JobCard) -> tuple[str, ...]:
    try:
        started = datetime.datetime.fromtimestamp(int(card.started), datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        started = ""  # a gateway may say anything
    nodes, round = str(len(card.nodes)), f"{card.round} of {card.rounds}"
    return card.id, card.name, card.state, round, nodes, card.strategy, started, card.text
