"""What people see of an object: text for terminals, HTML for notebooks.

The HTML stands by itself: no script, no style sheet, no link. Colours come from the page that it is shown on, so it reads on
dark and on light. Whatever is put in is escaped by the template engine: names come from other people. Nothing here asks
anybody for anything, and nothing shows a value of remote data.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

MAX_SHOWN = 20
"""Rows of a table in a `repr`; the rest is counted."""

MAX_LETTERS = 200

_CARD = """\
<div style="display:inline-block; max-width:100%; box-sizing:border-box; overflow-x:auto; margin:4px 0; padding:8px 12px;
 border:1px solid rgba(127,127,127,.35); border-left:3px solid {{ accent }}; border-radius:4px;
 font:13px/1.5 system-ui,sans-serif; color:inherit; text-align:left">
<div><b>{{ title }}</b>{% if subtitle %} <span style="opacity:.7">{{ subtitle }}</span>{% endif %}</div>
{% if facts %}<table style="border-collapse:collapse; border:none; margin:4px 0 0">
{% for name, value in facts %}<tr style="background:none"><td style="{{ cell }}; padding-left:0; opacity:.7; white-space:nowrap">\
{{ name }}</td><td style="{{ cell }}">{{ value }}</td></tr>
{% endfor %}</table>
{% endif %}{% if rows %}<table style="border-collapse:collapse; border:none; margin:6px 0 0">
<tr style="background:none">{% for name in columns %}<th style="{{ cell }}; {{ line }}; font-weight:600">{{ name }}</th>\
{% endfor %}</tr>
{% for row in rows %}<tr style="background:none">{% for value in row %}\
<td style="{{ cell }}; {{ line }}{% if value|length <= 32 %}; white-space:nowrap{% endif %}">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endif %}{% if more %}<div style="opacity:.7">and {{ more }} more</div>
{% endif %}{% if code %}<pre style="margin:6px 0 0; padding:6px 8px; max-height:24em; overflow:auto; color:inherit;
 background:rgba(127,127,127,.1); font:12px/1.45 ui-monospace,monospace; white-space:pre">{{ code }}</pre>
{% endif %}{% if picture %}{{ picture|safe }}
{% endif %}{% if note %}<div style="margin:4px 0 0; opacity:.7">{{ note }}</div>
{% endif %}</div>"""

_CELL = "padding:1px 12px 1px 0; border:none; text-align:left; vertical-align:top; color:inherit; background:none"
_LINE = "border-bottom:1px solid rgba(127,127,127,.25)"

CALM, REFUSED = "rgba(127,127,127,.35)", "#d9822b"
"""Colours of a card's left edge: of things, of errors."""


def html(
    title: str,
    subtitle: str = "",
    *,
    facts: Sequence[tuple[str, object]] = (),
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[object]] = (),
    code: str = "",
    picture: str = "",
    note: str = "",
    accent: str = CALM,
) -> str:
    """A card for a notebook: a title, a list of facts (empty ones are left out), a table, a text in fixed width, a note.

    `picture` is SVG as it stands: nothing that comes from others may be in it.
    """
    columns, rows = _filled(columns, rows)
    return str(
        _template().render(
            title=printable(title),
            subtitle=printable(subtitle),
            facts=[(name, printable(value, 2000)) for name, value in facts if value not in ("", None, ())],
            columns=columns,
            rows=[[printable(value) for value in row] for row in rows[:MAX_SHOWN]],
            more=max(0, len(rows) - MAX_SHOWN),
            code=code,
            picture=picture,
            note=note,
            accent=accent,
            cell=_CELL,
            line=_LINE,
        )
    )


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2  # takes a while, and programs without a notebook never need it

    return jinja2.Environment(autoescape=True, trim_blocks=False).from_string(_CARD)


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as plain text, for a `repr`: a title, a line of names, a line for each row."""
    columns, rows = _filled(columns, rows)
    shown = [[printable(cell, 40) for cell in row] for row in rows[:MAX_SHOWN]]
    widths = [max(map(len, cells)) for cells in zip(columns, *shown, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (columns, *shown)]
    more = [f"and {len(rows) - MAX_SHOWN} more"] if len(rows) > MAX_SHOWN else []
    return "\n  ".join([title, *(lines if rows else []), *more])


def _filled(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """The table without columns in which nothing stands."""
    kept = [index for index in range(len(columns)) if any(row[index] != "" for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def counted(number: int, noun: str) -> str:
    """`1 dataset`, `3 datasets`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(value: object, most: int = MAX_LETTERS) -> str:
    """Text from a peer, fit for one line: control characters escaped, at most `most` characters."""
    text = str(value)
    if not text.isprintable():
        text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text[:most])
    return text if len(text) <= most else text[: most - 1] + "…"
