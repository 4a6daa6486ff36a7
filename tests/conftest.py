"""What every test gets: browser and container tests only when asked for, and nothing may be left running."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

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


LONGEST = (
    *("processes/test_services.py", "processes/test_demo.py", "plans/test_steps.py", "client/test_committees.py"),
    *("node/test_limits.py", "processes/test_federated_processes.py", "processes/test_probes.py", "examples/test_journeys.py"),
    *("policy/test_soundness.py", "node/test_hostile_committees.py", "processes/test_log_contents.py", "node/test_runtimes.py"),
    *("processes/test_enrolment.py", "processes/test_restarts.py", "processes/test_workers.py", "smpc/test_secrecy.py"),
    *("processes/test_behind_nginx.py", "processes/test_readme.py", "plans/test_tracing.py", "client/test_client_jobs.py"),
)
"""The files that take longest (`--durations=80`), in order. They start first: one that starts last would run alone at the end."""


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
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    assert all(path.exists() for path in places), "LONGEST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """The collector need not look through all modules and tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that leaves a process or a thread behind fails."""
    threads = set(threading.enumerate())
    processes = {process.pid for process in _running()}
    yield
    left = [thread for thread in threading.enumerate() if thread not in threads and not thread.name.startswith(LASTING_THREADS)]
    for thread in left:  # one that was told to stop may need a moment, as those of rich do
        thread.join(1.0)
    left = [thread for thread in left if thread.is_alive()]
    assert not left, f"threads left running: {[thread.name for thread in left]}"
    found = [process for process in _running() if process.pid not in processes]
    children = [process for process in found if not _belongs_to(process, processes)]
    assert not children, f"processes left running: {children}"


def _running() -> list[psutil.Process]:
    """The processes that were started from here, and by those. Looking through all of the system's takes milliseconds, twice a
    test; Linux says of each thread whether it has any."""
    with contextlib.suppress(OSError):  # another system, or a thread that has just ended
        if not any(children.read_text() for children in Path("/proc/self/task").glob("*/children")):
            return []
    return psutil.Process().children(recursive=True)


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
