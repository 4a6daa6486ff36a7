"""Which line of the user's own code something comes from, for messages.

Frames of PyTorch, of the standard library and of this package do not count, nor does code that was made as text.
"""

from __future__ import annotations

import linecache
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType

import torch

from grid.errors import GridError, InvalidRequest, PlanRejected

_NOT_THE_USERS = tuple(
    str(path) for path in (Path(torch.__file__).parent, Path(__file__).parent, Path(sysconfig.get_paths()["stdlib"]))
)


@contextmanager
def errors_explained() -> Iterator[None]:
    """Turn whatever the function raises into `PlanRejected` that names the user's line."""
    try:
        yield
    except PlanRejected as error:
        line = _error_line(error)
        raise PlanRejected(f"{error.message}{at_line(line)}", **error.details) from error
    except InvalidRequest as error:
        raise PlanRejected(f"the function's result cannot be a plan's: {error.message}") from error
    except GridError:
        raise
    except Exception as error:
        line = _error_line(error)
        raise PlanRejected(
            f"the function raised {type(error).__name__} while it was traced{at_line(line)}: {str(error).strip()[:500]}"
        ) from error


def at_line(line: str) -> str:
    return f" — at {line}" if line else ""


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
    name = frame.f_code.co_filename
    text = linecache.getline(name, number).strip()[:120]
    return f"{Path(name).name}:{number}" + (f": {text}" if text else "")
