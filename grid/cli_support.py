"""What the commands share: errors as messages and exit codes, output for people or programs, options from settings."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from grid.display import printable
from grid.errors import AuthenticationFailed, DeadlineExceeded, GridError, InvalidRequest, NodeUnavailable
from grid.settings import Setting, describe, load, read_table

S = TypeVar("S")

EXIT_CODES: Mapping[int, str] = {
    0: "done; for `gateway` and `node`: stopped by SIGTERM or Ctrl-C",
    1: "refused or failed: the message on stderr says what to do",
    2: "the command line or the settings are wrong",
    3: "gateway or node not reachable, or no answer in time",
    4: "an identity, token or key does not hold",
    5: "`demo`: the result is not as good as it should be",
    6: "`doctor`: something is wrong",
    130: "interrupted by Ctrl-C",
}
"""What the command's exit code says to a script."""

ERROR_EXITS: Sequence[tuple[type[GridError], int]] = (
    (AuthenticationFailed, 4),
    (NodeUnavailable, 3),
    (DeadlineExceeded, 3),
    (InvalidRequest, 2),
)

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="print JSON for programs")


MAX_PATH_LETTERS = 250
JSON_ASKED = "grid.json"


class GridGroup(click.Group):
    """A group whose commands fail with a message and a documented exit code instead of a traceback."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[JSON_ASKED] = "--json" in args
        return super().parse_args(context, args)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except GridError as error:
            say_error(error, as_json=context.meta[JSON_ASKED])
            context.exit(exit_code(error))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            context.exit(130)


def exit_code(error: GridError) -> int:
    """The exit code that stands for an error."""
    return next((code for kind, code in ERROR_EXITS if isinstance(error, kind)), 1)


def say_error(error: GridError, *, as_json: bool) -> None:
    """The error on stderr: one line for people, or one JSON object."""
    if as_json:
        click.echo(json.dumps({"error": {"code": error.code, "message": error.message, "details": error.details}}), err=True)
    else:
        click.echo(f"error: {error.message}", err=True)


def say(event: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """One line on stdout, at once: the text for people, the event for programs."""
    click.echo(json.dumps(event) if as_json else text)
    sys.stdout.flush()


def text_or_file(text: str) -> str:
    """The text itself, or the content of the file that it names."""
    path = Path(text)
    try:
        is_file = len(text) < MAX_PATH_LETTERS and path.is_file()
        return path.read_text(encoding="utf-8") if is_file else text
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InvalidRequest(f"{path}: cannot be read as text ({type(error).__name__})") from None


CUT, LEAST_CUT, PADDING = "description", 16, 3
"""The column that gets the room that the others leave, and no second line; --json has all of it."""

WRAPPED = frozenset({"organisation", "tags", CUT})
"""Columns whose cells may go over several lines. Names and ids stay whole, so that they can be copied."""


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """A table on stdout; `empty` where there are no rows. What peers wrote is shown without control characters or markup.

    A column in which nothing stands is left out. Fits into 80 columns where names and ids do.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo(empty)
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    cells = [[printable(row[index]) for index in kept] for row in rows]
    names = [columns[index] for index in kept]
    if CUT in names:
        at = names.index(CUT)
        widths = [max(map(len, column)) + PADDING for column in zip(names, *cells, strict=True)]
        room = max(LEAST_CUT, console.width - sum(widths) + widths[at] - PADDING)
        cells = [[*row[:at], printable(row[at], room), *row[at + 1 :]] for row in cells]
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name, column in zip(names, zip(*cells, strict=True), strict=True):
        numbers = all(cell.isdigit() for cell in column)
        table.add_column(name, overflow="fold", no_wrap=name not in WRAPPED, justify="right" if numbers else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal that something takes its time; nothing where stderr is none."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(text), spinner="line"):
        yield


class SettingsCommand(click.Command):
    """A command whose help lists limits and timing in a section of their own, after what people usually set."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], "Limits and timing": []}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                groups["Limits and timing" if _is_limit(parameter.name or "") else "Options"].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _is_limit(name: str) -> bool:
    return name.startswith(("max_", "session__")) or name.endswith(("_bytes", "_threads"))


CONFIG_OPTION = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    envvar="GRID_CONFIG",
    help="settings in TOML, in a table named after the command; the environment and flags win over it [GRID_CONFIG]",
)


def settings_options(cls: type, *, without: frozenset[str] = frozenset()) -> list[click.Parameter]:
    """One option for each setting of the class, in order, named by its path with `__` for the dot."""
    return [_option(one) for one in describe(cls) if one.path not in without]


def _option(one: Setting) -> click.Option:
    names = [one.flag, one.path.replace(".", "__")]
    default = "no" if one.default is False else one.default or "none"
    text = f"{one.help} [default: {default}; {one.variable}]"
    if one.kind is bool:
        return click.Option(names, is_flag=True, default=None, help=text)
    if one.kind == tuple[str, ...]:
        return click.Option(names, multiple=True, help=text)
    return click.Option(names, type=one.kind if one.kind in (int, float) else str, metavar=METAVARS[one.kind], help=text)


METAVARS: Mapping[Any, str] = {int: "N", float: "SECONDS", str: "TEXT", Path | None: "PATH"}


def settings_from(cls: type[S], table: str, config: Path | None, flags: Mapping[str, Any]) -> S:
    """Settings of one command: defaults < the TOML file < the environment < flags. Raises `InvalidRequest`."""
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None and value != ()}
    return load(cls, toml=read_table(config, table) if config else None, env=os.environ, flags=given)
