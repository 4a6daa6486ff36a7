"""`grid health` and `grid doctor` as commands, and what containers need besides: secrets in files, data on demand."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import grid
from grid.demo_processes import Processes
from grid.demo_processes import processes as started_processes

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
GATEWAY = ["gateway", "--dev", "--listen", "127.0.0.1:0"]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with started_processes(tmp_path) as running:
        yield running


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grid", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=os.environ | environment)


def free_place() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def verdicts(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {one["check"]: one["verdict"] for one in json.loads(done.stdout)}


def test_health_and_doctor_follow_a_gateway_and_a_node_through_a_day(processes: Processes, tmp_path: Path) -> None:
    place = free_place()
    state = str(tmp_path / "state")
    processes.start("gateway", GATEWAY)
    url = processes.ready("gateway")["url"]
    at = url.removeprefix("ws://")
    node = ["--state", state, "--gateway", url, "--health", place]
    processes.start("alice", ["node", "alice", "--dev", *node])
    processes.ready("alice")

    assert run("health", at).stdout == "ok\n"
    told = json.loads(run("health", "--json", GRID_HEALTH=place).stdout)
    assert (told["status"], told["name"], told["connected"]) == ("ok", "alice", True)

    looked = run("doctor", "client", "--json", "--gateway", url, GRID_HOME=str(tmp_path / "home"))
    assert looked.returncode == 0 and verdicts(looked)["node alice"] == "ok", looked.stdout
    looked = run("doctor", "node", "alice", "--dev", "--json", *node)
    assert looked.returncode == 0 and verdicts(looked)["joining"] == "unknown", looked.stdout
    looked = run("doctor", "gateway", "--dev", "--json", "--listen", at)
    assert looked.returncode == 6 and verdicts(looked)["port"] == "wrong"

    processes["gateway"].kill()
    processes["gateway"].wait(30)
    ill = run("health", at)
    assert ill.returncode == 3 and "nothing answers" in ill.stderr
    while (without := run("health", place)).returncode == 0:  # until the node has noticed
        pass
    assert without.returncode == 3 and "no gateway" in without.stderr
    shown = run("doctor", "node", "alice", "--dev", *node)
    assert shown.returncode == 6 and "Connection refused" in shown.stdout and "do:" in shown.stdout and "1 wrong" in shown.stdout


def test_something_else_at_the_address_is_not_healthy(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        hangs = run("health", f"127.0.0.1:{mute.getsockname()[1]}", "--timeout-s", "0.3")
    assert hangs.returncode == 3
    assert run("health", "ftp://127.0.0.1").returncode == 2


def test_doctor_takes_a_bad_token_and_a_bad_setting_as_findings(tmp_path: Path) -> None:
    where = ["--json", "--gateway", f"ws://{free_place()}", "--listen", "0.0.0.0:0"]
    done = run("doctor", "node", "alice", "--join", "grid1-AAAA", *where)
    assert done.returncode == 6
    assert {check for check, verdict in verdicts(done).items() if verdict == "wrong"} >= {"token", "settings", "gateway"}


def test_the_demonstrations_data_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "bob").mkdir()  # as a mounted volume is there already
    (tmp_path / "carol").mkdir()
    (tmp_path / "carol" / "mine.csv").write_text("x\n1\n")
    written = json.loads(run("demo", "--write-data", str(tmp_path), "--json").stdout)["written"]
    assert len(written) == 8 and not any("carol" in path for path in written)
    assert (tmp_path / "bob" / "train.toml").exists() and (tmp_path / "alice" / "test.csv").exists()
    assert [path.name for path in (tmp_path / "carol").iterdir()] == ["mine.csv"]
    assert json.loads(run("demo", "--write-data", str(tmp_path), "--json").stdout)["written"] == []


def test_the_secret_files_of_compose_make_a_grid(processes: Processes, tmp_path: Path) -> None:
    """What deploy/compose-secrets.sh writes, used as the containers use it."""
    key, folder = str(tmp_path / "root.key"), tmp_path / "secrets"
    assert run("root", "init", "--root", key).returncode == 0
    making = [str(ROOT / "deploy" / "compose-secrets.sh"), key, str(folder), "grid.example"]
    environment = os.environ | {"GRID": f"{sys.executable} -m grid"}
    made = subprocess.run(making, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert made.stdout.count("made ") == 9
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in folder.iterdir())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    again = subprocess.run(making, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert again.stdout == "" and {path: path.read_bytes() for path in folder.iterdir()} == before
    assert Path(key).read_bytes() not in before.values()

    tls = ["--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key")]
    rooted = [
        "gateway",
        "--root",
        str(folder / "root.pub"),
        "--state",
        str(tmp_path / "gateway"),
        "--listen",
        "127.0.0.1:0",
        *tls,
    ]
    os.environ["GRID_TOKEN"] = str(folder / "dashboard.token")
    try:
        processes.start("gateway", rooted)
    finally:
        del os.environ["GRID_TOKEN"]
    ready = processes.ready("gateway")
    token = (folder / "dashboard.token").read_text().strip()
    assert "token" not in ready and token not in json.dumps(ready)
    url = ready["url"]
    assert run("health", url.replace("wss:", "https:")).returncode == 0
    ask = urllib.request.Request(url.replace("wss:", "https:") + "/api/v1/status", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(ask, context=ssl.create_default_context(cafile=str(folder / "ca.crt")), timeout=30) as answer:
        assert json.loads(answer.read())["dev"] is False

    node = ["--gateway", url, "--tls-ca", str(folder / "ca.crt"), "--state", str(tmp_path / "alice"), "--join"]
    processes.start("alice", ["node", "alice", *node, str(folder / "alice.token")])
    processes.ready("alice")
    options: dict[str, Any] = {"ca": folder / "ca.crt", "home": tmp_path / "home"}
    with grid.connect(url, token=(folder / "ann.token").read_text(), **options) as client:
        assert set(client.nodes) == {"alice"}


def test_a_root_shows_its_public_key_again(tmp_path: Path) -> None:
    key = str(tmp_path / "root.key")
    made = json.loads(run("root", "init", "--root", key, "--json").stdout)["root"]
    assert run("root", "show", "--root", key).stdout.strip() == made
    assert json.loads(run("root", "show", "--root", key, "--json").stdout)["root"] == made
    assert run("root", "show", "--root", str(tmp_path / "none")).returncode == 1
