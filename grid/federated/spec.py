"""What a job is, as its client signs it: the one thing in a job that nodes believe because of who said it.

A gateway carries the spec and cannot change it: plans, datasets, rounds, and whether updates are summed under masks are the
client's word. Each node checks the client's card and signature, and then its own rules.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import msgpack

from grid.crypto.cards import Card
from grid.crypto.envelope import read, seal, unpack
from grid.crypto.identity import LocalIdentity
from grid.crypto.keys import is_id
from grid.errors import AuthenticationFailed, InvalidRequest
from grid.ids import JobId, PeerId, PlanId
from grid.wire.messages import Buffer

KIND = "grid job 1"

MAX_ROUNDS = 100_000
MAX_NODES = 10_000
MAX_METRICS = 16
MAX_NAME = 200
MAX_DEADLINE_S = 7 * 86400.0
MAX_AGE_S = 30 * 86400.0
"""How long after it was signed a job may go on: as long as a card counts."""

BY_EXAMPLES, EQUAL = "examples", "equal"
WEIGHTINGS = (BY_EXAMPLES, EQUAL)

EXAMPLES = "examples"
"""The last of a node's metric sums: rows that were evaluated. The weight does not tell, since it may be 1 for all."""

MAX_PLAIN_BYTES = 4096
"""Of `local` and `strategy` as they are encoded."""

Plain = dict[str, Any]
"""Numbers, texts, booleans, None and lists of them, by name."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End when `metric` has not become better by `min_delta` for `patience` evaluations; the best model is kept in any case.

    `higher`: whether more is better. `patience` 0: never end early.
    """

    metric: str = "loss"
    patience: int = 0
    min_delta: float = 0.0
    higher: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A job. Lists are in the client's order.

    `datasets`: (node id, name of a dataset there); a node may have several, whose rows it puts together. `rounds` 0: an
    evaluation alone. `local` and `strategy` as `Local.to_plain` and `Strategy.to_plain` give them. `min_nodes`: how many nodes
    must take part in a round. `fraction`: the share of nodes that is drawn for each round. `deadline_s`: of one round; then
    those who are late are left out. `weighting`: whether a node counts by its examples or all count the same. `seed`: 32 bytes,
    or b"" for fresh randomness. `metrics` in the order of the evaluate plan's sums. `evaluate_every`: rounds between
    evaluations, 0 for the last model alone. `created` and `expires` are wall seconds.
    """

    job: JobId
    name: str
    client: PeerId
    train: PlanId
    evaluate: PlanId
    datasets: tuple[tuple[PeerId, str], ...]
    rounds: int
    local: Plain
    strategy: Plain
    strategy_plan: str = ""
    secure: bool = True
    min_nodes: int = 3
    fraction: float = 1.0
    deadline_s: float = 600.0
    weighting: str = BY_EXAMPLES
    seed: bytes = b""
    metrics: tuple[str, ...] = ("loss",)
    stop: Stop = dataclasses.field(default_factory=Stop)
    evaluate_every: int = 1
    created: float
    expires: float

    @property
    def nodes(self) -> tuple[PeerId, ...]:
        """The nodes that are asked, each once, in order."""
        return tuple(dict.fromkeys(node for node, _ in self.datasets))

    def datasets_of(self, node: PeerId) -> tuple[str, ...]:
        """The names of the datasets that one node is asked to train on."""
        return tuple(name for one, name in self.datasets if one == node)

    @property
    def sums(self) -> tuple[str, ...]:
        """What stands in a node's metric sums, in order: the metrics, and last how many examples they are of."""
        return (*self.metrics, EXAMPLES)

    def evaluates(self, round: int) -> bool:
        """Whether the weights that a round, by its index from 1 on, begins with are evaluated in it. The last model always is."""
        return self.evaluate_every > 0 and (round - 1) % self.evaluate_every == 0

    def seed_of(self, node: PeerId) -> bytes:
        """The seed of one node's training: follows from the job's and the node's place among the nodes; b"" without one."""
        return seed_at(self.seed, self.nodes.index(node)) if self.seed else b""

    def sign(self, me: LocalIdentity) -> bytes:
        """The spec as an envelope signed by its client. Raises `InvalidRequest` where it breaks its own rules."""
        packed: bytes = msgpack.packb(dataclasses.asdict(self))
        _decoded(packed, InvalidRequest)
        return seal(KIND, packed, me.key)


def seed_at(seed: bytes, place: int) -> bytes:
    """The seed of the node at this place, from 0, in a job with this seed of 32 bytes."""
    return hashlib.sha256(b"grid job seed 1\0" + seed + place.to_bytes(4, "little")).digest()


