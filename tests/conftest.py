"""What every test gets: browser and container tests only when asked for, and nothing may be left running."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests run side by side, and start processes: threads of torch that spin for one another take twice the time of everything.

LASTING_THREADS = (
    *("grid", "asyncio_", "asyncio-waitpid", "uvloop_", "ThreadPoolExecutor", "pytest_timeout", "QueueFeederThread", "Dummy"),
)
"""Threads by the start of their name that live as long as the process, or end by themselves soon after their owner."""


OPTIONAL = {
    "browser": ("--browser-tests", "run the tests that drive a real browser, and need one"),
    "containers": ("--containers", "run the tests that drive a container engine, and need one"),
    "network": ("--network-tests", "run the tests in network namespaces, which root can make"),
}
"""Markers of tests that are run where they are asked for."""


def pytest_addoption(parser: pytest.Parser) -> None:
    for option, text in OPTIONAL.values():
        parser.addoption(option, action="store_true", help=text)
    parser.addoption("--fuzz-frames", type=int, default=8000, help="mutated frames that tests/fuzz sends in all")
    parser.addoption("--fuzz-seed", type=int, default=2026, help="the seed that they are made from")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, (option, _) in OPTIONAL.items():
        unasked = [] if config.getoption(option) else [item for item in items if item.get_closest_marker(marker)]
        if unasked:
            config.hook.pytest_deselected(items=unasked)
            items[:] = [item for item in items if item not in unasked]


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that leaves a process or a thread behind fails."""
    threads = set(threading.enumerate())
    processes = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    left = [thread for thread in threading.enumerate() if thread not in threads and not thread.name.startswith(LASTING_THREADS)]
    for thread in left:  # one that was told to stop may need a moment, as those of rich do
        thread.join(1.0)
    left = [thread for thread in left if thread.is_alive()]
    assert not left, f"threads left running: {[thread.name for thread in left]}"
    found = [process for process in psutil.Process().children(recursive=True) if process.pid not in processes]
    children = [process for process in found if not _belongs_to(process, processes)]
    assert not children, f"processes left running: {children}"


def _belongs_to(process: psutil.Process, others: set[int]) -> bool:
    """Whether one of the others started it, as a node that several tests share starts workers; so does one that is gone."""
    try:
        return any(parent.pid in others for parent in process.parents())
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command line configures logging, and takes over the hooks for errors that nobody caught: pytest has its own."""
    root, package = logging.getLogger(), logging.getLogger("grid")
    before = (root.level, package.level, sys.excepthook, sys.unraisablehook, threading.excepthook)
    handlers = list(root.handlers)
    yield
    logging.captureWarnings(False)
    for handler in [one for one in root.handlers if one not in handlers and type(one).__module__ == "grid.logs"]:
        root.removeHandler(handler)
    root.setLevel(before[0])
    package.setLevel(before[1])
    sys.excepthook, sys.unraisablehook, threading.excepthook = before[2:]
