"""`grid demo` as a user runs it, and as a user interrupts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.process

MARK = "GRID_TEST_MARK"


@pytest.fixture
def mark() -> Iterator[str]:
    """A value in the environment of everything that the test starts; nothing may be left of it."""
    value = uuid.uuid4().hex
    yield value
    assert marked(value) == []


def marked(mark: str) -> list[psutil.Process]:
    """The processes that run with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile, or is another user's
    return found


def start(mark: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {MARK: mark, "COLUMNS": "120"}
    command = [sys.executable, "-m", "grid", "demo", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=_hear_interrupts
    )


def _hear_interrupts() -> None:
    """A shell starts its background jobs deaf to SIGINT, and children inherit that: undo it for the one that is to hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"{words!r} was not printed:\n{''.join(lines)}\n{process.communicate()[1]}")


def test_the_demo_learns_what_pooled_data_would_teach_and_tells_its_story(mark: str, tmp_path: Path) -> None:
    process = start(mark, "--json", "--keep", str(tmp_path / "kept"))
    out, story = process.communicate(timeout=120)
    assert process.returncode == 0, story
    summary = json.loads(out)
    assert summary["owners"] == 3 and summary["training_rows"] == 455 and summary["test_rows"] == 114
    assert summary["accuracy"] > 0.93
    assert abs(summary["accuracy"] - summary["pooled_accuracy"]) <= 0.01
    assert summary["loss"] < summary["first_loss"] / 3
    assert "rows" in summary["refused"] and "Instead" in summary["refused"]
    assert summary["scored_rows"] == 38 and summary["scores_off"] < 0.01 and "carol" in summary["scores_refused"]
    assert summary["client_bytes"] > 10_000
    assert all(owner in story for owner in ("alice", "bob", "carol")) and "accuracy" in story and "pooled" in story
    assert (tmp_path / "kept" / "alice" / "train.toml").exists()
    assert len(list((tmp_path / "kept" / "carol-state" / "results").glob("*.npy"))) == 1


def test_an_interrupted_demo_leaves_no_process(mark: str) -> None:
    process = start(mark, "--rounds", "200")
    read_until(process, "Training")
    assert len(marked(mark)) >= 5
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_a_demo_that_fails_leaves_no_process(mark: str, tmp_path: Path) -> None:
    """One owner's folder exists already, so its data cannot be written."""
    (tmp_path / "bob").mkdir()
    process = start(mark, "--keep", str(tmp_path))
    _, errors = process.communicate(timeout=120)
    assert process.returncode not in (0, 130)
    assert "Traceback" not in errors and str(tmp_path / "bob") in errors
