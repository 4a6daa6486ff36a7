"""A process that holds a dataset which is larger than the memory it may use, and lets a client compute on it.

    python large_dataset.py DESCRIPTION STATE

Prints one JSON object: what it computed, and the largest amount of memory that it took and could not have given back (anonymous
memory and memory files; pages of files on disk are the system's to drop).
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from grid.errors import GridError, QuotaExceeded
from grid.node.dataset_files import DatasetFiles
from grid.node.datasets import Dataset
from grid.settings import NodeSettings
from grid.testing import LocalGrid

MEMORY_BYTES = 1 << 20
QUOTA = 6 << 20


def unreclaimable() -> int:
    """Bytes of memory of this process that only it can free."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


class Watch:
    """The largest amount while a block runs, above what there was at its start."""

    def __enter__(self) -> Self:
        self._base = unreclaimable()
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, unreclaimable() - self._base)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()


def main(description: Path, state: Path) -> None:
    torch.ones(1000, 1000).mean(0)  # threads and libraries are there before anything is measured
    with Watch() as loading:
        dataset = Dataset.from_file(description, DatasetFiles(state, MEMORY_BYTES))
    with Watch() as working, LocalGrid({"alice": {"large": dataset}}, node=NodeSettings(max_bytes_per_client=QUOTA)) as local:
        ds = local.client().search()[0]
        means = ds.features.mean(0).get().tolist()
        batches = [x.mean(0) + 0 * y.sum() for x, y in itertools.islice(ds.batches(1000, shuffle=True, seed=0), 5)]
        sizes = [len(batch.get()) for batch in batches]
        try:
            refused: GridError | None = None
            (ds.features[:, :4] * 2).sum(0).get()
        except QuotaExceeded as error:
            refused = error
    print(
        json.dumps(
            {
                "rows": dataset.rows,
                "bytes": dataset.features.nbytes,
                "loading": loading.most,
                "working": working.most,
                "means": means,
                "batches": sizes,
                "refused": "" if refused is None else refused.message,
                "left": [path.name for path in state.rglob("*.tensor")],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
