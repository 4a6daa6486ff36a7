"""What doctor says of the way to a gateway and its nodes: real gateways on real ports, each with one thing wrong."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from grid.client.home import Credentials
from grid.clock import SystemClock
from grid.crypto.files import only_process
from grid.crypto.identity import LocalIdentity, RootKey, Token, Trust
from grid.doctor import client
from grid.doctor.client import check_client
from grid.doctor.findings import Finding, sound
from grid.doctor.gateway import check_gateway
from grid.doctor.node import NodeCase, check_node
from grid.doctor.reach import Way, check_clock
from grid.gateway.app import Gateway
from grid.gateway.http import HttpServer
from grid.node.app import Node
from grid.rpc.hop import dial_gateway
from grid.settings import GatewaySettings, NodeSettings
from grid.store.memory import MemoryStore
from grid.testing.crowd import Crowd
from grid.transport.base import Transport
from grid.transport.websocket import serve_websocket
from grid.wire.codec import encode
from grid.wire.messages import Hello

CLOCK = SystemClock()
DEV = GatewaySettings(dev=True, port=0)


class Shifted(SystemClock):
    """A machine whose clock is set wrong."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def wall(self) -> float:
        return super().wall() + self._ahead_s


class Site:
    """A gateway on a port of its own. `crowd` brings peers that answer nothing by themselves."""

    def __init__(self, url: str, crowd: Crowd) -> None:
        self.url = url
        self.crowd = crowd


@contextlib.asynccontextmanager
async def site(settings: GatewaySettings = DEV, trust: Trust | None = None, clock: SystemClock = CLOCK) -> AsyncIterator[Site]:
    me = LocalIdentity.create(name="gateway", role="gateway", clock=clock)
    gateway = Gateway(settings, me=me, trust=trust or Trust.dev(), clock=clock, token="a token of sorts")
    async with asyncio.TaskGroup() as tasks, HttpServer(gateway) as http, gateway, contextlib.AsyncExitStack() as stack:
        yield Site(http.socket_url, Crowd(gateway, tasks, stack))


@contextlib.asynccontextmanager
async def node(url: str, name: str = "alice", trust: Trust | None = None, me: LocalIdentity | None = None) -> AsyncIterator[Node]:
    """A real node at a gateway."""
    made = Node(
        NodeSettings(name=name, dev=True),
        me=me or LocalIdentity.create(name=name, role="node", clock=CLOCK),
        trust=trust or Trust.dev(),
        datasets=[],
        store=MemoryStore(),
        clock=CLOCK,
        dial=dial_gateway(url),
    )
    async with made:
        await made.ready()
        yield made


async def look(url: str, tls_ca: Path | None = None, clock: SystemClock = CLOCK, **credentials: object) -> list[Finding]:
    """`grid doctor client` at a URL."""
    return await check_client(Way(url, tls_ca, clock), Credentials(url=url, remote_dev=True, **credentials), clock)  # type: ignore[arg-type]


def one(findings: list[Finding], check: str) -> Finding:
    (found,) = (finding for finding in findings if finding.check == check)
    assert found.verdict in ("ok", "unknown") or (found.why and found.do), found
    return found


def last_is_wrong(findings: list[Finding], check: str, *words: str) -> None:
    """The way ends at this check, and nothing before it is wrong."""
    assert findings[-1].check == check and findings[-1].verdict == "wrong", findings
    assert sound(findings[:-1]) and findings[-1].why and findings[-1].do
    assert all(word in findings[-1].what for word in words), findings[-1].what


# ---------------------------------------------------------------- a client's way


async def test_a_grid_that_is_well(tmp_path: Path) -> None:
    async with site() as made, node(made.url):
        found = await look(made.url, home=tmp_path)
    assert [finding.verdict for finding in found] == ["ok"] * 6, found
    assert [finding.check for finding in found] == ["version", "gateway", "protocol", "clock", "joining", "node alice"]


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        last_is_wrong(await look(f"ws://127.0.0.1:{taken.getsockname()[1]}"), "gateway", "Connection refused")


