"""The nginx configuration of docs/how-to/deploy-with-compose.md, run as it stands there, with a node and a client through it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import grid
from grid.demo_processes import Processes
from grid.demo_processes import processes as started_processes

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")

pytestmark = [pytest.mark.process, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

HEAD = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
access_log off;
client_body_temp_path {folder}/body;
proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/fastcgi;
uwsgi_temp_path {folder}/uwsgi;
scgi_temp_path {folder}/scgi;
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def written(folder: Path, port: int, gateway: int, public: Path, secrets: Path) -> Path:
    """The page's configuration, with this test's ports and files in place of the page's."""
    page = (ROOT / "docs" / "how-to" / "deploy-with-compose.md").read_text()
    (shown,) = re.findall(r"^```nginx\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for there, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("grid.example", "localhost"),
        ("/etc/nginx/public.crt", str(public / "tls.crt")),
        ("/etc/nginx/public.key", str(public / "tls.key")),
        ("/etc/nginx/grid/ca.crt", str(secrets / "ca.crt")),
        ("127.0.0.1:8443", f"127.0.0.1:{gateway}"),
    ):
        assert there in shown
        shown = shown.replace(there, here)
    path = folder / "nginx.conf"
    path.write_text(HEAD.format(folder=folder) + shown + "}\n")
    return path


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with started_processes(tmp_path) as running:
        yield running


def command(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "grid", *arguments], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def make_secrets(root: str, folder: Path) -> Path:
    script = [str(ROOT / "deploy" / "compose-secrets.sh"), root, str(folder)]
    subprocess.run(script, env=os.environ | {"GRID": f"{sys.executable} -m grid"}, capture_output=True, check=True, timeout=120)
    return folder


def test_a_node_and_a_client_work_through_nginx(processes: Processes, tmp_path: Path) -> None:
    root = str(tmp_path / "root.key")
    command("root", "init", "--root", root)
    secrets = make_secrets(root, tmp_path / "secrets")
    public = make_secrets(root, tmp_path / "public")  # its authority and certificate stand for the public ones
    tls = ["--tls-cert", str(secrets / "tls.crt"), "--tls-key", str(secrets / "tls.key"), "--allowed-hosts", "localhost"]
    rooted = ["--root", str(secrets / "root.pub"), "--state", str(tmp_path / "gateway"), "--listen", "127.0.0.1:0"]
    processes.start("gateway", ["gateway", *rooted, *tls])
    ready = processes.ready("gateway")

    port = free_port()
    config = written(tmp_path, port, int(ready["url"].rpartition(":")[2]), public, secrets)
    nginx = subprocess.Popen([str(NGINX), "-c", str(config), "-p", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        ca = public / "ca.crt"
        trusted = ssl.create_default_context(cafile=str(ca))
        while True:  # until it listens, or has ended
            assert nginx.poll() is None, nginx.communicate()[1]
            try:
                with urllib.request.urlopen(f"https://localhost:{port}/healthz", context=trusted, timeout=10) as answer:
                    assert json.loads(answer.read())["status"] == "ok"
                break
            except urllib.error.URLError as error:
                assert isinstance(error.reason, ConnectionRefusedError), error
        url = f"wss://localhost:{port}"
        node = ["node", "alice", "--gateway", url, "--tls-ca", str(ca), "--state", str(tmp_path / "alice")]
        processes.start("alice", [*node, "--join", str(secrets / "alice.token")])
        processes.ready("alice")
        with grid.connect(url, token=(secrets / "ann.token").read_text(), ca=ca, home=tmp_path / "home") as client:
            large = torch.arange(2_000_000, dtype=torch.float32)  # 8 MB, in frames of up to 1 MiB
            assert torch.equal(client.nodes["alice"].send(large).mul(2).get(), large * 2)

        bearer = {"Authorization": f"Bearer {ready['token']}"}
        ask = urllib.request.Request(f"https://localhost:{port}/api/v1/nodes", headers=bearer)
        with urllib.request.urlopen(ask, context=trusted, timeout=30) as answer:
            assert [one["name"] for one in json.loads(answer.read())["nodes"]] == ["alice"]
    finally:
        nginx.terminate()
        nginx.communicate(timeout=20)
