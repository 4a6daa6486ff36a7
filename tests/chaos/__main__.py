"""`python -m tests.chaos --minutes 5 --seed 1`: prints a report as JSON; exit code 1 where something was not right."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import chaos


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--pace", type=float, default=4.0, help="seconds between faults, on average")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="grid-chaos-") as folder:
        report = chaos(Path(folder), seed=arguments.seed, seconds=60 * arguments.minutes, pace_s=arguments.pace)
    print(json.dumps(report.facts(), indent=1))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