async def test_a_name_that_nobody_has() -> None:
    last_is_wrong(await look("wss://nowhere.invalid"), "gateway", "'nowhere.invalid'")


@pytest.mark.parametrize("url", ["ftp://there", "ws://", "ws://there:port"])
async def test_a_url_that_is_none(url: str) -> None:
    last_is_wrong(await look(url), "url")


async def test_something_else_answers() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        last_is_wrong(await look(f"ws://127.0.0.1:{port}"), "protocol", "502")


async def test_a_gateway_of_another_version() -> None:
    async def greet(transport: Transport) -> None:
        await transport.send(*encode(Hello(oldest=900, newest=901, software="grid 99")))
        with contextlib.suppress(Exception):
            await transport.receive()

    async with serve_websocket("127.0.0.1", 0, greet) as server:
        last_is_wrong(await look(f"ws://127.0.0.1:{server.port}"), "version", "900", "update the older one")


@pytest.mark.parametrize(("ahead_s", "verdict"), [(0.0, "ok"), (120.0, "warning"), (-3600.0, "wrong"), (3600.0, "wrong")])
async def test_clocks_that_differ(ahead_s: float, verdict: str, tmp_path: Path) -> None:
    async with site(clock=Shifted(ahead_s)) as made:
        found = await look(made.url, home=tmp_path)
    clock = one(found, "clock")
    assert clock.verdict == verdict
    assert not ahead_s or ("ahead" in clock.what) == (ahead_s > 0)
    assert one(found, "joining").verdict == ("wrong" if verdict == "wrong" else "ok")


def test_a_clock_that_makes_no_sense() -> None:
    assert check_clock(float("nan")).verdict == check_clock(float("inf")).verdict == "wrong"


def enrolled(root: RootKey, name: str, role: str = "client", *, valid_s: float = 3600.0, at: float | None = None) -> Token:
    wall = CLOCK.wall() if at is None else at
    return Token.parse(root.enroll(name=name, role=role, gateway_url="", wall=wall, valid_s=valid_s))


async def test_a_token_of_another_root(tmp_path: Path) -> None:
    ours, theirs = RootKey.create(tmp_path / "ours"), RootKey.create(tmp_path / "theirs")
    async with site(GatewaySettings(root=ours.text, port=0), trust=Trust.rooted(ours.public)) as made:
        found = await look(made.url, token=enrolled(theirs, "ann").text(), home=tmp_path / "home")
        last_is_wrong(found, "joining", "another grid")
        good = await look(made.url, token=enrolled(ours, "ann").text(), home=tmp_path / "home")
        assert one(good, "joining").verdict == "ok"
        last_is_wrong(await look(made.url, home=tmp_path / "nobody"), "identity", "token")
    assert not (tmp_path / "nobody").exists()


async def test_an_enrolment_that_has_expired(tmp_path: Path) -> None:
    root = RootKey.create(tmp_path / "root")
    token = enrolled(root, "ann", at=CLOCK.wall() - 86400)
    async with site(GatewaySettings(root=root.text, port=0), trust=Trust.rooted(root.public)) as made:
        last_is_wrong(await look(made.url, token=token.text(), home=tmp_path / "home"), "joining", "expired")


async def test_somebody_who_was_revoked(tmp_path: Path) -> None:
    root = RootKey.create(tmp_path / "root")
    token, trust = enrolled(root, "ann"), Trust.rooted(root.public)
    trust.merge_revocations(root.revoke("ann", wall=CLOCK.wall()))
    async with site(GatewaySettings(root=root.text, port=0), trust=trust) as made:
        last_is_wrong(await look(made.url, token=token.text(), home=tmp_path / "home"), "joining", "revoked")


