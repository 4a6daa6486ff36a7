"""Gateway and node as processes, as their users start and stop them."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

import grid
from grid.demo_processes import Processes
from grid.demo_processes import processes as started_processes

pytestmark = pytest.mark.process

GATEWAY = ["gateway", "--dev", "--listen", "127.0.0.1:0"]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with started_processes(tmp_path) as running:
        yield running


def data_folder(path: Path, rows: int = 40) -> Path:
    """A folder with one dataset, `numbers`: x counts up from 0, y is 1 for the second half."""
    path.mkdir()
    lines = ["x,y", *(f"{row},{int(row >= rows // 2)}" for row in range(rows))]
    (path / "numbers.csv").write_text("\n".join(lines) + "\n")
    policy = 'release = "aggregate"\nplans = "any"\nmin_rows = 10\nmax_elements = 100\n'
    (path / "numbers.toml").write_text(f'file = "numbers.csv"\ntags = ["#numbers"]\ntarget = "y"\n[policy]\n{policy}')
    return path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One `grid` command to its end."""
    command = [sys.executable, "-m", "grid", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment)


def test_pointers_and_plans_work_over_processes(processes: Processes, tmp_path: Path) -> None:
    processes.start("gateway", GATEWAY)
    url = processes.ready("gateway")["url"]
    processes.start("alice", ["node", "alice", "--gateway", url, "--data", str(data_folder(tmp_path / "data")), "--dev"])
    assert processes.ready("alice")["datasets"] == ["numbers"]

    with grid.connect(url) as client:
        alice = client.nodes["alice"]
        x = alice.send(torch.arange(6.0).reshape(2, 3))
        assert torch.equal((x @ x.T).get(), torch.tensor([[5.0, 14.0], [14.0, 50.0]]))

        (numbers,) = client.search("#numbers")
        assert (numbers.rows, numbers.node.name) == (40, "alice")
        assert numbers.features.mean(0).get().tolist() == [19.5]

        @grid.plan
        def spread(x: torch.Tensor) -> torch.Tensor:
            return ((x - x.mean(0)) ** 2).mean(0)

        assert spread(numbers.features).get().item() == pytest.approx(133.25)
        with pytest.raises(grid.ReleaseDenied):
            numbers.features.get()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_gateway_and_node_cleanly(processes: Processes, tmp_path: Path, number: signal.Signals) -> None:
    processes.start("gateway", GATEWAY)
    url = processes.ready("gateway")["url"]
    processes.start("alice", ["node", "alice", "--gateway", url, "--data", str(data_folder(tmp_path / "data")), "--dev"])
    processes.ready("alice")
    for name in ("alice", "gateway"):
        process = processes[name]
        process.send_signal(number)
        assert process.wait(30) == 0
        assert (tmp_path / f"{name}.log").read_text() == ""


def test_a_service_ends_when_the_process_that_started_it_is_gone(processes: Processes) -> None:
    processes.start("gateway", GATEWAY)
    processes.ready("gateway")
    gateway = processes["gateway"]
    assert gateway.stdin is not None
    gateway.stdin.close()
    assert gateway.wait(30) == 0


def test_a_node_waits_for_its_gateway(processes: Processes, tmp_path: Path) -> None:
    """A node that is started first, or whose gateway is restarted, registers once the gateway is there."""
    processes.start("first", GATEWAY)
    url = processes.ready("first")["url"]
    listen = ["gateway", "--dev", "--listen", url.removeprefix("ws://")]
    processes["first"].send_signal(signal.SIGTERM)
    assert processes["first"].wait(30) == 0

    processes.start("alice", ["node", "alice", "--gateway", url, "--data", str(data_folder(tmp_path / "data")), "--dev"])
    processes.start("second", listen)
    processes.ready("second")
    assert processes.ready("alice")["event"] == "ready"


