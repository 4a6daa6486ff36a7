"""A short chaos run; `python -m tests.chaos --minutes 5` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import CLIENTS, chaos


@pytest.mark.process
@pytest.mark.timeout(300)
def test_every_answer_is_right_or_an_error_while_services_die_and_freeze(tmp_path: Path) -> None:
    report = chaos(tmp_path, seed=11, seconds=10.0, pace_s=1.5)
    assert report.problems == [], report.facts()
    assert sum(report.faults.values()) >= 3 and sum(report.right.values()) >= 5 * len(CLIENTS)  # it met what it is about
