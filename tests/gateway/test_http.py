"""The gateway's port: token, hosts and origins, the API, sockets, TLS, shutdown. The pages are in test_pages.py."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import ipaddress
import json
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gateway_site import BEARER, TOKEN, site

from grid.clock import SystemClock
from grid.crypto.enrolment import RootKey
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import InvalidRequest, NodeUnavailable
from grid.gateway import protocol
from grid.gateway.guard import Guard
from grid.gateway.http import HttpServer
from grid.gateway.tls import certificate_names
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.settings import GatewaySettings, SessionLimits
from grid.telemetry import METRICS
from grid.testing.conformance import TransportConformance
from grid.testing.crowd import crowd, make_dataset, say_join
from grid.transport.base import Transport
from grid.transport.websocket import dial_websocket

# ---------------------------------------------------------------- token


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/api/v1/status",
        "/api/v1/nodes",
        "/api/v1/nodes/alice",
        "/api/v1/datasets",
        "/api/v1/tags",
        "/api/v1/links",
        "/api/v1/traffic",
        "/api/v1/events",
        "/api/v1/datasets/alice/patients",
        "/events/stream",
        "/api/v1/nowhere",
    ],
)
async def test_everything_that_tells_something_needs_the_token(path: str) -> None:
    async with site() as made:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": "grid=x"}):
            status, body, _ = await made.get(path, headers=headers)
            assert status == 401
            assert body["error"]["code"] == "authentication" and TOKEN not in json.dumps(body)


async def test_health_and_static_files_need_no_token() -> None:
    async with site() as made:
        assert (await made.get("/healthz", headers={}))[:2] == (200, {"status": "ok"})
        for name, kind in (("dashboard.css", "text/css"), ("dashboard.js", "text/javascript"), ("favicon.svg", "image/svg+xml")):
            status, _, response = await made.get(f"/static/{name}", headers={})
            assert (status, response.content_type) == (200, kind)
        for path in ("/static/nothing.js", "/static/..%2fapp.py", "/static/%2e%2e/app.py"):
            assert (await made.get(path, headers={}))[0] in (401, 404)


async def test_a_page_without_token_asks_for_it() -> None:
    async with site() as made:
        status, page, response = await made.get("/", headers={})
        assert status == 401 and "<form" in page and 'name="token"' in page
        assert "WWW-Authenticate" not in response.headers  # A browser would show a box of its own.
        status, page, response = await made.get("/?token=wrong", headers={})
        assert status == 401 and "not the token" in page and "Set-Cookie" not in response.headers


async def test_the_token_in_an_address_is_used_once() -> None:
    async with site() as made:
        status, _, response = await made.get(f"/?tag=%23a&token={TOKEN}".replace(" ", "%20"), headers={})
        assert status == 303 and response.headers["Location"] == "/?tag=%23a"
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        status, page, _ = await made.get("/", headers={"Cookie": cookie.split(";")[0]})
        assert status == 200 and "Nodes" in page and TOKEN not in page
        assert (await made.get("/api/v1/status", headers={"Cookie": cookie.split(";")[0]}))[0] == 200


async def test_the_form_takes_the_token() -> None:
    async with site() as made:
        for token, status in (("wrong", 401), (TOKEN, 303)):
            async with made.session.post(
                f"{made.root}/login", data={"token": token}, headers={"Origin": made.root}, allow_redirects=False
            ) as response:
                assert response.status == status
                assert ("Set-Cookie" in response.headers) == (status == 303)


# ---------------------------------------------------------------- hosts and origins


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.1.2.3", "", "a b", "[::1"])
@pytest.mark.parametrize("path", ["/", "/api/v1/status"])
async def test_other_host_names_are_refused(host: str, path: str) -> None:
    async with site() as made:
        status, _, _ = await made.get(path, headers={**BEARER, "Host": host})
        assert status in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:80", "LOCALHOST", "grid.example"])
async def test_our_own_names_are_fine(host: str) -> None:
    async with site(GatewaySettings(dev=True, port=0, allowed_hosts=("grid.example",))) as made:
        assert (await made.get("/api/v1/status", headers={**BEARER, "Host": host}))[0] == 200


async def test_a_gateway_on_every_address_is_reached_at_any_but_not_by_any_name() -> None:
    async with site(GatewaySettings(dev=True, host="0.0.0.0", port=0)) as made:
        assert (await made.get("/api/v1/status", headers={**BEARER, "Host": "10.1.2.3:8080"}))[0] == 200
        assert (await made.get("/api/v1/status", headers={**BEARER, "Host": "evil.example"}))[0] == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://", "https://localhost"])
async def test_pages_of_other_sites_may_not_ask(origin: str) -> None:
    async with site() as made:
        for path in ("/api/v1/status", "/grid", "/"):
            assert (await made.get(path, headers={**BEARER, "Origin": origin}))[0] == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await made.session.ws_connect(f"{made.http.socket_url}/grid", origin=origin)
        assert refused.value.status == 403


# ---------------------------------------------------------------- API


async def test_the_api_tells_who_is_there_and_what_they_have() -> None:
    async with site() as made:
        alice, client = await made.grid.peer("alice"), await made.grid.peer("carl", "client")
        await alice.announce(make_dataset(tags=["#a", "#b"]), make_dataset("other", tags=["#a"]), address="10.0.0.1:9001")
        mine, theirs = await client.open(alice)
        await mine.send(bytes(5000))
        await theirs.receive()
        _, status, _ = await made.get("/api/v1/status")
        assert status["nodes"] == {"online": 1, "offline": 0} and status["clients"] == 1 and status["datasets"] == 2
        assert status["links"] == 1 and status["traffic"]["bytes"] == 5000 and status["dev"] is True
        _, nodes, _ = await made.get("/api/v1/nodes")
        (node,) = nodes["nodes"]
        assert nodes["total"] == 1 and node["name"] == "alice" and node["state"] == "online" and node["id"] == alice.id
        assert node["address"] == "10.0.0.1:9001" and node["datasets"] == 2
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", node["since"])
        for wanted in ("alice", alice.id):
            _, whole, _ = await made.get(f"/api/v1/nodes/{wanted}")
            assert whole["datasets"][1]["columns"][0]["name"] == "age"
        _, found, _ = await made.get("/api/v1/datasets?tag=%23a&tag=%23b")
        assert found["total"] == 1 and found["datasets"][0]["node"] == {"id": alice.id, "name": "alice"}
        _, found, _ = await made.get("/api/v1/datasets?tag=%23a&page=2&size=1")
        assert (found["total"], found["page"], found["pages"], found["size"]) == (2, 2, 2, 1)
        assert [one["name"] for one in found["datasets"]] == ["patients"] and found["datasets"][0]["columns"] == 1
        _, found, _ = await made.get("/api/v1/datasets?q=ALICE%20pat")
        assert [one["name"] for one in found["datasets"]] == ["patients"]
        _, whole, _ = await made.get("/api/v1/datasets/alice/patients")
        assert whole["node"]["id"] == alice.id and whole["columns"][0]["name"] == "age"
        _, tags, _ = await made.get("/api/v1/tags")
        assert tags == {"tags": [{"tag": "#a", "datasets": 2}, {"tag": "#b", "datasets": 1}]}
        _, links, _ = await made.get("/api/v1/links")
        (link,) = links["links"]
        assert (link["opener"]["name"], link["target"]["name"], link["bytes"]) == ("carl", "alice", 5000)
        assert (link["bytes_sent"], link["bytes_received"]) == (5000, 0)
        for query, total in (("carl", 1), (alice.id, 1), ("carl%20alice", 1), ("bob", 0)):
            assert (await made.get(f"/api/v1/links?q={query}"))[1]["total"] == total
        _, events, _ = await made.get("/api/v1/events?kind=announced")
        assert [(one["name"], one["text"]) for one in events["events"]] == [("alice", "2 datasets")]
        _, traffic, _ = await made.get("/api/v1/traffic")
        assert traffic["frames"] == 1 and len(traffic["history"]) == 60


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/nodes/nobody", 404, "not-found"),
        ("/api/v1/nowhere", 404, "not-found"),
        ("/events/secrets", 404, "not-found"),
        ("/api/v1/datasets/nobody/nothing", 404, "not-found"),
        ("/api/v1/datasets?page=-1", 400, "invalid"),
        ("/api/v1/datasets?page=0", 400, "invalid"),
        ("/api/v1/nodes?size=many", 400, "invalid"),
        ("/api/v1/nodes?size=²", 400, "invalid"),
        ("/api/v1/nodes?page=" + "9" * 5000, 400, "invalid"),
        ("/api/v1/nodes?sort=card", 400, "invalid"),
        ("/api/v1/nodes?state=gone", 400, "invalid"),
        ("/api/v1/events?kind=__class__", 400, "invalid"),
        ("/api/v1/traffic?over=year", 400, "invalid"),
        ("/grid", 400, "invalid"),
        ("/login", 405, "invalid"),
    ],
)
async def test_errors_have_one_shape(path: str, status: int, code: str) -> None:
    async with site() as made:
        got, body, response = await made.get(path)
        assert got == status
        if path == "/login":  # For people.
            assert response.headers["Allow"] == "POST" and "<h1>" in body
            return
        assert body["error"]["code"] == code and body["error"]["message"] and body["error"]["details"] == {}


async def test_errors_of_our_own_show_nothing_of_the_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as made:

        def broken(registry: object, role: str) -> None:
            raise RuntimeError("secret of the inside")

        monkeypatch.setattr(type(made.grid.gateway.views.registry), "online", broken)
        status, body, _ = await made.get("/api/v1/status")
        assert status == 500 and body["error"]["code"] == "internal" and "secret" not in json.dumps(body)


async def test_metrics_are_those_of_the_table() -> None:
    async with site() as made:
        alice, client = await made.grid.peer("alice"), await made.grid.peer("carl", "client")
        mine, theirs = await client.open(alice)
        await mine.send(bytes(1234))
        await theirs.receive()
        for _ in range(2):
            status, text, response = await made.get("/metrics")
        assert status == 200 and response.content_type == "text/plain"
        assert 'grid_peers{role="node"} 1.0' in text and "grid_relayed_bytes_total 1234.0" in text
        assert "grid_links_opened_total 1.0" in text
        described = set(re.findall(r"# TYPE (\S+)", text))
        assert {name for name in METRICS if METRICS[name].kind == "gauge"} <= described


async def test_revocations_are_taken_over_http(tmp_path: Path) -> None:
    clock = SystemClock()
    root = RootKey.create(tmp_path / "root.json")
    root.enroll(name="alice", role="node", gateway_url="", wall=clock.wall())
    envelope = root.revoke("alice", wall=clock.wall())
    async with site(GatewaySettings(port=0), trust=Trust.rooted(root.public)) as made:
        url = f"{made.root}/api/v1/revocations"
        async with made.session.post(url, data=envelope) as response:
            assert response.status == 401
        async with made.session.post(url, data=envelope[:-9] + b"x" * 9, headers=BEARER) as response:
            assert response.status == 401 and (await response.json())["error"]["code"] == "authentication"
        for accepted in (True, False):
            async with made.session.post(url, data=envelope, headers=BEARER) as response:
                body = await response.json()
                assert body["accepted"] is accepted and body["serial"] == made.grid.gateway.trust.revocation_serial > 0
        async with made.session.post(url, data=io.BytesIO(bytes(2 << 20)), headers=BEARER) as response:
            assert response.status == 413


async def test_a_revocation_without_a_list_is_told_what_is_missing(tmp_path: Path) -> None:
    root = RootKey.create(tmp_path / "root.json")
    for trust, body in [(Trust.rooted(root.public), b"{}"), (Trust.dev(), b"{}"), (Trust.dev(), b"")]:
        async with site(GatewaySettings(port=0, dev=trust.is_dev), trust=trust) as made:
            async with made.session.post(f"{made.root}/api/v1/revocations", data=body, headers=BEARER) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (400, "invalid") and "grid revoke" in error["message"]


async def test_a_dev_grid_revokes_nobody_and_says_so(tmp_path: Path) -> None:
    root = RootKey.create(tmp_path / "root.json")
    root.enroll(name="alice", role="node", gateway_url="", wall=SystemClock().wall())
    envelope = root.revoke("alice", wall=SystemClock().wall())
    async with site() as made, made.session.post(f"{made.root}/api/v1/revocations", data=envelope, headers=BEARER) as response:
        assert response.status == 400 and "--dev" in (await response.json())["error"]["message"]


# ---------------------------------------------------------------- sockets


async def join(url: str, name: str, context: ssl.SSLContext | None = None) -> tuple[Peer, LocalIdentity]:
    """A peer over a real WebSocket, not yet entered."""
    clock = SystemClock()
    transport = await dial_websocket(f"{url}/grid", ssl=context)
    peer = Peer(
        transport, initiator=True, handlers=Handlers({}), context=None, limits=SessionLimits(), clock=clock, name=name
    )
    return peer, LocalIdentity.create(name=name, role="node", clock=clock)


async def test_peers_join_over_a_websocket_and_a_killed_one_shows_at_once() -> None:
    async with site() as made:
        peer, me = await join(made.http.socket_url, "alice")
        async with peer:
            await say_join(peer, me, Trust.dev())
            assert (await made.get("/api/v1/status"))[1]["nodes"]["online"] == 1
        async with asyncio.timeout(3):
            await made.grid.changed(lambda: made.grid.gateway.views.status(0)["nodes"]["offline"] == 1)


async def test_text_and_oversized_messages_end_the_connection() -> None:
    async with site() as made:
        for message in ("text", bytes((1 << 20) + 2)):
            async with made.session.ws_connect(f"{made.http.socket_url}/grid") as socket:
                assert (await socket.receive()).type is aiohttp.WSMsgType.BINARY  # The gateway's Hello.
                if isinstance(message, str):
                    await socket.send_str(message)
                else:
                    await socket.send_bytes(message)
                while (received := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                    pass
                assert received.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


async def test_the_socket_is_not_compressed() -> None:
    async with site() as made:
        async with made.session.ws_connect(f"{made.http.socket_url}/grid", compress=15) as socket:
            assert not socket.compress


async def test_leaving_the_server_ends_connections() -> None:
    async with site() as made:
        peer, me = await join(made.http.socket_url, "alice")
        async with peer:
            await say_join(peer, me, Trust.dev())
            async with asyncio.timeout(5):
                await made.http.__aexit__(None, None, None)
                assert isinstance(await peer.wait_closed(), NodeUnavailable)
        with pytest.raises(NodeUnavailable):
            await join(made.http.socket_url, "bob")


class OnlyTransports:
    """Stands where a gateway does, and keeps the transports that the port accepts."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Transport] = asyncio.Queue()
        self.done = asyncio.Event()

    async def serve(self, transport: Transport, source: str = "") -> None:
        self.accepted.put_nowait(transport)
        await self.done.wait()


