"""What the tests of this folder share."""

from __future__ import annotations

import pytest
from still_clock import StillClock


@pytest.fixture
def clock() -> StillClock:
    return StillClock()
