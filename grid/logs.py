"""Log lines: who is at the other end, which session, which request; as text, or as one JSON object a line; never contents.

* `tags` names what a block is about, for every line that it and the tasks it starts write, at the cost of one context
  variable a session. `session_of` gives both ends of a session the same id, so that lines at two machines can be joined:
  a request is known by its session and its number there.
* Messages name types, shapes, sizes and ids. An exception that was not raised on purpose may quote data in its own words
  (`could not convert 'Smith'`), so of such a one the type and the lines of code are written and the words are not.
* Other packages' loggers stay at warnings: some of them write whole frames when asked for more.
* `configure` is for the command line alone. As a library this package leaves logging to the program that uses it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import IO, Any

from grid.display import printable
from grid.errors import GridError

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FORMATS = ("text", "json")

PACKAGE = "grid"
MAX_FRAMES = 40
MAX_CAUSES = 5
MAX_TEXT = 4000
"""Characters of one message; a peer's words may be in it."""

WITHHELD = "(its words are withheld: they may quote data)"

log = logging.getLogger(__name__)

_TAGS: ContextVar[Mapping[str, object]] = ContextVar("grid_log_tags", default={})  # noqa: B039  never changed, only replaced

REQUEST: ContextVar[int | None] = ContextVar("grid_log_request", default=None)
"""The request that is being handled, by its number in its session. `rpc.peer` sets it."""


@contextlib.contextmanager
def tags(**named: object) -> Iterator[None]:
    """Put these tags on every line of the block, and of the tasks that it starts. What is None or "" is left out."""
    token = _TAGS.set(_merged(named))
    try:
        yield
    finally:
        _TAGS.reset(token)


def tag_from_now(**named: object) -> None:
    """As `tags`, for the rest of this task: for what is learned in the middle of it."""
    _TAGS.set(_merged(named))


def _merged(named: Mapping[str, object]) -> Mapping[str, object]:
    return {**_TAGS.get(), **{key: value for key, value in named.items() if value not in (None, "")}}


def session_of(shared: bytes) -> str:
    """A session's id, from bytes that both of its ends have and no other session: says nothing about them."""
    return hashlib.sha256(b"grid session id" + shared).hexdigest()[:12]


# ---------------------------------------------------------------- what a line says


def tags_of(record: logging.LogRecord) -> dict[str, object]:
    """The tags of a line: those of its block, and the request it is about."""
    request = getattr(record, "grid_request", None) or REQUEST.get()
    return dict(_TAGS.get()) if request is None else {**_TAGS.get(), "request": request}


def describe_error(error: BaseException, depth: int = MAX_CAUSES) -> dict[str, Any]:
    """Type, words where they are safe, lines of code, and the same of the cause."""
    told: dict[str, Any] = {"type": type(error).__name__, "message": _words(error), "traceback": _places(error.__traceback__)}
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth > 0:
        told["cause"] = describe_error(cause, depth - 1)
    if isinstance(error, BaseExceptionGroup):
        told["parts"] = [describe_error(part, depth - 1) for part in error.exceptions[:MAX_CAUSES]] if depth > 0 else []
    return told


def _words(error: BaseException) -> str:
    if isinstance(error, GridError):  # these never hold data values, keys, tokens or shares: see `grid.errors`
        return printable(error.message, MAX_TEXT)
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror, MAX_TEXT)
    return WITHHELD if str(error) else ""


def _places(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)[-MAX_FRAMES:]
    return [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}".rstrip(": ") for frame in frames]


class TextFormatter(logging.Formatter):
    """Lines for people: time, level, logger, message, tags; an error's lines of code below it."""

    def format(self, record: logging.LogRecord) -> str:
        named = "".join(f" {key}={printable(value)}" for key, value in tags_of(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {printable(record.getMessage(), MAX_TEXT)}{named}"
        error = _error_of(record)
        return line if error is None else "\n".join([line, *_error_lines(describe_error(error))])


class JsonFormatter(logging.Formatter):
    """Lines for programs: one JSON object each. Tags are its fields; an error is its field `error`."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage(), MAX_TEXT),
        }
        for key, value in tags_of(record).items():
            told[key] = value if isinstance(value, int) else printable(value)
        error = _error_of(record)
        if error is not None:
            told["error"] = describe_error(error)
        return json.dumps(told, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03}Z"


def _error_of(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _error_lines(told: Mapping[str, Any], indent: str = "  ") -> Iterator[str]:
    yield f"{indent}{told['type']}: {told['message']}".rstrip(": ")
    yield from (f"{indent}  {place}" for place in told["traceback"])
    for key in ("cause", "parts"):
        for part in [told[key]] if key == "cause" and key in told else told.get(key, []):
            yield f"{indent}after" if key == "cause" else f"{indent}with"
            yield from _error_lines(part, indent + "  ")


# ---------------------------------------------------------------- for the command line


class _Lines(logging.StreamHandler[IO[str]]):
    """Writes lines; one that cannot be made is said so, without what it was to be made from."""

    def handleError(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # the stream is gone: then there is nobody to tell
            self.stream.write(f"a log line of {record.name}:{record.lineno} could not be written\n")


def configure(level: str = "warning", form: str = "text", stream: IO[str] | None = None) -> None:
    """Write this package's lines from `level` on, and other packages' warnings, to `stream`, standard error unless given.

    Errors that nobody caught, and Python's own warnings, go the same way. Called again, it takes the place of what was before.
    """
    handler = _Lines(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for older in [one for one in root.handlers if isinstance(one, _Lines)]:
        root.removeHandler(older)
    root.addHandler(handler)
    root.setLevel(max(LEVELS[level], logging.WARNING))
    logging.getLogger(PACKAGE).setLevel(LEVELS[level])
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda given: _uncaught(given.exc_type, given.exc_value, given.exc_traceback)
    sys.unraisablehook = lambda given: _uncaught(given.exc_type, given.exc_value, given.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit | KeyboardInterrupt):
        log.critical("an error was caught by nobody", exc_info=error)


def loop_errors(loop: object, context: Mapping[str, Any]) -> None:
    """For `loop.set_exception_handler`: the loop's own words would quote the exception that they are about."""
    error = context.get("exception")
    log.error("%s", context.get("message", "an error in the event loop"), exc_info=error)
