"""One `podman-compose` project for a test: up, health, down, and nothing left of it at the end."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMAGES = ("localhost/grid", "localhost/grid-demo")
OWNERS = ("alice", "bob", "carol")

READY_S = 240.0
"""A machine that copies a gigabyte for each container takes its time."""


def missing() -> str:
    """Why these tests cannot run here; "" where they can."""
    if shutil.which("podman") is None or shutil.which("podman-compose") is None:
        return "there is no podman and podman-compose here (../shared/containers/setup installs them)"
    for image in IMAGES:
        if subprocess.run(["podman", "image", "exists", image], check=False).returncode != 0:
            return f"there is no image {image}: build it first, as docs/how-to/deploy-with-compose.md says"
    return ""


def podman(*arguments: str, check: bool = True) -> str:
    """The output of one podman command."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, timeout=READY_S)
    assert done.returncode == 0 or not check, f"podman {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Stack:
    """The services of compose.yaml under a project name of their own, on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.project = f"gridtest{secrets.token_hex(4)}"
        self.port, self.tls_port = free_port(), free_port()
        self.secrets = folder / "secrets"
        self.environment = os.environ | {
            "GRID_PORT": str(self.port),
            "GRID_TLS_PORT": str(self.tls_port),
            "GRID_SECRETS": str(self.secrets),
        }

    def compose(self, *arguments: str) -> str:
        done = subprocess.run(
            ["podman-compose", "-p", self.project, *arguments],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=2 * READY_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def up(self, *services: str) -> None:
        """Start services and what they depend on; the demonstration's data first, since podman-compose waits for nothing."""
        self.compose("up", "demo-data")
        assert podman("wait", self.container("demo-data")) == "0"
        self.compose("up", "-d", *services)

    def down(self) -> None:
        """End all containers; volumes stay."""
        self.compose("down", "-t", "15")
        assert self._all("ps", "-a") == []

    def container(self, service: str) -> str:
        """The container of a service."""
        (found,) = self._all("ps", "-a", "--filter", f"label=com.docker.compose.service={service}")
        return found

    def state(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's container."""
        (found,) = json.loads(podman("inspect", "--type", "container", self.container(service)))
        return {**found["State"], "RestartCount": found["RestartCount"], "Config": found["Config"], "Host": found["HostConfig"]}

    def healthy(self, service: str) -> bool:
        """Whether the service's own health check says so now."""
        done = subprocess.run(
            ["podman", "healthcheck", "run", self.container(service)], capture_output=True, check=False, timeout=READY_S
        )
        return done.returncode == 0

    def wait_healthy(self, *services: str) -> None:
        """Ask until all of them are; asking starts a process, which is pause enough."""
        ends = time.monotonic() + READY_S
        for service in services:
            while not self.healthy(service):
                assert time.monotonic() < ends, f"{service} did not become healthy:\n{podman('logs', self.container(service))}"

    def kill(self, service: str) -> None:
        """End a service as the kernel would: its process is gone at once, and nobody asked the engine to stop it."""
        os.kill(self.state(service)["Pid"], signal.SIGKILL)

    def wait_restarted(self, service: str, before: int) -> None:
        """Until the engine has started it again by itself, as another process than `before`."""
        ends = time.monotonic() + READY_S
        while not (self.state(service)["Running"] and self.state(service)["Pid"] not in (0, before)):
            assert time.monotonic() < ends, f"{service} was not restarted: {self.state(service)['Status']}"

    def logs(self, service: str) -> str:
        container = self.container(service)
        done = subprocess.run(["podman", "logs", container], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout + done.stderr

    def volume(self, name: str) -> Path:
        """Where a volume is on this machine."""
        return Path(podman("volume", "inspect", f"{self.project}_{name}", "--format", "{{.Mountpoint}}"))

    def identity(self, state: str) -> str:
        """The id that is kept in a state volume."""
        kept: dict[str, str] = json.loads((self.volume(state) / "identity.json").read_text())
        return kept["id"]

    def ledger(self, state: str) -> Sequence[tuple[Any, ...]]:
        """What a node's datasets have released, as its store has it."""
        with closing(sqlite3.connect(f"file:{self.volume(state) / 'store.sqlite'}?mode=ro", uri=True)) as store:
            return store.execute("SELECT * FROM dataset ORDER BY name").fetchall()

    def clear(self) -> None:
        """Remove all that bears the project's name."""
        listings = (["ps", "-a"], ["volume", "ls"], ["network", "ls"])
        removals = (["rm", "-f", "-t", "0"], ["volume", "rm", "-f"], ["network", "rm", "-f"])
        for listing, removal in zip(listings, removals, strict=True):
            found = self._all(*listing)
            if found:
                podman(*removal, *found)

    def _all(self, *listing: str) -> list[str]:
        return podman(*listing, "-q", "--filter", f"label=com.docker.compose.project={self.project}").split()


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """A stack, and what its containers last said where the test fails."""
    made = Stack(folder)
    try:
        yield made
    except BaseException:
        for container in podman("ps", "-aq", "--filter", f"label=com.docker.compose.project={made.project}").split():
            print(podman("logs", "--tail", "20", "--names", container, check=False))
        raise
    finally:
        made.clear()