@contextlib.asynccontextmanager
async def socket_pair(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Transport, Transport]]:
    async with site() as made:
        standin = OnlyTransports()
        monkeypatch.setattr(made.grid.gateway, "serve", standin.serve)
        dialled = await dial_websocket(f"{made.http.socket_url}/grid")
        accepted = await standin.accepted.get()
        try:
            yield accepted, dialled
        finally:
            await asyncio.gather(dialled.close(), accepted.close())
            standin.done.set()


class TestServerSide(TransportConformance):
    """The gateway's end of a WebSocket as the left end, a dialled one as the right."""

    @pytest.fixture(autouse=True)
    def patching(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def pair(self) -> contextlib.AbstractAsyncContextManager[tuple[Transport, Transport]]:
        return socket_pair(self.monkeypatch)


class TestServerSideReversed(TestServerSide):
    """The same with the ends swapped."""

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Transport, Transport]]:  # type: ignore[override]
        async with socket_pair(self.monkeypatch) as (accepted, dialled):
            yield dialled, accepted


# ---------------------------------------------------------------- TLS


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "grid test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "cert.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


async def test_with_a_certificate_everything_is_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    async with site(GatewaySettings(dev=True, port=0, tls_cert=certificate, tls_key=key)) as made:
        assert made.http.url.startswith("https://") and made.http.socket_url.startswith("wss://")
        status, _, response = await made.get(f"/?token={TOKEN}", headers={}, ssl=context)
        assert status == 303 and "Secure" in response.headers["Set-Cookie"]
        peer, me = await join(made.http.socket_url, "alice", context)
        async with peer:
            await say_join(peer, me, Trust.dev())
            assert (await made.get("/api/v1/status", ssl=context))[1]["nodes"]["online"] == 1
        with pytest.raises(NodeUnavailable):
            await join(made.http.socket_url.replace("wss:", "ws:"), "bob")


