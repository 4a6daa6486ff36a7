"""Which line of the user's own code something comes from, for messages.

Frames of PyTorch, of the standard library and of this package do not count, nor does code that was made as text.
"""

from __future__ import annotations

import linecache
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType

import torch

from grid.errors import GridError, InvalidRequest, PlanRejected

_NOT_THE_USERS = tuple(
    str(path) for path in (Path(torch.__file__).parent, Path(__file__).parent.parent, Path(sysconfig.get_paths()["stdlib"]))
)


@contextmanager
def errors_explained() -> Iterator[None]:
    """Turn whatever the function raises into `PlanRejected` that names the user's line.

    Without a cause: that would be a hundred lines of PyTorch's code above a message which says all that there is to say.
    """
    try:
        yield
    except PlanRejected as error:
        line = "" if AT in error.message else _error_line(error)
        raise PlanRejected(f"{error.message}{_advice(error)}{at_line(line)}", **error.details) from None
    except InvalidRequest as error:
        raise PlanRejected(f"the function's result cannot be a plan's: {error.message}") from None
    except GridError:
        raise
    except Exception as error:
        line = _error_line(error)
        raise PlanRejected(
            f"the function raised {type(error).__name__} while it was traced{_advice(error)}{at_line(line)}: "
            f"{str(error).strip()[:500]}"
        ) from None


AT = " — at "


def at_line(line: str) -> str:
    return f"{AT}{line}" if line else ""


def _advice(error: BaseException) -> str:
    """What to write instead, where the frames or the text that an error comes with tell what was tried."""
    frames = [(frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)]
    if any(f"{os.sep}torch{os.sep}optim{os.sep}" in name for name, _ in frames):
        return "; an optimizer of torch.optim keeps its state in itself: use grid.SGD, grid.Adam or grid.AdamW in a plan"
    text = str(error)
    if "numpy" in text.lower() or "data_ptr" in text:
        return "; tensors have no values while a function is traced, so NumPy cannot see them: use PyTorch's functions"
    if "does not require grad" in text or "not have been used in the graph" in text:
        return (
            "; pass parameters that require gradients (`params = dict(module.named_parameters())`), or take their gradients after"
            " `params = {name: p.detach().requires_grad_() for name, p in params.items()}`"
        )
    return ""


def _error_line(error: BaseException) -> str:
    """The innermost line of an error's traceback that is the user's own."""
    found = ""
    for frame, number in walk_tb(error.__traceback__):
        if _is_the_users(frame):
            found = _describe(frame, number)
    return found


def user_line(frame: FrameType | None) -> str:
    """The innermost line, from this frame outwards, that is the user's own; '' where there is none."""
    while frame is not None:
        if _is_the_users(frame):
            return _describe(frame, frame.f_lineno)
        frame = frame.f_back
    return ""


def _is_the_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not name.startswith(_NOT_THE_USERS) and name != "<string>"


def _describe(frame: FrameType, number: int) -> str:
    return line_of(frame.f_code.co_filename, number)


def line_of(name: str, number: int) -> str:
    """How messages name a line: the file's own name, the number, and what stands there."""
    text = linecache.getline(name, number).strip()[:120]
    return f"{Path(name).name}:{number}" + (f": {text}" if text else "")
