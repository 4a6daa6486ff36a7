"""A store that lasts as long as the process."""

from __future__ import annotations

import threading

from grid.store.base import DatasetState, Store


class MemoryStore(Store):
    """For `--dev`, tests and notebooks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._datasets: dict[str, DatasetState] = {}
        self._claims: dict[str, float] = {}

    def load(self, dataset: str) -> DatasetState | None:
        with self._lock:
            return self._datasets.get(dataset)

    def save(self, dataset: str, state: DatasetState) -> None:
        with self._lock:
            self._datasets[dataset] = state

    def claim(self, name: str, expiry: float, wall: float) -> bool:
        with self._lock:
            for expired in [known for known, until in self._claims.items() if until < wall]:
                del self._claims[expired]
            if name in self._claims:
                return False
            self._claims[name] = expiry
            return True

    def close(self) -> None:
        return None
