"""Drives a job's state machine by hand: each delivery is one step, and time moves when nothing is left to deliver.

Nodes are scripted ones with real secure aggregation, the store is a real one in memory, and a kill drops all that has not been
delivered: the next machine is made of what the store has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from grid.crypto.cards import read_card
from grid.crypto.identity import LocalIdentity
from grid.errors import GridError
from grid.federated.coordination import Coordination
from grid.federated.effects import Ask, Call, Dismiss, Effect, Keep, Work
from grid.federated.progress import OVER, Progress, report_part
from grid.gateway.job_keeping import read_kept, read_weights, start_part
from grid.gateway.job_order import read_model, read_order, read_strategy
from grid.ids import PeerId
from grid.store.memory import MemoryStore
from grid.wire.jobs import EndJob, RoundReport
from grid.wire.messages import Message
from tests.federated.scripted_nodes import CLOCK, NODE_HANDLERS, ScriptedNode, spec_of, start_message

Step = tuple[str, Callable[[], None]]
Moment = Callable[[str], bool]


class Driver:
    """`weights` before the first round; `changes` are fields of the spec."""

    def __init__(self, nodes: Sequence[ScriptedNode], weights: Any = None, **changes: Any) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.client = LocalIdentity.create(name="ann", role="client", clock=CLOCK)
        self.spec = spec_of(self.client, tuple(self.nodes), **changes)
        self.store = MemoryStore()
        self.now = 0.0
        self.steps = 0
        self.channels: dict[PeerId, int] = {}
        self._sessions = 0
        self._queue: deque[Step] = deque()
        message = start_message(self.client, self.spec, np.zeros(6, "f4") if weights is None else weights)
        order = read_order(message, read_card(message.card), CLOCK.wall(), 1 << 30)
        strategy = read_strategy(self.spec, b"")
        model = read_model(message, strategy, order.envelope)
        self.machine = Coordination(order, strategy, model, progress=Progress(), **self._ways)
        self.perform(self.machine.start(self.now, start_part(message)))

    @property
    def _ways(self) -> dict[str, Any]:
        return {
            "largest": lambda: max(node.examples for node in self.nodes.values()),
            "name": lambda node: self.nodes[node].me.name,
            "wall": CLOCK.wall,
        }

    # ------------------------------------------------------------ deliveries

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                session = self.channels.get(effect.peer)
                self._later(f"ask {effect.message.tag}", lambda ask=effect, session=session: self._ask(ask, session))
            elif isinstance(effect, Work):
                self._later(f"work {effect.name.split()[0]}", lambda work=effect: self._work(work))
            elif isinstance(effect, Keep):
                self._later(f"keep {effect.name.split()[0]}", lambda keep=effect: self._keep(keep))
            elif isinstance(effect, Call):
                self._later("call", lambda peer=effect.peer: self.join(peer))
            elif isinstance(effect, Dismiss):
                if effect.peer in self.channels:
                    self.nodes[effect.peer].end(EndJob(job=self.spec.job, text=effect.text))

    def _later(self, what: str, step: Callable[[], None]) -> None:
        self._queue.append((what, step))

    def _ask(self, ask: Ask, session: int | None) -> None:
        if session is None or self.channels.get(ask.peer) != session:
            return
        node = self.nodes[ask.peer]
        answer: Message | GridError
        try:
            answer = NODE_HANDLERS.call(node, ask.message)  # type: ignore[assignment]
        except GridError as error:
            answer = error
        self._later(f"answer {ask.message.tag}", lambda: self._answer(ask, session, answer))

    def _answer(self, ask: Ask, session: int, answer: Message | GridError) -> None:
        if self.channels.get(ask.peer) != session:
            return
        if isinstance(answer, GridError):
            self.perform(self.machine.refused(ask.peer, ask.key, answer, self.now))
        else:
            self.perform(self.machine.answered(ask.peer, ask.key, answer, self.now))

    def _work(self, work: Work) -> None:
        try:
            result = work.run()
        except GridError as error:
            result = error
        self._later(f"worked {work.name.split()[0]}", lambda: self.perform(self.machine.worked(work.name, result, self.now)))

    def _keep(self, keep: Keep) -> None:
        self.store.keep_job(self.spec.job, {name: part() if callable(part) else part for name, part in keep.parts.items()})
        self._later(f"kept {keep.name.split()[0]}", lambda: self.perform(self.machine.kept(keep.name, self.now)))

    # ------------------------------------------------------------ what happens

    def join(self, peer: PeerId) -> None:
        """A node opens its channel, if it is here."""
        if self.nodes[peer].here and peer not in self.channels:
            self._sessions += 1
            self.channels[peer] = self._sessions
            self.perform(self.machine.came(peer, self.now))

    def lose(self, peer: PeerId, *, forget: bool = False) -> None:
        """A node is gone, as a killed process where it forgets."""
        node = self.nodes[peer]
        node.here = False
        if forget:
            node.forget()
        if self.channels.pop(peer, None) is not None:
            self.perform(self.machine.left(peer, self.now))

    def back(self, peer: PeerId) -> None:
        """A node that was gone is here again."""
        self.nodes[peer].here = True
        self.join(peer)

    def kill(self) -> None:
        """The gateway is killed, and started again."""
        self._queue.clear()
        self.channels.clear()
        (kept,) = read_kept(self.store)
        if kept.progress.state in OVER:  # all is in the store, and the machine was about to hear of it
            self.machine.kept(report_part(len(self.machine.reports)), self.now)
            return
        assert kept.order is not None and kept.strategy is not None and kept.model is not None
        self.machine = Coordination(
            kept.order, kept.strategy, kept.model, progress=kept.progress, reports=kept.reports or (), **self._ways
        )
        self.perform(self.machine.resume(self.now, kept.parts))

    # ------------------------------------------------------------ running

    def step(self) -> str:
        """One delivery, or a second of time: what it was."""
        self.steps += 1
        if self._queue:
            what, step = self._queue.popleft()
            step()
            return what
        self.now += 1.0
        self.perform(self.machine.tick(self.now))
        return "time"

    def until(self, moment: Moment, most: int = 100_000) -> None:
        """Run until something of this kind has just been done."""
        for _ in range(most):
            if moment(self.step()):
                return
        raise AssertionError(f"it did not come to that: {self.machine.text}")

    def until_over(self, most: int = 100_000) -> Driver:
        """Run until the job has ended, and all of it is kept."""
        for _ in range(most):
            if self.machine.settled:
                return self
            self.step()
        raise AssertionError(f"the job does not end: {self.machine.text}")

    @property
    def weights(self) -> Any:
        """The last model in the store."""
        frame = read_weights(self.store, self.spec.job, self.machine.progress.done)
        return np.frombuffer(frame.data, f"<{frame.dtype}")

    @property
    def reports(self) -> list[RoundReport]:
        return self.machine.reports
