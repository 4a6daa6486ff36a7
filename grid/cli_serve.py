"""`grid gateway` and `grid node`: run a service until SIGTERM or Ctrl-C.

Each prints one line on stdout once it is ready (with `--json` one object with `"event": "ready"`), and nothing before.
The event loop is chosen here and nowhere else: uvloop where it is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from grid.cli_support import CONFIG_OPTION, JSON_OPTION, SettingsCommand, say, settings_from, settings_options
from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Token, Trust, parse_root
from grid.errors import InvalidRequest
from grid.rpc.hop import dial_gateway
from grid.settings import GatewaySettings, NodeSettings
from grid.store.memory import MemoryStore
from grid.store.sqlite import SqliteStore
from grid.transport.base import Transport
from grid.transport.websocket import dial_websocket, is_loopback, serve_websocket

TOKEN_BYTES = 24
MAX_PATH_LETTERS = 250
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
    line that it prints when it is ready holds the dashboard's address with a token; GRID_TOKEN sets that token.

    \b
        grid gateway --dev                        # to try things out on this machine
        grid gateway --root KEY --state DIR --tls-cert FILE --tls-key FILE --listen 0.0.0.0:443
    """
    if listen is not None:
        flags["host"], flags["port"] = split_address(listen)
    settings = settings_from(GatewaySettings, "gateway", config, flags)
    serve(lambda ready: run_gateway(settings, ready), as_json=as_json)


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
    serve(lambda ready: run_node(settings, join, ready), as_json=as_json)


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` in its parts; an IPv6 host stands in brackets. Raises `InvalidRequest`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidRequest(f"{text!r} is not HOST:PORT; write for example 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)


def serve(service: Callable[[Ready], Coroutine[Any, Any, None]], *, as_json: bool) -> None:
    """Run a service on the fastest loop there is until SIGTERM or SIGINT; a second signal does not wait for a clean end."""
    loop_factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        loop_factory = uvloop.new_event_loop
    with_parent = bool(click.get_current_context().find_root().params["with_parent"])
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        work = service(lambda event, text: say(event, text, as_json=as_json))
        runner.run(_until_signal(work, with_parent=with_parent))


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

    _check_gateway(settings)
    clock = SystemClock()
    me = LocalIdentity.load_or_create(settings.state, name="gateway", role="gateway", clock=clock)
    trust = Trust.dev() if settings.dev else Trust.rooted(parse_root(settings.root), settings.state)
    token = os.environ.get("GRID_TOKEN") or secrets.token_urlsafe(TOKEN_BYTES)
    async with Gateway(settings, me=me, trust=trust, clock=clock, token=token) as running, contextlib.AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(HttpServer(running))
        except OSError as error:
            raise InvalidRequest(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
        url, dashboard = server.socket_url, f"{server.url}?token={token}"
        event = {"event": "ready", "url": url, "dashboard": dashboard, "token": token, "id": me.id, "dev": settings.dev}
        ready(event, f"grid gateway ready at {url}\n  dashboard: {dashboard}\n  identity:  {me.id}")
        await asyncio.Event().wait()


def _check_gateway(settings: GatewaySettings) -> None:
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
    """A node until it is cancelled; ready once the gateway has registered it."""
    from grid.node.app import Node
    from grid.node.datasets import load_datasets

    if settings.dev and join:
        raise InvalidRequest("--dev and --join exclude each other: a node is enrolled by a root key, or trusted on first use")
    clock = SystemClock()
    token = Token.parse(_text_or_file(join)) if join else None
    me = LocalIdentity.load_or_create(settings.state, name=settings.name, role="node", clock=clock, token=token)
    if me.enrolment is None and not settings.dev:
        raise InvalidRequest("say --join TOKEN, as `grid enroll` printed it, or --dev to try things out on this machine")
    trust = Trust.dev() if me.enrolment is None else Trust.rooted(me.enrolment.root, settings.state)
    datasets = load_datasets(settings.data) if settings.data else []
    store = MemoryStore() if settings.state is None else SqliteStore(settings.state / STORE_FILE)
    node = Node(
        settings,
        me=me,
        trust=trust,
        datasets=datasets,
        store=store,
        clock=clock,
        dial=dial_gateway(settings.gateway),
        dial_direct=_dial_address,
    )
    with contextlib.closing(store):
        async with node, _listening(node, settings.listen) as address:
            await node.ready()
            names = [dataset.name for dataset in datasets]
            event = {"event": "ready", "name": me.name, "id": me.id, "gateway": settings.gateway, "datasets": names}
            where = f"\n  direct links at {address}" if address else ""
            have = f"\n  datasets: {', '.join(names) or 'none'}\n  identity: {me.id}"
            ready({**event, "address": address}, f"grid node {me.name} ready at {settings.gateway}{have}{where}")
            await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _listening(node: Any, place: str) -> AsyncIterator[str]:
    """Listen for direct links at HOST:PORT and announce it; nowhere where `place` is empty. Gives the address."""
    if not place:
        yield ""
        return
    host, port = split_address(place)
    async with contextlib.AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(serve_websocket(host, port, node.serve))
        except OSError as error:
            raise InvalidRequest(f"cannot listen on {place}: {error.strerror}") from None
        address = f"{place.rpartition(':')[0]}:{server.port}"
        await node.announce_at(address)
        yield address


async def _dial_address(address: str) -> Transport:
    return await dial_websocket(f"ws://{address}")


def _text_or_file(text: str) -> str:
    """The text itself, or the content of the file that it names."""
    path = Path(text)
    return path.read_text(encoding="utf-8") if len(text) < MAX_PATH_LETTERS and path.is_file() else text


COMMANDS = (gateway, node)
