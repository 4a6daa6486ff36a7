"""A thousand idle nodes on one gateway: memory for each, the storm when the gateway comes back, how long a search takes.

    python -m benchmarks.crowd [--nodes 1000]

The gateway is a real process with a state folder. The nodes are simulated in this one, each with a connection, an identity,
an announcement and a reconnecting loop of its own: those of real nodes (`grid.node.presence`). Prints JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.demo_processes import Processes, processes
from grid.node.presence import Presence
from grid.rpc.hop import dial_gateway, join_gateway
from grid.settings import SessionLimits
from grid.testing.crowd import make_dataset
from grid.wire.messages import Announce, Found, Search

NODES = 1000
DATASETS = 10
WARM_NODES = 50
"""Joined before memory is first looked at, so that what the gateway allocates once is not counted for each node."""

SEARCHES = 300
CALM_S = 3.0
IDLE_S = 10.0
PATIENCE_S = 300.0
CLOCK = SystemClock()


@dataclasses.dataclass
class Crowd:
    """The gateway's process and the nodes that were brought to it."""

    running: Processes
    arguments: list[str]
    url: str
    page: str
    nodes: list[Presence]
    tasks: asyncio.TaskGroup

    def rss_bytes(self) -> int:
        """Resident memory of the gateway's process."""
        lines = Path(f"/proc/{self.running['gateway'].pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))

    def cpu_s(self) -> float:
        """Processor time of the gateway's process since its start."""
        fields = Path(f"/proc/{self.running['gateway'].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def bring(self, count: int) -> None:
        """More nodes, until there are `count` and the gateway has registered them."""
        fresh = [make_presence(self.url, number) for number in range(len(self.nodes), count)]
        self.nodes += fresh
        for start in range(0, len(fresh), WARM_NODES):
            for node in fresh[start : start + WARM_NODES]:
                self.tasks.create_task(node.run())
            await asyncio.gather(*(node.ready() for node in fresh[start : start + WARM_NODES]))


def make_presence(url: str, number: int) -> Presence:
    name = f"node{number:05}"
    sets = (make_dataset(f"set{one}", ("#all", f"#set{one}", f"#{name}")) for one in range(DATASETS))
    announcement = Announce(datasets=tuple(sets))
    return Presence(
        me=LocalIdentity.create(name=name, role="node", clock=CLOCK),
        trust=Trust.dev(),
        clock=CLOCK,
        limits=SessionLimits(),
        dial=dial_gateway(url),
        announcement=lambda: announcement,
        on_link=lambda transport, sender: None,
    )


@contextlib.asynccontextmanager
async def crowd(folder: Path) -> AsyncIterator[Crowd]:
    """A gateway with nobody on it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with processes(folder) as running:
        listen = ["--listen", "127.0.0.1:0"]
        arguments = ["gateway", "--dev", "--state", str(folder / "gateway")]
        running.start("gateway", [*arguments, *listen])
        ready = await asyncio.to_thread(running.ready, "gateway")
        arguments += ["--listen", ready["url"].removeprefix("ws://")]
        async with asyncio.TaskGroup() as tasks:
            page = ready["dashboard"].partition("?")[0]
            yield Crowd(running, arguments, ready["url"], page, [], tasks)
            running.stop()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()


async def memory(crowd: Crowd, count: int) -> dict[str, Any]:
    """What an idle node with ten datasets costs the gateway, once all have been there for a while."""
    await crowd.bring(WARM_NODES)
    await asyncio.sleep(CALM_S)
    before = crowd.rss_bytes()
    await crowd.bring(count)
    await asyncio.sleep(CALM_S)
    after = crowd.rss_bytes()
    each = (after - before) / (count - WARM_NODES)
    return {"nodes": count, "datasets_each": DATASETS, "bytes_per_node": round(each), "gateway_rss_bytes": after}


async def searches(crowd: Crowd) -> Iterator[dict[str, Any]]:
    """How long a client waits for an answer: one dataset among all, all of one node, and a page of a thousand."""
    me = LocalIdentity.create(name="ann", role="client", clock=CLOCK)
    found = []
    async with join_gateway(dial_gateway(crowd.url), me=me, trust=Trust.dev(), clock=CLOCK, limits=SessionLimits()) as hop:
        for tags, repeats in ((("#set3", "#node00500"), SEARCHES), (("#node00500",), SEARCHES), (("#all",), SEARCHES // 10)):
            seconds, answer = [], None
            for _ in range(repeats):
                began = time.perf_counter()
                answer = await hop.peer.request(Search(tags=tags))
                seconds.append(time.perf_counter() - began)
            assert isinstance(answer, Found)
            cuts = statistics.quantiles(seconds, n=100)
            facts = {"tags": tags, "total": answer.total, "in_answer": len(answer.datasets)}
            found.append({**facts, "seconds_median": round(cuts[49], 6), "seconds_p99": round(cuts[98], 6)})
    return iter(found)


async def storm(crowd: Crowd) -> dict[str, Any]:
    """The gateway is killed and started again: how long until every node is back, and how long anybody waited for it."""
    crowd.running.kill("gateway")
    while any(node.connected for node in crowd.nodes):  # noqa: ASYNC110 - there is no event for a thousand losses
        await asyncio.sleep(0.01)
    crowd.running.start("gateway", crowd.arguments)
    await asyncio.to_thread(crowd.running.ready, "gateway")
    began, worst = time.monotonic(), 0.0
    back: dict[int, float] = {}
    while len(back) < len(crowd.nodes):
        asked = time.monotonic()
        await asyncio.to_thread(health, crowd.page)
        now = time.monotonic()
        worst = max(worst, now - asked)
        back |= {number: now - began for number, node in enumerate(crowd.nodes) if node.connected and number not in back}
        if now - began > PATIENCE_S:
            break
    times = sorted(back.values())
    return {
        "nodes": len(crowd.nodes),
        "back": len(back),
        "seconds_half": round(times[len(times) // 2], 3),
        "seconds_all": round(times[-1], 3),
        "gateway_answer_seconds_max": round(worst, 3),
        "connected_at_the_end": sum(node.connected for node in crowd.nodes),
    }


def health(page: str) -> None:
    """An answer of the gateway's event loop: the time it takes is that for which the loop was busy, and this process, too."""
    with urllib.request.urlopen(f"{page}healthz", timeout=60) as answer:
        answer.read()


async def gateway_memory_per_idle_node(nodes: int = NODES) -> dict[str, Any]:
    """The row of that name: bytes of the gateway's resident memory for each further idle node with ten datasets."""
    with tempfile.TemporaryDirectory(prefix="grid-crowd-") as folder:
        async with crowd(Path(folder)) as made:
            return await memory(made, nodes)


async def run(nodes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="grid-crowd-") as folder:
        async with crowd(Path(folder)) as made:
            say("gateway_memory_per_idle_node", await memory(made, nodes))
            for facts in await searches(made):
                say("search_latency", facts)
            say("reconnect_storm", await storm(made))
            before = made.cpu_s()
            await asyncio.sleep(IDLE_S)
            say("gateway_cpu_idle", {"nodes": nodes, "cores": round((made.cpu_s() - before) / IDLE_S, 3)})


def say(workload: str, facts: dict[str, Any]) -> None:
    print(json.dumps({"workload": workload, **facts}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES)
    asyncio.run(run(parser.parse_args().nodes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
