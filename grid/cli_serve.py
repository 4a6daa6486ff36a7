"""`grid gateway` and `grid node`: run a service until SIGTERM or Ctrl-C.

Each prints one line on stdout once it is ready (with `--json` one object with `"event": "ready"`), and nothing before.
The event loop is chosen here and nowhere else: uvloop where it is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import secrets
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from grid import logs
from grid.cli_places import announced_address, check_dev_node, check_listen, dial_jobs_with, dial_with, find_gateway
from grid.cli_support import (
    CONFIG_OPTION,
    JSON_ASKED,
    JSON_OPTION,
    SettingsCommand,
    say,
    settings_from,
    settings_options,
    text_or_file,
    working,
)
from grid.clock import SystemClock
from grid.crypto.files import only_process
from grid.crypto.identity import LocalIdentity, Token, Trust, parse_root
from grid.errors import InvalidRequest
from grid.settings import GatewaySettings, LogSettings, NodeSettings
from grid.store.base import Store
from grid.store.memory import MemoryStore
from grid.store.sqlite import SqliteStore
from grid.transport.base import Transport
from grid.transport.websocket import dial_websocket, is_loopback, serve_websocket
from grid.wire.address import format_address, parse_address

TOKEN_BYTES = 24
MIN_TOKEN_LETTERS = 16
STORE_FILE = "store.sqlite"

Ready = Callable[[dict[str, Any], str], None]
"""Called once, when the service is ready, with the event for programs and the text for people."""


@click.command("gateway", cls=SettingsCommand, params=settings_options(GatewaySettings, without=frozenset({"host", "port"})))
@click.option("--listen", metavar="HOST:PORT", help="where to listen; port 0 takes a free one [default: 127.0.0.1:8080]")
@CONFIG_OPTION
@JSON_OPTION
def gateway(listen: str | None, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Run a gateway: nodes and clients meet here.

    It keeps a list of nodes and their datasets, relays sealed connections that it cannot read, and shows a dashboard. The
    line that it prints when it is ready holds the dashboard's address with a token. GRID_TOKEN sets that token, or names a
    file that holds it; then it is not printed.

    \b
        grid gateway --dev                        # to try things out on this machine
        grid gateway --root KEY --state DIR --tls-cert FILE --tls-key FILE --listen 0.0.0.0:443
    """
    if listen is not None:
        flags["host"], flags["port"] = parse_address(listen, listening=True)
    settings = settings_from(GatewaySettings, "gateway", config, flags)
    serve(lambda ready: run_gateway(settings, ready), settings.log, as_json=as_json)


