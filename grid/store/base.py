"""What survives a node's restart: what each dataset has released, and which secure sums it took part in.

Every method is for any thread, and what changes something is on disk (where the store has one) when it returns: a value
leaves a node only after that.
"""

from __future__ import annotations

import abc
import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetState:
    """What is remembered of one dataset, `rows` long.

    `blocks` gives each row the number of its block, `partition` the number of the cell that all releases so far have put it
    in: both little-endian int32, one for each row, `partition` b"" before the first release. `min_rows` is the size that
    the blocks were cut with. `elements` counts released elements. `drawn` says how the rows of releases were chosen: "" (all
    rows, always), "positions", "blocks", or "both" where an older version did not note it.
    """

    rows: int
    min_rows: int
    blocks: bytes
    partition: bytes = b""
    elements: int = 0
    drawn: str = ""


class Store(abc.ABC):
    """A node's memory. One node uses it at a time."""

    @abc.abstractmethod
    def load(self, dataset: str) -> DatasetState | None:
        """What is remembered of a dataset, or None for a new one."""

    @abc.abstractmethod
    def save(self, dataset: str, state: DatasetState) -> None:
        """Remember a dataset's state in place of what was there, all of it or nothing."""

    @abc.abstractmethod
    def claim(self, name: str, expiry: float, wall: float) -> bool:
        """Take a name that may be taken once: True for the first who asks, until `expiry`. Times are wall seconds.

        Names whose expiry lies before `wall` are forgotten.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release files. May be called twice; nothing else works afterwards."""
