"""Every message that travels, from `grid/wire/messages.py`."""

from grid.wire.docs import protocol_page as page

__all__ = ["page"]
