"""A node that releases values until it is killed; run as a script by `test_killed_node`.

    mortal_node.py SQLITE-FILE DESCRIPTOR

For each line on standard input it forks a process with a node, whose memory is the file, and clients, which write one byte to
the descriptor, a pipe, for each value that they have received. It answers with that process's number, and with another line
once that process is dead. Forking saves importing torch for each of many deaths.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import torch

from grid.store.sqlite import SqliteStore
from grid.testing import LocalGrid

CLIENTS = 3
ROWS = 40
POLICY = {"release": "aggregate", "plans": "any", "min_rows": 10, "max_elements": 1_000_000}


async def release_for_ever(store: Path, received: int) -> None:
    """Each client asks for one element after another, and notes each one as soon as it has it."""
    features = torch.arange(float(ROWS)).reshape(ROWS, 1)
    dataset = {"features": features, "policy": POLICY}
    async with LocalGrid(nodes={"alice": {"numbers": dataset}}, store=lambda name: SqliteStore(store)) as local:

        async def ask() -> None:
            client = await local.client()
            (numbers,) = await client.search()
            while True:
                value = await numbers.features.sum(0).get()
                assert value.tolist() == [ROWS * (ROWS - 1) / 2]
                os.write(received, b".")

        await asyncio.gather(*(ask() for _ in range(CLIENTS)))


def main() -> None:
    store, received = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    for _ in sys.stdin:
        process = os.fork()
        if process == 0:
            asyncio.run(release_for_ever(store, received))
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
