"""Blocking calls: the same client, on a loop of its own in a thread of its own.

There is one such thread in a process, however many clients there are; it is a daemon, and is stopped when the process ends.
Calls hand their work to it and wait, so they also work where a loop is running already, as in a notebook. A forked child has
no such thread: clients that came with it raise, and a new `connect` starts a thread there.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib.util
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import torch
from torch import nn

from grid.client import api
from grid.client.committee import Committee
from grid.client.datasets import Dataset, Datasets
from grid.client.flow import FORKED
from grid.client.jobs import Job, JobList
from grid.client.nodes import Node, Nodes
from grid.client.paths import DialDirect
from grid.client.progress import Traffic, is_shown, watch
from grid.client.training import Options
from grid.clock import Clock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import InvalidRequest, NodeUnavailable
from grid.ids import GridId
from grid.settings import ClientSettings
from grid.transport.base import Dial

T = TypeVar("T")

STOP_S = 2.0

LOOK_UP_S = 1.0
"""So long at most Ctrl-C waits to be seen."""


class _Call:
    """Work for the loop that another thread waits for: what `run_coroutine_threadsafe` does, at a third of its price."""

    def __init__(self, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False
        self._done = threading.Lock()
        self._done.acquire()

    def start(self) -> None:
        """On the loop's thread."""
        if self._given_up:
            self._work.close()
            return
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(lambda _: self._done.release())

    def result(self, traffic: Traffic | None) -> Any:
        """On the other thread: wait for the work. Ctrl-C cancels it. With `traffic`, show that it takes long."""
        try:
            if traffic is not None:
                watch(self._is_done, traffic)
            while not self._done.acquire(timeout=LOOK_UP_S):
                pass  # a signal that comes just before this blocks does not wake it, and is seen between two waits
        except BaseException:
            self._loop.call_soon_threadsafe(self._cancel)
            raise
        assert self._task is not None
        return self._task.result()

    def _is_done(self, seconds: float) -> bool:
        """Whether the work is done before so much time has passed."""
        done = self._done.acquire(timeout=seconds)
        if done:
            self._done.release()
        return done

    def _cancel(self) -> None:
        self._given_up = True
        if self._task is not None:
            self._task.cancel()


