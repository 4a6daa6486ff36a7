"""Memory and WebSocket transports: the shared suite, then what is special about each."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus

from grid.errors import AuthenticationFailed, InvalidRequest, NodeUnavailable, QuotaExceeded, WireError
from grid.testing.conformance import TransportConformance, both_closed
from grid.transport.base import MAX_FRAME_BYTES, Transport
from grid.transport.memory import memory_pair
from grid.transport.websocket import WebSocketTransport, dial_websocket, serve_websocket

pairs = contextlib.asynccontextmanager(both_closed)


class TestMemory(TransportConformance):
    """Two ends in one process."""

    def pair(self) -> contextlib.AbstractAsyncContextManager[tuple[Transport, Transport]]:
        return pairs(*memory_pair())


@contextlib.asynccontextmanager
async def websocket_pair() -> AsyncIterator[tuple[Transport, Transport]]:
    accepted: asyncio.Future[Transport] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def hold(transport: Transport) -> None:
        accepted.set_result(transport)
        await done.wait()

    async with serve_websocket("127.0.0.1", 0, hold) as server:
        dialed = await dial_websocket(f"ws://127.0.0.1:{server.port}")
        try:
            async with pairs(dialed, await accepted) as both:
                yield both
        finally:
            done.set()


class TestWebSocket(TransportConformance):
    """A client and a server on this machine's loopback."""

    def pair(self) -> contextlib.AbstractAsyncContextManager[tuple[Transport, Transport]]:
        return websocket_pair()


class TestWebSocketReversed(TransportConformance):
    """As above, with the server as the left end."""

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Transport, Transport]]:
        async with websocket_pair() as (dialed, accepted):
            yield accepted, dialed


async def test_memory_waits_for_a_reader_at_its_capacity() -> None:
    left, right = memory_pair(capacity_bytes=10)
    await left.send(b"12345")
    await left.send(b"67890")
    third = asyncio.ensure_future(left.send(b"x"))
    await asyncio.sleep(0)
    assert not third.done()
    assert await right.receive() == b"12345"
    await third
    assert [await right.receive(), await right.receive()] == [b"67890", b"x"]


async def test_memory_takes_a_frame_larger_than_its_capacity() -> None:
    left, right = memory_pair(capacity_bytes=10)
    await left.send(b"x" * 100)
    assert await right.receive() == b"x" * 100


async def test_nobody_listens() -> None:
    with pytest.raises(NodeUnavailable, match=r"cannot connect to ws://127\.0\.0\.1:1"):
        await dial_websocket("ws://user:secret@127.0.0.1:1/grid?token=secret")


async def test_the_error_of_a_failed_dial_shows_no_secrets() -> None:
    with pytest.raises(NodeUnavailable) as caught:
        await dial_websocket("ws://user:secret@127.0.0.1:1/grid?token=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:80", "ws://", "ws:///grid", ""])
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(InvalidRequest, match="looks like ws://HOST:PORT"):
        await dial_websocket(url)


async def test_a_browser_is_refused() -> None:
    async def never(transport: Transport) -> None:
        raise AssertionError("a browser's connection was accepted")

    async with serve_websocket("127.0.0.1", 0, never) as server:
        with pytest.raises(InvalidStatus, match="403"):
            await connect(f"ws://127.0.0.1:{server.port}", origin="http://evil.example", proxy=None)


async def test_too_many_connections() -> None:
    done = asyncio.Event()

    async def hold(transport: Transport) -> None:
        await done.wait()

    async with serve_websocket("127.0.0.1", 0, hold, max_connections=2) as server:
        url = f"ws://127.0.0.1:{server.port}"
        both = [await dial_websocket(url), await dial_websocket(url)]
        with pytest.raises(NodeUnavailable, match="503"):
            await dial_websocket(url)
        done.set()
        for transport in both:
            await transport.close()


async def test_a_text_message_is_refused() -> None:
    problem: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def read(transport: Transport) -> None:
        try:
            await transport.receive()
        except WireError as error:
            problem.set_result(error)

    async with serve_websocket("127.0.0.1", 0, read) as server:
        async with connect(f"ws://127.0.0.1:{server.port}", proxy=None) as raw:
            await raw.send("text")
            assert "text message" in str(await problem)


async def test_a_message_that_is_too_large_closes_the_connection() -> None:
    problem: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def read(transport: Transport) -> None:
        try:
            await transport.receive()
        except NodeUnavailable as error:
            problem.set_result(error)

    async with serve_websocket("127.0.0.1", 0, read) as server:
        async with connect(f"ws://127.0.0.1:{server.port}", proxy=None, max_size=None) as raw:
            await raw.send(bytes(MAX_FRAME_BYTES + 1))
            await problem


async def test_redirects_are_not_followed() -> None:
    async def elsewhere(connection: ServerConnection, request: object) -> object:
        response = connection.respond(302, "")
        response.headers["Location"] = "ws://127.0.0.1:1"
        return response

    async def never(connection: ServerConnection) -> None:
        raise AssertionError("not reached")

    async with serve(never, "127.0.0.1", 0, process_request=elsewhere) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(NodeUnavailable, match="302"):
            await dial_websocket(f"ws://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return path


async def test_tls_with_a_certificate_that_is_trusted_and_one_that_is_not(certificate: Path) -> None:
    async def echo(transport: Transport) -> None:
        await transport.send(await transport.receive())
        await transport.receive()

    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with serve_websocket("127.0.0.1", 0, echo, ssl=serving) as server:
        url = f"wss://127.0.0.1:{server.port}"
        async with await dial_websocket(url, ssl=trusting) as transport:
            await transport.send(b"x" * 300_000)
            assert bytes(await transport.receive()) == b"x" * 300_000
        with pytest.raises(AuthenticationFailed, match=r"certificate .* --tls-ca"):
            await dial_websocket(url)
        with pytest.raises(NodeUnavailable):
            await dial_websocket(url.replace("wss", "ws"))


async def test_an_error_of_one_connection_is_noted_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "grid")

    async def refuse(transport: Transport) -> None:
        raise QuotaExceeded("not today")

    async with serve_websocket("127.0.0.1", 0, refuse) as server:
        for _ in range(2):
            async with await dial_websocket(f"ws://127.0.0.1:{server.port}") as transport:
                with pytest.raises(NodeUnavailable):
                    await transport.receive()
    assert caplog.text.count("not today") == 2


async def test_a_peer_that_vanishes_without_a_close() -> None:
    async with websocket_pair() as (dialed, accepted):
        assert isinstance(accepted, WebSocketTransport)
        accepted._connection.transport.abort()
        with pytest.raises(NodeUnavailable):
            await dialed.receive()
