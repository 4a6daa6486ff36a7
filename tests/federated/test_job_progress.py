"""When a job is the better for a round, and when it ends early."""

from __future__ import annotations

import pytest

from grid.federated.progress import Progress
from grid.federated.spec import Stop


@pytest.mark.parametrize(
    ("stop", "values", "best", "stale"),
    [
        (Stop(metric="accuracy", higher=True), [0.1, 0.2, 0.15], [True, True, False], 1),
        (Stop(), [3.0, 2.0, None, 2.5, 1.0], [True, True, False, False, True], 0),
        (Stop(metric="accuracy", higher=True, min_delta=0.2), [0.1, 0.25, 0.4], [True, True, True], 0),
        (Stop(metric="accuracy", higher=True, min_delta=0.2), [0.1, 0.15, 0.2], [True, True, True], 2),
        (Stop(min_delta=0.2), [1.0, 0.9, 0.75, 0.7], [True, True, True, True], 1),
    ],
)
def test_small_steps_add_up_before_a_job_is_stale(
    stop: Stop, values: list[float | None], best: list[bool], stale: int
) -> None:
    progress = Progress()
    assert [progress.judge(stop, value) for value in values] == best
    assert progress.stale == stale
