"""The workloads of the secure benchmarks are what they say."""

from __future__ import annotations

from benchmarks import secure_processes, secure_workloads


def test_rounds_are_those_of_the_protocols() -> None:
    assert secure_processes.rounds_of("mul_1e4") == 3
    assert secure_processes.rounds_of("relu_1e4") == 8
    assert secure_processes.rounds_of("mlp_b1") <= 3 * 3 + 2 * 8  # fewer where the roles of a layer and the next overlap


def test_every_workload_is_one_that_peers_are_measured_with() -> None:
    small = [name for name in secure_workloads.NAMES if not name.endswith(("_b128", "1e6"))]
    for name in small:
        work = secure_workloads.workload(name)
        assert all(one.numel() for one in work.expected)
        assert work.error(secure_workloads.listed(work.function(*work.inputs))) <= 2e-4  # single precision against double
