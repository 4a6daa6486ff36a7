"""Plans that earlier versions of grid made: they load, have the id they had, and give what they gave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grid.errors import PlanRejected
from grid.plans import encoding
from grid.plans.ir import Plan, decode

HERE = Path(__file__).parent
GOLDEN = sorted((HERE / "golden").glob("*.plan"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_plan_of_an_earlier_version_loads_and_runs(path: Path) -> None:
    plan = Plan.load(path)
    assert plan.encoding == path.read_bytes()
    with np.load(path.with_suffix(".npz")) as kept:
        assert str(plan.id) == str(kept["id"])
        leaves = [torch.from_numpy(kept[f"in{at}"]) for at in range(len(plan.inputs))]
        expected = [torch.from_numpy(kept[f"out{at}"]) for at in range(len(plan.outputs))]
    for ours, theirs in zip(plan._compiled(leaves), expected, strict=True):
        assert ours.dtype is theirs.dtype and ours.shape == theirs.shape
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-4, atol=1e-4)
    assert plan.code.startswith("def ")


def test_there_are_golden_plans_of_the_first_version() -> None:
    assert len([path for path in GOLDEN if path.name.startswith("0.1-")]) >= 6


def test_a_plan_of_a_newer_format_says_what_to_do() -> None:
    data = GOLDEN[0].read_bytes()
    at = data.index(b"grid-plan") + len(b"grid-plan")
    assert data[at] == encoding.VERSION
    newer = data[:at] + bytes([encoding.VERSION + 1]) + data[at + 1 :]
    with pytest.raises(PlanRejected, match=r"made by a newer version of grid .plan format 2.*install the newer version"):
        decode(newer)
    for wrong in (b"\x00", b"\xff", b"\xc3"):
        with pytest.raises(PlanRejected, match="not a plan"):
            decode(data[:at] + wrong + data[at + 1 :])


TRACE = """
import sys
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + "/golden")
from grid.plans.trace import trace
from make import GOLDEN
for name in ("mlp-adam", "many-kinds", "lstm"):
    function, arguments = GOLDEN[name]()
    print(trace(function, *arguments).id)
"""


def test_ids_do_not_depend_on_process_run_or_hash_seed() -> None:
    found = []
    for seed in ("0", "1234"):
        command = [sys.executable, "-c", TRACE, str(HERE)]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        out = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True, env=env)
        found.append(out.stdout.split())
    assert found[0] == found[1] and len(set(found[0])) == 3
