"""The asynchronous client, `grid.aio`. `grid.client.blocking` puts blocking calls on top of it.

    g = await grid.aio.connect("ws://127.0.0.1:8080")
    found = await g.search("#train")
    total = found[0].features.sum(0)          # nothing waits
    await total.get()                         # this does

Only what waits is awaited. Remote tensors know which kind of client they belong to.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack
from urllib.parse import urlsplit

import torch
from torch import nn

from grid.client.chain import CLIENTS
from grid.client.committee import Committee, open_committee
from grid.client.connection import NodeConnection
from grid.client.datasets import Dataset, Datasets
from grid.client.flow import Home
from grid.client.home import Credentials, gateway_url
from grid.client.job_line import JobLine
from grid.client.jobs import Job, JobList
from grid.client.meter import Metered
from grid.client.nodes import NODE_COLUMNS, Node, Nodes, Roster
from grid.client.paths import DialDirect, Paths
from grid.client.shapes import Shapes
from grid.client.sums import sum as sum
from grid.client.training import Options, Wish, order, usual_loss
from grid.clock import Clock, SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.display import counted, html
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, LocalProtocolError, NodeUnavailable, WireError
from grid.ids import CommitteeId, GridId, JobId, PeerId, random_id
from grid.rpc.hop import dial_gateway, greeting_of
from grid.rpc.job_channel import dial_jobs
from grid.settings import ClientSettings
from grid.tasks import start
from grid.transport.base import Dial, Transport
from grid.transport.websocket import dial_websocket, trusted_certificates
from grid.wire.address import format_address, parse_address
from grid.wire.jobs import JobList as JobCards
from grid.wire.jobs import ListJobs
from grid.wire.messages import Found, FoundDataset, ListNodes, NodeList, Search

__all__ = ["Client", "Dataset", "Node", "connect", "sum"]

PAGE = 1000
MAX_FOUND = 100_000
"""Datasets that one search gives; a gateway must not be able to feed us for ever."""

FRESH_S = 1.0
"""Age at which a look at `nodes` asks the gateway for a newer list, in the background."""


def as_it_is(work: Any) -> Any:
    """How an asynchronous client waits: the caller awaits."""
    return work


class Client:
    """A connection to a grid. Use as `async with Client(...)`, or let `connect` make it.

    `dial` opens a transport to the gateway, `dial_jobs` one to its coordinator, `dial_direct` one to a node that listens. `me`
    and `trust` say who this is and whom to believe. `wait` makes of a coroutine what users get from calls that wait: the
    coroutine here, its result in a blocking client. `gateway` is what to call the gateway where it cannot be reached.
    """

    def __init__(
        self,
        *,
        dial: Dial,
        me: LocalIdentity,
        trust: Trust,
        settings: ClientSettings | None = None,
        clock: Clock | None = None,
        dial_direct: DialDirect | None = None,
        dial_jobs: Dial | None = None,
        wait: Callable[[Any], Any] = as_it_is,
        gateway: str = "the gateway",
    ) -> None:
        self.settings = settings or ClientSettings()
        self._clock = clock or SystemClock()
        self._dial, self._dial_direct, self._wait = dial, dial_direct, wait
        self._dial_jobs, self._gateway = dial_jobs, gateway
        self.me = me
        self._trust = trust
        self._shapes = Shapes()
        self._roster = Roster(self._connection, self.gather)
        self._committees: dict[frozenset[str], Committee] = {}
        self._gathering = asyncio.Lock()
        self._connections: dict[PeerId, NodeConnection] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._stop = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0
        self._refreshing = False

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        """Join the grid. Raises `NodeUnavailable`, `AuthenticationFailed`."""
        self.home = Home(asyncio.get_running_loop())
        joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A task of its own, awaited in `close`, so that a client may be opened in one task and closed in another.
        self._life = asyncio.create_task(self._live(joined), name="grid client")
        try:
            await asyncio.wait({joined, self._life}, return_when=asyncio.FIRST_COMPLETED)
            if not joined.done():
                raise LocalProtocolError("the client ended by a fault of this program") from self._life.exception()
            joined.result()
        except BaseException:
            await self.close()
            raise
        CLIENTS.add(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the grid; nodes forget this client's values. May be called twice."""
        self._closed = True
        CLIENTS.discard(self)
        self._stop.set()
        if self._life is not None:
            await asyncio.wait([self._life])

    async def _live(self, joined: asyncio.Future[None]) -> None:
        # The group is left by cancelling its own tasks: connections last until then.
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._paths = Paths(
                    dial=self._dial,
                    dial_direct=self._dial_direct,
                    me=self.me,
                    trust=self._trust,
                    settings=self.settings,
                    clock=self._clock,
                    tasks=tasks,
                )
                self._jobs = JobLine(
                    dial=self._metered(self._dial_jobs),
                    hop=self._paths.hop,
                    me=self.me,
                    trust=self._trust,
                    settings=self.settings,
                    clock=self._clock,
                    tasks=tasks,
                    gateway=self._gateway,
                )
                try:
                    await self.refresh()
                except GridError as error:
                    joined.set_exception(error)
                else:
                    joined.set_result(None)
                    await self._stop.wait()
                raise asyncio.CancelledError

    # ------------------------------------------------------------ looking around

    @property
    def nodes(self) -> Nodes:
        """Name -> node. A look at it also asks the gateway for news, which the next look shows; `refresh` waits for them."""
        return Nodes(self._roster, self._touch)

    def node(self, name: str) -> Node:
        """The node of this name. Raises `NotFound`."""
        self._touch()
        return self._roster.find(name)

    async def refresh(self) -> None:
        """Ask the gateway which nodes there are now."""
        reply = await self._request(ListNodes())
        if not isinstance(reply, NodeList):
            raise WireError("the gateway answered a request for its nodes with something else")
        self._refreshed_at = self._clock.monotonic()
        self._roster.update(reply.nodes)

    async def search(self, *tags: str, text: str = "", offline: bool = False) -> Datasets:
        """Datasets of nodes that are online, which have every one of these tags; all of them without tags.

        With `text`, those in whose name, node's name, tags or description each of its words occurs, whatever the case.
        `offline=True` gives those of nodes that have gone, too, as they were announced last: `ds.node.state` tells which.
        """
        if not all(isinstance(tag, str) for tag in (*tags, text)):
            raise InvalidRequest('search takes tags, such as g.search("#train", "#digits")')
        found: list[FoundDataset] = []
        while True:
            page = await self._request(Search(tags=tags, offset=len(found), limit=PAGE, offline=offline, text=text))
            if not isinstance(page, Found):
                raise WireError("the gateway answered a search with something else")
            found.extend(page.datasets)
            if not page.datasets or len(found) >= page.total:
                break
            if len(found) > MAX_FOUND:
                raise InvalidRequest(f"more than {MAX_FOUND} datasets were found; search for more tags")
        await self.refresh()
        nodes = {one.node: self._roster.by_id(one.node) for one in found}
        # A node that left between the two answers has no datasets any more.
        return Datasets(Dataset(node, one.dataset) for one in found if (node := nodes[one.node]) is not None)

    def _touch(self) -> None:
        """Ask for a newer list of nodes in the background, if the last one is not fresh."""
        if self._closed or self._refreshing or self._clock.monotonic() - self._refreshed_at < FRESH_S:
            return
        self._refreshing = True
        self.home.call(self._refresh_soon)

    def _refresh_soon(self) -> None:
        with contextlib.suppress(NodeUnavailable):  # closed in between
            start(self._tasks, self._refresh_quietly(), name="grid roster", owner="the client")

    async def _refresh_quietly(self) -> None:
        # Who looks at `nodes` sees the last list while the gateway is gone; what needs it says so.
        with contextlib.suppress(GridError):
            await self.refresh()
        self._refreshing = False

    async def _request(self, message: Any) -> Any:
        """Ask the gateway; asked again where it is lost in between, as nothing that is asked of it changes anything."""
        deadline = self._clock.monotonic() + self.settings.timeout_s
        while True:
            self._check_open()
            hop = await self._paths.hop()
            try:
                return await hop.peer.request(message, timeout_s=max(0.0, deadline - self._clock.monotonic()))
            except NodeUnavailable:
                if not hop.peer.closed or self._clock.monotonic() >= deadline:
                    raise

    # ------------------------------------------------------------ sessions with nodes

    def _connection(self, node: Node) -> NodeConnection:
        """The live session with a node; called from any thread."""
        self._check_open()
        self.home.check_process()
        with self._lock:
            known = self._connections.get(PeerId(node.id))
            if known is not None and known.flow.error is None:
                return known
            made = NodeConnection(
                node, home=self.home, shapes=self._shapes, wait=self._wait, timeout_s=self.settings.timeout_s
            )
            self._connections[PeerId(node.id)] = made
        self.home.call(lambda: self._start(made, node))
        return made

    def _start(self, made: NodeConnection, node: Node) -> None:
        life = made.run(lambda on_failed: self._paths.session(node, node.card.address, on_failed))
        if self._closed:
            life.close()
            made.flow.abandon(NodeUnavailable("the client was closed"))
        else:
            self._tasks.create_task(life, name=f"grid node {node.name}")

    async def drained(self) -> None:
        """Return once no node is far behind: for programs that emit many operations without awaiting anything."""
        await asyncio.gather(*(one.flow.drained() for one in list(self._connections.values())))

    def _check_open(self) -> None:
        if self._closed:
            raise NodeUnavailable("the client was closed; connect again")

    async def committee(
        self, *names: str, clients: Sequence[str] = (), id: str = "", timeout: float | None = None
    ) -> Committee:
        """Three nodes that compute on secret shares together, once they have agreed to.

        `clients`: the ids of all clients that may take part and see results, this one (`g.me.id`) among them; it alone without.
        With the `id` and `clients` of a committee that another of them has opened, this client joins it. `timeout` in seconds:
        for the agreement, and for the nodes to wait for each other later. Raises `NotFound`, `QuorumLost`.
        """
        if len(names) != 3 or len(set(names)) != 3:
            raise InvalidRequest('a committee has three different nodes, such as g.committee("alice", "bob", "carol")')
        made = await open_committee(
            [self._connection(self._roster.find(name)) for name in names],
            committee=CommitteeId(id or random_id()),
            clients=tuple(map(PeerId, clients)) or (self.me.id,),
            home=self.home,
            shapes=self._shapes,
            wait=self._wait,
            deadline_s=self.settings.timeout_s if timeout is None else timeout,
            find=lambda name: self._connection(self._roster.find(name)),
            me=self.me.id,
        )
        if made.clients == (self.me.id,):
            self._committees[frozenset(one.id for one in made.sites)] = made
        return made

    def gather(self, places: Sequence[Any]) -> Any:
        """The committee for `x.share(alice, bob, carol)`: the latest one of these nodes that this client has opened for itself,
        where it is still there, else a new one. `places`: nodes or names. In an asynchronous client, an awaitable."""
        nodes = [self._roster.find(one) if isinstance(one, str) else one for one in places]
        if not all(isinstance(one, Node) and one._roster is self._roster for one in nodes):
            raise InvalidRequest("share takes three nodes of one client, such as g.nodes['alice'], their names, or a committee")
        return self._wait(self._gathered([one.name for one in nodes]))

    async def _gathered(self, names: Sequence[str]) -> Committee:
        async with self._gathering:
            known = self._committees.get(frozenset(self._roster.find(name).id for name in names))
            return known if known is not None and known.is_open() and len(names) == 3 else await self.committee(*names)

    # ------------------------------------------------------------ federated jobs

    async def train(
        self,
        model: nn.Module,
        *,
        loss: Callable[..., torch.Tensor],
        datasets: Sequence[Dataset],
        **options: Unpack[Options],
    ) -> Job:
        """Have nodes train a copy of `model` on their datasets, round after round; the job, once the gateway has taken it.

        `loss(outputs, targets)` is a torch loss or a function of yours. `rounds` (10), `local=grid.Local(...)`: what a node does
        in one round, `strategy=grid.FedAvg()` and others: what is made of the sum, `secure` (True): updates leave nodes in sums
        under masks alone, `min_nodes`: how many nodes a round needs (under masks more than two thirds of those drawn, and 3 or
        what owners ask for; else 1), `fraction` (1.0) of the nodes to draw for each round,
        `deadline` (600) seconds after which a round leaves those out who are late, `seed` for a run that can be repeated,
        `metrics`: names, `stop=grid.Stop(...)`: to end early, `evaluate_every` (1) rounds, `weighting`: "examples" or "equal",
        `name` for people.

        Raises `InvalidRequest` before anything is sent, for datasets that do not go together or whose rules forbid it, and
        `PlanRejected` for a module or loss that can't be a plan, with the line.
        """
        self._check_open()
        wish = Wish(model=model, loss=loss, datasets=datasets, **options)
        # Tracing takes a while, and this loop has others to serve.
        made = await asyncio.to_thread(order, wish, me=self.me, clock=self._clock, dev=self._trust.is_dev)
        status = await self._jobs.begin(made.message, made.spec.job)
        job = Job(status.card, self._jobs, self._wait, blocking=self._blocking, model=made.model, layout=made.layout)
        job.follow()
        return job

    async def job(self, job: str) -> Job:
        """A job of this client by its id, also one that another process started. Raises `NotFound`."""
        self._check_open()
        return await Job.found(JobId(job), self._jobs, self._wait, blocking=self._blocking)

    async def jobs(self) -> JobList:
        """The jobs of this client, in a --dev grid those of all, the newest first."""
        self._check_open()
        listed = await self._jobs.ask(ListJobs(), JobCards)
        return JobList(Job(card, self._jobs, self._wait, blocking=self._blocking) for card in listed.jobs)

    async def evaluate(
        self,
        model: nn.Module,
        datasets: Sequence[Dataset],
        *,
        loss: Callable[..., torch.Tensor] | None = None,
        **options: Unpack[Options],
    ) -> dict[str, float]:
        """Metrics of a model over the rows of all these datasets, as weighted means: name -> number. Waits for them.

        A job without training: only sums over all nodes leave. `metrics` are names. Without `loss` it is cross entropy for
        classes, squares for numbers. Options and errors as of `train`.
        """
        options["rounds"] = 0
        job = await self.train(model, loss=loss or usual_loss, datasets=datasets, **options)
        await job._end()
        if not job.reports:
            raise InvalidRequest(f"the evaluation ended without a result: {job.text or job.state}")
        return dict(job.reports[-1].metrics)

    @property
    def _blocking(self) -> bool:
        return self._wait is not as_it_is

    def _metered(self, dial: Dial | None) -> Dial | None:
        """The same connections, whose bytes count as this client's."""
        if dial is None:
            return None

        async def metered() -> Transport:
            return Metered(await dial(), self._paths.meter)

        return metered

    # ------------------------------------------------------------ facts

    @property
    def grid_id(self) -> GridId | None:
        """The grid's id, where it has a root."""
        return self._trust.grid

    @property
    def bytes_sent(self) -> int:
        """Bytes that this client sent over the network, sealed, to gateway and nodes."""
        return self._paths.meter.sent

    @property
    def bytes_received(self) -> int:
        """Bytes that came to this client over the network, sealed, from gateway and nodes."""
        return self._paths.meter.received

    def __repr__(self) -> str:
        ended = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {self.me.name}: {counted(len(self._roster.names()), 'node')}{ended}>"

    def _repr_html_(self) -> str:
        shown = Nodes(self._roster, self._touch)
        return html(
            self.me.name,
            "client, closed" if self._closed else "client",
            facts=[("grid", self.grid_id or "--dev: trust on first use"), ("id", self.me.id)],
            columns=NODE_COLUMNS,
            rows=shown._rows(),
        )


