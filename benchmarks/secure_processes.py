"""The secure engine by itself: three processes over loopback, sealed links, nothing of nodes, gates or checks.

    python -m benchmarks.secure_processes [relu_1e6 mul_1e4 ...] [--runs 9]
    python -m benchmarks.secure_processes empty_round round_of_4_mb       # the links alone

One JSON line a workload. Times are those of party 0 between two barriers; `cpu_seconds` is the processor time of all three.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Measured
from benchmarks.secure_workloads import NAMES, Workload, workload
from grid.plans.trace import trace
from grid.smpc.interpreter import Value
from grid.smpc.kernels.memory import keep_large_blocks
from grid.smpc.keystreams import CONTRIBUTION_BYTES, Keystreams, derive_key
from grid.smpc.link import Words
from grid.smpc.local import run_parties
from grid.smpc.numbers import decode, encode
from grid.smpc.party import PARTIES, Operations, Party
from grid.smpc.programs import UNLIMITED, Given, Prepared
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Shared
from grid.smpc.socket_link import KEY_BYTES, Channel, SocketLink
from grid.smpc.steps import Task

WARM_UPS = 3
LINKS = {"empty_round": (1, 2000), "round_of_4_mb": (1 << 19, 20)}
"""What the links alone cost: words of a message, and messages of a run."""



@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """What one party is started with: its rank, a socket and two keys for each peer, its keystreams' keys."""

    rank: int
    channels: dict[int, tuple[int, str, str]]
    keystreams: list[str]
    names: list[str]
    runs: int


# ---------------------------------------------------------------- one party


async def barrier(party: Party, operations: Operations) -> None:
    """All three parties have got here."""
    operation, word = operations.take(), np.zeros(1, np.uint64)
    for peer in (party.following, party.preceding):
        party.send(peer, operation, 0, word)
    for peer in (party.following, party.preceding):
        await party.receive(peer, operation, 0, 1)


async def measure_link(party: Party, operations: Operations, words: int, times: int) -> float:
    """Seconds in which each party sends so many words to the one before it, and gets as many."""
    sent = np.zeros(words, np.uint64)
    await barrier(party, operations)
    started = time.perf_counter()
    for _ in range(times):
        operation = operations.take()
        party.send(party.preceding, operation, 0, sent)
        await party.receive(party.following, operation, 0, words)
    return (time.perf_counter() - started) / times


