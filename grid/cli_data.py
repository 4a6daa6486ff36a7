"""`grid data check DIR`: what a node would share of a folder of datasets, and what is wrong with it, before it starts.

It needs no network, no keys and no state folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grid.cli_support import JSON_OPTION

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from grid.client.mock import Mock
    from grid.node.checking import FolderReport, Report
    from grid.wire.messages import ColumnCard, DatasetCard

MAX_COLUMNS_SHOWN = 30
MOCK_ROWS = 3
MOCK_COLUMNS = 6
PIPE_WIDTH = 100


@click.group("data")
def data() -> None:
    """Look at the datasets of a node."""


@data.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@JSON_OPTION
@click.pass_context
def check(context: click.Context, folder: Path, as_json: bool) -> None:
    """Say what a node would share of the datasets in DIR, and all that is wrong with them.

    It reads every row, as `grid node --data DIR` does at its start, and shows for each dataset its columns, what may leave
    under its policy and what never does, what everybody sees without asking, and made-up rows as clients get them. Nothing
    is sent anywhere. The exit code is 1 if the node would not start.
    """
    from grid.node.checking import check_folder

    report = check_folder(folder)
    if as_json:
        click.echo(json.dumps(_facts(report)))
    else:
        _show(report, folder)
    if not report.sound:
        context.exit(1)


COMMANDS: tuple[click.Command, ...] = (data,)


# ------------------------------------------------------------ for programs


def _facts(report: FolderReport) -> dict[str, Any]:
    return {
        "sound": report.sound,
        "datasets": [_dataset_facts(one) for one in report.datasets],
        "errors": list(report.errors),
        "warnings": list(report.warnings),
    }


def _dataset_facts(report: Report) -> dict[str, Any]:
    from grid.node.checking import what_is_public, what_leaves, what_stays

    card = report.card
    facts: dict[str, Any] = {
        "name": report.name,
        "file": report.file,
        "format": report.format,
        "errors": list(report.errors),
        "warnings": list(report.warnings),
        "unused": dict(report.unused),
        "missing": dict(report.missing),
    }
    if card is None:
        return facts
    return facts | {
        "rows": card.rows,
        "columns": [_column_facts(column) for column in card.columns],
        "target": next((column.name for column in card.columns if column.role == "target"), ""),
        "classes": card.classes,
        "tags": list(card.tags),
        "description": card.description,
        "feature_shape": list(card.feature_shape),
        "policy": {"release": card.policy.release, "plans": card.policy.plans, "min_rows": card.policy.min_rows}
        | {"max_elements": card.policy.max_elements, "allow": list(card.policy.allow), "sinks": list(card.policy.sinks)}
        | {"share": card.policy.share, "parties": list(card.policy.parties), "updates": card.policy.updates}
        | {"same_organisation": card.policy.same_organisation, "min_cohort": card.policy.min_cohort}
        | {"batches": card.policy.batches},
        "leaves": what_leaves(report.policy, card.rows),
        "stays": what_stays(report.policy),
        "public": what_is_public(card),
        "mock": {name: [_plain(cell) for cell in cells] for name, cells in _mock(card).items()},
    }


def _column_facts(column: ColumnCard) -> dict[str, Any]:
    return {
        "name": column.name,
        "role": column.role,
        "kind": column.kind,
        "min": column.minimum,
        "max": column.maximum,
        "categories": list(column.categories),
        "missing": column.missing,
    }


def _mock(card: DatasetCard) -> Mock:
    from grid.client.mock import make_mock

    return make_mock(card, MOCK_ROWS)


def _plain(cell: Any) -> str | float:
    return round(float(cell), 4) if hasattr(cell, "dtype") else str(cell)


# ------------------------------------------------------------ for people


def _show(report: FolderReport, folder: Path) -> None:
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    for one in report.datasets:
        _show_dataset(console, one)
    if report.errors or report.warnings:
        console.rule("the folder", align="left", style="dim")
        _show_findings(console, report.errors, report.warnings)
    errors = len(report.errors) + sum(len(one.errors) for one in report.datasets)
    warnings = len(report.warnings) + sum(len(one.warnings) for one in report.datasets)
    verdict = "a node would start with this folder" if report.sound else "a node would not start with this folder"
    counts = f"{_count(len(report.datasets), 'dataset')}, {_count(errors, 'error')}, {_count(warnings, 'warning')}"
    console.rule(style="dim")
    console.print(_text(f"{folder}: {counts}; {verdict}", "green" if report.sound else "red"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _show_dataset(console: Console, report: Report) -> None:
    from grid.node.checking import what_is_public, what_leaves, what_stays

    console.rule(_text(report.name, "bold"), align="left", style="dim")
    card = report.card
    parts = [f"{report.file} ({report.format})" if report.format else report.file]
    if card is not None:
        target = next((column.name for column in card.columns if column.role == "target"), "")
        classes = f" of {card.classes} classes" if card.classes else ""
        shape = " x ".join(map(str, card.feature_shape))
        parts += [f"{card.rows:,} rows", f"features {shape} {card.feature_dtype}"]
        parts.append(f"target {target or '(array)'}{classes}" if card.target_dtype else "no target")
        parts.append(" ".join(card.tags))
    console.print(_text("  ".join(part for part in parts if part)))
    if card is not None:
        if card.description:
            console.print(_text(card.description, "italic"))
        console.print(_columns(card, report))
        grid = _two_columns()
        for title, lines in (
            ("may leave", what_leaves(report.policy, card.rows)),
            ("never leaves", what_stays(report.policy)),
            ("public", [", ".join(what_is_public(card)) + "."]),
        ):
            for number, line in enumerate(lines):
                grid.add_row(_text("" if number else title, "bold"), _text(line))
        console.print(grid)
        _show_mock(console, card)
    _show_findings(console, report.errors, report.warnings)


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return Text(shown, style=style)


def _two_columns() -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=12, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _columns(card: DatasetCard, report: Report) -> RenderableType:
    """The columns that are used, in order, and beneath them those that are not."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("column", "role", "kind", "values", "missing values"):
        table.add_column(name, overflow="fold")
    used = [column for column in card.columns if column.name not in report.unused]
    for column in used[:MAX_COLUMNS_SHOWN]:
        table.add_row(*(_text(cell) for cell in (column.name, column.role, column.kind, _values(column), _missing(column))))
    if len(used) > MAX_COLUMNS_SHOWN:
        table.add_row(_text(f"and {len(used) - MAX_COLUMNS_SHOWN} more", "dim"))
    for name, why in list(report.unused.items())[:MAX_COLUMNS_SHOWN]:
        table.add_row(_text(name, "dim"), _text("not used", "dim"), "", _text(why, "dim"))
    return table if table.row_count else _text("no named columns", "dim")


