"""What tests of grids are made of; loaded when first used, as `grid` itself is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grid.testing.local import LocalGrid as LocalGrid

__all__ = ["LocalGrid"]


def __getattr__(name: str) -> Any:
    if name == "LocalGrid":
        from grid.testing.local import LocalGrid

        return LocalGrid
    raise AttributeError(f"module 'grid.testing' has no attribute {name!r}")
