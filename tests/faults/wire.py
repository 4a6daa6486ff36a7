"""A wire between network namespaces that can be made bad: it carries IP packets, and delays, loses or cuts them.

    ip netns exec HUB python wire.py SEED NAMESPACE...

The n-th namespace gets a TUN device with the address 10.77.0.n. Whatever is sent there comes to this process, which passes it
on: kernels without `netem` can be tested so, too. Each line on standard input is a JSON list of rules
{"from": n, "to": n, "delay_s": s, "loss": probability}; a loss of 1 is a cut. It takes the place of all rules before it and
is answered by a line, the number of packets lost under those. Packets under no rule pass at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import struct
import subprocess
import sys
from random import Random

NETWORK = "10.77.0."
MTU = 9000
TUNSETIFF = 0x400454CA
IFF_TUN_WITHOUT_HEADER = 0x1001


class Wire:
    """The devices, by the last number of their address, and the rules by (from, to)."""

    def __init__(self, seed: int, namespaces: list[str]) -> None:
        self._rng = Random(seed)
        self.lost = 0
        self._rules: dict[tuple[int, int], tuple[float, float]] = {}
        self._devices = {number: device(number, name) for number, name in enumerate(namespaces, 1)}
        loop = asyncio.get_running_loop()
        for source in self._devices:
            loop.add_reader(self._devices[source], self._forward, source)

    def rule(self, rules: list[dict[str, float]]) -> None:
        self._rules = {(int(one["from"]), int(one["to"])): (one.get("delay_s", 0.0), one.get("loss", 0.0)) for one in rules}

    def _forward(self, source: int) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                packet = os.read(self._devices[source], MTU)
                if len(packet) < 20 or packet[0] >> 4 != 4:
                    continue  # the kernel's own IPv6 chatter
                target = packet[19]
                delay_s, loss = self._rules.get((source, target), (0.0, 0.0))
                if target not in self._devices:
                    continue
                if self._rng.random() < loss:
                    self.lost += 1
                    continue
                if delay_s:
                    asyncio.get_running_loop().call_later(delay_s, self._deliver, target, packet)
                else:
                    self._deliver(target, packet)

    def _deliver(self, target: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # its queue is full, or its namespace is going: a network loses packets
            os.write(self._devices[target], packet)


def device(number: int, namespace: str) -> int:
    """A TUN device in a namespace, up and with its address; gives the descriptor at which its packets come and go."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"wire{number}"
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN_WITHOUT_HEADER))
    for command in (
        ["ip", "link", "set", name, "netns", namespace],
        ["ip", "-n", namespace, "link", "set", "lo", "up"],
        ["ip", "-n", namespace, "addr", "add", f"{NETWORK}{number}/24", "dev", name],
        ["ip", "-n", namespace, "link", "set", name, "mtu", str(MTU), "up"],
    ):
        subprocess.run(command, check=True)
    return descriptor


async def main() -> None:
    wire = Wire(int(sys.argv[1]), sys.argv[2:])
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    while line := await commands.readline():
        print(wire.lost, flush=True)
        wire.rule(json.loads(line))
        wire.lost = 0


if __name__ == "__main__":
    asyncio.run(main())
