"""Strategies for messages, and parties to talk to, are with the tests of those."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for folder in ("wire", "rpc", "client"):
    sys.path.append(str(Path(__file__).parent.parent / folder))

SHARES = {
    **{"decoding": 0.45, "strangers": 0.05, "handshakes": 0.05, "clients": 0.203, "nodes": 0.05, "members": 0.1, "answers": 0.05},
    **{"job clients": 0.03, "job nodes": 0.002, "job gateways": 0.01, "job legs": 0.005},
}
"""How the frames are spread over the parts of the run."""


@pytest.fixture(scope="session", autouse=True)
def valid_frames() -> None:
    """They take seconds to make: not while files are collected, which every process does, and not while a peer waits."""
    from mutants import frames_of_every_type

    frames_of_every_type()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of the run."""
    value: int = request.config.getoption("--fuzz-seed")
    return value


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    """How many mutated frames this part of the run sends."""
    total: int = request.config.getoption("--fuzz-frames")
    return round(total * SHARES[request.node.get_closest_marker("fuzz").args[0]])
