"""`grid root init`, `grid enroll`, `grid revoke`: what the keeper of a grid's root key does, offline."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import click

from grid.cli_look import CA_OPTION
from grid.cli_places import dial_with
from grid.cli_support import JSON_OPTION, say
from grid.client.home import gateway_url
from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, RootKey, Token, Trust
from grid.rpc.hop import join_gateway
from grid.settings import SessionLimits
from grid.wire.messages import ListNodes, Revocations

DAY_S = 24 * 3600
KEEPER = "root-keeper"
PASSING_S = 600

ROOT_OPTION = click.option(
    "--root",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("root.key"),
    show_default=True,
    envvar="GRID_ROOT_FILE",
    help="the file with the root's private key; keep it offline [GRID_ROOT_FILE]",
)


@click.group()
def root() -> None:
    """Make the key that a grid's members are enrolled with."""


@root.command("init")
@ROOT_OPTION
@JSON_OPTION
def init(root: Path, as_json: bool) -> None:
    """Make a new root key and print its public half, which `grid gateway --root` takes."""
    made = RootKey.create(root)
    event = {"event": "root", "file": str(root), "grid": made.grid, "root": made.text}
    text = f"{made.text}\n\nThe private key is in {root}: keep it offline; it is needed only to enrol and to revoke."
    say(event, f"{text}\nStart the gateway with:  grid gateway --root {made.text} --state DIR", as_json=as_json)


@root.command("show")
@ROOT_OPTION
@JSON_OPTION
def show(root: Path, as_json: bool) -> None:
    """Print the public half of a root key again, which `grid gateway --root` takes as it is or in a file."""
    kept = RootKey.load(root)
    say({"event": "root", "file": str(root), "grid": kept.grid, "root": kept.text}, kept.text, as_json=as_json)


@click.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["node", "client"]), required=True, help="what NAME will be")
@ROOT_OPTION
@click.option("--gateway", default="", envvar="GRID_GATEWAY", help="the gateway's URL, put into the token [GRID_GATEWAY]")
@click.option("--organisation", default="", help="whom the node or client belongs to; everybody sees it")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="how long the enrolment holds")
@JSON_OPTION
def enroll(name: str, role: str, root: Path, gateway: str, organisation: str, days: int, as_json: bool) -> None:
    """Let NAME into the grid: prints a token, good for one node or client.

    The token is a secret: pass it on over a channel that you trust. The node starts with `grid node NAME --join TOKEN`, a
    client with `grid.connect(url, token=TOKEN)`.
    """
    token = RootKey.load(root).enroll(
        name=name,
        role=role,
        gateway_url=gateway,
        wall=SystemClock().wall(),
        organisation=organisation,
        valid_s=days * DAY_S,
    )
    say({"event": "enrolled", "name": name, "role": role, "token": token}, token, as_json=as_json)


@click.command()
@click.argument("who", metavar="NAME_OR_ID")
@ROOT_OPTION
@click.option("--gateway", envvar="GRID_GATEWAY", help="the gateway to tell; it passes the list on to everybody [GRID_GATEWAY]")
@CA_OPTION
@JSON_OPTION
def revoke(who: str, root: Path, gateway: str | None, tls_ca: Path | None, as_json: bool) -> None:
    """Put a node or client out of the grid, by name or by id.

    The new revocation list is signed by the root and kept with it. With --gateway it is in force at once: the gateway and every
    member that is connected drop whom it names.
    """
    keeper = RootKey.load(root)
    envelope = keeper.revoke(who, wall=SystemClock().wall())
    if gateway is not None:
        asyncio.run(_spread(keeper, envelope, gateway_url(gateway), tls_ca))
    how = f"told to {gateway}" if gateway else "not told to anybody yet: run the command again with --gateway"
    event = {"event": "revoked", "who": who, "told": gateway, "revocations": base64.b64encode(envelope).decode("ascii")}
    say(event, f"{who} is revoked; the list was {how}", as_json=as_json)


async def _spread(keeper: RootKey, envelope: bytes, url: str, tls_ca: Path | None) -> None:
    """Join the grid for a moment, under an enrolment of minutes, and hand over the list."""
    clock = SystemClock()
    passing = keeper.enroll(name=KEEPER, role="client", gateway_url=url, wall=clock.wall(), valid_s=PASSING_S)
    me = LocalIdentity.create(role="client", clock=clock, token=Token.parse(passing))
    trust = Trust.rooted(keeper.public)
    async with join_gateway(dial_with(url, tls_ca), me=me, trust=trust, clock=clock, limits=SessionLimits()) as hop:
        hop.peer.notify(Revocations(envelope=envelope))
        await hop.peer.request(ListNodes())  # answered after the list was taken in, as a session keeps its order


COMMANDS = (root, enroll, revoke)
