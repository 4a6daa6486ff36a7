"""Three processes over loopback compute what one computes in the clear."""

from __future__ import annotations

import pytest

from benchmarks import secure_processes, secure_workloads


@pytest.mark.process
def test_three_processes_agree_with_the_clear() -> None:
    lines = secure_processes.run_processes(["relu_1e4", "mlp_b1"], runs=1)
    assert len(lines) == 3
    for own in lines:
        assert [line["error"] < bound for line, bound in zip(own, (1e-5, 2e-4), strict=True)] == [True, True]
        assert all(line["bytes_sent"] > 1000 for line in own)


def test_rounds_are_those_of_the_protocols() -> None:
    assert secure_processes.rounds_of("mul_1e4") == 3
    assert secure_processes.rounds_of("relu_1e4") == 10
    assert secure_processes.rounds_of("mlp_b1") <= 3 * 3 + 2 * 10  # fewer where the roles of a layer and the next overlap


def test_every_workload_is_one_that_peers_are_measured_with() -> None:
    small = [name for name in secure_workloads.NAMES if not name.endswith(("_b128", "1e6"))]
    for name in small:
        work = secure_workloads.workload(name)
        assert work.expected.numel()
        assert work.error(work.function(*work.inputs)) <= 2e-4  # single precision against double
