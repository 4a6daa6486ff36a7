"""`grid doctor`: looks for the usual mistakes of a client, a node or a gateway, and says what to do about each."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grid.cli_look import Access, access_options
from grid.cli_places import check_dev_node, check_listen, find_gateway
from grid.cli_support import CONFIG_OPTION, JSON_OPTION, SettingsCommand, settings_from, settings_options, text_or_file
from grid.clock import SystemClock
from grid.settings import GatewaySettings, NodeSettings

if TYPE_CHECKING:
    from grid.doctor.findings import Finding

SOMETHING_WRONG = 6
MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "wrong": "[bold red]wrong[/]", "unknown": "[dim]unknown[/]"}


@click.group("doctor")
def doctor() -> None:
    """Look for the usual mistakes: clock, port, key, version, disk, who cannot be reached.

    Ends with exit code 0, or with 6 where something is wrong. Nothing that it does lasts.
    """


@doctor.command("client")
@access_options
@JSON_OPTION
def client(access: Access, as_json: bool) -> None:
    """Look at the way from here to a gateway and to each node, as grid.connect in Python would go it."""
    from grid.client.home import Credentials
    from grid.doctor.client import check_client
    from grid.doctor.reach import Way

    clock = SystemClock()
    token = None if access.token is None else text_or_file(access.token)
    way = Way(access.gateway, access.tls_ca, clock)
    credentials = Credentials(url=access.gateway, token=token, remote_dev=True)
    show(asyncio.run(check_client(way, credentials, clock)), as_json=as_json)


@doctor.command("node", cls=SettingsCommand, params=settings_options(NodeSettings, without=frozenset({"name"})))
@click.argument("name", required=False)
@click.option("--join", metavar="TOKEN", envvar="GRID_JOIN", help="the node's token, or a file with it [GRID_JOIN]")
@CONFIG_OPTION
@JSON_OPTION
def node(name: str | None, join: str | None, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Look at a node, before it starts or while it runs. Takes the options of `grid node`."""
    from grid.cli_serve import STORE_FILE
    from grid.crypto.identity import Token
    from grid.doctor.findings import wrong
    from grid.doctor.node import NodeCase, check_node
    from grid.doctor.reach import Way
    from grid.errors import GridError

    settings = settings_from(NodeSettings, "node", config, {**flags, "name": name})
    clock, token, first = SystemClock(), None, []
    try:
        token = Token.parse(text_or_file(join)) if join else None
    except GridError as error:
        do = "copy all of it, or have a new one made with `grid enroll`"
        first.append(wrong("token", error.message, why="the token makes the node's identity", do=do))
    url = token.gateway_url if token is not None and token.gateway_url and not settings.gateway else find_gateway(settings, None)
    try:
        check_listen(settings)
        check_dev_node(settings, url)
    except GridError as error:
        first.append(wrong("settings", error.message, why="the node does not start like this", do="change the setting named"))
    case = NodeCase(settings=settings, name=name, token=token, store=STORE_FILE)
    way = Way(url, settings.tls_ca, clock)
    show([*first, *asyncio.run(check_node(case, way, clock))], as_json=as_json)


@doctor.command("gateway", cls=SettingsCommand, params=settings_options(GatewaySettings, without=frozenset({"host", "port"})))
@click.option("--listen", metavar="HOST:PORT", help="where it listens [default: 127.0.0.1:8080]")
@CONFIG_OPTION
@JSON_OPTION
def gateway(listen: str | None, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Look at a gateway, before it starts or while it runs. Takes the options of `grid gateway`."""
    from grid.cli_serve import STORE_FILE, check_gateway_settings
    from grid.doctor.gateway import check_gateway
    from grid.wire.address import parse_address

    if listen is not None:
        flags["host"], flags["port"] = parse_address(listen, listening=True)
    settings = settings_from(GatewaySettings, "gateway", config, flags)
    show(check_gateway(settings, STORE_FILE, lambda: check_gateway_settings(settings), SystemClock()), as_json=as_json)


def show(findings: Sequence[Finding], *, as_json: bool) -> None:
    """The findings, and the exit code that stands for them."""
    from grid.doctor.findings import sound

    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in findings]))
    else:
        _print(findings)
    if not sound(findings):
        click.get_current_context().exit(SOMETHING_WRONG)


def _print(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from grid.display import printable

    console = Console()
    if not console.is_terminal:
        console.width = 120
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("verdict", "check"):
        table.add_column(column, no_wrap=True)
    table.add_column("what", overflow="fold")
    for one in findings:
        said = Text(printable(one.what))
        for word, text in (("why", one.why), ("do", one.do)):
            if text:
                said.append(f"\n{word}: {text}", style="dim" if word == "why" else "bold")
        table.add_row(MARKS[one.verdict], Text(one.check), said)
    console.print(table)
    counts = {verdict: sum(one.verdict == verdict for one in findings) for verdict in ("wrong", "warning")}
    console.print(f"\n{counts['wrong']} wrong, {counts['warning']} to look at, {len(findings)} checked", highlight=False)


COMMANDS: tuple[click.Command, ...] = (doctor,)
