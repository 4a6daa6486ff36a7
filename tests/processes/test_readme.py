"""The README's five-minute start works as it stands there, on another port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from grid.demo_processes import processes

pytestmark = pytest.mark.process

README = Path(__file__).parents[2] / "README.md"
URL = "ws://127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def test_the_five_minute_start_works(tmp_path: Path) -> None:
    (data,) = (block for block in blocks("sh") if "patients.csv" in block)
    *making, starting = data.strip().splitlines()
    assert starting.startswith("grid node alice ")
    subprocess.run(["bash", "-euc", "\n".join(making)], cwd=tmp_path, check=True, timeout=30)

    (program,) = blocks("python")
    with processes(tmp_path) as running:
        running.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
        url = running.ready("gateway")["url"]
        words = starting.replace(URL, url).replace(" data ", f" {tmp_path / 'data'} ").split()
        running.start("alice", words[1:])
        assert running.ready("alice")["datasets"] == ["patients"]
        done = subprocess.run(
            [sys.executable, "-c", program.replace(URL, url)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "patients alice 12 ('age', 'pressure', 'ill')" in done.stdout
    assert "tensor([ 50.3333, 136.5000])" in done.stdout
    assert "rows" in done.stdout.splitlines()[-1] and "Instead" in done.stdout
