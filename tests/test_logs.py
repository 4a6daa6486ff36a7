"""What log lines look like, what they carry, and what they never say."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys

import pytest

from grid import logs
from grid.display import printable
from grid.errors import InvalidRequest, NodeUnavailable
from grid.logs import REQUEST, configure, describe_error, loop_errors, session_of, tag_from_now, tags

log = logging.getLogger("grid.test")


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def out() -> io.StringIO:
    """Where `configure` is told to write. What it changes in the process is undone after each test, by tests/conftest.py."""
    return io.StringIO()


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_tags_hold_for_a_block_and_what_it_starts(out: io.StringIO) -> None:
    configure("debug", "json", out)

    async def told() -> None:
        log.info("inside")

    async def main() -> None:
        with tags(peer="alice", session="abc", link=None):
            task = asyncio.create_task(told())
            with tags(link=3):
                log.info("deeper")
        await task
        log.info("outside")
        tag_from_now(peer="bob")
        log.info("from now on")

    asyncio.run(main())
    deeper, inside, outside, later = lines(out)
    assert (deeper["peer"], deeper["session"], deeper["link"]) == ("alice", "abc", 3)
    assert (inside["peer"], "link" in inside) == ("alice", False)
    assert "peer" not in outside and later["peer"] == "bob"


def test_a_request_is_named_by_its_number(out: io.StringIO) -> None:
    configure("debug", "json", out)
    before = REQUEST.set(7)
    log.info("handled")
    REQUEST.reset(before)
    log.info("asked", extra={"grid_request": 9})
    log.info("neither")
    assert [line.get("request") for line in lines(out)] == [7, 9, None]


def test_both_ends_of_a_session_call_it_the_same() -> None:
    assert session_of(b"nonce") == session_of(b"nonce") != session_of(b"other")
    assert len(session_of(b"")) == 12


def test_a_json_line_is_one_object_with_time_level_and_place(out: io.StringIO) -> None:
    configure("info", "json", out)
    log.warning("a %s\nb \x1b[2J", "x")
    (line,) = lines(out)
    assert line["message"] == "a x\\nb \\x1b[2J" and line["level"] == "warning" and line["logger"] == "grid.test"
    assert str(line["time"]).endswith("Z") and "T" in str(line["time"])


def test_a_text_line_ends_in_its_tags(out: io.StringIO) -> None:
    configure("info", "text", out)
    with tags(peer="ali\nce", connection=7):
        log.info("joined as %s", "node")
    assert out.getvalue().endswith("INFO grid.test: joined as node peer=ali\\nce connection=7\n")
    assert out.getvalue().count("\n") == 1


def test_words_of_an_unexpected_error_are_withheld(out: io.StringIO, form: str) -> None:
    configure("debug", form, out)
    try:
        try:
            float("plan" + "ted")  # so that the line of code is not what is found below
        except ValueError as error:
            raise KeyError("plan" + "ted") from error
    except KeyError:
        log.exception("a handler failed")
    text = out.getvalue()
    assert "planted" not in text
    assert "KeyError" in text and "ValueError" in text and "withheld" in text and "test_logs.py" in text
    assert form == "text" or len(lines(out)) == 1


def test_words_of_errors_raised_on_purpose_are_shown() -> None:
    assert describe_error(InvalidRequest("a list is wanted"))["message"] == "a list is wanted"
    assert describe_error(FileNotFoundError(2, "No such file", "x"))["message"] == "No such file"
    assert describe_error(ValueError("secret"))["message"] == logs.WITHHELD
    group = describe_error(ExceptionGroup("words", [ValueError("secret"), NodeUnavailable("gone")]))
    assert [part["message"] for part in group["parts"]] == [logs.WITHHELD, "gone"]


def test_an_error_that_goes_round_in_circles_ends(out: io.StringIO, form: str) -> None:
    configure("debug", form, out)
    error = ValueError()
    for _ in range(2000):
        outer = ValueError()
        outer.__cause__ = error
        error = outer
    log.error("deep", exc_info=error)
    assert out.getvalue().count("ValueError") <= 8


def test_other_packages_stay_at_warnings(out: io.StringIO) -> None:
    configure("debug", "json", out)
    logging.getLogger("websockets.client").debug("< BINARY 01 02 03")
    logging.getLogger("websockets.client").warning("odd")
    assert [line["message"] for line in lines(out)] == ["odd"]


def test_configured_again_it_takes_the_place_of_what_was(out: io.StringIO) -> None:
    older = io.StringIO()
    configure("debug", "text", older)
    configure("warning", "json", out)
    log.info("not this")
    log.warning("this")
    assert older.getvalue() == "" and len(lines(out)) == 1


def test_a_line_that_cannot_be_made_says_only_that(out: io.StringIO) -> None:
    configure("info", "text", out)
    root = logging.getLogger()
    root.handlers[:] = root.handlers[-1:]  # pytest's own would raise
    log.info("%d", "planted")
    assert "planted" not in out.getvalue() and "could not be written" in out.getvalue()


def test_the_loops_own_errors_do_not_quote(out: io.StringIO) -> None:
    configure("info", "json", out)

    async def fail() -> None:
        int("planted" + "-text")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(loop_errors)
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task

    asyncio.run(main())
    (line,) = lines(out)
    assert line["message"] == "Task exception was never retrieved" and "planted-text" not in out.getvalue()
    assert line["error"]["type"] == "ValueError"  # type: ignore[index]


def test_long_and_strange_text_fits_on_a_line() -> None:
    assert printable("x" * 5000, 100) == "x" * 99 + "…"
    assert len(printable("\x00" * 5000, 100)) == 100
    assert printable("plain") == "plain"


def test_warnings_of_python_are_lines_as_well() -> None:
    code = (
        "import warnings\n"
        "from grid.logs import configure\n"
        "configure('warning', 'json')\n"
        "warnings.warn('odd', stacklevel=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    (line,) = (json.loads(line) for line in done.stderr.splitlines())
    assert line["logger"] == "py.warnings" and "odd" in line["message"]


def test_an_uncaught_error_is_one_json_object() -> None:
    code = (
        "from grid.logs import configure\n"
        "configure('warning', 'json')\n"
        "import threading\n"
        "def work(): raise RuntimeError('planted' + ' words')\n"
        "t = threading.Thread(target=work); t.start(); t.join()\n"
        "work()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1 and done.stdout == "" and "planted words" not in done.stderr
    assert [one["error"]["type"] for one in found] == ["RuntimeError", "RuntimeError"]
    assert all(one["level"] == "critical" and one["error"]["traceback"] for one in found)


def test_the_library_configures_no_logging() -> None:
    code = (
        "import logging, grid\n"
        "from grid.testing import LocalGrid\n"
        "with LocalGrid(1) as local:\n"
        "    assert len(local.client().nodes) == 1\n"
        "names = [n for n in logging.root.manager.loggerDict if n == 'grid' or n.startswith('grid.')]\n"
        "assert names and not logging.root.handlers and logging.root.level == logging.WARNING\n"
        "assert not any(logging.getLogger(n).handlers or logging.getLogger(n).level for n in names)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