def _values(column: ColumnCard) -> str:
    if column.categories:
        more = f" and {len(column.categories) - 6} more" if len(column.categories) > 6 else ""
        return ", ".join(column.categories[:6]) + more
    low, high = column.minimum, column.maximum
    if low is None and high is None:
        return "no bounds"
    return f"{'any' if low is None else f'{low:g}'} to {'any' if high is None else f'{high:g}'}"


def _missing(column: ColumnCard) -> str:
    return {"error": "an error", "category": "a category", "mean-of-bounds": "mean of bounds"}[column.missing]


def _show_mock(console: Console, card: DatasetCard) -> None:
    """Made-up rows, as clients get them."""
    from rich import box
    from rich.table import Table

    mock = _mock(card)
    shape = " x ".join(map(str, (card.rows if card.rows < 1000 else 1000, *card.feature_shape)))
    names = list(mock.columns)[:MOCK_COLUMNS]
    if not names:
        console.print(_text(f"ds.mock.features has the form {shape}, standard normal numbers", "dim"))
        return
    more = f", and {_count(len(mock.columns) - len(names), 'column')} more" if len(mock.columns) > len(names) else ""
    console.print(_text(f"ds.mock, made-up rows as clients get them{more}:", "dim"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in names:
        table.add_column(_text(name), overflow="fold", style="dim")
    for row in range(len(mock)):
        table.add_row(*(_text(_cell(mock[name].iloc[row])) for name in names))
    console.print(table)


def _cell(cell: Any) -> str:
    return f"{cell:.4g}" if hasattr(cell, "dtype") else str(cell)


def _show_findings(console: Console, errors: Sequence[str], warnings: Sequence[str]) -> None:
    signs: Mapping[str, tuple[str, Sequence[str]]] = {"error": ("red", errors), "warning": ("yellow", warnings)}
    grid = _two_columns()
    for word, (style, findings) in signs.items():
        for finding in findings:
            grid.add_row(_text(word, style), _text(finding))
    if grid.row_count:
        console.print(grid)
