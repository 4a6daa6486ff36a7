"""How many sessions one client may have at a node at once, and how long the messages of each may be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from grid.errors import QuotaExceeded
from grid.ids import PeerId
from grid.settings import NodeSettings

MAX_SESSIONS_PER_CLIENT = 16
"""Where sessions have processes, at most half of those, too: another client finds a place while one has all that it may."""

MIN_MESSAGE_BYTES = 16 << 20
"""Every session takes messages up to this size, however many its client has."""


class Places:
    """The sessions of each client, by place from 0."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._taken: dict[PeerId, set[int]] = {}

    @contextlib.contextmanager
    def taken(self, client: PeerId, *, processes: bool) -> Iterator[int]:
        """Count a client's session, which has a process or not; gives the bytes of the longest message that it may send.

        Of half-received messages nothing is known but that they cost memory, so all sessions of a client together share its
        quota: the first may use half of it, the next a quarter, and so on. Raises `QuotaExceeded`.
        """
        most = MAX_SESSIONS_PER_CLIENT
        if processes:
            most = min(most, (self._settings.max_processes + 1) // 2)
        taken = self._taken.setdefault(client, set())
        if len(taken) >= most:
            raise QuotaExceeded(f"this client has {len(taken)} sessions here, as many as one client may; close some first")
        place = next(number for number in range(most) if number not in taken)
        taken.add(place)
        try:
            yield max(self._settings.max_bytes_per_client >> (place + 1), MIN_MESSAGE_BYTES)
        finally:
            taken.discard(place)
            if not taken:
                self._taken.pop(client, None)
