"""What `docs/plans.md` shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import grid
from grid.testing import LocalGrid

PAGE = Path(__file__).parent.parent.parent / "docs" / "plans.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = {"features": torch.randn(60, 30), "targets": torch.randint(0, 2, (60,)), "classes": 2}
    with LocalGrid(nodes={"alice": {"patients": dataset}}) as local:
        ds = local.client().search()[0]
        own = {"grid": grid, "torch": torch, "ds": ds}
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)):
            if not number:
                block = block.replace("torch.zeros(8, 4)", "torch.zeros(8, 30)")
            exec(compile(block, f"plans.md, block {number}", "exec"), own)
        assert float(own["loss"].get()) > 0
        assert (tmp_path / "standardise.plan").exists()
