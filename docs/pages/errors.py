"""Every error, from the tree in `grid/errors.py`."""

from __future__ import annotations

import inspect

from grid.errors import BY_CODE, GridError

HEAD = """\
# Errors

Made from `grid/errors.py` by `make docs`. All of them are exported from `grid` and are kinds of `grid.GridError`, so
`except grid.GridError` catches every one. `code` is what travels and never changes; `details` holds a few plain values for
programs, such as the `rule` of a refusal; `retryable` says whether the same call may succeed later by itself. Messages and
details never hold data values, keys or tokens.
"""


def page() -> str:
    entries = [HEAD]
    for cls in BY_CODE.values():
        base = cls.__bases__[0]
        kind = f"A kind of [{base.__name__}](#{base.__name__.lower()}). " if issubclass(base, GridError) else ""
        retry = "Retryable." if cls.retryable else "Not retryable."
        when = inspect.cleandoc(cls.__doc__ or "")
        entries.append(f"## {cls.__name__}\n\nCode `{cls.code}`. {kind}{retry}\n\n{when}\n\n**What to do.** {cls.advice}\n")
    return "\n".join(entries)
