"""Datasets as a client's workspace uses them: their tensors, and the secret blocks of their rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from grid.errors import NotFound
from grid.policy.blocks import BlockRows, Ids


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetView:
    """One dataset. `parts` has "features", perhaps "targets", and "column:NAME" for each column that can be asked for.

    `blocks` gives each row the number of its block. `by_hand`: its owner approves each release, and is told what made it.
    Nobody writes into any of it.
    """

    name: str
    rows: int
    min_rows: int
    blocks: Ids
    parts: Mapping[str, Tensor]
    by_hand: bool = False

    @cached_property
    def block_rows(self) -> BlockRows:
        """The rows of each block."""
        return BlockRows(self.blocks)

    def part(self, part: str, column: str = "") -> Tensor:
        """`features`, `targets` or the named column; `NotFound` where the dataset has no such part."""
        found = self.parts.get(f"column:{column}" if part == "column" else part)
        if found is not None and (part == "column" or not column):
            return found
        if part == "column":
            raise NotFound(f"dataset {self.name!r} has no usable column {column[:100]!r}")
        raise NotFound(f"dataset {self.name!r} has no {part[:20]!r}")
