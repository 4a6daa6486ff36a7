"""Torch without its compiler, in processes that compile nothing.

The first operation on the meta device has torch load `torch._dynamo`, 330 modules in most of a second, only to ask it to leave
a function alone. In a process that runs given operations and traces nothing there is nothing to leave alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"


class _NotLoaded(ModuleType):
    """Stands for the compiler until somebody asks it for more than to leave a function alone; then it is loaded."""

    @staticmethod
    def disable(function: Callable[..., Any], *how: Any, **others: Any) -> Callable[..., Any]:
        """The function as it is."""
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        import torch._dynamo

        return getattr(torch._dynamo, name)


def without_compiler() -> None:
    """Have torch not load its compiler in this process, and those forked from it, before it is used. To be called once, early."""
    if COMPILER not in sys.modules:
        stand_in = _NotLoaded(COMPILER)
        stand_in.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
        sys.modules[COMPILER] = stand_in
