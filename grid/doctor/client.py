"""`grid doctor client`: from here to every node, as `grid.connect` would go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from grid.client.home import Credentials
from grid.clock import Clock
from grid.crypto.cards import NODE, describe_date
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.display import printable
from grid.doctor.findings import Finding, ok, unknown, warning, wrong
from grid.doctor.machine import check_versions
from grid.doctor.reach import LIMITS, Way
from grid.errors import GridError
from grid.ids import PeerId
from grid.rpc.channel import open_channel
from grid.rpc.hop import Hop
from grid.transport.base import Transport
from grid.transport.websocket import dial_websocket
from grid.wire.address import format_address, parse_address
from grid.wire.messages import Greeting, ListNodes, NodeCard, NodeList

NODE_S = 10.0
AT_ONCE = 8
MOST = 100
"""Nodes that are looked at; a grid of thousands is asked about by its nodes' owners."""


async def check_client(way: Way, credentials: Credentials, clock: Clock) -> list[Finding]:
    """All that a client needs: versions, the way to the gateway, an identity, and each node."""
    chosen: list[tuple[LocalIdentity, Trust]] = []

    def choose(greeting: Greeting) -> tuple[LocalIdentity, Trust]:
        chosen.append(credentials.choose(greeting, clock))
        return chosen[0]

    nodes: list[Finding] = []
    await way.walk()
    async with way.joined(choose) as hop:
        if hop is not None:
            me, trust = chosen[0]
            nodes = await _check_nodes(hop, me, trust, clock)
    return [*check_versions(), *way.findings, *nodes]


async def _check_nodes(hop: Hop, me: LocalIdentity, trust: Trust, clock: Clock) -> list[Finding]:
    listed = await hop.peer.request(ListNodes())
    cards: Sequence[NodeCard] = listed.nodes if isinstance(listed, NodeList) else ()
    if not cards:
        why, do = "there is no data to work with", "start a node: `grid node NAME --data DIR`; `grid doctor node` looks at it"
        return [warning("nodes", "no node has joined this grid yet", why=why, do=do)]
    room = asyncio.Semaphore(AT_ONCE)

    async def look(card: NodeCard) -> list[Finding]:
        async with room:
            return await _check_node(card, hop, me, trust, clock)

    found = await asyncio.gather(*(look(card) for card in cards[:MOST]))
    rest = [unknown("nodes", f"{len(cards) - MOST} more nodes were not looked at")] if len(cards) > MOST else []
    return [finding for part in found for finding in part] + rest


async def _check_node(card: NodeCard, hop: Hop, me: LocalIdentity, trust: Trust, clock: Clock) -> list[Finding]:
    check = f"node {printable(card.name)}"
    if card.state != "online":
        why = "its datasets cannot be used, and sums with it fail"
        return [warning(check, "offline", why=why, do="ask its owner; `grid doctor node` there says what is wrong")]
    try:
        found = await _sealed(await hop.links.open(PeerId(card.id)), card, hop, me, trust, clock)
    except (GridError, TimeoutError) as error:
        why = "the gateway lists it as online, and it does not answer as that node through the gateway"
        what = error.message if isinstance(error, GridError) else f"no answer within {NODE_S:g} s"
        return [wrong(check, printable(what), why=why, do="ask its owner; the node's log and `grid doctor node` there say more")]
    return [ok(check, f"answers through the gateway; {found}"), *await _check_direct(check, card, hop, me, trust, clock)]


async def _check_direct(check: str, card: NodeCard, hop: Hop, me: LocalIdentity, trust: Trust, clock: Clock) -> list[Finding]:
    if not card.address:
        return []
    try:
        address = format_address(*parse_address(card.address))
        await _sealed(await dial_websocket(f"ws://{address}", open_s=NODE_S), card, hop, me, trust, clock)
    except (GridError, TimeoutError) as error:
        what = error.message if isinstance(error, GridError) else "no answer in time"
        why = "links with it go through the gateway, which is slower and as safe"
        do = "nothing, or open that port to this machine; --announce of the node says where it is reached"
        return [warning(f"{check} directly", printable(f"not at {card.address}: {what}"), why=why, do=do)]
    return [ok(f"{check} directly", f"answers at {address}")]


async def _sealed(transport: Transport, card: NodeCard, hop: Hop, me: LocalIdentity, trust: Trust, clock: Clock) -> str:
    """Open a channel with the node and close it again: how long it took, and how long the node's card counts."""
    started = clock.monotonic()
    try:
        async with asyncio.timeout(NODE_S):
            channel = await open_channel(
                transport,
                me=me,
                trust=trust,
                expect=Expected(id=PeerId(card.id), name=card.name, role=NODE),
                grid=hop.grid,
                limits=LIMITS,
                clock=clock,
            )
        took = 1000 * (clock.monotonic() - started)
        await channel.close()
    finally:
        await transport.close()
    return f"a sealed channel took {took:.0f} ms, its card counts until {describe_date(channel.peer.expires)}"
