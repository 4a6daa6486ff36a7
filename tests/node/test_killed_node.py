"""A node that is killed in the middle of releases has counted every value that anybody received."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from mortal_node import CLIENTS

from grid.store.sqlite import SqliteStore

DEATHS = 12
PATIENCE_S = 60.0


def counted(ledger: Path) -> int:
    """Elements that the node's memory says were released."""
    store = SqliteStore(ledger)
    state = store.load("numbers")
    store.close()
    assert state is not None
    return state.elements


@pytest.mark.process
def test_no_value_leaves_uncounted_however_often_the_node_is_killed(tmp_path: Path) -> None:
    """One ledger lives through all the deaths; each process goes on from what the one before it has left."""
    rng, received, lost = Random(20), 0, 0
    ledger = tmp_path / "store.sqlite"
    hears, says = os.pipe()
    command = [sys.executable, str(Path(__file__).with_name("mortal_node.py")), str(ledger), str(says)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(says,)) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        for _ in range(DEATHS):
            print(file=parent.stdin, flush=True)
            process = int(parent.stdout.readline())
            os.set_blocking(hears, True)
            for _ in range(rng.randint(1, 25)):
                received += len(os.read(hears, 1))
            os.kill(process, signal.SIGKILL)
            assert int(parent.stdout.readline()) == -signal.SIGKILL
            os.set_blocking(hears, False)
            with contextlib.suppress(BlockingIOError):
                received += len(os.read(hears, 1 << 16))
            lost += CLIENTS  # a death may take one answer of each client with it that was counted and did not arrive
            assert received <= counted(ledger) <= received + lost
        parent.stdin.close()
        assert parent.wait(PATIENCE_S) == 0
    os.close(hears)
    os.close(says)
