"""A store that lasts as long as the process."""

from __future__ import annotations

import heapq
import threading

from grid.store.base import DatasetState, Store


class MemoryStore(Store):
    """For `--dev`, tests and notebooks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._datasets: dict[str, DatasetState] = {}
        self._claims: set[str] = set()
        self._expiries: list[tuple[float, str]] = []

    def load(self, dataset: str) -> DatasetState | None:
        with self._lock:
            return self._datasets.get(dataset)

    def save(self, dataset: str, state: DatasetState) -> None:
        with self._lock:
            self._datasets[dataset] = state

    def claim(self, name: str, expiry: float, wall: float) -> bool:
        with self._lock:
            while self._expiries and self._expiries[0][0] < wall:
                self._claims.discard(heapq.heappop(self._expiries)[1])
            if name in self._claims:
                return False
            self._claims.add(name)
            heapq.heappush(self._expiries, (expiry, name))
            return True

    def close(self) -> None:
        return None
