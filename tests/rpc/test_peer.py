"""A live peer over real transports, on both event loops: requests, order, errors, backpressure, heartbeats, clean ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import pytest

from grid.clock import Clock, SystemClock
from grid.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    LocalProtocolError,
    NodeUnavailable,
    NotFound,
    QuotaExceeded,
    ReleaseDenied,
    WireError,
)
from grid.rpc.dispatch import INTERNAL, Handlers
from grid.rpc.peer import Peer
from grid.rpc.reconnect import Backoff
from grid.settings import SessionLimits
from grid.testing.clocks import FakeClock
from grid.testing.faults import Faults, FaultyTransport
from grid.transport.base import Buffer, Transport
from grid.transport.memory import memory_pair
from grid.transport.websocket import dial_websocket, serve_websocket
from grid.wire.codec import encode
from grid.wire.messages import (
    DescribeObject,
    FreeObjects,
    GetObject,
    Greeting,
    Hello,
    ListNodes,
    Message,
    ObjectValue,
    Ok,
    Ping,
    PutObject,
    TensorFrame,
)

LIMITS = SessionLimits()
MB = 1 << 20
NOTHING = Handlers({})


def limits(**changes: float) -> SessionLimits:
    return dataclasses.replace(LIMITS, **changes)


def get(number: int) -> GetObject:
    return GetObject(object=number)


def free(number: int) -> FreeObjects:
    return FreeObjects(objects=(number,))


def tensor(size: int) -> TensorFrame:
    return TensorFrame(dtype="u1", shape=(size,), data=bytes(size))


def make(
    transport: Transport,
    handlers: Handlers = NOTHING,
    *,
    initiator: bool = True,
    context: object = None,
    clock: Clock | None = None,
    limits: SessionLimits = LIMITS,
    **more: Any,
) -> Peer:
    name = "the server" if initiator else "the client"
    return Peer(
        transport,
        initiator=initiator,
        handlers=handlers,
        context=context,
        limits=limits,
        clock=clock or SystemClock(),
        name=name,
        **more,
    )


class Controlled(Transport):
    """`inner`, with what is sent kept, and reading in the test's hands: it stalls while `readable` is clear, or breaks."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.sent: list[bytes] = []
        self.readable = asyncio.Event()
        self.readable.set()
        self.bug: Exception | None = None

    async def send(self, *parts: Buffer) -> None:
        self.sent.append(b"".join(parts))
        await self._inner.send(*parts)

    async def receive(self) -> Buffer:
        frame = await self._inner.receive()
        await self.readable.wait()
        if self.bug is not None:
            raise self.bug
        return frame

    async def close(self, reason: str = "") -> None:
        await self._inner.close(reason)


@contextlib.asynccontextmanager
async def open_both(*peers: Peer) -> AsyncIterator[None]:
    """Enter peers side by side, as two processes would; close them side by side. No task may be left at the end."""
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(peer) for peer in peers))
        yield
    left = asyncio.all_tasks() - before
    assert not left, f"tasks left: {left}"


@contextlib.asynccontextmanager
async def connected(server: Handlers, client: Handlers = NOTHING, **more: Any) -> AsyncIterator[tuple[Peer, Peer]]:
    """A client (the initiator) and a server in one process."""
    left, right = memory_pair()
    pair = make(left, client, **more), make(right, server, initiator=False, **more)
    async with open_both(*pair):
        yield pair


# ---------------------------------------------------------------- requests


async def test_requests_answers_and_context() -> None:
    seen: list[tuple[object, Message]] = []

    def answer(context: object, message: GetObject) -> Message:
        seen.append((context, message))
        return Ok()

    async def later(context: object, message: DescribeObject) -> Message:
        await asyncio.sleep(0)
        return ObjectValue(tensor=tensor(message.object))

    handlers = Handlers({GetObject: answer, DescribeObject: later})
    async with connected(handlers, context="the node") as (client, _):
        assert await client.request(get(1)) == Ok()
        value = await client.request(DescribeObject(object=5))
        assert isinstance(value, ObjectValue) and value.tensor.shape == (5,)
    assert seen == [("the node", get(1))]


