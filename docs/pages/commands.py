"""Every command and option of the command line, from click."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from grid.cli import grid
from grid.cli_support import EXIT_CODES

HEAD = """\
# Commands

Made from the command line by `make docs`; `grid COMMAND --help` says the same. Results go to standard output, messages and
progress to standard error. With `--json` each line of the output is one JSON object or list.
"""


def commands(group: click.Group, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its words, by name."""
    for name, one in sorted(group.commands.items()):
        if isinstance(one, click.Group):
            yield from commands(one, (*words, name))
        else:
            yield (*words, name), one


def page() -> str:
    parts = [HEAD, "## Options of all\n\n" + _options(grid)]
    for words, one in commands(grid, ("grid",)):
        arguments = [part.make_metavar(click.Context(one)) for part in one.params if isinstance(part, click.Argument)]
        usage = " ".join([*words, *arguments])
        parts.append(f"## {' '.join(words)}\n\n```\n{usage} [OPTIONS]\n```\n\n{_text(one)}\n\n{_options(one)}")
    codes = "\n".join(f"| {code} | {text} |" for code, text in EXIT_CODES.items())
    return "\n".join([*parts, f"## Exit codes\n\n| code | |\n|---|---|\n{codes}\n"])


def _text(one: click.Command) -> str:
    """The help text; blocks that click is told to leave alone become code."""
    lines, code = [], False
    for line in inspect.cleandoc(one.help or "").splitlines():
        if line.strip() == "\b":
            code = True
            lines.append("```")
            continue
        if code and not line.strip():
            code = False
            lines.append("```")
        lines.append(line.strip() if code else line)
    return "\n".join([*lines, "```"] if code else lines)


def _options(one: click.Command) -> str:
    rows = []
    for part in one.params:
        if not isinstance(part, click.Option) or part.hidden:
            continue
        names = ", ".join(f"`{name}`" for name in [*part.opts, *part.secondary_opts])
        metavar = part.make_metavar(click.Context(one)).replace("|", "\\|")
        value = "" if part.is_flag or part.count else f" `{metavar}`"
        rows.append(f"| {names}{value} | {_help(part)} |")
    if not rows:
        return ""
    return "| option | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _help(part: click.Option) -> str:
    text = part.help or ""
    if part.show_default:
        text += f" [default: {part.default}]"
    return text.replace("|", "\\|")
