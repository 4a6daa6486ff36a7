"""What a job is, as its client signs it: the one thing in a job that nodes believe because of who said it.

A gateway carries the spec and cannot change it: plans, datasets, rounds, and whether updates are summed under masks are the
client's word. Each node checks the client's card and signature, and then its own rules.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from grid.crypto.cards import Card
from grid.crypto.envelope import read, seal, unpack
from grid.crypto.identity import LocalIdentity
from grid.crypto.keys import is_id
from grid.errors import AuthenticationFailed, InvalidRequest
from grid.federated.plain import Check, choice, flag, number, text, whole
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

    def seed_of(self, node: PeerId, secret: bytes = b"") -> bytes:
        """The seed of one node's training: follows from the job's, the node's place among the nodes and a secret of the node.

        b"" where the job has none.
        """
        return seed_at(self.seed, self.nodes.index(node), secret) if self.seed else b""

    @property
    def work(self) -> bytes:
        """A digest of what the job does; the same for one that is started again, by whomever."""
        fields = dataclasses.asdict(self)
        for name in ("job", "name", "client", "created", "expires"):
            del fields[name]
        return hashlib.sha256(b"grid job work 1\0" + msgpack.packb(fields)).digest()

    def sign(self, me: LocalIdentity) -> bytes:
        """The spec as an envelope signed by its client. Raises `InvalidRequest` where it breaks its own rules."""
        packed: bytes = msgpack.packb(dataclasses.asdict(self))
        _decoded(packed, InvalidRequest)
        return seal(KIND, packed, me.key)


def seed_at(seed: bytes, place: int, secret: bytes = b"") -> bytes:
    """The seed of the node at this place, from 0, in a job with this seed of 32 bytes."""
    return hashlib.sha256(b"grid job seed 1\0" + seed + place.to_bytes(4, "little") + secret).digest()


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
    try:
        for name, check in CHECKS.items():
            check(name, found[name])
    except InvalidRequest as fault:
        raise error(f"job: {fault.message}") from None
    datasets = tuple((PeerId(node), str(name)) for node, name in found["datasets"])
    spec = JobSpec(**{**found, "datasets": datasets, "metrics": tuple(found["metrics"]), "stop": Stop(**found["stop"])})
    if len(set(datasets)) != len(datasets):
        raise error("job: a dataset is named twice")
    if spec.min_nodes > len(spec.nodes):
        raise error(f"job: min_nodes is {spec.min_nodes}, and the datasets are at {len(spec.nodes)} nodes")
    if spec.stop.metric not in spec.metrics:
        raise error(f"job: the metric {spec.stop.metric[:40]!r} is not among those that are computed")
    if not spec.created < spec.expires <= spec.created + MAX_AGE_S:
        raise error(f"job: expires must be after created, by {MAX_AGE_S:.0f} s at most")
    return spec


def _must_be(what: str, fits: Callable[[Any], bool]) -> Check:
    def check(name: str, value: Any) -> Any:
        if not fits(value):
            raise InvalidRequest(f"{name} must be {what}")
        return value

    return check


def _hexadecimal(digits: int) -> Check:
    return _must_be(f"a text of {digits} hexadecimal digits", lambda value: _is_hexadecimal(value, digits))


def _is_hexadecimal(value: object, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and all(letter in "0123456789abcdef" for letter in value)


def _list(most: int, each: Check) -> Check:
    """From 1 to `most` values, each of which passes `each`."""

    def check(name: str, value: Any) -> Any:
        if type(value) not in (list, tuple) or not 0 < len(value) <= most:
            given = f"{len(value)} were given" if type(value) in (list, tuple) else f"not {type(value).__name__}"
            raise InvalidRequest(f"{name} must be a list of 1 to {most}; {given}")
        for one in value:
            each(f"each of {name}", one)
        return value

    return check


def _is_dataset(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
        and is_id(value[0])
        and 0 < len(value[1]) <= MAX_NAME
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value) and len(msgpack.packb(value)) <= MAX_PLAIN_BYTES


def _stop(name: str, value: Any) -> Any:
    if not isinstance(value, dict) or set(value) != set(STOP_CHECKS):
        raise InvalidRequest(f"{name} must have {', '.join(STOP_CHECKS)}, and nothing else")
    for field, check in STOP_CHECKS.items():
        check(f"{name}.{field}", value[field])
    return value


STOP_CHECKS: Mapping[str, Check] = {
    "metric": text(1, MAX_NAME),
    "patience": whole(0, MAX_ROUNDS),
    "min_delta": number(0, 1e9),
    "higher": flag,
}

_plain = _must_be(f"named values, {MAX_PLAIN_BYTES} bytes at most as they are encoded", _is_plain)
_id = _must_be("the id of a peer", lambda value: isinstance(value, str) and is_id(value))

CHECKS: Mapping[str, Check] = {
    "job": _hexadecimal(32),
    "name": text(0, MAX_NAME),
    "client": _id,
    "train": _hexadecimal(64),
    "evaluate": _hexadecimal(64),
    "datasets": _list(MAX_NODES, _must_be(f"a node's id and a name of 1 to {MAX_NAME} characters", _is_dataset)),
    "rounds": whole(0, MAX_ROUNDS),
    "local": _plain,
    "strategy": _plain,
    "strategy_plan": _must_be('"" or a text of 64 hexadecimal digits', lambda value: value == "" or _is_hexadecimal(value, 64)),
    "secure": flag,
    "min_nodes": whole(1, MAX_NODES),
    "fraction": number(1e-6, 1.0),
    "deadline_s": number(0.01, MAX_DEADLINE_S),
    "weighting": choice(*WEIGHTINGS),
    "seed": _must_be("32 bytes or none", lambda value: isinstance(value, bytes) and len(value) in (0, 32)),
    "metrics": _list(MAX_METRICS, text(1, 40)),
    "stop": _stop,
    "evaluate_every": whole(0, MAX_ROUNDS),
    "created": number(0, 1e12),
    "expires": number(0, 1e12),
}
"""Field of a job -> its bounds, with which the error that names the field names them."""