def test_ls_datasets_and_status_say_what_there_is(processes: Processes, tmp_path: Path) -> None:
    processes.start("gateway", GATEWAY)
    url = processes.ready("gateway")["url"]
    empty = run("ls", "--gateway", url)
    assert (empty.returncode, empty.stdout) == (0, "No node has joined this grid yet.\n")
    processes.start("alice", ["node", "alice", "--gateway", url, "--data", str(data_folder(tmp_path / "data")), "--dev"])
    processes.ready("alice")

    nodes = json.loads(run("ls", "--json", GRID_GATEWAY=url).stdout)
    assert [(node["name"], node["state"], node["datasets"]) for node in nodes] == [("alice", "online", ["numbers"])]
    found = json.loads(run("datasets", "#numbers", "--json", "--gateway", url).stdout)
    assert [(one["node"], one["name"], one["rows"], one["min_rows"]) for one in found] == [("alice", "numbers", 40, 10)]
    assert json.loads(run("datasets", "#other", "--json", "--gateway", url).stdout) == []
    facts = json.loads(run("status", "--json", "--gateway", url).stdout)
    assert (facts["dev"], facts["nodes_online"], facts["nodes_offline"], facts["datasets"]) == (True, 1, 0, 1)
    for command in ("ls", "datasets", "status"):
        shown = run(command, "--gateway", url)
        assert shown.returncode == 0 and shown.stderr == ""
        assert "alice" in shown.stdout or command == "status"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ls", "--gateway", "ws://127.0.0.1:9"], 3, ["cannot connect to ws://127.0.0.1:9"]),
        (["ls", "--gateway", "ftp://127.0.0.1"], 2, ["ws://HOST:PORT"]),
        (["gateway"], 2, ["--root", "--dev"]),
        (["gateway", "--dev", "--listen", "8080"], 2, ["HOST:PORT"]),
        (["gateway", "--dev", "--listen", "0.0.0.0:0"], 2, ["--allow-remote-dev"]),
        (["gateway", "--root", "root1-00"], 4, ["root"]),
        (["node", "alice"], 2, ["--join", "--dev"]),
        (["node", "alice", "--dev", "--data", "/nowhere"], 2, ["/nowhere"]),
        (["node", "alice", "--join", "grid1-AAAA"], 4, ["token"]),
        (["node", "no name", "--dev"], 2, ["a name has"]),
        (["node", "alice", "--dev", "--compute-threads", "0"], 2, ["--compute-threads", "at least 1"]),
        (["node", "alice", "--dev", "--state", "/proc/1/x"], 2, ["/proc/1/x"]),
        (["node", "alice", "--dev", "--gateway", "ws://192.0.2.1:1"], 2, ["--allow-remote-dev"]),
        (["node", "alice", "--dev", "--listen", "0.0.0.0:0"], 2, ["--announce"]),
        (["node", "alice", "--dev", "--tls-ca", "/nowhere.pem"], 2, ["/nowhere.pem"]),
        (["gateway", "--dev", "--max-connections", "0"], 2, ["--max-connections", "at least 1"]),
        (["root", "init", "--root", "/proc/x"], 2, ["/proc/x"]),
        (["enroll", "alice", "--role", "node", "--root", "/nowhere/root.key"], 1, ["grid root init"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_is_wrong_is_said_in_one_line_with_an_exit_code(arguments: list[str], code: int, words: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_an_error_is_json_where_that_was_asked_for() -> None:
    done = run("ls", "--json", "--gateway", "ws://127.0.0.1:9")
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["code"]) == (3, "unavailable")


def test_a_port_in_use_is_said(processes: Processes) -> None:
    processes.start("gateway", GATEWAY)
    place = processes.ready("gateway")["url"].removeprefix("ws://")
    done = run("gateway", "--dev", "--listen", place)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert place.rpartition(":")[2] in done.stderr


def test_a_bad_data_file_is_named_with_its_line(tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data")
    with (folder / "numbers.csv").open("a") as file:
        file.write("seven,1\n")
    done = run("node", "alice", "--dev", "--data", str(folder))
    assert done.returncode == 2
    assert "numbers.csv, line 42" in done.stderr
    assert "seven" not in done.stderr


def test_a_state_folder_is_used_by_one_node_at_a_time(processes: Processes, tmp_path: Path) -> None:
    processes.start("gateway", GATEWAY)
    url = processes.ready("gateway")["url"]
    arguments = ["node", "alice", "--gateway", url, "--state", str(tmp_path / "state"), "--dev"]
    processes.start("alice", arguments)
    processes.ready("alice")
    second = run(*arguments)
    assert second.returncode == 2 and "another process" in second.stderr


def test_the_dashboards_token_is_no_word() -> None:
    done = run(*GATEWAY, GRID_TOKEN="secret")
    assert done.returncode == 2 and "GRID_TOKEN" in done.stderr and "secret" not in done.stderr


def test_a_token_brings_the_gateways_url_and_lets_a_command_look(processes: Processes, tmp_path: Path) -> None:
    key = str(tmp_path / "root.key")
    root = json.loads(run("root", "init", "--root", key, "--json").stdout)["root"]
    processes.start("gateway", ["gateway", "--root", root, "--state", str(tmp_path / "gateway"), "--listen", "127.0.0.1:0"])
    url = processes.ready("gateway")["url"]
    token = run("enroll", "alice", "--role", "node", "--root", key, "--gateway", url).stdout.strip()
    node = ["node", "alice", "--state", str(tmp_path / "alice")]
    processes.start("joined", [*node, "--join", token])
    assert processes.ready("joined")["gateway"] == url
    processes["joined"].send_signal(signal.SIGTERM)
    assert processes["joined"].wait(30) == 0
    processes.start("again", node)
    assert processes.ready("again")["gateway"] == url

    home = {"GRID_HOME": str(tmp_path / "home")}
    refused = run("ls", "--gateway", url, **home)
    assert refused.returncode == 4 and "--token" in refused.stderr
    mine = run("enroll", "carol", "--role", "client", "--root", key).stdout.strip()
    for more in (["--token", mine], []):  # needed once
        shown = run("ls", "--json", "--gateway", url, *more, **home)
        assert [one["name"] for one in json.loads(shown.stdout)] == ["alice"], shown.stderr
    dev = run("node", "bob", "--dev", "--gateway", url)
    assert dev.returncode == 4 and "--join" in dev.stderr

    assert run("revoke", "alice", "--root", key, "--gateway", url).returncode == 0
    assert processes["again"].wait(60) == 4  # it does not go on forever


def self_signed(folder: Path) -> Path:
    """A certificate for 127.0.0.1, made by nobody that the system trusts, and its key, in one file."""
    key, wall = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(wall - datetime.timedelta(days=1))
        .not_valid_after(wall + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return path


def test_a_self_made_certificate_is_trusted_where_it_is_named(processes: Processes, tmp_path: Path) -> None:
    pem = str(self_signed(tmp_path))
    processes.start("gateway", [*GATEWAY, "--tls-cert", pem, "--tls-key", pem])
    url = processes.ready("gateway")["url"]
    node = ["node", "alice", "--dev", "--gateway", url]
    refused = run(*node)  # it ends at once, as it will never be otherwise
    assert refused.returncode == 4 and "certificate" in refused.stderr and "--tls-ca" in refused.stderr
    processes.start("alice", [*node, "--tls-ca", pem])
    processes.ready("alice")
    (alice,) = json.loads(run("ls", "--json", "--gateway", url, "--tls-ca", pem).stdout)
    assert alice["name"] == "alice"
    with pytest.raises(grid.AuthenticationFailed, match="ca=FILE"):
        grid.connect(url)
    with grid.connect(url, ca=pem) as client:
        assert set(client.nodes) == {"alice"}
