"""Where a job stands, and how that is kept: what a gateway needs to go on with it after it was killed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from grid.crypto.envelope import unpack
from grid.errors import GridError, WireError, from_wire
from grid.federated.secagg.quantiser import FIRST_CLIP, Range
from grid.federated.spec import JobSpec, Stop
from grid.wire.jobs import JobCard, RoundReport
from grid.wire.messages import ErrorInfo

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
OVER = (DONE, FAILED, CANCELLED)

START, PROGRESS, STATE, ROUND, REPORT = "start", "progress", "state", "round", "report "
"""Parts of a job in the store: what its client sent (without the weights), where it stands, the strategy's state, and which
round a kept sum is of. Weights and reports have a part for each round."""

SUM, REVEALS = "sum", "reveals"
"""Parts that are kept of a round under masks: the masked sum with its survivors, and the shares that open it."""

Arrays = dict[str, npt.NDArray[Any]]


def weights_part(round: int) -> str:
    """The part of the model after so many rounds."""
    return f"weights {round:06d}"


def report_part(number: int) -> str:
    """The part of a report, counted from 0."""
    return f"{REPORT}{number:06d}"


@dataclasses.dataclass(slots=True)
class Progress:
    """`done`: finished rounds. `number`: of the last round that was begun, as nodes know it, lost ones included.

    `runs`: how often a gateway has taken the job up. `best`: rounds of the best model, -1 before any was evaluated. `stale`:
    evaluations since the metric became better, by the job's `min_delta`, than `mark`. `wide`: the end of the wide range that
    fitted last. `misfits`: how often a node refused the quantiser's range. `started` and `ended` are wall seconds.
    """

    state: str = WAITING
    done: int = 0
    number: int = 0
    runs: int = 0
    best: int = -1
    best_value: float = 0.0
    stale: int = 0
    mark: float = 0.0
    last_evaluated: bool = False
    range: Range | None = None
    wide: float = FIRST_CLIP
    misfits: int = 0
    started: float = 0.0
    ended: float = 0.0
    text: str = ""
    error: GridError | None = None

    def judge(self, stop: Stop, value: float | None) -> bool:
        """An evaluation of the model after `done` rounds: whether it is the best so far."""
        if value is None:
            self.stale += 1
            return False
        sign, first = (1 if stop.higher else -1), self.best < 0
        if first or (value - self.mark) * sign > stop.min_delta:
            self.mark, self.stale = value, 0
        else:
            self.stale += 1
        if not first and (value - self.best_value) * sign <= 0:
            return False
        self.best, self.best_value = self.done, value
        return True

    def is_stale(self, stop: Stop) -> bool:
        """Whether the job ends early."""
        return 0 < stop.patience <= self.stale

    def card(self, spec: JobSpec, *, text: str = "") -> JobCard:
        """What is told of the job; `text` in place of what is kept."""
        error = self.error
        return JobCard(
            id=spec.job,
            name=spec.name,
            client=spec.client,
            state=self.state,
            round=self.done,
            rounds=spec.rounds,
            nodes=spec.nodes,
            secure=spec.secure,
            strategy=str(spec.strategy.get("kind", ""))[:40],
            started=self.started,
            metrics=spec.metrics,
            ended=self.ended,
            text=text or self.text,
            error=None if error is None else ErrorInfo(code=error.code, message=error.message, details=dict(error.details)),
        )

    def to_bytes(self) -> bytes:
        """For the store."""
        error = None if self.error is None else [self.error.code, self.error.message, dict(self.error.details)]
        known = None if self.range is None else [self.range.clip, self.range.coarsest]
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        packed: bytes = msgpack.packb({**fields, "error": error, "range": known})
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Progress:
        """What `to_bytes` gave; `WireError` for anything else."""
        found = unpack(data, "a kept job", error=WireError)
        if not isinstance(found, dict) or set(found) != {field.name for field in dataclasses.fields(cls)}:
            raise WireError("a kept job has a wrong form")
        error = None if found["error"] is None else from_wire(*found["error"])
        known = None if found["range"] is None else Range(*found["range"])
        return cls(**{**found, "error": error, "range": known})


def pack_report(report: RoundReport) -> bytes:
    """For the store."""
    packed: bytes = msgpack.packb({field.name: getattr(report, field.name) for field in dataclasses.fields(report)})
    return packed


def read_report(data: bytes) -> RoundReport:
    """What `pack_report` gave; `WireError` for anything else."""
    found = unpack(data, "a kept report", error=WireError)
    if not isinstance(found, dict) or set(found) != {field.name for field in dataclasses.fields(RoundReport)}:
        raise WireError("a kept report has a wrong form")
    return RoundReport(**{**found, "metrics": tuple(found["metrics"])})


def pack_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A strategy's state for the store."""
    packed: bytes = msgpack.packb({name: [one.dtype.str, list(one.shape), one.tobytes()] for name, one in arrays.items()})
    return packed


def read_arrays(data: bytes) -> Arrays:
    """What `pack_arrays` gave; `WireError` for anything else."""
    found = unpack(data, "a kept strategy", error=WireError)
    try:
        return {name: np.frombuffer(raw, np.dtype(dtype)).reshape(shape) for name, (dtype, shape, raw) in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise WireError("a kept strategy has a wrong form") from None
