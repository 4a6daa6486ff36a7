"""A socket from under a WebSocket, and a stream of bytes that two relays carry: with honest and hostile far sides."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from grid.errors import AuthenticationFailed, GridError, NodeUnavailable, WireError
from grid.node.party_links import Doors
from grid.transport import relay as relays
from grid.transport import websocket
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.transport.raw import call, pick_up
from grid.transport.relay import WINDOW, Relay
from grid.transport.websocket import dial_websocket, serve_websocket

TOKEN, ANSWER = secrets.token_bytes(32), secrets.token_bytes(32)


@contextlib.asynccontextmanager
async def listening(at: Callable[[Transport], Awaitable[None]]) -> AsyncIterator[str]:
    """The URL of a server where `at` serves /party, and nobody else is served."""

    async def nobody(transport: Transport) -> None:
        raise AssertionError("the path was not looked at")

    async with serve_websocket("127.0.0.1", 0, nobody, at={"/party": at}) as server:
        yield f"ws://127.0.0.1:{server.port}/party"


async def read(end: socket.socket, count: int) -> bytes:
    loop, got = asyncio.get_running_loop(), b""
    while len(got) < count:
        piece = await loop.sock_recv(end, count - len(got))
        assert piece
        got += piece
    return got


async def test_both_sides_get_the_socket_and_what_was_sent_over_it_at_once() -> None:
    doors, loop = Doors(), asyncio.get_running_loop()
    with doors.expected(TOKEN, ANSWER) as came:
        async with listening(doors.serve) as url:
            async with await dial_websocket(url) as transport:
                near = await call(transport, TOKEN, ANSWER)
            far = await came
        # The server has closed meanwhile, and so have both connections.
        with near, far:
            large = secrets.token_bytes(3 << 20)
            for one, other in ((near, far), (far, near)):
                _, got = await asyncio.gather(loop.sock_sendall(one, large), read(other, len(large)))
                assert got == large
        with pytest.raises(OSError):
            near.getpeername()


async def test_what_follows_the_answer_at_once_is_not_lost() -> None:
    loop = asyncio.get_running_loop()
    sent: asyncio.Future[socket.socket] = loop.create_future()

    async def eager(transport: Transport) -> None:
        assert await transport.receive() == TOKEN
        sent.set_result(await pick_up(transport, ANSWER + b"first words"))

    async with listening(eager) as url, await dial_websocket(url) as transport:
        with await call(transport, TOKEN, ANSWER) as near, await sent:
            assert await read(near, 11) == b"first words"


async def refused(transport: Transport, doors: Doors, first: bytes = TOKEN) -> None:
    with pytest.raises(GridError) as raised:
        async with asyncio.timeout(10):
            await call(transport, first, ANSWER)
    assert isinstance(raised.value, NodeUnavailable | AuthenticationFailed)


@pytest.mark.parametrize("shown", [bytes(32), b"", TOKEN[:31], TOKEN + b"x"], ids=["zeros", "empty", "cut", "longer"])
async def test_a_wrong_token_is_refused_and_the_right_one_stays_good_once(
    shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_S", 0.1)  # who is refused reads no goodbye, for which the other end would wait
    doors = Doors()
    with doors.expected(TOKEN, ANSWER) as came:
        async with listening(doors.serve) as url:
            async with await dial_websocket(url) as transport:
                await refused(transport, doors, shown)
            assert not came.done()
            async with await dial_websocket(url) as transport:
                (await call(transport, TOKEN, ANSWER)).close()
            (await came).close()
            async with await dial_websocket(url) as transport:  # a token is good once
                await refused(transport, doors)


@pytest.mark.parametrize("answer", [bytes(32), b"short"], ids=["zeros", "short"])
async def test_one_that_answers_wrongly_is_not_who_is_expected(answer: bytes) -> None:
    async def wrong(transport: Transport) -> None:
        await transport.receive()
        (await pick_up(transport, answer)).close()

    async with listening(wrong) as url, await dial_websocket(url) as transport:
        await refused(transport, Doors())


async def test_more_than_the_token_or_less_of_a_frame_is_no_socket() -> None:
    failed: asyncio.Future[GridError] = asyncio.get_running_loop().create_future()

    async def serve(transport: Transport) -> None:
        await transport.receive()
        await asyncio.sleep(0.05)  # the rest has come
        try:
            await pick_up(transport, ANSWER)
        except GridError as error:
            failed.set_result(error)

    async with listening(serve) as url, await dial_websocket(url) as transport:
        await transport.send(TOKEN)
        await transport.send(b"and more")
        assert isinstance(await failed, NodeUnavailable)


async def test_a_connection_in_memory_has_no_socket() -> None:
    near, far = memory_pair()
    with pytest.raises(NodeUnavailable, match="no socket"):
        await call(near, TOKEN, ANSWER)
    await far.close()


async def test_a_connection_in_tls_keeps_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hold(transport: Transport) -> None:
        await transport.receive()

    async with listening(hold) as url, await dial_websocket(url) as transport:
        inner = transport._network  # type: ignore[attr-defined]

        class InTls:
            def get_extra_info(self, name: str) -> object:
                return ssl.SSLObject if name == "ssl_object" else inner.get_extra_info(name)

        monkeypatch.setattr(transport, "_network", InTls())
        with pytest.raises(NodeUnavailable, match="TLS"):
            await transport.take_socket()  # type: ignore[attr-defined]
        monkeypatch.undo()


# ---------------------------------------------------------------- relays


class Pair:
    """Two relays, whose words reach each other in later turns of the loop, as over a session. `say` may be changed."""

    def __init__(self) -> None:
        self.under_way = self.most = 0
        self.left = Relay(lambda *said: self._carry(self.right, *said))
        self.right = Relay(lambda *said: self._carry(self.left, *said))
        self.ends = (self.left.end, self.right.end)
        for end in self.ends:
            end.setblocking(False)

    def _carry(self, to: Relay, data: bytes, taken: int, over: bool) -> None:
        self.under_way += len(data)
        self.most = max(self.most, self.under_way)

        def arrive() -> None:
            self.under_way -= len(data)
            to.received(data, taken, over)

        asyncio.get_running_loop().call_soon(arrive)

    def close(self) -> None:
        self.left.close()
        self.right.close()
        for end in self.ends:
            end.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    made.close()


async def test_a_relay_carries_large_and_small_and_the_end(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    near, far = pair.ends
    large = secrets.token_bytes(5 << 20)
    for one, other in ((near, far), (far, near)):
        await loop.sock_sendall(one, b"small")
        assert await read(other, 5) == b"small"
        _, got = await asyncio.gather(loop.sock_sendall(one, large), read(other, len(large)))
        assert got == large
    assert pair.most <= WINDOW
    near.shutdown(socket.SHUT_WR)
    assert await loop.sock_recv(far, 1) == b""
    await loop.sock_sendall(far, b"still")
    assert await read(near, 5) == b"still"


async def test_one_that_does_not_read_stops_the_one_that_writes(pair: Pair) -> None:
    near, far = pair.ends
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 100 << 20:
            for _ in range(10):
                await asyncio.sleep(0)
            sent += near.send(bytes(relays.PIECE))
    assert sent < 8 * WINDOW  # two sockets' buffers and the window
    got = await read(far, sent)
    assert len(got) == sent


async def test_a_far_side_that_breaks_the_rules_is_an_error(pair: Pair) -> None:
    relay = pair.left
    with pytest.raises(WireError, match="acknowledges"):
        relay.received(b"", 1, False)
    with pytest.raises(WireError, match="nobody has taken"):
        relay.received(bytes(WINDOW + 1), 0, False)
    for _ in range(100):
        with contextlib.suppress(WireError):
            relay.received(bytes(relays.PIECE), 0, False)
    assert relay._waiting_bytes <= WINDOW
    relay.received(b"", 0, True)
    with pytest.raises(WireError, match="after its end"):
        relay.received(b"x", 0, False)
    relay.close()
    relay.received(b"x", 0, False)  # late, and nobody's
