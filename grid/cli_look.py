"""`grid ls`, `grid datasets`, `grid status`: what there is in a grid, as any member may see it.

They join the gateway as a client does, without loading torch: under the identity of this user's `grid.connect`, or under a
passing one where the grid is `--dev`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import click

from grid.cli_support import JSON_OPTION, show_table
from grid.client.home import Credentials, gateway_url
from grid.clock import SystemClock
from grid.errors import WireError
from grid.rpc.hop import Hop, dial_gateway, greeting_of, join_gateway
from grid.settings import SessionLimits
from grid.wire.messages import Found, FoundDataset, ListNodes, NodeCard, NodeList, Search

T = TypeVar("T")

GATEWAY_OPTION = click.option(
    "--gateway",
    default="ws://127.0.0.1:8080",
    show_default=True,
    envvar="GRID_GATEWAY",
    help="URL of the gateway [GRID_GATEWAY]",
)

PAGE = 1000


@click.command("ls")
@GATEWAY_OPTION
@JSON_OPTION
def nodes(gateway: str, as_json: bool) -> None:
    """List the nodes of a grid: who is there, and how many datasets each has."""
    found = with_hop(gateway, _list_nodes)
    if as_json:
        click.echo(json.dumps([_node_facts(card) for card in found]))
        return
    rows = [(card.name, card.state, card.organisation, str(len(card.datasets)), card.id) for card in found]
    show_table("Nodes", ("name", "state", "organisation", "datasets", "id"), rows, "No node has joined this grid yet.")


@click.command("datasets")
@click.argument("tags", nargs=-1, metavar="[TAG]...")
@GATEWAY_OPTION
@JSON_OPTION
def datasets(tags: Sequence[str], gateway: str, as_json: bool) -> None:
    """List the datasets of nodes that are online: those that have every TAG, or all."""
    found = with_hop(gateway, lambda hop: _search(hop, tags))
    if as_json:
        click.echo(json.dumps([_dataset_facts(one) for one in found]))
        return
    rows = [_dataset_row(one) for one in found]
    columns = ("node", "dataset", "rows", "tags", "release", "description")
    show_table("Datasets", columns, rows, "No node that is online has such a dataset.")


@click.command("status")
@GATEWAY_OPTION
@JSON_OPTION
def status(gateway: str, as_json: bool) -> None:
    """Say whether a gateway answers, which grid it serves, and how much is there."""
    facts = with_hop(gateway, lambda hop: _status(hop, gateway))
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"gateway   {gateway} answers in {facts['answer_ms']} ms")
    click.echo(f"grid      {facts['grid']}{' (--dev: trust on first use)' if facts['dev'] else ''}")
    click.echo(f"nodes     {facts['nodes_online']} online, {facts['nodes_offline']} offline")
    click.echo(f"datasets  {facts['datasets']}")


COMMANDS: tuple[click.Command, ...] = (nodes, datasets, status)


def with_hop(url: str, work: Callable[[Hop], Awaitable[T]]) -> T:
    """Join the gateway, do the work, leave."""
    clock = SystemClock()
    # Nothing is told to the grid, and nothing of it believed beyond the screen, so any --dev grid may be looked at.
    credentials = Credentials(url=gateway_url(url), remote_dev=True)
    limits, dial = SessionLimits(), dial_gateway(gateway_url(url))

    async def run() -> T:
        me, trust = credentials.choose(await greeting_of(dial, clock, limits), clock)
        async with join_gateway(dial, me=me, trust=trust, clock=clock, limits=limits) as hop:
            return await work(hop)

    return asyncio.run(run())


async def _list_nodes(hop: Hop) -> Sequence[NodeCard]:
    answer = await hop.peer.request(ListNodes())
    if not isinstance(answer, NodeList):
        raise WireError(f"the gateway answered a request for its nodes with {answer.tag!r}")
    return answer.nodes


async def _search(hop: Hop, tags: Sequence[str]) -> Sequence[FoundDataset]:
    found: list[FoundDataset] = []
    while True:
        page = await hop.peer.request(Search(tags=tuple(tags), offset=len(found), limit=PAGE))
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
        "datasets": sum(len(card.datasets) for card in online),
    }


def _node_facts(card: NodeCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "id": card.id,
        "state": card.state,
        "organisation": card.organisation,
        "datasets": [dataset.name for dataset in card.datasets],
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
    return one.node_name, dataset.name, str(dataset.rows), " ".join(dataset.tags), _policy(one), dataset.description


def _policy(one: FoundDataset) -> str:
    policy = one.dataset.policy
    return policy.release if policy.release != "aggregate" else f"aggregate of {policy.min_rows} rows or more"
