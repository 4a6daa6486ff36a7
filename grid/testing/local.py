"""A whole grid in one process, for tests and notebooks: the same gateway, nodes, clients, channels and gate as processes have.

Only the network is replaced, by transports in memory; everything is `--dev`. Blocking, it runs on the background loop that
`grid.connect` uses; with `async with`, on the loop that it was entered on, and gives clients whose calls are awaited.

    with LocalGrid(nodes={"alice": {"patients": frame}, "bob": {...}}) as local:
        g = local.client()

    async with LocalGrid(nodes=3) as local:
        g = await local.client()

In a notebook, where a block would end with its cell, `local = LocalGrid(nodes=3).start()` and at last `local.close()`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas

from grid.client import api
from grid.client.blocking import Client, LoopThread, background
from grid.clock import Clock, SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import InvalidRequest, NodeUnavailable, NotFound
from grid.gateway.app import Gateway
from grid.node.app import Node
from grid.node.datasets import Dataset, load_datasets
from grid.settings import ClientSettings, GatewaySettings, NodeSettings
from grid.store.base import Store
from grid.store.memory import MemoryStore
from grid.tasks import start
from grid.transport.base import Transport
from grid.transport.memory import memory_pair

FIRST_NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")

Wrap = Callable[[Transport], Transport]
"""Put around both ends of every connection to the gateway: to record what is sent, or to make it fail."""

Nodes = Mapping[str, Mapping[str, Any] | str | Path] | Sequence[str] | int
"""Node name -> {dataset name -> DataFrame, dict of tensors, or Dataset}, or a folder as `grid node --data` takes it; or names;
or how many."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a `LocalGrid` is made of, checked."""

    datasets: Mapping[str, Sequence[Dataset]]
    wrap: Wrap
    clock: Clock
    gateway: GatewaySettings
    node: NodeSettings
    client: ClientSettings
    store: Callable[[str], Store]


class LocalGrid:
    """A gateway and nodes in this process. `nodes` says which, and what datasets they have.

    A dataset is a DataFrame, {"features": tensor, "targets": tensor, "tags": [...], "policy": {...}}, or a `Dataset`. Without a
    policy of its own it has release = "aggregate", plans = "any", min_rows = 10 and no limit on elements. In place of a node's
    datasets a folder may stand, whose descriptions say all that. `gateway`, `node` and `client` are settings of all of a kind.
    `store` makes each node's memory from its name; without it, it lasts as long as the grid. Nodes work in threads of this
    process, or with `processes` as real ones do.
    """

    def __init__(
        self,
        nodes: Nodes = 3,
        *,
        wrap: Wrap = lambda transport: transport,
        clock: Clock | None = None,
        gateway: GatewaySettings | None = None,
        node: NodeSettings | None = None,
        client: ClientSettings | None = None,
        store: Callable[[str], Store] | None = None,
        processes: bool = False,
    ) -> None:
        self._parts = Parts(
            datasets={name: _datasets(given) for name, given in _named(nodes).items()},
            wrap=wrap,
            clock=clock if clock is not None else SystemClock(),
            gateway=dataclasses.replace(gateway or GatewaySettings(), dev=True),
            node=dataclasses.replace(node or NodeSettings(), dev=True, processes=processes),
            client=client or ClientSettings(),
            store=store or (lambda name: MemoryStore()),
        )
        self._thread: LoopThread | None = None
        self._running: Running | None = None

    # ------------------------------------------------------------ life

    def start(self) -> Self:
        """Start the grid, where no `with` block can hold it; `close` ends it."""
        self._thread = background()
        self._thread.run(self._start())
        return self

    def close(self) -> None:
        """End clients, nodes and gateway of a grid that `start` started."""
        if self._thread is None:
            raise InvalidRequest("the grid is not running on the background loop; `start` or `with` would have it run there")
        self._thread.run(self._stop())
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stop()

    async def _start(self) -> None:
        running = Running(self._parts)
        await running.start()
        self._running = running

    async def _stop(self) -> None:
        running, self._running = self._inside, None
        await running.stop()

    @property
    def _inside(self) -> Running:
        if self._running is None:
            raise InvalidRequest("the grid is not running: use `with LocalGrid(...) as local:` or `async with`")
        return self._running

    # ------------------------------------------------------------ what is in it

    def client(self, name: str = "") -> Any:
        """A client of this grid: a blocking one, or with `async with` an awaitable of an asynchronous one. Ends with the grid."""
        if self._thread is None:
            return self._inside.client(name, api.as_it_is)
        thread = self._thread
        return Client.over(thread.run(self._inside.client(name, thread.run)), thread)

    @property
    def gateway(self) -> Gateway:
        """The gateway itself, for tests that look inside."""
        return self._inside.gateway

    def node(self, name: str) -> Node:
        """A running node itself, for tests that look inside. Raises `NotFound`."""
        return self._inside.node(name)

    def stop_node(self, name: str) -> Any:
        """End a node, as if its process was stopped. Waits, or with `async with` is awaited."""
        return self._wait(self._inside.stop_node(name))

    def start_node(self, name: str) -> Any:
        """Start a node that was stopped: with its data and its keys, without its clients' values."""
        return self._wait(self._inside.start_node(name))

    def _wait(self, work: Coroutine[Any, Any, None]) -> Any:
        return work if self._thread is None else self._thread.run(work)


