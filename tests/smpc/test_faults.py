"""A link that dies, stalls or brings garbage, at every message of a program: every party ends, with an error of ours, at once.

Nobody computes on: coroutines are closed, and none is left that was never awaited (warnings are errors in these tests).
"""

from __future__ import annotations

import gc
import inspect
import types
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from grid.errors import DeadlineExceeded, GridError, NodeUnavailable
from grid.smpc.link import Words
from grid.smpc.local import Network, fresh_keystreams
from grid.smpc.party import PARTIES, Operations, Party
from grid.smpc.replicated import chunks
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.steps import Task

Program = Callable[[Party], Coroutine[Any, Any, Any]]

VALUES = np.array([5, -3, 0, 2**40, -(2**62)])

GARBAGE: dict[str, Callable[[Words], list[Words]]] = {
    "short": lambda words: [words[:-1]],
    "long": lambda words: [np.r_[words, words[:1]]],
    "empty": lambda words: [words[:0]],
    "twice": lambda words: [words, words],
    "changed": lambda words: [words ^ np.uint64(1 << 17)],
}
"""What comes in place of one message."""


class Faulty(Network):
    """As sessions do: a party whose link or program fails gets the error, and the others learn that it is gone."""

    def __init__(self, fault: str, position: int) -> None:
        super().__init__()
        self.fault, self.position = fault, position
        self.seen = 0
        self.lost: set[int] = set()

    def run(self, program: Program) -> list[Task[Any]]:
        async def party(rank: int) -> Any:
            return await program(Party(rank, self.link(rank), streams[rank]))

        streams = fresh_keystreams()
        tasks = [Task(party(rank)) for rank in range(PARTIES)]
        while not all(task.outcome.done for task in tasks):
            for rank, task in enumerate(tasks):
                if task.outcome.error is not None:
                    self.lose(rank, NodeUnavailable("my program ended"))
            if not self.deliver():
                if all(task.outcome.done for task in tasks):
                    break
                for mailbox in self.mailboxes:
                    mailbox.fail(DeadlineExceeded("nothing comes any more"))
                assert all(task.outcome.done for task in tasks), "a party waits for ever"
        return tasks

    def lose(self, rank: int, error: GridError) -> None:
        if rank not in self.lost:
            self.lost.add(rank)
            self.mailboxes[rank].fail(error)
            for other in {0, 1, 2} - {rank}:
                self.mailboxes[other].fail(NodeUnavailable(f"party {rank} is gone"))

    def deliver(self) -> bool:
        held, self._held = self._held, []
        for sender, to, label, words in held:
            self.seen += 1
            faulty = self.seen == self.position + 1
            if sender in self.lost or to in self.lost:
                continue
            if self.fault == "dies" and faulty:
                self.lose(sender, NodeUnavailable("my link died"))
                continue
            if self.fault == "stalls" and self.seen > self.position and sender == 1:
                continue
            for copy in GARBAGE[self.fault](words) if self.fault in GARBAGE and faulty else [words]:
                self._hand_over(sender, to, label + 1000 * (self.fault == "elsewhere" and faulty), copy)
        return bool(held)

    def _hand_over(self, sender: int, to: int, label: int, words: Words) -> None:
        try:
            self.mailboxes[to].deliver(sender, label, words)
        except GridError as error:
            self.lose(to, error)


async def relu(party: Party) -> Words:
    protocol = Replicated(party)
    x = await protocol.share(0, VALUES.shape, VALUES.view(np.uint64) if party.rank == 0 else None)
    return await protocol.open(await protocol.choose(protocol.invert(await protocol.negative(x)), x))


async def wide(party: Party) -> Words:
    """Many blocks, two pieces of work at a time."""
    protocol = Replicated(party)
    values = np.arange(400)
    x = await protocol.share(0, values.shape, values.view(np.uint64) if party.rank == 0 else None)
    y, z = await protocol.together(lambda p: p.multiply(x, x, 4), lambda p: p.truncate(x, 2))
    return await protocol.open(y + z)


def messages_of(program: Program) -> int:
    network = Faulty("none", -1)
    assert all(task.outcome.error is None for task in network.run(program))
    return network.seen


def suspended() -> list[object]:
    """Coroutines of the engine that have begun and not ended, or never begun."""
    coroutines = [thing for thing in gc.get_objects() if type(thing) is types.CoroutineType]
    ours = [one for one in coroutines if "smpc" in one.cr_code.co_filename]
    return [one for one in ours if inspect.getcoroutinestate(one) != inspect.CORO_CLOSED]


@pytest.fixture(autouse=True)
def nothing_left_suspended() -> Any:
    yield
    gc.collect()
    assert not suspended()


def test_a_program_that_waits_would_be_seen() -> None:
    network = Network()
    task = Task(relu(Party(1, network.link(1), fresh_keystreams()[1])))
    assert len(suspended()) > 1
    task.end()
    assert not suspended()


@pytest.mark.parametrize("fault", ["dies", "stalls", "elsewhere", "short", "long", "empty"])
def test_every_party_of_a_relu_raises_whichever_message_is_hit(fault: str) -> None:
    for position in range(messages_of(relu)):
        network = Faulty(fault, position)
        for rank, task in enumerate(network.run(relu)):
            if task.outcome.error is None:  # it had all that it wanted before the fault
                assert (task.outcome.result().view(np.int64) == np.maximum(VALUES, 0)).all()
                assert position > messages_of(relu) - 8, "only the opening ends at different times"
            else:
                assert isinstance(task.outcome.error, GridError), (position, rank)


@pytest.mark.parametrize("fault", ["twice", "changed"])
def test_messages_that_look_right_end_in_a_result_or_in_an_error(fault: str) -> None:
    """A repeated one is refused or never asked for. A changed one need not be noticed: parties follow the protocol, and the
    channels between them notice what others change."""
    for position in range(messages_of(relu)):
        for task in Faulty(fault, position).run(relu):
            if task.outcome.error is not None:
                assert isinstance(task.outcome.error, GridError)
            elif fault == "twice":
                assert (task.outcome.result().view(np.int64) == np.maximum(VALUES, 0)).all()


def test_a_changed_component_of_a_result_is_noticed() -> None:
    last = messages_of(relu) - 1
    errors = [[task.outcome.error for task in Faulty("changed", last - back).run(relu)] for back in range(6)]
    assert all(any(error is not None and "do not agree" in str(error) for error in one) for one in errors)


@pytest.mark.parametrize("fault", ["dies", "stalls", "short"])
def test_blocks_and_works_beside_one_another_end_together(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 64)
    for position in range(0, messages_of(wide) - 12, 3):
        assert all(isinstance(task.outcome.error, GridError) for task in Faulty(fault, position).run(wide)), position


def test_a_program_that_fails_by_itself_ends_the_others() -> None:
    async def program(party: Party) -> Any:
        found = await relu(party)
        await Replicated(party, Operations(50)).share(1, found.shape, found if party.rank == 1 else None)
        if party.rank == 2:
            raise DeadlineExceeded("this party had no more time")
        return await Replicated(party, Operations(100)).share(2, found.shape, None)

    errors = [task.outcome.error for task in Faulty("none", -1).run(program)]
    assert isinstance(errors[0], NodeUnavailable)
    assert errors[1] is None  # it has what it wanted: it waits for nobody's input
    assert isinstance(errors[2], DeadlineExceeded)
