"""`python -m tests.fuzz`: 200,000 mutated frames of every type of message, outside and inside authenticated sessions.

Further arguments go to pytest, such as `--fuzz-seed 7` or `--fuzz-frames 1000000`. A share of it is part of `make test`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.exit(pytest.main([str(Path(__file__).parent), "--fuzz-frames=200000", "-o", "timeout=3000", "--durations=0", *sys.argv[1:]]))
