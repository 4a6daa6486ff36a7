"""One round of a job as the gateway sees it: what rounds with secure aggregation (`secure_round`) and without (`single`) share.

A round is a state machine without I/O: inputs are methods, each with the time (monotonic seconds), and each returns the effects
to carry out, in order. The round is over when `outcome` says so.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grid.errors import ExecutionFailed, GridError, WireError
from grid.federated.effects import Ask, Effect, Key, Story, Work
from grid.federated.naming import Name, names_of
from grid.federated.secagg.quantiser import Range
from grid.federated.secagg.statements import Terms
from grid.federated.secagg.unmasking import Blame
from grid.ids import JobId, PeerId
from grid.wire.messages import Message, TensorFrame

SHORT = 0.25
"""The part of a round's deadline after which one that has not answered a short leg is left out, if enough are left."""

FEW = 5
"""Nodes that the text of a round names."""

MAX_REASON = 300
"""Letters of what a node says that are told on."""

GRACE_S = 1.0
"""How long a node may be asked for after the round's own deadline, so that the two do not race."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Summed:
    """The sum of a round. `mean`: (size,) weighted mean of updates; `sums`: those of metrics; `next_range`: the quantiser's.

    `blamed`: who sent wrong shares that were done without; where it is not sure, it was one of several.
    """

    mean: npt.NDArray[Any]
    weight: int
    clipped: int
    sums: npt.NDArray[Any]
    next_range: Range | None = None
    blamed: tuple[Blame, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Done:
    """The round is over: its sum, whose inputs are in it, and who was lost."""

    summed: Summed
    nodes: tuple[PeerId, ...]
    lost: tuple[PeerId, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """The round came to nothing. `error`: what a node said, where that is the reason; `missing`: who was waited for.

    `hopeless`: so many cannot train this model that the next try must be lost as well.
    """

    text: str
    missing: tuple[PeerId, ...]
    error: GridError | None = None
    hopeless: bool = False


Outcome = Done | Lost


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What a round is to be. `number` is its own, `index` which of the job's rounds it is, from 1, or 0 for an evaluation.

    `terms` makes those of an attempt of so many nodes; None without secure aggregation. `quorum`: how many must take part at
    least. `deadline`: monotonic seconds. `sums`: how many metric sums each node gives.
    """

    job: JobId
    number: int
    index: int
    cohort: tuple[PeerId, ...]
    quorum: int
    weights: TensorFrame
    deadline: float
    deadline_s: float
    sums: int
    first_attempt: int = 1
    terms: Callable[[int, int], Terms] | None = None
    name: Name = str

    @property
    def evaluate_only(self) -> bool:
        """Whether nothing is trained."""
        return not self.index