async def test_both_sides_may_ask() -> None:
    handlers = Handlers({GetObject: lambda context, message: Ok()})
    async with connected(handlers, handlers) as (client, server):
        assert await asyncio.gather(client.request(get(1)), server.request(get(1))) == [Ok(), Ok()]


async def test_handlers_see_messages_in_the_order_of_sending_whatever_their_kind() -> None:
    seen: list[int] = []
    gate, complete = asyncio.Event(), asyncio.Event()

    async def wait(context: object, message: GetObject) -> Message:
        await gate.wait()
        return Ok()

    def note(message: Message, number: int, result: Any) -> Any:
        seen.append(number)
        if len(seen) == 60:
            complete.set()
        return result

    handlers = Handlers(
        {
            FreeObjects: lambda context, message: note(message, message.objects[0], None),
            PutObject: lambda context, message: note(message, message.object, Ok()),
            GetObject: lambda context, message: note(message, message.object, wait(context, message)),
        }
    )
    async with connected(handlers) as (client, _):
        futures = []
        for number in range(60):
            kind = number % 3
            if kind == 0:
                client.notify(free(number))
            elif kind == 1:
                futures.append(client.start_request(PutObject(object=number, tensor=tensor(MB if number % 2 else 10))))
            else:
                futures.append(client.start_request(get(number)))
        await complete.wait()
        gate.set()
        assert await asyncio.gather(*futures) == [Ok()] * 40
    assert seen == list(range(60))


def failing(error: Exception) -> Handlers:
    def now(context: object, message: GetObject) -> Message:
        raise error

    async def later(context: object, message: DescribeObject) -> Message:
        await asyncio.sleep(0)
        raise error

    return Handlers({GetObject: now, DescribeObject: later})


@pytest.mark.parametrize("request_", [get(1), DescribeObject(object=1)], ids=["at once", "later"])
async def test_the_error_of_a_handler_reaches_the_one_who_asked(request_: Message) -> None:
    async with connected(failing(ReleaseDenied("rows stay here", rule="rows", step=3))) as (client, _):
        with pytest.raises(ReleaseDenied, match="rows stay here") as caught:
            await client.request(request_)
        assert caught.value.details == {"rule": "rows", "step": 3}


