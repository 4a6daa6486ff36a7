"""`grid requests`, `grid approve`, `grid deny`: an owner's word on releases, where the policy says `release = "approve"`.

They work on the state folder of a node, whether it runs or not, and need no network. An answer is signed with the node's key.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grid.cli_support import JSON_OPTION, say, show_table
from grid.display import printable
from grid.errors import InvalidRequest

if TYPE_CHECKING:
    from grid.crypto.identity import LocalIdentity
    from grid.policy.approvals import Approvals
    from grid.store.base import ReleaseRequest

ESCAPED = len(r"\U0010ffff")
"""Letters that one letter may take on a terminal."""

STATE_OPTION = click.option(
    "--state",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    envvar="GRID_STATE",
    help="the node's state folder, as `grid node --state` takes it [GRID_STATE]",
)


@click.command("requests")
@click.argument("request_id", required=False, metavar="[ID]")
@STATE_OPTION
@click.option("--all", "everything", is_flag=True, help="those that have been answered, too")
@JSON_OPTION
def requests(request_id: str | None, state: Path, everything: bool, as_json: bool) -> None:
    """List the releases that wait for this owner's word; with ID, show one in full.

    It shows who asked, the plan that made the value, as text, what it was called with, and what the rules of
    release = "aggregate" say to it.
    """
    with _opened(state) as (approvals, _):
        if request_id is not None:
            one = approvals.find(request_id)
            click.echo(json.dumps(_facts(approvals, one)) if as_json else _page(approvals, one))
            return
        found = [one for one in approvals.requests() if everything or approvals.state(one) == "waiting"]
        if as_json:
            click.echo(json.dumps([_facts(approvals, one) for one in found]))
            return
        rows = [
            (one.id, one.dataset, one.value, one.plan[:12], printable(one.client_name, 40), one.client, approvals.state(one))
            for one in found
        ]
        columns = ("id", "dataset", "value", "plan", "name", "client", "state")
        show_table("Requests", columns, rows, "No release waits for your word.")


@click.command("approve")
@click.argument("request_id", metavar="ID")
@STATE_OPTION
@JSON_OPTION
def approve(request_id: str, state: Path, as_json: bool) -> None:
    """Let the value of request ID leave, once, to the client that asked. Read it first: `grid requests ID`."""
    _answer(request_id, state, allow=True, as_json=as_json)


@click.command("deny")
@click.argument("request_id", metavar="ID")
@STATE_OPTION
@JSON_OPTION
def deny(request_id: str, state: Path, as_json: bool) -> None:
    """Refuse request ID for good; the client is told so when it asks again. Withdraws an approval that has not been used."""
    _answer(request_id, state, allow=False, as_json=as_json)


COMMANDS: tuple[click.Command, ...] = (requests, approve, deny)


def _answer(request_id: str, state: Path, *, allow: bool, as_json: bool) -> None:
    with _opened(state) as (approvals, me):
        request = approvals.decide(request_id, allow=allow, key=me.key)
    word = "approved" if allow else "denied"
    text = f"{word}: {request.value} of {request.dataset}, for {_who(request)}"
    say({"event": word, "request": request.id, "dataset": request.dataset, "client": request.client}, text, as_json=as_json)


@contextlib.contextmanager
def _opened(state: Path) -> Iterator[tuple[Approvals, LocalIdentity]]:
    """The requests in a state folder, and the key that answers them."""
    from grid.cli_serve import STORE_FILE
    from grid.clock import SystemClock
    from grid.crypto.identity import LocalIdentity
    from grid.policy.approvals import Approvals
    from grid.store.sqlite import SqliteStore

    me = LocalIdentity.read(state)
    if me is None:
        raise InvalidRequest(f"{state}: no node has kept its keys here; say --state DIR as the node was started with")
    if not (state / STORE_FILE).is_file():
        raise InvalidRequest(f"{state}: no node has kept anything here yet; start it with --state {state}")
    with contextlib.closing(SqliteStore(state / STORE_FILE)) as store:
        yield Approvals(store, me.public_key, SystemClock()), me


def _facts(approvals: Approvals, one: ReleaseRequest) -> dict[str, Any]:
    names = ("id", "dataset", "client", "client_name", "plan", "value", "report", "code", "asked")
    return {**{name: getattr(one, name) for name in names}, "state": approvals.state(one)}


def _page(approvals: Approvals, one: ReleaseRequest) -> str:
    """One request for people. The code comes from a client: no control characters reach the terminal, and no line is cut."""
    asked = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.asked))
    facts = (
        ("request", f"{one.id}, {approvals.state(one)}"),
        ("asked", asked),
        ("dataset", one.dataset),
        ("client", _who(one)),
        ("value", one.value),
        ("plan", one.plan),
        ("rules", one.report),
    )
    shown = [f"{name:9}{printable(value, 1000)}" for name, value in facts]
    lines = one.code.rstrip("\n").split("\n")
    return "\n".join([*shown, "code", *(f"    {printable(line, ESCAPED * len(line))}" for line in lines)])


def _who(one: ReleaseRequest) -> str:
    """A client by its name, which it may have chosen itself, and its id."""
    return f"{printable(one.client_name, 100)} ({one.client})" if one.client_name else one.client
