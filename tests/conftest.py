"""What every test gets: the browser tests only when asked for, and nothing may be left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psutil
import pytest

LASTING_THREADS = (
    *("grid", "asyncio_", "asyncio-waitpid", "uvloop_", "ThreadPoolExecutor", "pytest_timeout", "QueueFeederThread", "Dummy"),
)
"""Threads by the start of their name that live as long as the process, or end by themselves soon after their owner."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--browser-tests", action="store_true", help="run the tests that drive a real browser, and need one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--browser-tests"):
        return
    browser = [item for item in items if item.get_closest_marker("browser")]
    if browser:
        config.hook.pytest_deselected(items=browser)
        items[:] = [item for item in items if item not in browser]


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that leaves a process or a thread behind fails."""
    threads = set(threading.enumerate())
    processes = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
    left = [name for name in left if not name.startswith(LASTING_THREADS)]
    assert not left, f"threads left running: {left}"
    children = [process for process in psutil.Process().children(recursive=True) if process.pid not in processes]
    assert not children, f"processes left running: {children}"