class Running:
    """The parts of a running `LocalGrid`. Everything is called on its loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._identities = {name: self._identity(name, "node") for name in parts.datasets}
        self._stores = {name: parts.store(name) for name in parts.datasets}
        self._trust = {name: Trust.dev() for name in parts.datasets}
        self._nodes: dict[str, Member] = {}
        self._clients: list[api.Client] = []
        self._numbers = itertools.count(1)
        self._ended = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self.gateway = Gateway(
            parts.gateway, me=self._identity("gateway", "gateway"), trust=Trust.dev(), clock=parts.clock, token="local"
        )

    def _identity(self, name: str, role: str) -> LocalIdentity:
        return LocalIdentity.create(name=name, role=role, clock=self._parts.clock)

    async def start(self) -> None:
        """Start gateway and nodes; all of them are registered when this returns."""
        started = asyncio.Event()
        # One task enters and leaves every context, however many tasks call `stop` and `start_node`.
        self._life = asyncio.create_task(self._live(started), name="local grid")
        waiting = asyncio.create_task(started.wait(), name="local grid starts")
        await asyncio.wait({self._life, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not started.is_set():
            waiting.cancel()
            await self._life
        try:
            await asyncio.gather(*(self.start_node(name) for name in self._parts.datasets))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End clients, nodes and gateway, in this order."""
        for client in self._clients:
            await client.close()
        for name in list(self._nodes):
            await self.stop_node(name)
        self._ended.set()
        if self._life is not None:
            await self._life

    async def _live(self, started: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as self._tasks, self.gateway:
            started.set()
            await self._ended.wait()

    async def dial(self) -> Transport:
        """A new connection to the gateway."""
        if self._ended.is_set():
            raise NodeUnavailable("the local grid has ended")
        ours, theirs = memory_pair()
        start(self._tasks, self.gateway.serve(self._parts.wrap(theirs)), name="gateway connection", owner="the local grid")
        return self._parts.wrap(ours)

    async def dial_jobs(self) -> Transport:
        """A new connection to the gateway's coordinator."""
        if self._ended.is_set():
            raise NodeUnavailable("the local grid has ended")
        ours, theirs = memory_pair()
        start(self._tasks, self.gateway.serve_jobs(self._parts.wrap(theirs)), name="job channel", owner="the local grid")
        return self._parts.wrap(ours)

    async def client(self, name: str, wait: Callable[[Any], Any]) -> api.Client:
        """A new client, joined. A name is made up where none is given."""
        name = name or f"client-{next(self._numbers)}"
        made = api.Client(
            dial=self.dial,
            dial_jobs=self.dial_jobs,
            me=self._identity(name, "client"),
            trust=Trust.dev(),
            settings=self._parts.client,
            clock=self._parts.clock,
            wait=wait,
        )
        await made.__aenter__()
        self._clients.append(made)
        return made

    def node(self, name: str) -> Node:
        if name not in self._nodes:
            raise NotFound(f"no node {name!r} is running; there are {', '.join(self._nodes) or 'none'}")
        return self._nodes[name].node

    async def start_node(self, name: str) -> None:
        """Start one of the nodes and return once the gateway has registered it."""
        if name in self._nodes or name not in self._parts.datasets:
            raise InvalidRequest(f"node {name!r} is running already, or is none of this grid")
        node = Node(
            dataclasses.replace(self._parts.node, name=name),
            me=self._identities[name],
            trust=self._trust[name],
            datasets=self._parts.datasets[name],
            store=self._stores[name],
            clock=self._parts.clock,
            dial=self.dial,
            dial_jobs=self.dial_jobs,
        )
        member = self._nodes[name] = Member(node)
        self._tasks.create_task(member.live(), name=f"node {name}")
        await member.ready()

    async def stop_node(self, name: str) -> None:
        """End a node and wait until it is gone."""
        self.node(name)
        await self._nodes.pop(name).stop()


class Member:
    """One node, in a task of its own."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._entered = asyncio.Event()
        self._leave = asyncio.Event()
        self._left = asyncio.Event()

    async def live(self) -> None:
        """The node's life, until `stop`."""
        try:
            async with self.node:
                self._entered.set()
                await self._leave.wait()
        finally:
            self._left.set()

    async def ready(self) -> None:
        """Until the gateway has registered the node."""
        await self._entered.wait()
        await self.node.ready()

    async def stop(self) -> None:
        self._leave.set()
        await self._left.wait()


def _named(nodes: Nodes) -> Mapping[str, Mapping[str, Any] | str | Path]:
    if isinstance(nodes, Mapping):
        return nodes
    if isinstance(nodes, int):
        return {(FIRST_NAMES[index] if index < len(FIRST_NAMES) else f"node-{index + 1}"): {} for index in range(nodes)}
    return {name: {} for name in nodes}


def _datasets(given: Mapping[str, Any] | str | Path) -> list[Dataset]:
    """The datasets of one node. Raises `DatasetError`, or `InvalidRequest` for what is none."""
    if isinstance(given, str | Path):
        return load_datasets(Path(given))
    return [_dataset(name, one) for name, one in given.items()]


def _dataset(name: str, given: Any) -> Dataset:
    if isinstance(given, Dataset):
        return dataclasses.replace(given, name=name)
    if isinstance(given, pandas.DataFrame):
        return Dataset.from_frame(name, given)
    if isinstance(given, Mapping):
        return Dataset.from_tensors(name, given)
    kind = type(given).__name__
    raise InvalidRequest(f"dataset {name!r} must be a DataFrame, a dict with 'features', or a Dataset, not {kind}")