@pytest.mark.parametrize("request_", [get(1), DescribeObject(object=1)], ids=["at once", "later"])
async def test_an_error_that_nobody_planned_tells_the_peer_nothing(request_: Message, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with connected(failing(ZeroDivisionError("patient 4711"))) as (client, _):
        with pytest.raises(GridError) as caught:
            await client.request(request_)
        assert type(caught.value) is GridError and str(caught.value) == INTERNAL
        with pytest.raises(InvalidRequest):
            await client.request(ListNodes())
    assert "patient 4711" in caplog.text


async def test_a_very_long_error_is_shortened() -> None:
    async with connected(failing(NotFound("x" * 200_000))) as (client, _):
        with pytest.raises(NotFound) as caught:
            await client.request(get(1))
        assert 10_000 < len(str(caught.value)) < 20_000


async def test_a_message_without_a_handler() -> None:
    async with connected(NOTHING) as (client, server):
        with pytest.raises(InvalidRequest, match="'get-object' message makes no sense"):
            await client.request(get(1))
        client.notify(free(1))
        with pytest.raises(InvalidRequest):
            await client.request(get(1))
        assert not client.closed and not server.closed


async def test_a_one_way_message_sent_as_a_request_is_the_peers_mistake(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Handlers({FreeObjects: lambda context, message: None})) as (client, _):
        with pytest.raises(InvalidRequest, match="'free-objects' message has no answer: send it one way"):
            await client.request(free(1))
        assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("wrong", ["text", ObjectValue(tensor=TensorFrame(dtype="f4", shape=(9,), data=b""))])
async def test_a_reply_that_is_none_is_an_error_and_not_a_hang(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Handlers({GetObject: lambda context, message: wrong})) as (client, _):
        with pytest.raises(GridError, match="no answer that can be sent"):
            await client.request(get(1))


async def test_work_that_gives_up_is_an_error_and_not_a_hang() -> None:
    async def give_up(context: object, message: GetObject) -> Message:
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        future.cancel()
        return await future

    async with connected(Handlers({GetObject: give_up})) as (client, _):
        with pytest.raises(NodeUnavailable, match="given up"):
            await client.request(get(1))


async def test_a_handler_may_give_a_future() -> None:
    """No task runs for it: its result, its error and its end are the answer, in the order in which they come."""
    futures: dict[int, asyncio.Future[Message]] = {}
    asked = asyncio.Event()

    def handle(context: object, message: GetObject) -> asyncio.Future[Message]:
        made = futures[message.object] = asyncio.get_running_loop().create_future()
        if len(futures) == 4:
            asked.set()
        return made

    async with connected(Handlers({GetObject: handle})) as (client, server):
        asking = [client.start_request(get(number)) for number in range(4)]
        await asked.wait()
        futures[1].set_exception(NotFound("no such object"))
        futures[0].set_result(ObjectValue(tensor=tensor(3)))
        futures[2].cancel()
        assert (await asking[0]).tensor.shape == (3,)  # type: ignore[attr-defined]
        with pytest.raises(NotFound, match="no such object"):
            await asking[1]
        with pytest.raises(NodeUnavailable, match="given up"):
            await asking[2]
        client.close_soon()
        await server.wait_closed()
        with pytest.raises(NodeUnavailable):
            await asking[3]
    assert futures[3].cancelled()


async def test_a_message_that_cannot_be_sent_is_our_own_mistake() -> None:
    async with connected(NOTHING) as (client, _):
        with pytest.raises(LocalProtocolError):
            client.notify(FreeObjects(objects=("text",)))
        with pytest.raises(LocalProtocolError):
            await client.request(GetObject(object=1.5))
        with pytest.raises(InvalidRequest):
            await client.request(get(1))


async def test_a_cancelled_request_disturbs_nobody() -> None:
    gate = asyncio.Event()

    async def wait(context: object, message: GetObject) -> Message:
        await gate.wait()
        return Ok()

    async with connected(Handlers({GetObject: wait, DescribeObject: lambda context, message: Ok()})) as (client, _):
        asking = asyncio.ensure_future(client.request(get(1)))
        assert await client.request(DescribeObject(object=1)) == Ok()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.set()
        assert await client.request(get(2)) == Ok()


# ---------------------------------------------------------------- time


@contextlib.asynccontextmanager
async def on_fake_time(server: Handlers, **more: Any) -> AsyncIterator[tuple[Peer, Peer, FakeClock]]:
    clock = FakeClock()
    async with connected(server, clock=clock, **more) as (client, peer):
        yield client, peer, clock


async def test_a_request_that_is_not_answered_fails_in_time_and_its_work_is_stopped() -> None:
    stopped = asyncio.Event()

    async def never(context: object, message: GetObject) -> Message:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError

    async with on_fake_time(Handlers({GetObject: never})) as (client, _, clock):
        for timeout_s in (0.25, 7.0):
            asking = asyncio.ensure_future(client.request(get(1), timeout_s=timeout_s))
            await clock.advance(timeout_s - 0.05)
            assert not asking.done()
            await clock.advance(0.1)
            with pytest.raises(DeadlineExceeded):
                await asking
            assert not stopped.is_set()
            await clock.advance(1.5)
            assert stopped.is_set()
            stopped.clear()


async def test_idle_peers_stay_together() -> None:
    async with on_fake_time(Handlers({GetObject: lambda context, message: Ok()})) as (client, server, clock):
        await clock.advance(60)
        assert not client.closed and not server.closed
        assert await client.request(get(1)) == Ok()


async def test_a_slow_handler_does_not_stop_heartbeats() -> None:
    gate = asyncio.Event()

    async def wait(context: object, message: GetObject) -> Message:
        await gate.wait()
        return Ok()

    async with on_fake_time(Handlers({GetObject: wait})) as (client, _, clock):
        asking = client.start_request(get(1), timeout_s=100)
        await clock.advance(30)
        assert not client.closed and not asking.done()
        gate.set()
        assert await asking == Ok()


async def test_a_peer_that_vanishes_is_noticed() -> None:
    clock = FakeClock()
    left, right = memory_pair()
    deaf = Controlled(right)
    client = make(left, clock=clock, limits=limits(patience_s=2.5))
    server = make(deaf, NOTHING, initiator=False, clock=clock, limits=limits(heartbeat_s=1000, patience_s=1000))
    async with open_both(client, server):
        deaf.readable.clear()
        asking = client.start_request(get(1))
        await clock.advance(2.4)
        assert not client.closed
        await clock.advance(0.2)
        assert client.closed
        with pytest.raises(NodeUnavailable, match="silent"):
            await asking
        assert isinstance(await client.wait_closed(), NodeUnavailable)
        with pytest.raises(NodeUnavailable):
            client.notify(free(1))
        with pytest.raises(NodeUnavailable):
            await client.request(get(1))
        deaf.readable.set()


async def test_a_handshake_that_does_not_come() -> None:
    clock = FakeClock()
    for initiator in (True, False):
        left, _right = memory_pair()
        peer = make(left, initiator=initiator, clock=clock)
        entering = asyncio.ensure_future(peer.__aenter__())
        await clock.advance(9.9)
        assert not entering.done()
        await clock.advance(0.2)
        with pytest.raises(NodeUnavailable, match="hello"):
            await entering


# ---------------------------------------------------------------- greeting


GREETING = Greeting(grid="g", dev=True, gateway_key=b"key", nonce=bytes(32), wall=1.0)


async def test_the_greeting_is_seen_before_anything_is_sent() -> None:
    left, right = memory_pair()
    wire = Controlled(left)

    def refuse(hello: Hello) -> None:
        assert hello.greeting == GREETING
        raise AuthenticationFailed("this is another grid")

    client = make(wire, check_greeting=refuse)
    server = make(right, initiator=False, greeting=GREETING)
    entering = asyncio.ensure_future(server.__aenter__())
    with pytest.raises(AuthenticationFailed, match="another grid"):
        await client.__aenter__()
    with pytest.raises(NodeUnavailable):
        await entering
    assert wire.sent == []


async def test_both_know_what_the_other_said() -> None:
    left, right = memory_pair()
    client, server = make(left), make(right, initiator=False, greeting=GREETING)
    with pytest.raises(LocalProtocolError):
        _ = client.hello
    async with open_both(client, server):
        assert client.hello.greeting == GREETING and server.hello.greeting is None


# ---------------------------------------------------------------- backpressure


async def test_drained_waits_for_a_slow_reader_and_for_nobody_else() -> None:
    left, right = memory_pair(capacity_bytes=MB)
    slow = Controlled(right)
    keep = Handlers({PutObject: lambda context, message: Ok(), GetObject: lambda context, message: Ok()})
    client, server = make(left), make(slow, keep, initiator=False)
    async with open_both(client, server), connected(keep) as (other, _):
        await client.drained()
        await client.request(get(1))
        slow.readable.clear()
        asking = [client.start_request(PutObject(object=1, tensor=tensor(8 * MB))) for _ in range(4)]
        draining = asyncio.ensure_future(client.drained())
        for _ in range(100):
            assert await other.request(get(1)) == Ok()
        assert not draining.done() and not any(each.done() for each in asking)
        slow.readable.set()
        await draining
        assert await asyncio.gather(*asking) == [Ok()] * 4


async def test_unfinished_work_holds_up_large_messages_and_finished_work_lets_them_go() -> None:
    started, gate = [], asyncio.Event()

    async def work(context: object, message: PutObject) -> Message:
        started.append(message.object)
        await gate.wait()
        return Ok()

    async with connected(Handlers({PutObject: work}), limits=limits(window_bytes=4 * MB)) as (client, _):
        asking = [client.start_request(PutObject(object=number, tensor=tensor(MB))) for number in range(40)]
        for _ in range(2000):
            await asyncio.sleep(0)
        assert 4 <= len(started) < 12
        gate.set()
        await asyncio.gather(*asking)
    assert started == list(range(40))


async def test_a_flood_that_nobody_drains_is_refused_here() -> None:
    left, right = memory_pair()
    client = make(left, limits=limits(max_chunked_bytes=4 * MB))
    server = make(right, Handlers({FreeObjects: lambda context, message: None}), initiator=False)
    async with open_both(client, server):
        with pytest.raises(QuotaExceeded, match="drained"):
            while True:
                client.notify(free(1))
        await client.drained()
        client.notify(free(1))


async def test_a_peer_that_is_not_known_yet_may_send_little() -> None:
    async with connected(NOTHING) as (client, server):
        server.limit_messages(100_000)
        with pytest.raises(InvalidRequest):
            await client.request(PutObject(object=1, tensor=tensor(50_000)))
        server.limit_messages(2 * MB)
        with pytest.raises(InvalidRequest):
            await client.request(PutObject(object=1, tensor=tensor(MB)))
        server.limit_messages(100_000)
        with pytest.raises(WireError, match="longer than the 100000"):
            await client.request(PutObject(object=1, tensor=tensor(MB)))


# ---------------------------------------------------------------- ends


async def test_leaving_ends_both_sides_and_open_requests() -> None:
    async def never(context: object, message: GetObject) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    left, right = memory_pair()
    client, server = make(left), make(right, Handlers({GetObject: never}), initiator=False)
    async with open_both(server, client):
        asking = client.start_request(get(1))
        client.close_soon()
        assert await client.wait_closed() is None
        assert await server.wait_closed() is None
        with pytest.raises(NodeUnavailable, match="closed"):
            await asking
        assert client.closed and server.closed


async def test_what_was_sent_before_leaving_arrives() -> None:
    seen: list[int] = []
    handlers = Handlers(
        {
            FreeObjects: lambda context, message: seen.append(message.objects[0]),
            PutObject: lambda context, message: seen.append(message.object),
        }
    )
    left, right = memory_pair()

    async def serve() -> GridError | None:
        async with make(right, handlers, initiator=False) as peer:
            return await peer.wait_closed()

    serving = asyncio.ensure_future(serve())
    async with make(left) as peer:
        for number in range(100):
            peer.notify(free(number))
        peer.notify(PutObject(object=100, tensor=tensor(20 * MB)))
    assert await serving is None
    assert seen == list(range(101))


async def test_closing_with_an_error_tells_the_peer_why() -> None:
    async with connected(NOTHING) as (client, server):
        server.close_soon(QuotaExceeded("five errors that depend on private values"))
        error = await client.wait_closed()
        assert isinstance(error, QuotaExceeded) and "five errors" in error.message
        with pytest.raises(NodeUnavailable):
            await client.request(get(1))


async def test_work_is_cancelled_when_the_session_ends() -> None:
    begun, ended = asyncio.Event(), []

    async def work(context: object, message: Message) -> Message:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(message.tag)
        raise AssertionError

    async with connected(Handlers({GetObject: work, FreeObjects: work})) as (client, server):
        client.notify(free(1))
        asking = client.start_request(get(1))
        await begun.wait()
        client.close_soon()
        await server.wait_closed()
        with pytest.raises(NodeUnavailable):
            await asking
    assert sorted(ended) == ["free-objects", "get-object"]


async def test_work_that_has_not_begun_when_the_session_ends_leaves_no_trace() -> None:
    begun: list[str] = []

    async def work(context: object, message: Message) -> Message:
        begun.append(message.tag)
        raise AssertionError

    async with connected(Handlers({GetObject: work})) as (client, server):
        asking = client.start_request(get(1))
        client.close_soon()
        await server.wait_closed()
        with pytest.raises(NodeUnavailable):
            await asking
    assert begun in ([], ["get-object"])


async def test_an_error_in_the_block_passes_through_as_it_is() -> None:
    left, right = memory_pair()

    async def serve() -> None:
        async with make(right, initiator=False) as peer:
            await peer.wait_closed()

    serving = asyncio.ensure_future(serve())
    with pytest.raises(KeyError, match="mine"):
        async with make(left):
            raise KeyError("mine")
    await serving


async def test_entering_may_be_cancelled() -> None:
    before = asyncio.all_tasks()
    left, right = memory_pair()
    entering = asyncio.ensure_future(make(left).__aenter__())
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert asyncio.all_tasks() == before
    with pytest.raises(NodeUnavailable):
        await right.receive()


async def test_a_peer_that_does_not_read_cannot_keep_us() -> None:
    left, right = memory_pair(capacity_bytes=1000)
    deaf = Controlled(right)

    async def serve() -> None:
        async with make(deaf, initiator=False) as peer:
            deaf.readable.clear()
            await peer.wait_closed()

    serving = asyncio.ensure_future(serve())
    async with asyncio.timeout(10), make(left) as client:
        for _ in range(1000):
            client.notify(free(1))
    deaf.readable.set()
    await serving


async def test_a_transport_with_a_bug_ends_the_session_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    left, right = memory_pair()
    buggy = Controlled(left)
    async with open_both(client := make(buggy), make(right, initiator=False)):
        buggy.bug = TypeError("a bug")
        with pytest.raises(GridError, match="internal error"):
            await client.request(get(1))
        error = await client.wait_closed()
        assert error is not None and "a bug" not in error.message
    assert "a bug" in caplog.text


# ---------------------------------------------------------------- faults and real sockets


@pytest.mark.parametrize("seed", range(30))
async def test_on_a_bad_connection_each_request_ends_and_answers_are_right(seed: int) -> None:
    faults = Faults(repeat=0.05, flip=0.02, truncate=0.02, reorder=0.02, drop=0.02, cut=0.005, spare=2)
    left, right = memory_pair()
    clock = FakeClock()
    bad = [FaultyTransport(end, seed=seed * 2 + index, faults=faults, clock=clock) for index, end in enumerate((left, right))]
    answer = Handlers({GetObject: lambda context, message: ObjectValue(tensor=tensor(message.object))})
    client, server = make(bad[0], clock=clock), make(bad[1], answer, initiator=False, clock=clock)
    outcomes: list[object] = []
    try:
        async with open_both(client, server):
            with contextlib.suppress(NodeUnavailable):
                futures = [(number, client.start_request(get(number))) for number in range(50)]
                await clock.advance(70)
                for number, future in futures:
                    assert future.done(), bad
                    error = future.exception()
                    if error is None:
                        outcomes.append(number)
                        # A frame whose bits were flipped may still be a message; the channel is what notices that.
                        assert isinstance(future.result(), Message), bad
                    else:
                        assert isinstance(error, GridError), bad
    except (NodeUnavailable, WireError):
        assert bad[0].applied or bad[1].applied, bad


async def test_only_repeated_frames_do_no_harm() -> None:
    counts: list[int] = []
    left, right = memory_pair()
    clock = FakeClock()
    bad = FaultyTransport(left, seed=1, faults=Faults(repeat=1.0, spare=2), clock=clock)
    handlers = Handlers({GetObject: lambda context, message: (counts.append(message.object), Ok())[1]})
    async with open_both(client := make(bad, clock=clock), make(right, handlers, initiator=False, clock=clock)):
        for number in range(20):
            assert await client.request(get(number)) == Ok()
        await clock.settle()
    assert counts == list(range(20)) and bad.applied["repeat"] >= 20


@contextlib.asynccontextmanager
async def over_websocket(handlers: Handlers, **more: Any) -> AsyncIterator[Peer]:
    async def serve(transport: Transport) -> None:
        with contextlib.suppress(GridError):
            async with make(transport, handlers, initiator=False, **more) as peer:
                await peer.wait_closed()

    async with serve_websocket("127.0.0.1", 0, serve) as server:
        async with make(await dial_websocket(f"ws://127.0.0.1:{server.port}"), **more) as peer:
            yield peer


async def test_over_websocket() -> None:
    values: dict[int, TensorFrame] = {}

    def keep(context: object, message: PutObject) -> Message:
        values[message.object] = message.tensor
        return Ok()

    handlers = Handlers({PutObject: keep, GetObject: lambda context, message: ObjectValue(tensor=values[message.object])})
    async with over_websocket(handlers) as peer:
        data = Random(5).randbytes(3 * MB + 5)
        sent = TensorFrame(dtype="u1", shape=(len(data),), data=data)
        futures = [peer.start_request(PutObject(object=number, tensor=sent)) for number in range(5)]
        assert await asyncio.gather(*futures) == [Ok()] * 5
        value = await peer.request(get(3))
        assert isinstance(value, ObjectValue) and bytes(value.tensor.data) == data
        with pytest.raises(GridError, match="log says"):
            await peer.request(get(9))


async def test_over_websocket_a_server_that_goes_away() -> None:
    stop: Callable[[], Awaitable[None]] | None = None

    async def serve(transport: Transport) -> None:
        nonlocal stop
        stop = transport.close
        async with make(transport, NOTHING, initiator=False) as peer:
            await peer.wait_closed()

    async with serve_websocket("127.0.0.1", 0, serve) as server:
        async with make(await dial_websocket(f"ws://127.0.0.1:{server.port}")) as peer:
            assert stop is not None
            await stop()
            assert isinstance(await peer.wait_closed(), NodeUnavailable)


# ---------------------------------------------------------------- dialing again


def test_backoff_grows_within_its_bounds_and_starts_over() -> None:
    backoff = Backoff(FakeClock(), Random(1), first_s=0.5, most_s=8.0)
    rows = []
    for _ in range(200):
        rows.append([backoff.next_s() for _ in range(7)])
        backoff.settled()
    for index, bound in enumerate([0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]):
        column = [row[index] for row in rows]
        assert 0 <= min(column) < 0.1 * bound and 0.9 * bound < max(column) <= bound


async def test_backoff_waits_on_the_clock() -> None:
    clock = FakeClock()
    waiting = asyncio.ensure_future(Backoff(clock, Random(2), first_s=4.0).wait())
    await clock.settle()
    assert not waiting.done() and clock.sleepers == 1
    await clock.advance(4.0)
    assert waiting.done()


class Flood(Transport):
    """A transport that, once `flooding`, has one frame after another and holds up nobody to get it."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.flooding = False
        self.given = 0

    async def send(self, *parts: Buffer) -> None:
        await self.inner.send(*parts)

    async def receive(self) -> Buffer:
        if not self.flooding or self.given >= 20_000:
            return await self.inner.receive()
        self.given += 1
        return encode(Ping(number=self.given))[0]

    async def close(self, reason: str = "") -> None:
        await self.inner.close(reason)


async def test_a_peer_that_never_stops_sending_does_not_keep_others_waiting() -> None:
    left, right = memory_pair()
    flood, seen = Flood(left), asyncio.Event()
    near, far = make(flood, Handlers({FreeObjects: lambda context, message: seen.set()})), make(right, NOTHING, initiator=False)
    async with open_both(near, far):
        flood.flooding = True
        far.notify(free(1))  # The read that is under way takes this one, and then the flood begins.
        await seen.wait()
        await asyncio.sleep(0)
        assert flood.given < 20_000, "everything was read in one go, and nobody else had a turn"
