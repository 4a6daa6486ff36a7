"""`grid ls`, `grid datasets`, `grid status`: what there is in a grid, as any member may see it.

They join the gateway as a client does, without loading torch: under the identity of this user's `grid.connect`, which a
`--token` makes and which is kept, or under a passing one where the grid is `--dev`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from grid.cli_places import dial_jobs_with, dial_with
from grid.cli_support import JSON_OPTION, show_table, text_or_file
from grid.client.home import Credentials, gateway_url
from grid.clock import Clock, SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import AuthenticationFailed, WireError
from grid.rpc.dispatch import Handlers
from grid.rpc.hop import Hop, greeting_of, join_gateway
from grid.rpc.job_channel import job_channel
from grid.rpc.peer import Peer
from grid.settings import SessionLimits
from grid.wire.jobs import JobProgress
from grid.wire.messages import Found, FoundDataset, Greeting, ListNodes, NodeCard, NodeList, PolicyCard, Search

T = TypeVar("T")

GATEWAY_OPTION = click.option(
    "--gateway",
    default="ws://127.0.0.1:8080",
    show_default=True,
    envvar="GRID_GATEWAY",
    help="URL of the gateway [GRID_GATEWAY]",
)

TOKEN_OPTION = click.option(
    "--token",
    envvar="GRID_JOIN",
    help="a client's token, as `grid enroll` printed it, or a file with it; needed once for a grid with a root [GRID_JOIN]",
)
CA_OPTION = click.option(
    "--tls-ca",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="GRID_TLS_CA",
    help="certificates (PEM) to trust for wss, in place of the system's [GRID_TLS_CA]",
)

PAGE = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a command reaches a gateway: its options."""

    gateway: str
    token: str | None
    tls_ca: Path | None


