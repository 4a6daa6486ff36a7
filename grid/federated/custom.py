"""A strategy of the user's own: a plan (weights, mean update, state) -> (weights, state), run in a process of its own.

The gateway never decodes or runs the plan itself, and does not load torch for it. Time, memory, elements and steps are limited; a
process that takes more is ended, and the call fails. Vectors are float64 on the way, whatever the model's dtype.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from grid.errors import ExecutionFailed, InvalidRequest, NodeUnavailable, PlanRejected, QuotaExceeded, WireError
from grid.federated.custom_messages import (
    FROM_STRATEGY,
    TO_STRATEGY,
    ApplyStrategy,
    BeginStrategy,
    Vectors,
    frames_of,
    vectors_of,
)
from grid.federated.plain import fields_of, number
from grid.federated.strategy import LARGEST, State, Strategy, Vector
from grid.transport.pipes import BlockingPipe, End, pipe
from grid.wire.codec import decode, encode
from grid.wire.messages import Failure, Message

if TYPE_CHECKING:
    from grid.plans.ir import Plan

MAX_STATE = 16
"""Vectors of state."""

MAX_PLAN_BYTES = 4 << 20

Update = Callable[[Any, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
"""`(weights, mean_update, state) -> (weights, state)`; all tensors are float64 of one length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyLimits:
    """What a user's own strategy may take in one call; `start_s` is for its process to start."""

    seconds: float = 60.0
    start_s: float = 60.0
    max_bytes: int = 4 << 30
    max_elements: int = 1 << 28
    max_steps: int = 2000


class CustomStrategy(Strategy):
    """Your own strategy, from a function `(weights, mean_update, state) -> (weights, state)` that is traced here, or its plan.

    `weights` and `mean_update` are vectors, `state` is a dict of vectors of the same length: the names in `state`, each beginning
    with zeros, or with the number that a dict gives. `mu` is FedProx's, for the nodes. Raises `PlanRejected` for a function that
    is no plan.
    """

    __slots__ = ("_limits", "_process", "mu", "names", "plan", "start_values")
    kind: ClassVar[str] = "custom"

    def __init__(
        self,
        update: Update | Plan | bytes,
        state: Mapping[str, float] | Sequence[str] = (),
        *,
        mu: float = 0.0,
        limits: StrategyLimits | None = None,
    ) -> None:
        begin = dict(state) if isinstance(state, Mapping) else dict.fromkeys(state, 0.0)
        if len(begin) > MAX_STATE or not all(type(name) is str and name.isidentifier() and len(name) <= 40 for name in begin):
            raise InvalidRequest(f"a strategy's state has at most {MAX_STATE} vectors, whose names are identifiers")
        self.names = tuple(begin)
        self.start_values = tuple([number(-LARGEST, LARGEST)(name, value) for name, value in begin.items()])
        self.mu: float = number(0, LARGEST)("mu", mu)
        self.plan = update if isinstance(update, bytes) else _encoding(update, self.names)
        if len(self.plan) > MAX_PLAN_BYTES:
            raise InvalidRequest(f"a strategy's plan has at most {MAX_PLAN_BYTES} bytes, not {len(self.plan)}")
        self._limits = limits or StrategyLimits()
        self._process: _Process | None = None

    @property
    def proximal(self) -> float:
        """mu."""
        return self.mu

    def to_plain(self) -> dict[str, Any]:
        """The description without the plan, which travels beside it."""
        return {"kind": self.kind, "state": list(self.names), "values": list(self.start_values), "mu": self.mu}

    def start(self, size: int) -> State:
        """The state for vectors of this size. Starts the process, and raises what it finds wrong with the plan."""
        self._started(size)
        return {name: np.full(size, value) for name, value in zip(self.names, self.start_values, strict=True)}

    def apply(self, weights: Vector, mean_update: Vector, state: State, round: int) -> tuple[Vector, State]:
        """New weights and state. Raises `QuotaExceeded` where the plan takes too much, `ExecutionFailed` where it fails."""
        size = len(weights)
        came = [weights, mean_update, *[state[name] for name in self.names]]
        answer = self._started(size).ask(ApplyStrategy(vectors=frames_of([one.astype(np.float64) for one in came])))
        try:
            new, *rest = vectors_of(answer.vectors, len(self.names) + 1, size)
        except WireError as error:
            self.close()
            raise ExecutionFailed(f"the strategy's process went wrong: {error.message}") from None
        if not all(np.isfinite(one).all() for one in (new, *rest)):
            raise ExecutionFailed("the strategy gave weights or state that are not finite")
        return new.astype(weights.dtype), dict(zip(self.names, rest, strict=True))

    def _started(self, size: int) -> _Process:
        found = self._process
        if found is None or found.size != size or found.is_over:
            self.close()
            found = self._process = _Process(self.plan, size, len(self.names), self._limits)
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CustomStrategy) and (self.to_plain(), self.plan) == (other.to_plain(), other.plan)

    def __hash__(self) -> int:
        return hash((self.plan, self.names))

    def __repr__(self) -> str:
        return f"CustomStrategy(state={dict(zip(self.names, self.start_values, strict=True))})"


