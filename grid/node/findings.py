"""What is wrong with a dataset, and what its owner should look at.

A node stops at the first error; `grid data check` wants all of them. So whatever looks at a description or at rows says what
it finds to a `Findings`, which either raises it or notes it and lets the looking go on. Errors about rows are counted by
column and kind: the first place is named, the others are a number.
"""

from __future__ import annotations

import dataclasses
from types import TracebackType

import numpy

from grid.errors import DatasetError

Flags = numpy.ndarray[tuple[int], numpy.dtype[numpy.bool_]]

MAX_KINDS = 1000
"""Further kinds of errors in rows are not told apart: a table may have very many columns."""


@dataclasses.dataclass(slots=True)
class _Rows:
    what: str
    count: int


class Findings:
    """See the module. With `strict`, the first error is raised; without it, all of them are kept."""

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self.missing: dict[str, int] = {}
        self.unused: dict[str, str] = {}
        self._errors: dict[str, None] = {}
        self._warnings: dict[str, None] = {}
        self._rows: dict[tuple[str, str], _Rows] = {}

    @property
    def errors(self) -> list[str]:
        """All that is wrong, what concerns single rows last."""
        return list(self._errors) + [
            found.what + (f" (and in {found.count - 1} more rows)" if found.count > 1 else "") for found in self._rows.values()
        ]

    @property
    def warnings(self) -> list[str]:
        """All that its owner should look at."""
        return list(self._warnings)

    def error(self, error: DatasetError) -> None:
        """Something is wrong."""
        if self.strict:
            raise error
        self._errors.setdefault(error.message)

    def noting(self) -> Noting:
        """`with findings.noting():` an error that ends the block is noted, and what comes after the block goes on."""
        return Noting(self)

    def row(self, place: str, subject: str, problem: str, count: int = 1) -> None:
        """Something is wrong in `count` rows, of which `place` names the first: `problem`, in the column `subject`."""
        if self.strict:
            raise DatasetError(f"{place}: {problem}")
        known = self._rows.get((subject, problem))
        if known is not None:
            known.count += count
        elif len(self._rows) < MAX_KINDS:
            self._rows[subject, problem] = _Rows(f"{place}: {problem}", count)

    def filled(self, subject: str, count: int) -> None:
        """In so many rows, something stands for a value that is missing in the column `subject`."""
        self.missing[subject] = self.missing.get(subject, 0) + count

    def leave_out(self, place: str, what: str, subject: str, why: str) -> None:
        """A column or an array (`what`) is not used."""
        self.unused[subject] = why
        self.warn(f"{place}: {what} {subject!r} {why} and is no feature")

    def warn(self, warning: str) -> None:
        """Something to look at, which stops nothing."""
        self._warnings.setdefault(warning)


class Noting:
    """See `Findings.noting`."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if self._findings.strict or not isinstance(error, DatasetError):
            return False
        self._findings.error(error)
        return True