async def test_a_node_that_does_not_answer_one_that_is_gone_and_one_that_is_well(tmp_path: Path) -> None:
    async with site() as made, node(made.url):
        silent = await made.crowd.peer("silent")
        refusing = await made.crowd.peer("refusing")
        gone = await made.crowd.peer("gone")
        gone.peer.close_soon()
        await made.crowd.changed(lambda: sum(card.state == "online" for card in made.crowd.gateway._registry.cards()) == 3)

        async def refuse() -> None:
            transport, _ = await refusing.offers.get()
            await transport.close("not today")

        async def hang() -> None:
            transport, _ = await silent.offers.get()
            await transport.receive()
            await transport.close("enough")

        made.crowd.tasks.create_task(refuse())
        made.crowd.tasks.create_task(hang())
        found = await look(made.url, home=tmp_path)
    verdicts = {finding.check: finding.verdict for finding in found if finding.check.startswith("node ")}
    assert verdicts == {"node alice": "ok", "node silent": "wrong", "node refusing": "wrong", "node gone": "warning"}


async def test_a_gateway_that_is_lost_while_nodes_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_nodes = client._check_nodes
    async with site() as made:

        async def late(*given: Any) -> list[Finding]:
            await made.crowd.gateway.stop()
            return await check_nodes(*given)

        monkeypatch.setattr(client, "_check_nodes", late)
        found = await look(made.url, home=tmp_path)
    assert one(found, "joining").verdict == "ok"
    last_is_wrong(found, "connection", "after joining")


async def test_an_address_that_nobody_answers_at(tmp_path: Path) -> None:
    async with site() as made, node(made.url) as alice:
        await alice.announce_at("127.0.0.1:9")
        found = await look(made.url, home=tmp_path)
        assert one(found, "node alice").verdict == "ok"
        assert one(found, "node alice directly").verdict == "warning"
        async with serve_websocket("127.0.0.1", 0, alice.serve) as server:
            await alice.announce_at(f"127.0.0.1:{server.port}")
            assert one(await look(made.url, home=tmp_path), "node alice directly").verdict == "ok"


# ---------------------------------------------------------------- certificates