async def test_a_bad_certificate_is_named_at_start(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a key")
    for settings in (
        GatewaySettings(dev=True, port=0, tls_cert=certificate, tls_key=wrong),
        GatewaySettings(dev=True, port=0, tls_cert=tmp_path / "absent.pem", tls_key=key),
        GatewaySettings(dev=True, port=0, tls_cert=certificate),
    ):
        async with crowd(settings) as grid:
            with pytest.raises(InvalidRequest, match=r"PEM|--tls-key"):
                HttpServer(grid.gateway)


async def test_the_names_in_the_certificate_are_names_of_the_gateway(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    guard = Guard(GatewaySettings(host="0.0.0.0"), TOKEN, certificate_names(GatewaySettings(tls_cert=certificate, tls_key=key)))
    assert guard.host_allowed("127.0.0.1:443") and not guard.host_allowed("evil.example")
    wild = Guard(GatewaySettings(), TOKEN, ("*.grid.example", "gw.example"))
    assert wild.host_allowed("a.grid.example") and wild.host_allowed("gw.example:443")
    assert not wild.host_allowed("grid.example") and not wild.host_allowed("a.b.grid.example")


async def test_programs_reach_the_grid_by_any_name_and_pages_do_not() -> None:
    async with site() as made:
        named = {"Host": "gw.example"}
        assert (await made.get("/healthz", headers=named))[0] == 200
        async with made.session.ws_connect(f"{made.http.socket_url}/grid", headers=named) as socket:
            assert (await socket.receive()).type is aiohttp.WSMsgType.BINARY
        for path in ("/healthz", "/grid"):
            assert (await made.get(path, headers={**named, "Origin": "http://gw.example"}))[0] == 421


async def test_an_origin_that_is_no_address_is_refused() -> None:
    async with site() as made:
        assert (await made.get("/api/v1/status", headers={**BEARER, "Origin": "http://["}))[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": "application/x-www-form-urlencoded; charset=none-such"},
        {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"},
    ],
)
async def test_malformed_forms_are_the_senders_fault(headers: dict[str, str]) -> None:
    async with site() as made:
        async with made.session.post(f"{made.root}/login", data=b"--x no\x1f\x8b", headers=headers) as response:
            assert response.status in (400, 401)


async def test_a_list_that_does_not_decompress_is_the_senders_fault() -> None:
    async with site() as made:
        headers = {**BEARER, "Content-Encoding": "gzip"}
        async with made.session.post(f"{made.root}/api/v1/revocations", data=b"no gzip", headers=headers) as response:
            assert response.status == 400


async def test_what_is_not_http_is_answered_in_our_shape_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with site() as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.http.port)
        writer.write(b"GET /?token=very-secret HTTP/9.x\r\n\r\n")
        answer = await reader.read()
        writer.close()
    assert b" 400 " in answer and b'"code": "invalid"' in answer and b"very-secret" not in answer
    assert "very-secret" not in caplog.text


async def test_headers_that_never_end_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_S", 0.2)
    async with site() as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.http.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
