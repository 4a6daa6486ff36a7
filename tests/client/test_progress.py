"""The line that shows on a terminal while a call waits for long."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from grid.client import progress
from grid.client.progress import waiting_line, watch


class Screen(io.StringIO):
    """A standard error, of a terminal or not."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.001)
    monkeypatch.setattr(progress, "STEP_S", 0.001)
    monkeypatch.setenv("TERM", "xterm")


class Call:
    """A call that is done once its traffic was looked at so often."""

    def __init__(self, looks: int) -> None:
        self.done = threading.Event()
        self._looks = looks
        self._seen = 0

    def traffic(self) -> tuple[int, int]:
        self._seen += 1
        if self._seen == self._looks:
            self.done.set()
        return 3_200_000 * self._seen, 100_000 * self._seen


def test_a_long_call_shows_its_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    call = Call(looks=4)
    watch(call.done.wait, call.traffic)
    assert call.done.is_set() and "MB sent" in screen.getvalue()


def test_nothing_shows_where_no_terminal_is_or_nothing_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for screen, looks in ((Screen(is_terminal=False), 4), (Screen(is_terminal=True), 1)):
        monkeypatch.setattr(sys, "stderr", screen)
        call = Call(looks)
        watch(call.done.wait, call.traffic)
        assert screen.getvalue() == ""


def test_the_line() -> None:
    assert waiting_line(3_200_000, 100_000, 12.4) == "waiting 12 s: 3.2 MB sent, 0.1 MB received"
