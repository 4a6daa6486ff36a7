"""What a check found: what, why it matters, what to do. Checks return these; they raise nothing and print nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

Verdict = Literal["ok", "warning", "wrong", "unknown"]
"""`wrong`: it will not work. `warning`: it works, perhaps not for long or not for everybody. `unknown`: not to be seen here."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check. `why` and `do` are "" where everything is well."""

    check: str
    verdict: Verdict
    what: str
    why: str = ""
    do: str = ""


def ok(check: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, verdict="ok", what=what)


def warning(check: str, what: str, *, why: str, do: str) -> Finding:
    """It works, and may not for long or not for everybody."""
    return Finding(check=check, verdict="warning", what=what, why=why, do=do)


def wrong(check: str, what: str, *, why: str, do: str) -> Finding:
    """It will not work."""
    return Finding(check=check, verdict="wrong", what=what, why=why, do=do)


def unknown(check: str, what: str, *, why: str = "", do: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(check=check, verdict="unknown", what=what, why=why, do=do)


def sound(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(one.verdict != "wrong" for one in findings)
