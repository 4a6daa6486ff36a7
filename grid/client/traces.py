"""What a plan costs on shares, operation by operation, as people see it: `trio.run(plan, *args, trace=True)`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grid.display import MAX_SHOWN, counted, html, text_table
from grid.display_bars import Figures, bars
from grid.errors import InvalidRequest
from grid.smpc.tracing import Measured, Whole

COLUMNS = ("step", "operation", "operands", "rounds", "path", "bytes", "ms", "error", "line")

WORDS = ("line", "operands", "operation")
"""Columns of words: cut where there is no room, the first one first."""

ALONE = "Each operation alone, at one node. Independent ones share rounds: “path” is what each adds to those of the whole."

NOTE = f"{ALONE} Error: the largest difference from PyTorch in double precision."


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Trace:
    """A plan run on this machine by three parties, on values like the arguments; no node took part in it.

    `operations` has each operation that the plan runs; `result` what the plan gives on those values. `rounds` of the whole are
    the sum of the operations' `path`, `bytes_sent` is by each node on average, `seconds` are of computing at one node, without
    the rounds' way over the network. `error` is the largest difference of a result from the plan in double precision, and
    `differ` how many whole numbers and truth values among the results are not PyTorch's. `note` says what was made up.
    """

    name: str
    operations: tuple[Measured, ...]
    result: Any
    rounds: int
    bytes_sent: int
    seconds: float
    error: float
    differ: int
    note: str = ""

    @classmethod
    def of(cls, name: str, whole: Whole, result: Any, note: str) -> Trace:
        seconds = sum(one.seconds for one in whole.operations)
        return cls(name, whole.operations, result, whole.rounds, whole.bytes_sent, seconds, whole.error, whole.differ, note)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a bar chart of the operations that cost most, an SVG file. Raises `InvalidRequest` where that cannot be."""
        if Path(path).suffix.lower() != ".svg":
            raise InvalidRequest(f"a trace is saved as SVG: name the file {Path(path).with_suffix('.svg').name}")
        try:
            Path(path).write_text(self._chart(), encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"the trace cannot be saved as {os.fspath(path)}: {error.strerror}") from None

    def _chart(self) -> str:
        shown, rest = self._shown()
        rows = [*shown, *([rest] if rest else [])]
        labels = [f"{_short(one.op)}  {one.operands}".strip() for one in rows]
        columns = [
            Figures("rounds", [one.rounds for one in rows], [f"{one.rounds:,}" for one in rows]),
            Figures("path", [one.path for one in rows], [f"{one.path:,}" for one in rows]),
            Figures("bytes", [one.bytes_sent for one in rows], [f"{one.bytes_sent:,}" for one in rows]),
            Figures("ms", [one.seconds for one in rows], [f"{1e3 * one.seconds:.3g}" for one in rows]),
        ]
        return bars(self._title, labels, columns, ALONE)

    # ------------------------------------------------------------ as a table

    @property
    def _title(self) -> str:
        return f"{self.name} on shares: {counted(self.rounds, 'round')}, {self.bytes_sent:,} bytes by each node"

    @property
    def _accuracy(self) -> str:
        differ = f", {counted(self.differ, 'whole number or truth value')} of the results not PyTorch's" if self.differ else ""
        return f"{self.seconds:.3g} s of computing at each; results within {self.error:.2g} of double precision{differ}"

    def _shown(self) -> tuple[list[Measured], Measured | None]:
        """The operations that cost most, in the plan's order, and all others as one."""
        costs = [one for one in self.operations if one.rounds or one.bytes_sent] or self.operations
        most = sorted(costs, key=lambda one: (one.path, one.bytes_sent, one.rounds), reverse=True)[: MAX_SHOWN - 1]
        kept = sorted(most, key=lambda one: one.step)
        others = [one for one in self.operations if one not in kept]
        return kept, _merged(others) if others else None

    def _rows(self) -> list[Sequence[str]]:
        shown, rest = self._shown()
        rows: list[Sequence[str]] = [_cells(one) for one in shown]
        return [*rows, ("", *_cells(rest)[1:])] if rest else rows

    def __repr__(self) -> str:
        table = text_table(self._title, COLUMNS, self._rows())
        return "\n  ".join([table, self._accuracy, *([self.note] if self.note else [])])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        rows = self._rows()
        widths = [max(map(len, cells)) for cells in zip(COLUMNS, *rows, strict=True)]
        room = options.max_width - sum(widths) - 3 * len(COLUMNS)
        table = Table(box=SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False)
        table.title = Text(self._title)
        table.caption = Text("\n".join([self._accuracy, *([self.note] if self.note else [])]))
        for name in WORDS:
            at = COLUMNS.index(name)
            cut = max(len(name), widths[at] + min(0, room))
            room, widths[at] = room + widths[at] - cut, cut
        for name, width in zip(COLUMNS, widths, strict=True):
            table.add_column(name, width=width, no_wrap=True, justify="left" if name in WORDS else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        yield table

    def _repr_html_(self) -> str:
        note = " ".join([NOTE, *([f"{self.note[0].upper()}{self.note[1:]}."] if self.note else [])])
        return html(self._title, self._accuracy, columns=COLUMNS, rows=self._rows(), note=note)


def _cells(one: Measured) -> tuple[str, ...]:
    error = "—" if math.isnan(one.error) else f"{one.error:.2g}"
    figures = f"{one.rounds:,}", f"{one.path:,}", f"{one.bytes_sent:,}", f"{1e3 * one.seconds:.3g}", error
    return str(one.step), _short(one.op), one.operands, *figures, one.line


def _short(op: str) -> str:
    """`aten.mm.default` as `mm`."""
    return op.removeprefix("aten.").removesuffix(".default")


def _merged(others: Sequence[Measured]) -> Measured:
    """Several operations as one row."""
    errors = [one.error for one in others if not math.isnan(one.error)]
    return Measured(
        step=others[0].step,
        op=f"{len(others)} more" if len(others) > 1 else others[0].op,
        line="",
        operands="",
        results="",
        rounds=sum(one.rounds for one in others),
        path=sum(one.path for one in others),
        bytes_sent=sum(one.bytes_sent for one in others),
        seconds=sum(one.seconds for one in others),
        error=max(errors, default=math.nan),
    )