def certificate(folder: Path, *, days: float = 100, name: str = "") -> tuple[Path, Path]:
    """A certificate that signs itself and its key, for 127.0.0.1 or `name`, good until in `days`."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    names: list[x509.GeneralName] = [x509.DNSName(name) if name else x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(issuer_name=subject, subject_name=subject, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=300))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").touch(0o600)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize(
    ("made", "trusted", "verdict", "word"),
    [
        ({}, True, "ok", "trusted"),
        ({}, False, "wrong", "self-signed"),
        ({"days": 3}, True, "warning", "expires in"),
        ({"days": -1}, True, "wrong", "expired"),
        ({"name": "gateway.example"}, True, "wrong", "127.0.0.1"),
    ],
    ids=["good", "untrusted", "ends soon", "expired", "another name"],
)
async def test_certificates(made: dict[str, object], trusted: bool, verdict: str, word: str, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls", **made)  # type: ignore[arg-type]
    async with site(GatewaySettings(dev=True, port=0, tls_cert=cert, tls_key=key)) as running:
        found = await look(running.url, cert if trusted else None, home=tmp_path / "home")
    tls = one(found, "tls")
    assert tls.verdict == verdict and word in tls.what
    assert ("joining" in {finding.check for finding in found}) == (verdict != "wrong")


async def test_tls_where_there_is_none(tmp_path: Path) -> None:
    async with site() as made:
        last_is_wrong(await look(made.url.replace("ws:", "wss:"), home=tmp_path), "tls")


@pytest.mark.parametrize(
    ("days", "mode", "verdicts"),
    [(100.0, 0o600, ["ok"]), (3.0, 0o600, ["warning"]), (-1.0, 0o600, ["wrong"]), (100.0, 0o644, ["ok", "warning"])],
)
def test_the_certificate_of_a_gateway_is_looked_at_before_it_starts(days: float, mode: int, verdicts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # pytest's own folders keep others out, whatever a file's mode
        cert, key = certificate(folder, days=days)
        key.chmod(mode)
        settings = GatewaySettings(port=0, tls_cert=cert, tls_key=key, max_connections=16)
        found = check_gateway(settings, "store.sqlite", lambda: None, CLOCK)
    assert [finding.verdict for finding in found if finding.check.startswith("tls")] == verdicts


def test_a_key_of_another_certificate_is_found(tmp_path: Path) -> None:
    (cert, _), (_, key) = certificate(tmp_path / "a"), certificate(tmp_path / "b")
    found = check_gateway(GatewaySettings(port=0, tls_cert=cert, tls_key=key), "store.sqlite", lambda: None, CLOCK)
    assert one(found, "tls").verdict == "wrong"
    absent = GatewaySettings(port=0, tls_cert=tmp_path / "no.pem", tls_key=key)
    missing = check_gateway(absent, "store.sqlite", lambda: None, CLOCK)
    assert one(missing, "tls").verdict == "wrong" and "no.pem" in one(missing, "tls").what


# ---------------------------------------------------------------- a node


def case(state: Path | None, token: Token | None = None, **settings: object) -> NodeCase:
    made = NodeSettings(state=state, **settings)  # type: ignore[arg-type]
    return NodeCase(settings=made, name="alice", token=token, store="store.sqlite")


async def examine(this: NodeCase, url: str) -> list[Finding]:
    return await check_node(this, Way(url, None, CLOCK), CLOCK)


async def test_a_node_before_its_first_start(tmp_path: Path) -> None:
    root = RootKey.create(tmp_path / "root")
    token = enrolled(root, "alice", "node", valid_s=100 * 86400)
    async with site(GatewaySettings(root=root.text, port=0), trust=Trust.rooted(root.public)) as made:
        found = await examine(case(tmp_path / "state", token), made.url)
        assert sound(found) and one(found, "joining").verdict == "ok" and one(found, "card").verdict == "ok"
        assert not (tmp_path / "state").exists()
        nothing = await examine(case(tmp_path / "state"), made.url)
        assert one(nothing, "key").verdict == "wrong"
        late = await examine(case(tmp_path / "state", enrolled(root, "alice", "node", at=CLOCK.wall() - 86400)), made.url)
        assert one(late, "card").verdict == "wrong"
        other = await examine(case(tmp_path / "state", enrolled(root, "bob", "node")), made.url)
        assert one(other, "token").verdict == "wrong" and "'bob'" in one(other, "token").what


async def test_a_running_node_is_not_thrown_out(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with site() as made:
        me = LocalIdentity.load_or_create(state, name="alice", role="node", clock=CLOCK)
        with only_process(state):
            async with node(made.url, me=me) as alice, serve_websocket("127.0.0.1", 0, alice.serve) as server:
                found = await examine(case(state, dev=True, listen=f"127.0.0.1:{server.port}"), made.url)
                assert alice.connected
        assert sound(found) and one(found, "joining").verdict == "unknown"
        assert one(found, "port").verdict == "ok" and one(found, "announced address").verdict == "ok"
        assert one(await examine(case(state, dev=True), made.url), "joining").verdict == "ok"


async def test_a_node_of_another_grid(tmp_path: Path) -> None:
    ours, theirs = RootKey.create(tmp_path / "ours"), RootKey.create(tmp_path / "theirs")
    state = tmp_path / "state"
    LocalIdentity.load_or_create(state, name="alice", role="node", clock=CLOCK, token=enrolled(theirs, "alice", "node"))
    async with site(GatewaySettings(root=ours.text, port=0), trust=Trust.rooted(ours.public)) as made:
        assert one(await examine(case(state), made.url), "joining").verdict == "wrong"
        with only_process(state):
            assert one(await examine(case(state), made.url), "grid").verdict == "wrong"


async def test_ports_of_a_node_that_are_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        async with site() as made:
            found = await examine(case(tmp_path, dev=True, listen=place, health="nonsense"), made.url)
    ports = [finding for finding in found if finding.check == "port"]
    assert [finding.verdict for finding in ports] == ["wrong", "wrong"] and place in ports[0].what and "--health" in ports[1].what
