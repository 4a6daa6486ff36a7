"""Three parties in one process, in lockstep: the reference network of the protocols, which counts rounds and bytes.

Each round runs all parties until they wait, then delivers what they have sent. So `rounds` is exact: the longest chain of
messages, whatever runs side by side. `view` is all that a party has received, which its secrecy tests look at.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from grid.errors import LocalProtocolError
from grid.smpc.keystreams import CONTRIBUTION_BYTES, KEY_BYTES, Keystreams, Randomness, Reuse, derive_key
from grid.smpc.link import Mailbox, Words
from grid.smpc.party import PARTIES, WHOLE, Party, Ring
from grid.smpc.steps import Arrival, Task

T = TypeVar("T")


class Outcome(NamedTuple, Generic[T]):
    """What a program gave at each party, and what it cost."""

    results: list[T]
    rounds: int
    bytes_sent: list[int]
    views: list[list[tuple[int, int, Words]]]


class Network:
    """The links of three parties. A message sent is held until `deliver`. Without `recorded`, `views` stay empty."""

    def __init__(self, shuffle: random.Random | None = None, *, recorded: bool = True) -> None:
        self.mailboxes = [Mailbox() for _ in range(PARTIES)]
        self.bytes_sent = [0] * PARTIES
        self.rounds = 0
        self.views: list[list[tuple[int, int, Words]]] = [[] for _ in range(PARTIES)]
        self._held: list[tuple[int, int, int, Words]] = []
        self._shuffle = shuffle
        self._recorded = recorded

    def link(self, rank: int) -> LocalLink:
        return LocalLink(self, rank)

    def hold(self, sender: int, to: int, label: int, words: Words) -> None:
        assert to != sender
        self.bytes_sent[sender] += words.nbytes
        self._held.append((sender, to, label, words.copy()))

    def deliver(self) -> bool:
        """Deliver all that is held, as one round. False where nothing is."""
        held, self._held = self._held, []
        if not held:
            return False
        self.rounds += 1
        if self._shuffle is not None:
            self._shuffle.shuffle(held)
        for sender, to, label, words in held:
            if self._recorded:
                self.views[to].append((sender, label, words.copy()))
            self.mailboxes[to].deliver(sender, label, words)
        return True


class LocalLink:
    """One party's link of a `Network`."""

    def __init__(self, network: Network, rank: int) -> None:
        self._network = network
        self._rank = rank

    def send(self, to: int, label: int, words: Words) -> None:
        self._network.hold(self._rank, to, label, words)

    def receive(self, sender: int, label: int, count: int) -> Arrival[Words]:
        return self._network.mailboxes[self._rank].receive(sender, label, count)


def fresh_keystreams(*, checked: bool = True) -> list[Randomness]:
    """The keystreams of three parties that have agreed on fresh keys; `checked` ones raise where one is used twice."""
    given = [secrets.token_bytes(CONTRIBUTION_BYTES) for _ in range(PARTIES)]
    session = secrets.token_bytes(KEY_BYTES)
    keys = [derive_key([given[j], given[(j + 2) % PARTIES]], session=session, program=b"", place=j) for j in range(PARTIES)]
    common = derive_key(given, session=session, program=b"", place=PARTIES)
    made = [Keystreams(keys[rank], keys[(rank + 1) % PARTIES], common) for rank in range(PARTIES)]
    return [Reuse(one) for one in made] if checked else list(made)


def run_parties(
    program: Callable[[Party], Awaitable[T]],
    *,
    ring: Ring = WHOLE,
    randomness: Sequence[Randomness] | None = None,
    shuffle: random.Random | None = None,
    network: Network | None = None,
) -> Outcome[T]:
    """Run `program` as each of three parties until all are done. Raises what the first of them raises.

    `shuffle` delivers the messages of a round in a random order. `network` is one that the caller looks at meanwhile.
    """
    network = network or Network(shuffle)
    streams = randomness or fresh_keystreams()

    async def run(party: Party) -> T:
        return await program(party)

    tasks: list[Task[Any]] = [Task(run(Party(rank, network.link(rank), streams[rank], ring))) for rank in range(PARTIES)]
    while not all(task.outcome.done for task in tasks):
        _raise_first(tasks)
        if not network.deliver():
            waiting = {rank: mailbox.waits for rank, mailbox in enumerate(network.mailboxes) if mailbox.waits}
            raise LocalProtocolError(f"the parties wait for messages that nobody sends: {waiting}")
    _raise_first(tasks)
    network.deliver()
    return Outcome([task.outcome.result() for task in tasks], network.rounds, network.bytes_sent, network.views)


def _raise_first(tasks: Sequence[Task[Any]]) -> None:
    for task in tasks:
        if task.outcome.done:
            task.outcome.result()
