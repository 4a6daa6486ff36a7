"""Every operation that runs remotely, from the op table."""

from grid.plans.docs import ops_page as page

__all__ = ["page"]
