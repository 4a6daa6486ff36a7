"""Every function that runs on secrets, from the table of functions."""

from grid.smpc.operations.page import secure_ops_page as page

__all__ = ["page"]
