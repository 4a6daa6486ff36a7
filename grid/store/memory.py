"""A store that lasts as long as the process."""

from __future__ import annotations

import dataclasses
import heapq
import threading
from collections.abc import Mapping, Sequence

from grid.store.base import DatasetState, KnownNode, ReleaseRequest, Store


class MemoryStore(Store):
    """For `--dev`, tests and notebooks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._datasets: dict[str, DatasetState] = {}
        self._claims: set[str] = set()
        self._expiries: list[tuple[float, str]] = []
        self._nodes: dict[str, KnownNode] = {}
        self._requests: dict[str, ReleaseRequest] = {}
        self._jobs: dict[str, dict[str, bytes]] = {}

    def load(self, dataset: str) -> DatasetState | None:
        with self._lock:
            return self._datasets.get(dataset)

    def save(self, dataset: str, state: DatasetState) -> None:
        with self._lock:
            self._datasets[dataset] = state

    def claim_all(self, names: Sequence[str], expiry: float, wall: float) -> bool:
        with self._lock:
            while self._expiries and self._expiries[0][0] < wall:
                self._claims.discard(heapq.heappop(self._expiries)[1])
            if not self._claims.isdisjoint(names):
                return False
            self._claims.update(names)
            for name in names:
                heapq.heappush(self._expiries, (expiry, name))
            return True

    def claimed(self, name: str) -> bool:
        with self._lock:
            return name in self._claims

    def nodes(self) -> dict[str, KnownNode]:
        with self._lock:
            return dict(self._nodes)

    def keep_nodes(self, changes: Mapping[str, KnownNode | None]) -> None:
        with self._lock:
            for peer, node in changes.items():
                if node is None:
                    self._nodes.pop(peer, None)
                else:
                    self._nodes[peer] = node

    def ask(self, request: ReleaseRequest) -> None:
        with self._lock:
            self._requests.setdefault(request.id, request)

    def requests(self, *, texts: bool = True) -> list[ReleaseRequest]:
        with self._lock:
            found = sorted(self._requests.values(), key=lambda request: request.asked)
        return found if texts else [dataclasses.replace(one, code="", report="") for one in found]

    def request(self, request_id: str) -> ReleaseRequest | None:
        with self._lock:
            return self._requests.get(request_id)

    def unused_request(self, key: str) -> ReleaseRequest | None:
        with self._lock:
            found = [one for one in self._requests.values() if one.key == key and not one.used]
        return min(found, key=lambda request: request.asked, default=None)

    def decide(self, request_id: str, decision: bytes, replaces: bytes = b"") -> bool:
        with self._lock:
            request = self._requests.get(request_id)
            if request is None or request.used or request.decision != replaces:
                return False
            self._requests[request_id] = dataclasses.replace(request, decision=decision)
            return True

    def use(self, request_id: str, decision: bytes) -> bool:
        with self._lock:
            request = self._requests.get(request_id)
            if request is None or request.used or request.decision != decision:
                return False
            self._requests[request_id] = dataclasses.replace(request, used=True)
            return True

    def forget_requests(self, asked_before: float) -> None:
        with self._lock:
            self._requests = {one.id: one for one in self._requests.values() if one.asked >= asked_before}

    def jobs(self) -> list[str]:
        with self._lock:
            return sorted(self._jobs)

    def job_parts(self, job: str, prefix: str = "") -> dict[str, bytes]:
        with self._lock:
            parts = self._jobs.get(job, {})
            return {part: parts[part] for part in sorted(parts) if part.startswith(prefix)}

    def keep_job(self, job: str, parts: Mapping[str, bytes | None]) -> None:
        with self._lock:
            kept = self._jobs.setdefault(job, {})
            for part, data in parts.items():
                if data is None:
                    kept.pop(part, None)
                else:
                    kept[part] = data
            if not kept:
                del self._jobs[job]

    def forget_job(self, job: str) -> None:
        with self._lock:
            self._jobs.pop(job, None)

    def close(self) -> None:
        return None
