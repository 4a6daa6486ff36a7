"""How nodes are named in texts that people read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grid.display import counted
from grid.ids import PeerId

NAMED = 10
"""Nodes that a text names before it only counts them."""

Name = Callable[[PeerId], str]
"""What people call a node."""


def names_of(peers: Sequence[PeerId], name: Name, most: int = NAMED) -> str:
    """`alice, bob and 3 others`."""
    named = ", ".join(map(name, peers[:most]))
    return f"{named} and {counted(len(peers) - most, 'other')}" if len(peers) > most else named