class AnyRound(abc.ABC):
    """What rounds with and without secure aggregation have in common: who is there, who is out, what they ask."""

    def __init__(self, plan: Plan, story: Story, present: Iterable[PeerId]) -> None:
        self.plan = plan
        self.outcome: Outcome | None = None
        self.bytes = 0
        """What has gone to nodes and come from them."""
        self._story = story
        self.returned: dict[PeerId, float] = {}
        """Who was gone and came back, and for how many seconds."""
        self.late: dict[PeerId, int] = {}
        """Who was there and answered too late, or never, and at what moment (`Story.cause`) it was no longer waited for."""
        self._present = set(present)
        self._gone: dict[PeerId, float] = {}
        self.out: dict[PeerId, str] = {}
        """Who is out of the round, and why."""
        self._error: GridError | None = None
        self._failed: set[PeerId] = set()
        """Who cannot train this model, tried again or not."""
        self._attempt = plan.first_attempt - 1

    def _ask(self, peer: PeerId, leg: int, message: Message, now: float) -> Ask:
        self.bytes += size_of(message)
        timeout_s = max(self.plan.deadline - now, self.plan.deadline_s * SHORT) + GRACE_S
        return Ask(self._story.cause, peer, (self.plan.number, self._attempt, leg), message, timeout_s)

    def _work(self, kind: str, do: Callable[[], Any], peer: str = "") -> Work:
        """Something to be worked out, for one node or for all, under a name that says which round and attempt it is of."""
        return Work(self._story.cause, f"{kind} {self.plan.number}.{self._attempt} {peer}", do)

    def _worked(self, name: str) -> tuple[str, PeerId] | None:
        """The kind and node of a work that is done; None for one of an earlier attempt or round, which may end late."""
        kind, of, peer = name.split(" ")
        late = self.outcome is not None or of != f"{self.plan.number}.{self._attempt}"
        return None if late else (kind, PeerId(peer))

    def _names(self, peers: Sequence[PeerId]) -> str:
        return names_of(peers, self.plan.name, FEW)

    def _fails(self, peer: PeerId, error: GridError) -> None:
        """A node's error, which may be why the round is lost."""
        self._error = error
        if isinstance(error, ExecutionFailed) and not error.details.get("again"):
            self._failed.add(peer)

    def _put_out(self, peer: PeerId, why: str, now: float) -> None:
        self.out[peer] = why[:MAX_REASON]
        self._story.note(now, f"node {self.plan.name(peer)} is out of round {self.plan.number}: {why}")

    def _are_late(self, missing: Iterable[PeerId]) -> None:
        """Patience with these is over. Who is not there at all is lost, not late."""
        for peer in missing:
            if peer in self._present:
                self.late.setdefault(peer, self._story.cause)

    def _lose(self, text: str, missing: Iterable[PeerId], now: float) -> list[Effect]:
        absent = tuple(missing)
        reasons = [f"without {self._names(absent)}"] if absent else []
        reasons += [f"{self.plan.name(peer)}: {why}" for peer, why in list(self.out.items())[:3]]
        told = f"{text} ({'; '.join(reasons)})" if reasons else text
        self._story.note(now, f"round {self.plan.number} is lost: {told}")
        self.outcome = Lost(told, absent, self._error, len(self._failed) > len(self.plan.cohort) - self.plan.quorum)
        return []

    def left(self, peer: PeerId, now: float) -> list[Effect]:
        """The channel to a node is gone."""
        self._present.discard(peer)
        self._gone.setdefault(peer, now)
        return [] if self.outcome else self._settle(now)

    def _arrives(self, peer: PeerId, now: float) -> None:
        self._present.add(peer)
        if peer in self._gone:
            self.returned[peer] = self.returned.get(peer, 0.0) + now - self._gone.pop(peer)

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """What the round is doing, and for whom it waits."""

    @abc.abstractmethod
    def start(self, now: float) -> list[Effect]:
        """Begin."""

    @abc.abstractmethod
    def resumed(self, now: float) -> list[Effect]:
        """Of a round that went on in another process: what can be done without any node."""

    @abc.abstractmethod
    def joined(self, peer: PeerId, now: float) -> list[Effect]:
        """A node is there, or is back, and has agreed to the job."""

    @abc.abstractmethod
    def answered(self, peer: PeerId, key: Key, message: Message, now: float) -> list[Effect]:
        """A node's answer to what it was asked under this key."""

    @abc.abstractmethod
    def refused(self, peer: PeerId, key: Key, error: GridError, now: float) -> list[Effect]:
        """A node's error, or what is wrong with its answer."""

    @abc.abstractmethod
    def worked(self, name: str, result: Any, now: float) -> list[Effect]:
        """Work is done: `result` is what came out, or a `GridError`."""

    @abc.abstractmethod
    def kept(self, name: str, now: float) -> list[Effect]:
        """The store has it."""

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        return [] if self.outcome else self._settle(now)

    @abc.abstractmethod
    def _settle(self, now: float) -> list[Effect]:
        """Go on as far as what came, and who is left, allow."""


def vector_of(frame: TensorFrame) -> npt.NDArray[Any]:
    """The numbers of a vector as it travels. Raises `WireError` for another shape or a dtype that numpy has not."""
    if frame.dtype not in ("f4", "f8", "i4", "i8") or len(frame.shape) != 1:
        raise WireError("a vector of float or integer numbers was expected")
    return np.frombuffer(frame.data, np.dtype(f"<{frame.dtype}"))


def size_of(value: Any) -> int:
    """About how many bytes a message has: its buffers and texts."""
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    if isinstance(value, memoryview):
        return value.nbytes
    if isinstance(value, tuple | list):
        return sum(map(size_of, value))
    if dataclasses.is_dataclass(value):
        return sum(size_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 8
