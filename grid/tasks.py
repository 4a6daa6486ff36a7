"""Tasks of a group that may be ending already."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from grid.errors import NodeUnavailable


def start(group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], *, name: str, owner: str) -> asyncio.Task[None]:
    """Start `work` as a task of the group. Raises `NodeUnavailable`, which names the owner, where the group is ending or over.

    Whoever still waits for something of the group learns of its end from that. Before Python 3.13 a group that is ending
    leaves the coroutine that it does not take as it is, never awaited.
    """
    try:
        return group.create_task(work, name=name)
    except RuntimeError:
        work.close()
        raise NodeUnavailable(f"{owner} was closed") from None