@click.command("node", cls=SettingsCommand, params=settings_options(NodeSettings, without=frozenset({"name"})))
@click.argument("name")
@click.option("--join", metavar="TOKEN", envvar="GRID_JOIN", help="what `grid enroll` printed, or a file with it [GRID_JOIN]")
@CONFIG_OPTION
@JSON_OPTION
def node(name: str, join: str | None, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Run a node called NAME beside its owner's data.

    It offers the datasets of --data to clients of the gateway, runs what they ask for, and lets out only what the policy
    in each dataset's description allows. It dials out, so it works behind a firewall.

    \b
        grid node alice --data DIR --dev                  # to try things out on this machine
        grid node alice --data DIR --state DIR --join TOKEN
    """
    settings = settings_from(NodeSettings, "node", config, {**flags, "name": name})
    serve(lambda ready: run_node(settings, join, ready), settings.log, as_json=as_json)


def serve(service: Callable[[Ready], Coroutine[Any, Any, None]], log: LogSettings, *, as_json: bool) -> None:
    """Run a service on the fastest loop there is until SIGTERM or SIGINT; a second signal does not wait for a clean end."""
    top = click.get_current_context().find_root()
    logs.configure(("info", "debug")[min(top.params["verbose"], 2) - 1] if top.params["verbose"] else log.level, log.format)
    top.meta[JSON_ASKED] = as_json or log.format == "json"  # the error that it may end with is one more line of the log
    loop_factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        loop_factory = uvloop.new_event_loop
    with_parent = bool(top.params["with_parent"])
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_until_signal(service(partial(_ready, as_json)), with_parent=with_parent))


def _ready(as_json: bool, event: Mapping[str, object], text: str) -> None:
    """The service runs. What is there now stays: collections, which messages of many small objects bring about, need not look
    through modules. A service loads most of them when it starts."""
    gc.collect()
    gc.freeze()
    say(event, text, as_json=as_json)


async def _until_signal(service: Coroutine[Any, Any, None], *, with_parent: bool) -> None:
    """Run the service; SIGTERM or SIGINT cancels it, which ends it cleanly, and then this returns.

    `with_parent`: so does the end of standard input, for a process that must not outlive the one that started it.
    """
    main = asyncio.current_task()
    assert main is not None
    reasons: list[str] = []

    def stop(reason: str) -> None:
        reasons.append(reason)
        main.cancel()

    def on_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop("the parent is gone")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.loop_errors)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    if with_parent:
        loop.add_reader(0, on_input)
    try:
        await service
    except asyncio.CancelledError:
        if not reasons:
            raise


async def run_gateway(settings: GatewaySettings, ready: Ready) -> None:
    """A gateway until it is cancelled. Its keys are kept where there is a state folder."""
    from grid.gateway.app import Gateway
    from grid.gateway.http import HttpServer

    check_gateway_settings(settings)
    token = _dashboard_token()
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        if settings.state is not None:
            stack.enter_context(only_process(settings.state))
        me = LocalIdentity.load_or_create(settings.state, name="gateway", role="gateway", clock=clock)
        trust = Trust.dev() if settings.dev else Trust.rooted(parse_root(text_or_file(settings.root)), settings.state)
        store = None
        if settings.state is not None:
            store = stack.enter_context(contextlib.closing(_open_store(settings.state)))
        gateway = Gateway(settings, me=me, trust=trust, clock=clock, token=token, store=store)
        running = await stack.enter_async_context(gateway)
        try:
            server = await stack.enter_async_context(HttpServer(running))
        except OSError as error:
            raise InvalidRequest(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
        url, event = server.socket_url, {"event": "ready", "url": server.socket_url, "id": me.id, "dev": settings.dev}
        dashboard = server.url
        if not os.environ.get("GRID_TOKEN"):  # whoever set it knows it, and what is printed is often kept
            dashboard = f"{server.url}?token={token}"
            event["token"] = token
        event["dashboard"] = dashboard
        ready(event, f"grid gateway ready at {url}\n  dashboard: {dashboard}\n  identity:  {me.id}")
        await asyncio.Event().wait()


def _dashboard_token() -> str:
    """The token of GRID_TOKEN, or of the file that it names, or a new one. Whoever guesses it reads the dashboard."""
    token = text_or_file(os.environ.get("GRID_TOKEN", "")).strip()
    if token and (len(token) < MIN_TOKEN_LETTERS or not token.isascii() or not token.isprintable() or " " in token):
        raise InvalidRequest(
            f"GRID_TOKEN must have at least {MIN_TOKEN_LETTERS} letters and digits, so that nobody guesses it;"
            " without it a new one is made at each start"
        )
    return token or secrets.token_urlsafe(TOKEN_BYTES)


def check_gateway_settings(settings: GatewaySettings) -> None:
    """Refuse what is no safe way to run a gateway."""
    if settings.dev and settings.root:
        raise InvalidRequest("--dev and --root exclude each other: a grid has a root key, or trusts on first use")
    if not settings.dev and not settings.root:
        raise InvalidRequest("say --root KEY, as `grid root init` printed it, or --dev to try things out on this machine")
    if settings.dev and not settings.allow_remote_dev and not is_loopback(settings.host):
        raise InvalidRequest(
            f"--dev trusts whoever comes first, and {settings.host} is reached from other machines:"
            " enrol your members with a root key, or say --allow-remote-dev, too"
        )


async def run_node(settings: NodeSettings, join: str | None, ready: Ready) -> None:
    """A node until it is cancelled, or until its gateway will not have it any more; ready once that has registered it."""
    if settings.dev and join:
        raise InvalidRequest("--dev and --join exclude each other: a node is enrolled by a root key, or trusted on first use")
    check_listen(settings)
    clock = SystemClock()
    token = Token.parse(text_or_file(join)) if join else None
    with contextlib.ExitStack() as stack:
        if settings.state is not None:
            stack.enter_context(only_process(settings.state))
        me = LocalIdentity.load_or_create(settings.state, name=settings.name, role="node", clock=clock, token=token)
        if me.enrolment is None and not settings.dev:
            raise InvalidRequest("say --join TOKEN, as `grid enroll` printed it, or --dev to try things out on this machine")
        trust = Trust.dev() if me.enrolment is None else Trust.rooted(me.enrolment.root, settings.state)
        url = find_gateway(settings, token)
        check_dev_node(settings, url)
        dial = dial_with(url, settings.tls_ca)

        from grid.node.app import Node  # torch takes a second or more: what is wrong so far is said before
        from grid.node.dataset_files import DatasetFiles
        from grid.node.datasets import load_datasets

        files = DatasetFiles(settings.state, settings.dataset_memory_bytes)
        with working(f"reading the datasets of {settings.data}"):
            datasets = load_datasets(settings.data, files) if settings.data else []
        store = stack.enter_context(contextlib.closing(_open_store(settings.state)))
        node = Node(
            settings,
            me=me,
            trust=trust,
            datasets=datasets,
            store=store,
            clock=clock,
            dial=dial,
            dial_jobs=dial_jobs_with(url, settings.tls_ca),
            dial_direct=_dial_address,
            dial_party=_dial_party,
        )
        await _run_node(node, url, ready)


async def _run_node(node: Any, url: str, ready: Ready) -> None:
    async with node, _answering_probes(node), _listening(node, node.settings) as address:
        with working(f"joining the grid at {url}"):
            await node.ready()
        names = list(node.datasets)
        event = {"event": "ready", "name": node.name, "id": node.id, "gateway": url, "datasets": names, "address": address}
        where = f"\n  direct links at {address}" if address else ""
        have = f"\n  datasets: {', '.join(names) or 'none'}\n  identity: {node.id}"
        ready(event, f"grid node {node.name} ready at {url}{have}{where}")
        raise await node.ended()


def _open_store(state: Path | None) -> Store:
    if state is None:
        return MemoryStore()
    try:
        return SqliteStore(state / STORE_FILE)
    except (OSError, sqlite3.Error) as error:
        raise InvalidRequest(f"{state / STORE_FILE}: cannot be opened: {error}") from error


@contextlib.asynccontextmanager
async def _listening(node: Any, settings: NodeSettings) -> AsyncIterator[str]:
    """Listen for direct links where the settings say so, and announce it. Gives the address, "" without one."""
    if not settings.listen:
        yield ""
        return
    from grid.node.party_links import PARTY_PATH

    host, port = parse_address(settings.listen, listening=True)
    async with contextlib.AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(serve_websocket(host, port, node.serve, at={PARTY_PATH: node.serve_party}))
        except OSError as error:
            raise InvalidRequest(f"cannot listen on {settings.listen}: {error.strerror}") from None
        address = announced_address(settings, server.port)
        await node.announce_at(address)
        try:
            yield address
        finally:
            await node.end_sessions()  # else the server would wait for clients that are gone to come back


@contextlib.asynccontextmanager
async def _answering_probes(node: Any) -> AsyncIterator[None]:
    """Answer at `--health` where the settings say so, from before the gateway is reached."""
    if not node.settings.health:
        yield
        return
    from grid.node.health import serve_health

    host, port = parse_address(node.settings.health, listening=True)

    def facts() -> Mapping[str, str | bool]:
        return {"name": node.name, "id": node.id, "connected": node.connected}

    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(serve_health(host, port, facts))
        except OSError as error:
            raise InvalidRequest(f"cannot listen on {node.settings.health}: {error.strerror}") from None
        yield


async def _dial_address(address: str) -> Transport:
    return await dial_websocket(f"ws://{format_address(*parse_address(address))}")


async def _dial_party(address: str) -> Transport:
    from grid.node.party_links import PARTY_PATH

    return await dial_websocket(f"ws://{format_address(*parse_address(address))}{PARTY_PATH}")


COMMANDS = (gateway, node)
