"""A round of secure aggregation with 10, 100 and 1,000 nodes in one process, all legs, everything signed, sealed and masked.

Each node is a `Party` with keys of its own and each does its whole work, one after the other; the gateway is a `Server`. No
network and no training: what is timed is what secure aggregation adds to a round. Cards are verified once, as a node that
sees the same ones in each round can do; the signatures of a round are all verified.

One JSON line for each cohort:
    node_seconds        processor seconds of one node in a round, and their parts by leg; `encode` is quantising
    gateway_seconds     of the gateway in a round; `input` is adding up, `result` taking the masks off
    *_bytes             what a node sends and receives in a round, without the model, and the gateway in all; as msgpack
    floor_*             the plain update in float32; the time of summing as many plain vectors
`lost` nodes vanish after they shared their secrets, so their masks are put together again from shares; what is said of a node
is the mean of the others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from benchmarks.measure import commit, machine
from grid.clock import SystemClock
from grid.crypto.cards import NODE, read_card
from grid.crypto.identity import LocalIdentity
from grid.federated.secagg.party import Party
from grid.federated.secagg.quantiser import Range, choose
from grid.federated.secagg.server import Server
from grid.federated.secagg.statements import Terms
from grid.ids import PeerId

COHORTS = (10, 100, 1000)
SIZE = 1_000_000
LOST = 0.1
WEIGHT = 64


class Names:
    """A memory that lasts as long as the process."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def claim(self, *names: str) -> bool:
        new = self._taken.isdisjoint(names)
        if new:
            self._taken.update(names)
        return new

    def claimed(self, name: str) -> bool:
        return name in self._taken


class Account:
    """Processor seconds by what they were spent on, and bytes."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()
        self.bytes = Counter[str]()

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[what] += time.process_time() - began

    def sends(self, value: Any) -> None:
        self.bytes["sent"] += wire_bytes(value)

    def receives(self, value: Any) -> None:
        self.bytes["received"] += wire_bytes(value)


def wire_bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else len(msgpack.packb(value))


def simulate(count: int, size: int, lost: int) -> dict[str, Any]:
    """One round; the facts of its line."""
    known = Range(0.5, 1e-4)
    quantiser = choose(size, count, WEIGHT, known, metrics=2)
    terms = Terms.of(quantiser, count, job="simulated", round=1, attempt=0, index=1, model=hashlib.sha256(b"").digest())
    verify = functools.lru_cache(maxsize=count)(read_card)
    clock = SystemClock()
    members = [LocalIdentity.create(name=f"node{number}", role=NODE, clock=clock) for number in range(count)]
    update = np.random.default_rng(0).normal(0, 0.05, size).astype(np.float32)
    gateway = Account()
    server = Server(terms, verify=verify)

    accounts = {me.id: Account() for me in members}

    def answers(peer: PeerId, what: str, given: Any, work: Callable[[Any], Any], into: str, take: Callable[..., None]) -> None:
        """One node's part of a leg: it gets `given`, does `what` and answers, and the gateway takes that `into` its round."""
        node = accounts[peer]
        node.receives(given)
        with node.timed(what):
            found = work(given)
        node.sends(found)
        with gateway.timed(into):
            take(peer, found)

    parties: dict[PeerId, Party] = {}

    def begin(me: LocalIdentity) -> bytes:
        one = parties[me.id] = Party(me=me, card=me.card, terms=terms, minimum=3, verify=verify, memory=Names())
        return one.keys()

    for me in members:
        answers(me.id, "keys", terms.encode(), lambda _, me=me: begin(me), "keys", server.add_keys)
    with gateway.timed("roster"):
        roster = server.roster()
    for peer, one in parties.items():
        answers(peer, "share", roster, one.share, "shares", server.add_shares)
    present = dict(list(parties.items())[lost:])
    for peer, one in present.items():
        with gateway.timed("shares"):
            shares = server.shares_for(peer)
        with accounts[peer].timed("encode"):
            vector = quantiser.encode(update, WEIGHT, np.ones(2))
        masked = functools.partial(one.masked, vector=vector)
        answers(peer, "masked", shares, masked, "input", server.add_input)
    with gateway.timed("survivors"):
        survivors = server.survivors()
    for peer, one in present.items():
        answers(peer, "consent", survivors, one.consent, "consents", server.add_consent)
    consents = server.consents()
    for peer, one in present.items():
        answers(peer, "reveal", consents, one.reveal, "reveals", server.add_reveal)
    with gateway.timed("result"):
        total = server.result()
    with gateway.timed("decode"):
        aggregate = quantiser.decode(total)
    if not np.array_equal(total, vector * quantiser.dtype.type(len(present))):
        raise AssertionError("the sum is not exact")
    staying = [accounts[peer] for peer in present]
    return {
        "workload": f"secagg_simulated_{count}",
        "nodes": count,
        "lost": lost,
        "parameters": size,
        "bits": terms.bits,
        "degree": terms.degree,
        "threshold": terms.threshold,
        "node_seconds": parts([node.seconds for node in staying]),
        "gateway_seconds": parts([gateway.seconds]),
        "floor_gateway_seconds": round(plain_sum_seconds(update, len(present)), 6),
        "node_bytes_sent": round(statistics.mean(node.bytes["sent"] for node in staying)),
        "node_bytes_received": round(statistics.mean(node.bytes["received"] for node in staying)),
        "floor_node_bytes_sent": update.nbytes,
        "gateway_bytes_sent": sum(node.bytes["received"] for node in accounts.values()),
        "gateway_bytes_received": sum(node.bytes["sent"] for node in accounts.values()),
        "floor_gateway_bytes_received": update.nbytes * len(present),
        "max_abs_error": float(np.abs(aggregate.mean_update - update).max()),
        "machine": machine(),
        "commit": commit(),
    }


def parts(accounts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each part, and of all together."""
    means = {what: statistics.mean(one[what] for one in accounts) for what in accounts[0]}
    return {what: round(seconds, 6) for what, seconds in {"all": sum(means.values()), **means}.items()}


def plain_sum_seconds(update: np.ndarray[Any, Any], count: int) -> float:
    """Adding so many vectors up, without anything else."""
    total = np.zeros_like(update)
    began = time.process_time()
    for _ in range(count):
        np.add(total, update, out=total)
    return time.process_time() - began


def run(cohorts: list[int], size: int, lost: float) -> None:
    """Print the lines."""
    for count in cohorts:
        print(json.dumps(simulate(count, size, int(lost * count))), flush=True)
