"""Jobs as they lie in the gateway's store, read again at a start or when somebody asks. Called in the thread that writes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from grid.crypto.cards import read_card
from grid.errors import GridError, NotFound, WireError
from grid.federated.orders import Model, Order
from grid.federated.progress import (
    OVER,
    PROGRESS,
    REPORT,
    REVEALS,
    ROUND,
    START,
    STATE,
    SUM,
    Progress,
    read_arrays,
    read_report,
    weights_part,
)
from grid.federated.spec import JobSpec, read_job
from grid.federated.strategy import Strategy
from grid.gateway.job_order import read_strategy
from grid.ids import JobId
from grid.store.base import Store
from grid.wire.codec import decode, encode
from grid.wire.jobs import RoundReport, StartJob
from grid.wire.messages import TensorFrame

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True, eq=False)
class Kept:
    """A job of the store, or a new one. Of one that is over only `progress` and `spec` are read, and `reports` when asked for.

    `parts` are those of a round whose sum was closed.
    """

    order: Order | None
    strategy: Strategy | None
    model: Model | None
    progress: Progress
    reports: Sequence[RoundReport] | None
    parts: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    given: JobSpec | None = None

    @property
    def spec(self) -> JobSpec:
        spec = self.order.spec if self.order is not None else self.given
        assert spec is not None
        return spec


def start_part(message: StartJob) -> bytes:
    """What a client sent, without the weights: they have parts of their own. Their dtype and size are in it."""
    weights = TensorFrame(dtype=message.weights.dtype, shape=(0,), data=b"")
    return b"".join(encode(dataclasses.replace(message, weights=weights)))


def read_kept(store: Store) -> list[Kept]:
    """All jobs; one that cannot be read is left out, and said to be."""
    found = []
    for job in store.jobs():
        try:
            found.append(_read(store, JobId(job)))
        except GridError as error:
            log.error("job %s cannot be read from the store: %s", job, error)
        except Exception:
            log.exception("job %s cannot be read from the store", job)
    return found


def _read(store: Store, job: JobId) -> Kept:
    message = _start(store, job)
    progress = Progress.from_bytes(_part(store, job, PROGRESS))
    spec = read_job(message.envelope, read_card(message.card), progress.started)
    if progress.state in OVER:
        return Kept(None, None, None, progress, None, given=spec)
    order = Order(spec=spec, envelope=message.envelope, card=message.card, train=message.train, evaluate=message.evaluate)
    frame = read_weights(store, job, progress.done)
    weights = np.frombuffer(frame.data, np.dtype(f"<{frame.dtype}"))
    state = store.job_parts(job, STATE).get(STATE, b"")
    strategy = read_strategy(spec, message.strategy)
    model = Model.of(weights, read_arrays(state) if state else {}, order.envelope)
    parts = {name: data for name in (SUM, REVEALS, ROUND) for name, data in store.job_parts(job, name).items()}
    return Kept(order, strategy, model, progress, read_reports(store, job), parts)


def read_reports(store: Store, job: JobId) -> list[RoundReport]:
    """The reports of a job, in order."""
    return [read_report(data) for data in store.job_parts(job, REPORT).values()]


def read_weights(store: Store, job: JobId, round: int) -> TensorFrame:
    """The model after a round. Raises `NotFound` where it is not kept any more."""
    dtype = _start(store, job).weights.dtype
    data = _part(store, job, weights_part(round))
    return TensorFrame(dtype=dtype, shape=(len(data) // int(dtype[1:]),), data=data)


def _start(store: Store, job: JobId) -> StartJob:
    message, _, _ = decode(_part(store, job, START))
    if not isinstance(message, StartJob):
        raise WireError("a kept job has a wrong form")
    return message


def _part(store: Store, job: JobId, name: str) -> bytes:
    found = store.job_parts(job, name).get(name)
    if found is None:
        raise NotFound("this is not kept of the job (any more)")
    return found
