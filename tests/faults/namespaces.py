"""A grid whose processes live in network namespaces of their own, with a wire between them that a test can make bad.

Needs root, the `ip` command and TUN devices. Only namespaces made here are touched, and they are gone at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grid.demo_processes import Processes, processes
from tests.faults.wire import NETWORK

REPOSITORY = Path(__file__).parent.parent.parent
PLACES = {"gateway": 1, "alice": 2, "ann": 3, "ben": 4}
PATIENCE_S = 2.0
LEASE_S = 6.0
HEALED_S = 30.0
LIMITS = [
    *("--session-patience-s", str(PATIENCE_S)),
    *("--session-heartbeat-s", str(PATIENCE_S / 6)),
    *("--session-lease-s", str(LEASE_S)),
]

_numbers = itertools.count(1)


def missing() -> str:
    """Why there can be no namespaces here; "" where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip` command"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    probe = f"grid-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


class Child:
    """A process that answers each line with a line."""

    def __init__(self, command: list[str], log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=REPOSITORY
            )
        self._log = log
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it has ended: {self._log.read_text()}"
        return line

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Rig:
    """The running grid: gateway, node alice, clients ann and ben."""

    def __init__(self, running: Processes, wire: Child, clients: dict[str, Child]) -> None:
        self.running = running
        self.clients = clients
        self._wire = wire

    def fault(self, *rules: tuple[str, str, float, float]) -> int:
        """Rules (from, to, delay in seconds, loss), in place of those before; gives the number of packets lost under those."""
        told = [{"from": PLACES[one], "to": PLACES[two], "delay_s": delay_s, "loss": loss} for one, two, delay_s, loss in rules]
        self._wire.say(json.dumps(told))
        return int(self._wire.answer())

    def both_ways(self, one: str, two: str, *, delay_s: float = 0.0, loss: float = 0.0) -> None:
        """One rule for both directions."""
        self.fault((one, two, delay_s, loss), (two, one, delay_s, loss))

    def begin(self, client: str, work: str) -> None:
        self.clients[client].say(work)

    def end(self, client: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.clients[client].answer())
        return answer

    def do(self, client: str, work: str = "work") -> dict[str, Any]:
        self.begin(client, work)
        return self.end(client)

    def until_right(self, client: str) -> None:
        """Ask again until the answer is right, or `HEALED_S` have passed: who dials again waits up to 10 s between attempts."""
        deadline = time.monotonic() + HEALED_S
        while (answer := self.do(client))["outcome"] != "right":
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)


@contextlib.contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """A grid over namespaces; everything is gone at the end of the block."""
    tag = f"grid-{os.getpid()}-{next(_numbers)}"
    names = {place: f"{tag}-{place}" for place in ("hub", *PLACES)}
    with contextlib.ExitStack() as stack:
        for name in names.values():
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True)

        def inside(place: str) -> list[str]:
            return ["ip", "netns", "exec", names[place]]

        spaces = [names[place] for place in PLACES]
        program = [sys.executable, str(Path(__file__).with_name("wire.py"))]
        wire = Child([*inside("hub"), *program, "1", *spaces], folder / "wire.log")
        stack.callback(wire.end)
        running = stack.enter_context(processes(folder))
        address = f"{NETWORK}{PLACES['gateway']}:8080"
        dev = ["--dev", "--allow-remote-dev", *LIMITS]
        running.start("gateway", ["gateway", "--listen", address, *dev], prefix=inside("gateway"))
        running.ready("gateway")
        running.start("alice", ["node", "alice", "--gateway", f"ws://{address}", *dev], prefix=inside("alice"))
        running.ready("alice")
        clients = {}
        for name in ("ann", "ben"):
            program = [sys.executable, "-m", "tests.faults.driver", f"ws://{address}", str(PATIENCE_S), str(LEASE_S)]
            clients[name] = Child([*inside(name), *program], folder / f"{name}.log")
            stack.callback(clients[name].end)
        yield Rig(running, wire, clients)
