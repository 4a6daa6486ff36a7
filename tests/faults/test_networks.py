"""Real processes in network namespaces, over a wire that delays, loses, cuts, is half open, or ends at a slow reader.

In each: the others work on, errors are clear and come in time, and everything recovers when the network does.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.namespaces import LEASE_S, PATIENCE_S, Rig, missing, rig

pytestmark = [pytest.mark.process, pytest.mark.network, pytest.mark.timeout(240)]

IN_TIME_S = PATIENCE_S + LEASE_S + 4.0
"""Silence is noticed after `patience_s`, and then the connection has `lease_s` to come back; the rest is for a busy machine."""

LOST = {"unavailable", "deadline"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if reason := missing():
        pytest.skip(reason)
    with rig(tmp_path_factory.mktemp("namespaces")) as running:
        yield running


@pytest.fixture
def grid(shared: Rig) -> Iterator[Rig]:
    """The grid, well before and after each test."""
    for client in ("ann", "ben"):
        shared.until_right(client)
    yield shared
    shared.fault()
    for client in ("ann", "ben"):
        shared.until_right(client)


def test_a_long_way_is_slow_and_right(grid: Rig) -> None:
    grid.both_ways("ann", "gateway", delay_s=0.1)
    answer = grid.do("ann")
    assert answer["outcome"] == "right" and answer["s"] > 0.2
    assert grid.do("ben")["s"] < answer["s"]


def test_lost_packets_cost_time_alone(grid: Rig) -> None:
    grid.both_ways("ann", "gateway", loss=0.05)
    for _ in range(10):
        assert grid.do("ann")["outcome"] == "right"
        assert grid.do("ben")["outcome"] == "right"
    assert grid.fault() > 0


def test_a_node_that_is_cut_off_is_said_to_be_and_comes_back(grid: Rig) -> None:
    grid.both_ways("alice", "gateway", loss=1.0)
    for client in ("ann", "ben"):
        answer = grid.do(client)
        assert answer["outcome"] in LOST and "alice" in answer["message"], answer
        assert answer["s"] < IN_TIME_S, answer
    assert grid.do("ben", "search")["outcome"] == []
    while (listed := grid.do("ben", "nodes")["outcome"]) != {"alice": "offline"}:
        assert listed == {"alice": "online"}
    grid.fault()
    grid.until_right("ann")
    assert grid.do("ben", "nodes")["outcome"] == {"alice": "online"}


@pytest.mark.parametrize(("source", "target"), [("ann", "gateway"), ("gateway", "ann")])
def test_a_half_open_connection_is_noticed_at_both_ends_and_others_go_on(grid: Rig, source: str, target: str) -> None:
    grid.fault((source, target, 0.0, 1.0))
    grid.begin("ann", "work")
    others = [grid.do("ben") for _ in range(20)]
    assert {answer["outcome"] for answer in others} == {"right"}
    answer = grid.end("ann")
    assert answer["outcome"] in LOST and answer["s"] < IN_TIME_S, answer
    grid.fault()
    grid.until_right("ann")


def test_a_client_that_is_cut_in_the_middle_of_a_large_value_gets_an_error_and_goes_on(grid: Rig) -> None:
    grid.begin("ann", "large")
    grid.both_ways("ann", "gateway", loss=1.0)
    assert grid.do("ben")["outcome"] == "right"
    answer = grid.end("ann")
    assert answer["outcome"] in LOST and answer["s"] < IN_TIME_S, answer
    grid.fault()
    grid.until_right("ann")


def test_work_in_the_middle_of_a_cut_goes_on_when_that_is_healed_within_the_lease(grid: Rig) -> None:
    grid.begin("ann", "large")
    grid.both_ways("ann", "gateway", loss=1.0)
    began = time.monotonic()
    while time.monotonic() < began + PATIENCE_S + 0.5:  # by then both ends have given the connection up
        assert grid.do("ben")["outcome"] == "right"
    assert grid.fault() > 0
    answer = grid.end("ann")
    assert answer["outcome"] == "right" and answer["s"] > PATIENCE_S, answer


def test_a_client_that_stops_reading_holds_up_nobody_else(grid: Rig) -> None:
    ann = grid.clients["ann"].process
    grid.begin("ann", "large")
    grid.do("ben")  # by then ann's value is on its way
    ann.send_signal(signal.SIGSTOP)
    try:
        others = [grid.do("ben") for _ in range(30)]
    finally:
        ann.send_signal(signal.SIGCONT)
    assert {answer["outcome"] for answer in others} == {"right"}
    assert grid.end("ann")["outcome"] in {"right", *LOST}
    grid.until_right("ann")
