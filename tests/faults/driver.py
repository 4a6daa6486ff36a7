"""A client in a network namespace, which does what it is told: a line on standard input is a piece of work, answered by JSON.

    python -m tests.faults.driver URL PATIENCE_S LEASE_S

"work" sends a few numbers and reads them back; "large" does so with 40 MB; "search" looks for datasets; "nodes" lists them.
The answer is {"outcome": "right" or an error's code, "message", "s"}.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

import grid
from grid.client.blocking import Client
from grid.settings import ClientSettings, SessionLimits

LARGE = 10_000_000
TIMEOUT_S = 20.0


def do(client: Client, work: str) -> Any:
    """One piece of work; raises `AssertionError` where the answer is wrong."""
    if work == "nodes":
        return {node.name: node.state for node in client.nodes.values()}
    if work == "search":
        return [dataset.name for dataset in client.search()]
    value = torch.arange(float(LARGE if work == "large" else 1000))
    got = (client.nodes["alice"].send(value) + 1).get()
    assert torch.equal(got, value + 1), "a wrong answer"
    return "right"


def main() -> None:
    url, patience_s, lease_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    session = SessionLimits(patience_s=patience_s, heartbeat_s=patience_s / 6, lease_s=lease_s)
    settings = ClientSettings(timeout_s=TIMEOUT_S, direct=False, reconnect_s=lease_s, session=session)
    with grid.connect(url, remote_dev=True, settings=settings) as client:
        print("ready", flush=True)
        for line in sys.stdin:
            began, message = time.monotonic(), ""
            try:
                outcome = do(client, line.strip())
            except grid.GridError as error:
                outcome, message = error.code, error.message
            print(json.dumps({"outcome": outcome, "message": message, "s": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