async def measure(party: Party, link: SocketLink, names: Sequence[str], runs: int) -> None:
    """Run the workloads, and print a line after each."""
    operations = Operations()
    protocol = Replicated(party, operations)
    line: dict[str, Any]
    for name in names:
        if name in LINKS:
            words, times = LINKS[name]
            await measure_link(party, operations, words, times)
            seconds = [await measure_link(party, operations, words, times) for _ in range(runs)]
            line = {"seconds": seconds, "cpu_seconds": 0.0, "bytes_sent": 8 * words, "error": 0.0}
            print(json.dumps(line), flush=True)
            continue
        work = workload(name)
        mine = shares(work, party.rank)
        prepared = prepare(work)
        for _ in range(WARM_UPS):
            await prepared.run(protocol, mine)
        made = [await one.numeric(protocol) for one in await prepared.run(protocol, mine)]
        opened = [decoded(await protocol.open(one.shared), one) for one in made]
        await barrier(party, operations)
        seconds = []
        sent, used = link.bytes_sent, time.process_time()
        for _ in range(runs):
            await barrier(party, operations)
            started = time.perf_counter()
            await prepared.run(protocol, mine)
            await barrier(party, operations)
            seconds.append(time.perf_counter() - started)
        line = {"seconds": seconds, "cpu_seconds": (time.process_time() - used) / runs}
        line |= {"bytes_sent": (link.bytes_sent - sent) // runs, "error": work.error(opened)}
        print(json.dumps(line), flush=True)


def prepare(work: Workload) -> Prepared:
    """The workload as a plan, for inputs on shares."""
    plan = trace(work.function, *work.inputs)
    return Prepared(plan, [Given(tuple(one.shape), one.dtype, True) for one in work.inputs], UNLIMITED)


def shares(work: Workload, rank: int) -> list[Value]:
    """This party's components of the inputs, by a generator that all parties seed alike: fine for a benchmark alone."""
    random = np.random.default_rng(1)
    mine = []
    for value in work.inputs:
        first, second = (random.integers(0, 1 << 64, tuple(value.shape), np.uint64) for _ in range(2))
        components = (first, second, encode(value) - first - second)
        mine.append(Value(Shared(components[rank], components[(rank + 1) % PARTIES]), value.dtype))
    return mine


def decoded(words: Words, made: Value) -> Tensor:
    return decode(words.reshape(made.shape), made.bits, made.dtype)


async def run_party(setup: Setup) -> None:
    torch.set_num_threads(1)
    keep_large_blocks()
    channels = {
        peer: Channel(socket.socket(fileno=fd), base64.b64decode(sending), base64.b64decode(receiving))
        for peer, (fd, sending, receiving) in setup.channels.items()
    }
    link = SocketLink(setup.rank, channels, patience=60.0)
    party = Party(setup.rank, link, Keystreams(*map(base64.b64decode, setup.keystreams)))
    outcome = Task(measure(party, link, setup.names, setup.runs)).outcome
    done = asyncio.Event()
    outcome.tell(done.set)
    await done.wait()
    outcome.result()
    await link.close()


def party_main(text: str) -> None:
    fields = json.loads(text)
    fields["channels"] = {int(peer): tuple(channel) for peer, channel in fields["channels"].items()}
    try:
        import uvloop
    except ImportError:
        asyncio.run(run_party(Setup(**fields)))
    else:
        uvloop.run(run_party(Setup(**fields)))


# ---------------------------------------------------------------- all three


def setups(names: list[str], runs: int) -> tuple[list[Setup], list[socket.socket]]:
    """Fresh keys, and connected sockets, for three parties; the sockets are to be closed here once they are passed on."""

    def fresh(size: int) -> str:
        return base64.b64encode(secrets.token_bytes(size)).decode()

    channels: list[dict[int, tuple[int, str, str]]] = [{} for _ in range(PARTIES)]
    sockets = []
    for one in range(PARTIES):
        other = (one + 1) % PARTIES
        with socket.create_server(("127.0.0.1", 0)) as server:
            first = socket.create_connection(server.getsockname())
            second, _ = server.accept()
        there, back = fresh(KEY_BYTES), fresh(KEY_BYTES)
        channels[one][other] = (first.fileno(), there, back)
        channels[other][one] = (second.fileno(), back, there)
        sockets += [first, second]
    given = [secrets.token_bytes(CONTRIBUTION_BYTES) for _ in range(PARTIES)]
    keys = [derive_key([given[j], given[j - 1]], session=b"benchmark", program=b"", place=j) for j in range(PARTIES)]
    keys.append(derive_key(given, session=b"benchmark", program=b"", place=PARTIES))
    texts = [base64.b64encode(key).decode() for key in keys]
    own = [[texts[rank], texts[(rank + 1) % PARTIES], texts[PARTIES]] for rank in range(PARTIES)]
    made = [Setup(rank, channels[rank], own[rank], names, runs) for rank in range(PARTIES)]
    return made, sockets


def run_processes(names: list[str], runs: int) -> list[list[dict[str, Any]]]:
    """The lines of every party, by rank. Raises where a party fails."""
    made, sockets = setups(names, runs)
    parties = []
    for setup in made:
        parties.append(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.secure_processes", "--party"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                pass_fds=[fd for fd, _, _ in setup.channels.values()],
            )
        )  # fmt: skip
    try:
        for party, setup in zip(parties, made, strict=True):
            assert party.stdin is not None
            party.stdin.write(json.dumps(dataclasses.asdict(setup)) + "\n")
            party.stdin.flush()
        for each in sockets:
            each.close()
        lines = [[json.loads(line) for line in party.communicate()[0].splitlines()] for party in parties]
    finally:
        for party in parties:
            party.kill()
            party.wait()
    for rank, party in enumerate(parties):
        if party.returncode != 0:
            raise RuntimeError(f"party {rank} ended with status {party.returncode}")
    return lines


def rounds_of(name: str) -> int:
    """Counted by three parties in lockstep."""
    if name in LINKS:
        return 1
    work = workload(name)

    prepared = prepare(work)

    async def program(party: Party) -> None:
        await prepared.run(Replicated(party), shares(work, party.rank))

    return run_parties(program).rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="workload", help=", ".join(NAMES))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--party", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.party:
        party_main(sys.stdin.readline())
        return
    names = arguments.names or list(NAMES)
    for name, lines in zip(names, zip(*run_processes(names, arguments.runs), strict=True), strict=True):
        facts = {
            "bytes_sent": max(line["bytes_sent"] for line in lines),
            "rounds": rounds_of(name),
            "max_abs_error": max(line["error"] for line in lines),
            "cpu_seconds": round(sum(line["cpu_seconds"] for line in lines), 6),
        }
        print(json.dumps(Measured(name, lines[0]["seconds"], 1, facts).line()), flush=True)


if __name__ == "__main__":
    main()
