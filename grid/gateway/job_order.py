"""What a client sends to start a job, checked before anything is done with it. Called in a thread: there is much to hash."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from grid.crypto.cards import Card
from grid.errors import InvalidRequest
from grid.federated.orders import Model, Order
from grid.federated.rounds import vector_of
from grid.federated.secagg.graph import degree_and_threshold
from grid.federated.secagg.quantiser import choose
from grid.federated.spec import EQUAL, JobSpec, read_job
from grid.federated.strategies import strategy_from_plain
from grid.federated.strategy import Strategy
from grid.wire.jobs import StartJob
from grid.wire.messages import Buffer


def read_order(message: StartJob, card: Card, wall: float, most: int) -> Order:
    """The job in a message whose card has been verified; `most` bytes of weights, and of plans.

    Raises `AuthenticationFailed` for a signature that does not hold, `InvalidRequest` for what does not fit the signed spec.
    """
    spec = read_job(message.envelope, card, wall)
    for what, data, wanted in (
        ("train", message.train, spec.train),
        ("evaluate", message.evaluate, spec.evaluate),
        ("strategy", message.strategy, spec.strategy_plan),
    ):
        if (hashlib.sha256(data).hexdigest() if wanted or len(data) else "") != wanted:
            raise InvalidRequest(f"the plan {what!r} is not the one that the job was signed with")
    plans = len(message.train) + len(message.evaluate) + len(message.strategy)
    if len(message.weights.data) > most or plans > most:
        raise InvalidRequest(f"the model or the plans have more than {most} bytes, this gateway's max_job_bytes")
    return Order(
        spec=spec, envelope=message.envelope, card=message.card, train=bytes(message.train), evaluate=bytes(message.evaluate)
    )


def check_sums(spec: JobSpec, shape: tuple[int, ...], largest: int) -> None:
    """Raise `InvalidRequest` where no ring holds the sums of all nodes."""
    if spec.secure:
        cohort = min(len(spec.nodes), 1000)
        degree_and_threshold(cohort)
        choose(math.prod(shape), cohort, 1 if spec.weighting == EQUAL else largest, metrics=len(spec.sums))


def read_strategy(spec: JobSpec, plan: Buffer) -> Strategy:
    """The strategy that the spec names. Raises `InvalidRequest`."""
    strategy = strategy_from_plain(spec.strategy, plan)
    if strategy.needs_single and spec.secure:
        raise InvalidRequest(
            f"the strategy {strategy.kind} compares the updates of single nodes, which secure aggregation hides: pass"
            " secure=False, for which every owner's policy must allow single updates, or take another strategy"
        )
    return strategy


def read_model(message: StartJob, strategy: Strategy, envelope: bytes) -> Model:
    """The weights that the client sent, with the strategy's first state.

    Raises `InvalidRequest` for what is no vector of finite numbers.
    """
    weights = vector_of(message.weights)
    if weights.dtype.kind != "f" or not weights.size or not np.isfinite(weights).all():
        raise InvalidRequest("the weights of a job are a vector of finite float numbers")
    return Model.of(weights, strategy.start(weights.size), envelope)