def model_digest(envelope: bytes, weights: Buffer) -> bytes:
    """What the terms of a round name as its model: SHA-256 of the job's envelope and of the weights' bytes as they travel."""
    digest = hashlib.sha256(b"grid job model 1\0" + hashlib.sha256(envelope).digest())
    digest.update(weights)
    return digest.digest()


def read_job(envelope: bytes, card: Card, wall: float) -> JobSpec:
    """The spec in an envelope, if the holder of `card`, which has been verified, signed it and it has not expired.

    Raises `AuthenticationFailed`.
    """
    payload = read(envelope, "job").verified(KIND, card.key)
    spec = _decoded(payload, AuthenticationFailed)
    if spec.client != card.id:
        raise AuthenticationFailed("the job names another client than the one that signed it")
    if not spec.created - 300 <= wall <= spec.expires:
        raise AuthenticationFailed("the job's time is over, or has not come; start a new one")
    return spec


def _decoded(payload: bytes, error: type[AuthenticationFailed] | type[InvalidRequest]) -> JobSpec:
    """Total: a spec that keeps all bounds, or `error`."""
    found = unpack(payload, "job", error=error)
    names = {field.name for field in dataclasses.fields(JobSpec)}
    if not isinstance(found, dict) or set(found) != names:
        raise error("job: its fields are not those of a job")
    faults = [name for name, fits in _CHECKS.items() if not fits(found[name])]
    if faults:
        raise error(f"job: {faults[0]!r} is not what it must be")
    datasets = tuple((PeerId(node), str(name)) for node, name in found["datasets"])
    spec = JobSpec(**{**found, "datasets": datasets, "metrics": tuple(found["metrics"]), "stop": Stop(**found["stop"])})
    if len(set(datasets)) != len(datasets):
        raise error("job: a dataset is named twice")
    if spec.min_nodes > len(spec.nodes):
        raise error(f"job: min_nodes is {spec.min_nodes}, and the datasets are at {len(spec.nodes)} nodes")
    if spec.stop.metric not in spec.metrics:
        raise error(f"job: the metric {spec.stop.metric[:40]!r} is not among those that are computed")
    if not spec.created < spec.expires <= spec.created + MAX_AGE_S:
        raise error("job: 'expires' is not what it must be")
    return spec


def _text(longest: int) -> Any:
    return lambda value: isinstance(value, str) and len(value) <= longest


def _count(least: int, most: int) -> Any:
    return lambda value: type(value) is int and least <= value <= most


def _number(least: float, most: float) -> Any:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and all(letter in "0123456789abcdef" for letter in value)


def _is_job(value: object) -> bool:
    return isinstance(value, str) and len(value) == 32 and all(letter in "0123456789abcdef" for letter in value)


def _is_dataset(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
        and is_id(value[0])
        and 0 < len(value[1]) <= MAX_NAME
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value) and len(msgpack.packb(value)) <= MAX_PLAIN_BYTES


def _is_stop(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"metric", "patience", "min_delta", "higher"}
        and _text(MAX_NAME)(value["metric"])
        and _count(0, MAX_ROUNDS)(value["patience"])
        and _number(0, 1e9)(value["min_delta"])
        and isinstance(value["higher"], bool)
    )


_CHECKS: dict[str, Any] = {
    "job": _is_job,
    "name": _text(MAX_NAME),
    "client": lambda value: isinstance(value, str) and is_id(value),
    "train": _is_hash,
    "evaluate": _is_hash,
    "datasets": lambda value: isinstance(value, list) and 0 < len(value) <= MAX_NODES and all(map(_is_dataset, value)),
    "rounds": _count(0, MAX_ROUNDS),
    "local": _is_plain,
    "strategy": _is_plain,
    "strategy_plan": lambda value: value == "" or _is_hash(value),
    "secure": lambda value: isinstance(value, bool),
    "min_nodes": _count(1, MAX_NODES),
    "fraction": _number(1e-6, 1.0),
    "deadline_s": _number(0.01, MAX_DEADLINE_S),
    "weighting": lambda value: isinstance(value, str) and value in WEIGHTINGS,
    "seed": lambda value: isinstance(value, bytes) and len(value) in (0, 32),
    "metrics": lambda value: isinstance(value, list) and 0 < len(value) <= MAX_METRICS and all(map(_text(40), value)),
    "stop": _is_stop,
    "evaluate_every": _count(0, MAX_ROUNDS),
    "created": _number(0, 1e12),
    "expires": _number(0, 1e12),
}
