"""What this node holds of clients' values beside their objects: copies that move, deliveries, operands of secure sums.

They lie in the node's own memory, whatever a session's process may take, so all sessions of a client share one bound.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from grid.errors import QuotaExceeded
from grid.ids import PeerId


class Copies:
    """Counts bytes by client, up to `max_bytes` each. For the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes: Counter[PeerId] = Counter()

    @contextlib.contextmanager
    def counted(self, client: PeerId, nbytes: int) -> Iterator[None]:
        """Count a copy for as long as the context lasts. Raises `QuotaExceeded` where it is one too many."""
        held = self._bytes[client]
        if held + nbytes > self._max_bytes:
            raise QuotaExceeded(
                f"this client's moves and sums hold {held} bytes here, and {nbytes} more would be over the {self._max_bytes} that"
                " it may (max_bytes_per_client); wait for some to end",
                limit="max_bytes_per_client",
            )
        self._bytes[client] = held + nbytes
        try:
            yield
        finally:
            self._bytes[client] -= nbytes
            if not self._bytes[client]:
                del self._bytes[client]
