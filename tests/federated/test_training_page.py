"""What `docs/federated-training.md` shows runs as it stands, and names the defaults that there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import grid
from grid.federated.custom import StrategyLimits
from grid.federated.metrics import METRICS
from grid.federated.strategies import PLAIN
from grid.settings import NodeSettings

PAGE = Path(__file__).parent.parent.parent / "docs" / "federated-training.md"


@pytest.mark.skipif(sys.platform != "linux", reason="strategies of one's own run on Linux")
def test_the_examples_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own: dict[str, object] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)):
        exec(compile(block, f"federated-training.md, block {number}", "exec"), own)
    assert isinstance(own["local"], grid.Local)
    assert "cross_entropy" in str(own["code"]) or "nll_loss" in str(own["code"])
    shown = capsys.readouterr().out.strip()
    assert shown == "[ 0.03 -0.03  0.  ]" and f"# {shown}" in PAGE.read_text()


def test_it_names_what_there_is() -> None:
    text = PAGE.read_text()
    for cls in PLAIN.values():
        assert f"`{cls.__name__}" in text, cls.__name__
        assert getattr(grid, cls.__name__) is cls
    assert all(f"`{name}`" in text for name in METRICS)
    settings, limits = NodeSettings(), StrategyLimits()
    assert f"| `max_trainings` | {settings.max_trainings} |" in text
    assert f"| `max_training_s` | {settings.max_training_s:g} s |" in text
    assert f"time ({limits.seconds:g} s), memory ({limits.max_bytes >> 30} GiB)" in text