def _new_loop() -> asyncio.AbstractEventLoop:
    """A loop of our own thread is nobody else's, so it is the quickest one that there is here."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


class LoopThread:
    """An event loop that runs in a thread until the process ends."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self.clients: weakref.WeakSet[api.Client] = weakref.WeakSet()
        self._process = os.getpid()
        started = threading.Event()
        self.loop.call_soon(started.set)
        self._thread = threading.Thread(target=self._run, name="grid client loop", daemon=True)
        self._thread.start()
        started.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for its result. Ctrl-C cancels it."""
        if os.getpid() != self._process:
            work.close()
            raise InvalidRequest(FORKED)
        if threading.get_ident() == self._thread.ident:
            work.close()
            raise InvalidRequest("a blocking call was made on the loop that it would wait for; use grid.aio there")
        call = _Call(work, self.loop)
        # Asked before the loop is woken: a system call after that hands it the interpreter, and this thread has to queue for it.
        traffic = self._traffic if is_shown() else None
        try:
            self.loop.call_soon_threadsafe(call.start)
        except RuntimeError:
            work.close()
            raise NodeUnavailable("the client's loop has ended: the process is shutting down") from None
        try:
            return call.result(traffic)  # type: ignore[no-any-return]
        finally:
            del call  # or an error would keep itself alive: error -> traceback -> this frame -> call -> error

    def _traffic(self) -> tuple[int, int]:
        clients = list(self.clients)
        return sum(one.bytes_sent for one in clients), sum(one.bytes_received for one in clients)

    def stop(self) -> None:
        """Close clients that were left open, cancel what still runs, and end the thread."""
        if os.getpid() != self._process or not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._close_clients(), self.loop)
        self._thread.join(2 * STOP_S)

    async def _close_clients(self) -> None:
        if self.clients:
            await asyncio.wait([asyncio.ensure_future(client.close()) for client in self.clients], timeout=STOP_S)
        self.loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.wait(left, timeout=STOP_S))
                self.loop.run_until_complete(asyncio.sleep(0))  # sockets that were closed just now are closed in the next turn
            self.loop.close()


@functools.lru_cache(maxsize=1)
def _thread_of(process: int) -> LoopThread:
    made = LoopThread()
    atexit.register(made.stop)
    return made


_STARTING = threading.Lock()


def background() -> LoopThread:
    """The loop thread of this process; started when it is first asked for."""
    with _STARTING:
        return _thread_of(os.getpid())


class Client:
    """A connection to a grid whose calls wait. Use as `with`, or `close()` it at the end."""

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
    ) -> None:
        thread = background()

        async def start() -> api.Client:
            client = api.Client(
                dial=dial,
                me=me,
                trust=trust,
                settings=settings,
                clock=clock,
                dial_direct=dial_direct,
                dial_jobs=dial_jobs,
                wait=thread.run,
            )
            return await client.__aenter__()

        self._thread = thread
        self._inner = thread.run(start())
        thread.clients.add(self._inner)

    @classmethod
    def over(cls, inner: api.Client, thread: LoopThread) -> Client:
        """The blocking face of a client that lives on `thread` and was made to wait with its `run`."""
        made = cls.__new__(cls)
        made._thread, made._inner = thread, inner
        thread.clients.add(inner)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the grid; nodes forget this client's values. May be called twice."""
        self._thread.run(self._inner.close())

    @property
    def nodes(self) -> Nodes:
        """Name -> node, as it is now."""
        return Nodes(self._inner._roster, self._refresh)

    def node(self, name: str) -> Node:
        """The node of this name. Raises `NotFound`."""
        return self.nodes[name]

    def search(self, *tags: str, text: str = "", offline: bool = False) -> Datasets:
        """Datasets of nodes that are online, which have every one of these tags; all of them without tags.

        With `text`, those in whose name, node's name, tags or description each of its words occurs, whatever the case.
        `offline=True` gives those of nodes that have gone, too, as they were announced last: `ds.node.state` tells which.
        """
        return self._thread.run(self._inner.search(*tags, text=text, offline=offline))

    def committee(self, *names: str, clients: Sequence[str] = (), id: str = "", timeout: float | None = None) -> Committee:
        """Three nodes that compute on secret shares together, once they have agreed to; as `grid.aio`'s."""
        return self._thread.run(self._inner.committee(*names, clients=clients, id=id, timeout=timeout))

    def train(
        self,
        model: nn.Module,
        *,
        loss: Callable[..., torch.Tensor],
        datasets: Sequence[Dataset],
        **options: Unpack[Options],
    ) -> Job:
        """Have nodes train a copy of `model` on their datasets, round after round; as `grid.aio`'s. Returns at once."""
        return self._thread.run(self._inner.train(model, loss=loss, datasets=datasets, **options))

    def job(self, job: str) -> Job:
        """A job of this client by its id, also one that another process started. Raises `NotFound`."""
        return self._thread.run(self._inner.job(job))

    def jobs(self) -> JobList:
        """The jobs of this client, in a --dev grid those of all, the newest first."""
        return self._thread.run(self._inner.jobs())

    def evaluate(
        self,
        model: nn.Module,
        datasets: Sequence[Dataset],
        *,
        loss: Callable[..., torch.Tensor] | None = None,
        **options: Unpack[Options],
    ) -> dict[str, float]:
        """Metrics of a model over the rows of all these datasets: name -> weighted mean; as `grid.aio`'s."""
        return self._thread.run(self._inner.evaluate(model, datasets, loss=loss, **options))

    def drained(self) -> None:
        """Return once no node is far behind. Blocking clients wait by themselves where they have to."""
        self._thread.run(self._inner.drained())

    def _refresh(self) -> None:
        self._thread.run(self._inner.refresh())

    @property
    def me(self) -> LocalIdentity:
        """Who this client is."""
        return self._inner.me

    @property
    def settings(self) -> ClientSettings:
        """What it was made with."""
        return self._inner.settings

    @property
    def grid_id(self) -> GridId | None:
        """The grid's id, where it has a root."""
        return self._inner.grid_id

    @property
    def bytes_sent(self) -> int:
        """Bytes that this client sent over the network, sealed, to gateway and nodes."""
        return self._inner.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes that came to this client over the network, sealed, from gateway and nodes."""
        return self._inner.bytes_received

    def __repr__(self) -> str:
        return repr(self._inner)

    def _repr_html_(self) -> str:
        return self._inner._repr_html_()


def connect(
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
    """Join the grid at `url`, such as `ws://127.0.0.1:8080`. Use the result as `with`, or `g.close()` at the end.

    `token` is what `grid enroll` printed, needed once; `root` the root's public key, to insist on one grid. Without both, the
    keys kept in `home` count, and grids with `--dev` on this machine are open (`remote_dev=True`: on others, too). `timeout`
    is the default for everything that waits, in seconds. `ca` is a file of certificates (PEM) to trust for `wss://`, in place
    of the system's.
    """
    thread = background()
    opening = api.open_client(
        url,
        root=root,
        token=token,
        timeout=timeout,
        home=home,
        remote_dev=remote_dev,
        settings=settings,
        ca=ca,
        wait=thread.run,
    )
    return Client.over(thread.run(opening), thread)
