"""Federated learning: what a round costs. Prints JSON lines.

    python -m benchmarks.federated rows [fedavg_1e6x4 ...] [--rounds 7]
    python -m benchmarks.federated simulated [--nodes 10 100 1000] [--size 1000000] [--lost 0.1]

`rows`: rounds of a job between real processes (`federated_rows`). `simulated`: secure aggregation alone, all nodes in one process
(`federated_simulated`); with 1,000 nodes it takes minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import federated_rows, federated_simulated


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federated", description="What a federated round costs.")
    parts = parser.add_subparsers(dest="part", required=True)
    rows = parts.add_parser("rows", help="rounds of a job between real processes")
    rows.add_argument("rows", nargs="*", metavar="ROW", help=f"by default all: {', '.join(federated_rows.NAMES)}")
    rows.add_argument("--rounds", type=int, default=7)
    simulated = parts.add_parser("simulated", help="secure aggregation with all nodes in one process")
    simulated.add_argument("--nodes", type=int, nargs="+", default=list(federated_simulated.COHORTS))
    simulated.add_argument("--size", type=int, default=federated_simulated.SIZE, help="parameters of the model")
    simulated.add_argument("--lost", type=float, default=federated_simulated.LOST, help="share of nodes lost after leg 1")
    chosen = parser.parse_args(arguments)
    if chosen.part == "rows":
        unknown = set(chosen.rows) - set(federated_rows.NAMES)
        if unknown:
            parser.error(f"there is no row {', '.join(sorted(unknown))}")
        federated_rows.run(chosen.rows, chosen.rounds)
    else:
        federated_simulated.run(chosen.nodes, chosen.size, chosen.lost)


if __name__ == "__main__":
    main(sys.argv[1:])