def _encoding(update: Update | Plan, names: tuple[str, ...]) -> bytes:
    """The plan of a function, traced for vectors of any length."""
    import torch  # a gateway has no use for it

    from grid.plans.ir import Plan
    from grid.plans.trace import trace

    if isinstance(update, Plan):
        return update.encoding
    if not callable(update):
        raise InvalidRequest("a strategy is a function (weights, mean_update, state) -> (weights, state), or its plan")
    function = update

    def strategy(weights: Any, mean_update: Any, state: tuple[Any, ...]) -> Any:
        new, rest = function(weights, mean_update, dict(zip(names, state, strict=True)))
        if not isinstance(rest, Mapping) or set(rest) != set(names):
            raise PlanRejected(f"the strategy gives weights and a dict of state with the names {', '.join(names) or '(none)'}")
        return new, tuple([rest[name] for name in names])

    vector = torch.zeros(8, dtype=torch.float64)
    return trace(strategy, vector, vector, (vector,) * len(names)).encoding


def custom_from_plain(data: dict[Any, Any], plan: bytes) -> CustomStrategy:
    """What `CustomStrategy.to_plain` gave, or something hostile, with the plan beside it. Raises `InvalidRequest` alone."""
    found = fields_of(data, dict.fromkeys(("state", "values", "mu")), "the strategy 'custom'")
    names, values = found.get("state", []), found.get("values", [])
    if type(names) not in (list, tuple) or type(values) not in (list, tuple) or len(names) != len(values):
        raise InvalidRequest("the strategy 'custom' has not one value to begin with for each vector of its state")
    if not all(type(name) is str for name in names) or len(set(names)) < len(names):
        raise InvalidRequest("the names of a strategy's state are texts, and each its own")
    return CustomStrategy(plan, dict(zip(names, values, strict=True)), mu=found.get("mu", 0.0))


class _Process:
    """The process of one strategy for vectors of one size. Calls block, one at a time."""

    def __init__(self, plan: bytes, size: int, state: int, limits: StrategyLimits) -> None:
        self.size = size
        self.is_over = False
        self._limits = limits
        if sys.platform != "linux":
            raise NodeUnavailable("a strategy of your own runs where the gateway runs on Linux: only there it can be limited")
        from grid.confinement import environment_for  # imports what other systems do not have

        ours, theirs = pipe()
        try:
            self._process = subprocess.Popen(
                # -P: no module comes from the working folder.
                [sys.executable, "-P", "-m", "grid.federated.custom_process", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment_for(os.environ),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise NodeUnavailable("the gateway cannot start a process for the strategy") from error
        finally:
            theirs.close()
        self._end = weakref.finalize(self, _end, self._process, ours)  # also for a strategy that nobody closed
        self._pipe = BlockingPipe(ours, limits.max_bytes)
        begin = BeginStrategy(
            plan=plan,
            size=size,
            state=state,
            max_elements=limits.max_elements,
            max_bytes=limits.max_bytes,
            max_steps=limits.max_steps,
        )
        try:
            self._exchange(begin, limits.start_s)
        except BaseException:
            self.close()
            raise

    def ask(self, message: ApplyStrategy) -> Vectors:
        """The answer within the limit of time."""
        return self._exchange(message, self._limits.seconds)

    def _exchange(self, message: Message, seconds: float) -> Vectors:
        overran = threading.Event()
        timer = threading.Timer(seconds, _kill, (self._process, overran))
        timer.daemon = True
        timer.name = "grid-strategy-limit"
        timer.start()
        try:
            self._pipe.send([encode(message, table=TO_STRATEGY)])
            answer = decode(self._pipe.receive(), FROM_STRATEGY).message
        except (EOFError, WireError) as error:
            self.close()
            if overran.is_set():
                told = f"the strategy ran longer than {seconds:g} s; make it simpler, or the model smaller"
                raise QuotaExceeded(told) from error
            raise ExecutionFailed("the strategy's process has ended, perhaps because the machine ran out of memory") from error
        finally:
            timer.cancel()
        if isinstance(answer, Failure):
            raise answer.error.to_error()
        assert isinstance(answer, Vectors)
        return answer

    def close(self) -> None:
        """End it, and wait for that."""
        self.is_over = True
        self._end()


def _kill(process: subprocess.Popen[bytes], overran: threading.Event) -> None:
    overran.set()
    process.kill()


def _end(process: subprocess.Popen[bytes], pipe: End) -> None:
    process.kill()
    process.wait()
    pipe.close()