async def connect(
    url: str,
    *,
    root: str | None = None,
    token: str | None = None,
    timeout: float | None = None,
    home: str | Path | None = None,
    remote_dev: bool = False,
    settings: ClientSettings | None = None,
    ca: str | Path | None = None,
) -> Client:
    """Join the grid at `url`, such as `ws://127.0.0.1:8080`. Use the result as `async with`, or `await g.close()` at the end.

    `token` is what `grid enroll` printed, needed once; `root` the root's public key, to insist on one grid. Without both, the
    keys kept in `home` count, and grids with `--dev` on this machine are open (`remote_dev=True`: on others, too). `timeout`
    is the default for everything that waits, in seconds. `ca` is a file of certificates (PEM) to trust for `wss://`, in place
    of the system's.
    """
    return await open_client(
        url, root=root, token=token, timeout=timeout, home=home, remote_dev=remote_dev, settings=settings, ca=ca, wait=as_it_is
    )


async def open_client(
    url: str,
    *,
    root: str | None,
    token: str | None,
    timeout: float | None,
    home: str | Path | None,
    remote_dev: bool,
    settings: ClientSettings | None,
    ca: str | Path | None,
    wait: Callable[[Any], Any],
) -> Client:
    """`connect`, for both kinds of client."""
    settings = _with_timeout(settings or ClientSettings(), timeout)
    clock = SystemClock()
    credentials = Credentials(
        url=gateway_url(url), root=root, token=token, home=None if home is None else Path(home), remote_dev=remote_dev
    )

    certificates = trusted_certificates(None if ca is None else Path(ca))
    dial = dial_gateway(credentials.url, certificates)
    try:
        async with asyncio.timeout(settings.timeout_s):
            greeting = await greeting_of(dial, clock, settings.session)
            me, trust = credentials.choose(greeting, clock)
            client = Client(
                dial=dial,
                dial_jobs=dial_jobs(credentials.url, certificates),
                me=me,
                trust=trust,
                settings=settings,
                clock=clock,
                dial_direct=_dial_address,
                wait=wait,
                gateway=f"the gateway {urlsplit(credentials.url).netloc.rpartition('@')[2]}",
            )
            return await client.__aenter__()
    except TimeoutError:
        raise DeadlineExceeded(f"the gateway did not answer within {settings.timeout_s:g} s") from None


async def _dial_address(address: str) -> Transport:
    """Dial what a node announced: HOST:PORT alone, for a path or a user's name would make this client ask others for things."""
    return await dial_websocket(f"ws://{format_address(*parse_address(address))}")


def _with_timeout(settings: ClientSettings, timeout: float | None) -> ClientSettings:
    if timeout is None:
        return settings
    if not timeout > 0:
        raise InvalidRequest(f"timeout is {timeout}; it must be a number of seconds above 0")
    return dataclasses.replace(settings, timeout_s=timeout)
