"""Federated learning: what a round costs. Prints JSON lines.

    python -m benchmarks.federated simulated [--nodes 10 100 1000] [--size 1000000] [--lost 0.1]

`simulated`: secure aggregation alone, all nodes in one process (`federated_simulated`); with 1,000 nodes it takes minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import federated_simulated


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federated", description="What a federated round costs.")
    parts = parser.add_subparsers(dest="part", required=True)
    simulated = parts.add_parser("simulated", help="secure aggregation with all nodes in one process")
    simulated.add_argument("--nodes", type=int, nargs="+", default=list(federated_simulated.COHORTS))
    simulated.add_argument("--size", type=int, default=federated_simulated.SIZE, help="parameters of the model")
    simulated.add_argument("--lost", type=float, default=federated_simulated.LOST, help="share of nodes lost after leg 1")
    chosen = parser.parse_args(arguments)
    federated_simulated.run(chosen.nodes, chosen.size, chosen.lost)


if __name__ == "__main__":
    main(sys.argv[1:])