def access_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Access`, as its argument `access`."""

    @functools.wraps(function)
    def with_access(*, gateway: str, token: str | None, tls_ca: Path | None, **others: Any) -> None:
        function(access=Access(gateway=gateway, token=token, tls_ca=tls_ca), **others)

    return GATEWAY_OPTION(TOKEN_OPTION(CA_OPTION(with_access)))


@click.command("ls")
@access_options
@JSON_OPTION
def nodes(access: Access, as_json: bool) -> None:
    """List the nodes of a grid: who is there, and how many datasets each has."""
    found = with_hop(access, _list_nodes)
    if as_json:
        click.echo(json.dumps([_node_facts(card) for card in found]))
        return
    rows = [(card.name, card.state, card.organisation, str(card.dataset_count), card.id) for card in found]
    show_table("Nodes", ("name", "state", "organisation", "datasets", "id"), rows, "No node has joined this grid yet.")


@click.command("datasets")
@click.argument("tags", nargs=-1, metavar="[TAG]...")
@click.option("--search", "text", default="", metavar="WORDS", help="words, all of which name, node, tags or description hold")
@access_options
@JSON_OPTION
def datasets(tags: Sequence[str], text: str, access: Access, as_json: bool) -> None:
    """List the datasets of nodes that are online: those that have every TAG, or all."""
    found = with_hop(access, lambda hop: _search(hop, tags, text))
    if as_json:
        click.echo(json.dumps([_dataset_facts(one) for one in found]))
        return
    rows = [_dataset_row(one) for one in found]
    columns = ("node", "dataset", "rows", "tags", "may leave", "description")
    show_table("Datasets", columns, rows, "No node that is online has such a dataset.")


@click.command("status")
@access_options
@JSON_OPTION
def status(access: Access, as_json: bool) -> None:
    """Say whether a gateway answers, which grid it serves, and how much is there."""
    facts = with_hop(access, lambda hop: _status(hop, access.gateway))
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"gateway   {access.gateway} answers in {facts['answer_ms']} ms")
    click.echo(f"grid      {facts['grid']}{' (--dev: trust on first use)' if facts['dev'] else ''}")
    click.echo(f"nodes     {facts['nodes_online']} online, {facts['nodes_offline']} offline")
    click.echo(f"datasets  {facts['datasets']}")


COMMANDS: tuple[click.Command, ...] = (nodes, datasets, status)


def with_hop(access: Access, work: Callable[[Hop], Awaitable[T]]) -> T:
    """Join the gateway, do the work, leave."""
    return _joined(access, lambda hop, me, trust: work(hop))


def with_job_channel(access: Access, work: Callable[[Peer, asyncio.Queue[JobProgress]], Awaitable[T]]) -> T:
    """Join the gateway, open a channel to its coordinator of jobs, do the work, leave. The queue has what is told of jobs."""

    async def on_channel(hop: Hop, me: LocalIdentity, trust: Trust) -> T:
        news: asyncio.Queue[JobProgress] = asyncio.Queue()
        handlers = Handlers({JobProgress: lambda context, message: news.put_nowait(message)})
        async with job_channel(
            dial_jobs_with(gateway_url(access.gateway), access.tls_ca),
            me=me,
            trust=trust,
            grid=hop.grid,
            gateway=hop.gateway,
            handlers=handlers,
            context=None,
            limits=SessionLimits(),
            clock=SystemClock(),
        ) as peer:
            return await work(peer, news)

    return _joined(access, on_channel)


def _joined(access: Access, work: Callable[[Hop, LocalIdentity, Trust], Awaitable[T]]) -> T:
    clock, url = SystemClock(), gateway_url(access.gateway)
    token = None if access.token is None else text_or_file(access.token)
    # Nothing is told to the grid, and nothing of it believed beyond the screen, so any --dev grid may be looked at.
    credentials = Credentials(url=url, token=token, remote_dev=True)
    limits, dial = SessionLimits(), dial_with(url, access.tls_ca)

    async def run() -> T:
        me, trust = _identity(credentials, await greeting_of(dial, clock, limits), clock)
        async with join_gateway(dial, me=me, trust=trust, clock=clock, limits=limits) as hop:
            return await work(hop, me, trust)

    return asyncio.run(run())


def _identity(credentials: Credentials, greeting: Greeting, clock: Clock) -> tuple[LocalIdentity, Trust]:
    try:
        return credentials.choose(greeting, clock)
    except AuthenticationFailed as error:
        if greeting.dev or credentials.token is not None:
            raise
        advice = "this grid has a root: say --token TOKEN once, as `grid enroll NAME --role client` prints it"
        raise AuthenticationFailed(f"{advice} ({error.message})") from error


async def _list_nodes(hop: Hop) -> Sequence[NodeCard]:
    answer = await hop.peer.request(ListNodes())
    if not isinstance(answer, NodeList):
        raise WireError(f"the gateway answered a request for its nodes with {answer.tag!r}")
    return answer.nodes


async def _search(hop: Hop, tags: Sequence[str], text: str) -> Sequence[FoundDataset]:
    found: list[FoundDataset] = []
    while True:
        page = await hop.peer.request(Search(tags=tuple(tags), offset=len(found), limit=PAGE, text=text))
        if not isinstance(page, Found):
            raise WireError(f"the gateway answered a search with {page.tag!r}")
        found.extend(page.datasets)
        if not page.datasets or len(found) >= page.total:
            return found


async def _status(hop: Hop, url: str) -> dict[str, Any]:
    started = time.monotonic()
    cards = await _list_nodes(hop)
    online = [card for card in cards if card.state == "online"]
    return {
        "gateway": url,
        "grid": hop.grid,
        "dev": hop.dev,
        "answer_ms": round((time.monotonic() - started) * 1000, 1),
        "nodes_online": len(online),
        "nodes_offline": len(cards) - len(online),
        "datasets": sum(card.dataset_count for card in online),
    }


def _node_facts(card: NodeCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "id": card.id,
        "state": card.state,
        "organisation": card.organisation,
        "datasets": [dataset.name for dataset in card.datasets],
        "dataset_count": card.dataset_count,
    }


def _dataset_facts(one: FoundDataset) -> dict[str, Any]:
    dataset = one.dataset
    return {
        "node": one.node_name,
        "node_id": one.node,
        "name": dataset.name,
        "description": dataset.description,
        "rows": dataset.rows,
        "tags": list(dataset.tags),
        "columns": [column.name for column in dataset.columns],
        "release": dataset.policy.release,
        "plans": dataset.policy.plans,
        "min_rows": dataset.policy.min_rows,
        "max_elements": dataset.policy.max_elements,
    }


def _dataset_row(one: FoundDataset) -> tuple[str, ...]:
    dataset = one.dataset
    return one.node_name, dataset.name, str(dataset.rows), " ".join(dataset.tags), _release(dataset.policy), dataset.description


def _release(policy: PolicyCard) -> str:
    return policy.release if policy.release != "aggregate" else f">= {policy.min_rows} rows"
