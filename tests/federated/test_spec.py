"""A job as its client signs it: round trips, and everything that a hostile client or gateway could make of it is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid.clock import SystemClock
from grid.crypto.cards import Card, read_card
from grid.crypto.envelope import seal
from grid.crypto.identity import LocalIdentity
from grid.errors import AuthenticationFailed, InvalidRequest
from grid.federated.spec import KIND, MAX_AGE_S, JobSpec, Stop, model_digest, read_job
from grid.ids import JobId, PeerId, PlanId

CLOCK = SystemClock()
ME = LocalIdentity.create(name="carla", role="client", clock=CLOCK)
OTHER = LocalIdentity.create(name="mallory", role="client", clock=CLOCK)
NODES = tuple(LocalIdentity.create(name=name, role="node", clock=CLOCK).id for name in ("alice", "bob", "carol"))
NOW = 1_800_000_000.0


def card_of(me: LocalIdentity) -> Card:
    return read_card(me.card_for(CLOCK))


def spec(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "job": JobId("0" * 32),
        "name": "digits",
        "client": ME.id,
        "train": PlanId("a" * 64),
        "evaluate": PlanId("b" * 64),
        "datasets": tuple((node, "digits") for node in NODES),
        "rounds": 5,
        "local": {"kind": "local", "epochs": 1},
        "strategy": {"kind": "fedavg"},
        "created": NOW,
        "expires": NOW + 3600.0,
    }
    return JobSpec(**(values | changes))


def test_a_signed_job_is_read_as_it_was() -> None:
    full = spec(
        datasets=((NODES[0], "a"), (NODES[0], "b"), (NODES[1], "c")),
        min_nodes=2,
        seed=bytes(range(32)),
        metrics=("loss", "accuracy"),
        stop=Stop(metric="accuracy", patience=3, min_delta=0.01, higher=True),
        fraction=0.5,
        weighting="equal",
    )
    read = read_job(full.sign(ME), card_of(ME), NOW)
    assert read == full
    assert read.nodes == (NODES[0], NODES[1])
    assert read.datasets_of(NODES[0]) == ("a", "b") and read.datasets_of(NODES[2]) == ()
    assert read.sums == ("loss", "accuracy", "examples")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job", "0" * 31),
        ("job", "G" * 32),
        ("name", "x" * 201),
        ("train", "a" * 63),
        ("evaluate", None),
        ("datasets", []),
        ("datasets", [["nobody", "digits"]]),
        ("datasets", [[NODES[0], ""]]),
        ("datasets", [[NODES[0], "digits"], [NODES[0], "digits"], [NODES[1], "x"], [NODES[2], "x"]]),
        ("rounds", -1),
        ("rounds", True),
        ("rounds", 10**9),
        ("local", {"x": "y" * 5000}),
        ("local", []),
        ("secure", 1),
        ("min_nodes", 0),
        ("min_nodes", 4),
        ("fraction", 0.0),
        ("fraction", math.nan),
        ("deadline_s", math.inf),
        ("weighting", "mine"),
        ("seed", b"short"),
        ("metrics", []),
        ("metrics", ["loss"] * 17),
        ("metrics", ["accuracy"]),
        ("stop", {"metric": "loss"}),
        ("stop", {"metric": "loss", "patience": -1, "min_delta": 0.0, "higher": False}),
        ("evaluate_every", 1.5),
        ("expires", NOW - 10.0),
        ("expires", NOW + MAX_AGE_S + 1),
        ("created", "now"),
    ],
)
def test_what_is_no_job_is_refused_though_its_client_signed_it(field: str, value: Any) -> None:
    with pytest.raises(AuthenticationFailed):
        read_job(sealed(**{field: value}), card_of(ME), NOW)


def sealed(**changes: Any) -> bytes:
    """A job with these fields, whatever they are, as its client could sign it."""
    return seal(KIND, msgpack.packb(dataclasses.asdict(spec()) | changes), ME.key)


BOUNDS: dict[str, tuple[list[Any], str]] = {
    "job": (["0" * 31, 7], "a text of 32 hexadecimal digits"),
    "name": (["x" * 201], "have from 0 to 200 characters, not 201"),
    "client": (["carla"], "the id of a peer"),
    "train": (["a" * 63], "a text of 64 hexadecimal digits"),
    "evaluate": (["A" * 64], "a text of 64 hexadecimal digits"),
    "datasets": ([[], [["x", "y"]] * 10_001], "a list of 1 to 10000"),
    "rounds": ([-1, 100_001, 2.0, True], "a whole number from 0 to 100000, not "),
    "local": ([{"x": "y" * 5000}], "named values, 4096 bytes at most"),
    "strategy": ([[]], "named values, 4096 bytes at most"),
    "strategy_plan": (["0"], '"" or a text of 64 hexadecimal digits'),
    "secure": ([1], "true or false, not 1"),
    "min_nodes": ([0, 10_001], "a whole number from 1 to 10000, not "),
    "fraction": ([0.0, 1.5], "at least 1e-06 and at most 1, not "),
    "deadline_s": ([0, 1e9], "at least 0.01 and at most 604800, not "),
    "weighting": (["mine"], "one of examples, equal, not 'mine'"),
    "seed": ([b"short"], "32 bytes or none"),
    "metrics": ([[], ["loss"] * 17], "a list of 1 to 16; "),
    "stop": ([{}, {"metric": "loss"}], "have metric, patience, min_delta, higher"),
    "evaluate_every": ([-1, 100_001], "a whole number from 0 to 100000, not "),
    "created": ([-1.0, 1e13], r"at least 0 and at most 1e\+12, not "),
    "expires": ([-1.0, 1e13], r"at least 0 and at most 1e\+12, not "),
}


def test_every_bound_is_named_by_who_breaks_it() -> None:
    assert set(BOUNDS) == {field.name for field in dataclasses.fields(JobSpec)}
    for field, (values, bound) in BOUNDS.items():
        for value in values:
            with pytest.raises(InvalidRequest, match=f"^job: {field} must (be )?{bound}"):
                spec(**{field: value}).sign(ME)
            with pytest.raises(AuthenticationFailed, match=f"^job: {field} must (be )?{bound}"):
                read_job(sealed(**{field: value}), card_of(ME), NOW)
    for changes, bound in (
        ({"patience": -1}, "stop.patience must be a whole number from 0 to 100000, not -1"),
        ({"min_delta": 1e10}, "stop.min_delta must be at least 0 and at most 1e"),
        ({"higher": 1}, "stop.higher must be true or false, not 1"),
        ({"metric": "x" * 201}, "stop.metric must have from 1 to 200 characters, not 201"),
    ):
        with pytest.raises(InvalidRequest, match=bound):
            spec(stop=Stop(**changes)).sign(ME)  # type: ignore[arg-type]
    for name in ("", "x" * 201):
        with pytest.raises(AuthenticationFailed, match="each of datasets must be a node's id and a name of 1 to 200 characters"):
            read_job(sealed(datasets=[[NODES[0], name]]), card_of(ME), NOW)
    with pytest.raises(AuthenticationFailed, match="expires must be after created, by 2592000 s"):
        read_job(sealed(expires=NOW + MAX_AGE_S + 1), card_of(ME), NOW)


@pytest.mark.parametrize("change", ["missing", "more", "list", "kind"])
def test_a_job_of_another_form_is_refused(change: str) -> None:
    fields: Any = dataclasses.asdict(spec())
    if change == "missing":
        del fields["secure"]
    elif change == "more":
        fields["secure_too"] = False
    elif change == "list":
        fields = list(fields.values())
    with pytest.raises(AuthenticationFailed):
        read_job(seal("another kind" if change == "kind" else KIND, msgpack.packb(fields), ME.key), card_of(ME), NOW)


def test_a_job_breaks_no_rule_of_its_own_when_it_is_signed() -> None:
    with pytest.raises(InvalidRequest, match="min_nodes is 4, and the datasets are at 3 nodes"):
        spec(min_nodes=4).sign(ME)


def test_nobody_signs_for_another() -> None:
    envelope = spec().sign(ME)
    with pytest.raises(AuthenticationFailed):
        read_job(envelope, card_of(OTHER), NOW)
    with pytest.raises(AuthenticationFailed, match="another client"):
        read_job(spec(client=ME.id).sign(OTHER), card_of(OTHER), NOW)


@given(st.data())
def test_one_changed_byte_makes_no_job(data: st.DataObject) -> None:
    envelope = bytearray(spec().sign(ME))
    at = data.draw(st.integers(0, len(envelope) - 1))
    envelope[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AuthenticationFailed):
        read_job(bytes(envelope), card_of(ME), NOW)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_job_or_a_refusal(junk: bytes) -> None:
    for envelope in (junk, seal(KIND, junk, ME.key)):
        with pytest.raises(AuthenticationFailed):
            read_job(envelope, card_of(ME), NOW)


def test_a_job_counts_within_its_time_alone() -> None:
    envelope = spec().sign(ME)
    read_job(envelope, card_of(ME), NOW - 299)
    for wall in (NOW - 301, NOW + 3601):
        with pytest.raises(AuthenticationFailed, match="time"):
            read_job(envelope, card_of(ME), wall)


def test_a_node_has_a_seed_of_its_own_by_its_place() -> None:
    seeded = spec(seed=bytes(32))
    assert len({seeded.seed_of(node) for node in NODES}) == 3
    elsewhere = spec(seed=bytes(32), datasets=tuple((node, "x") for node in reversed(NODES)))
    assert seeded.seed_of(NODES[0]) == elsewhere.seed_of(NODES[2])
    assert spec().seed_of(NODES[0]) == b""


def test_the_rounds_that_evaluate() -> None:
    assert [spec(evaluate_every=3).evaluates(number) for number in range(1, 8)] == [True, False, False, True, False, False, True]
    assert not any(spec(evaluate_every=0).evaluates(number) for number in range(1, 8))


def test_a_model_belongs_to_its_job() -> None:
    one, other = spec().sign(ME), spec(name="other").sign(ME)
    digests = {model_digest(envelope, weights) for envelope in (one, other) for weights in (b"", b"1234", b"1235")}
    assert len(digests) == 6 and all(len(digest) == 32 for digest in digests)
    assert model_digest(one, memoryview(b"1234")) == model_digest(one, b"1234")


def test_a_peer_is_no_client() -> None:
    with pytest.raises(InvalidRequest):
        spec(client=PeerId("carla")).sign(ME)
