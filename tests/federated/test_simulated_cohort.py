"""The benchmark of secure aggregation with all nodes in one process, on a small cohort: figures of a sum that is exact."""

from __future__ import annotations

from benchmarks.federated_simulated import simulate


def test_a_simulated_round_says_what_each_leg_takes_and_what_travels() -> None:
    told = simulate(7, 1000, 1)
    assert (told["nodes"], told["lost"], told["parameters"]) == (7, 1, 1000)
    assert told["max_abs_error"] < 1e-4
    assert {"keys", "share", "encode", "masked", "consent", "reveal"} < set(told["node_seconds"])
    assert told["floor_node_bytes_sent"] == 4000 < told["node_bytes_sent"] < 8000
