"""A bar chart as SVG: a line for each thing, and beside its name a bar for each figure, on an axis of the figure's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from grid.display import printable

LABEL, BAR, ROW, TOP, EDGE = 330, 150, 22, 64, 16
"""Widths of the names and of a column of bars, heights of a line and of what stands above the first, the margin: in pixels."""

LETTERS = 48
"""Of a name, at most."""

COLOURS = ("#3f6ea8", "#5b9a7c", "#b98a3e", "#a35d6a")

_CHART = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{{ width }}" height="{{ height }}" viewBox="0 0 {{ width }} {{ height }}" \
role="img" aria-label="{{ title }}" font-family="system-ui,sans-serif" font-size="12" fill="#24292f">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{{ edge }}" y="26" font-size="15" font-weight="600">{{ title }}</text>
{% for column in columns %}<text x="{{ column.x }}" y="{{ top - 12 }}" font-weight="600">{{ column.name }}</text>
<line x1="{{ column.x }}" x2="{{ column.x }}" y1="{{ top - 4 }}" y2="{{ bottom }}" stroke="#d0d7de"/>
{% endfor %}{% for label in labels %}<text x="{{ edge }}" y="{{ top + loop.index0 * row + 14 }}">{{ label }}</text>
{% endfor %}{% for column in columns %}{% for bar in column.bars %}\
{% if bar.width %}<rect x="{{ column.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="14" fill="{{ column.colour }}"/>
{% endif %}<text x="{{ column.x + bar.width + 4 }}" y="{{ bar.y + 11 }}" font-size="11">{{ bar.text }}</text>
{% endfor %}{% endfor %}{% if note %}<text x="{{ edge }}" y="{{ bottom + 22 }}" fill="#57606a">{{ note }}</text>
{% endif %}</svg>
"""


class Figures(NamedTuple):
    """One column: its name, a number of 0 or more for each line, and how a number is written."""

    name: str
    values: Sequence[float]
    texts: Sequence[str]


def bars(title: str, labels: Sequence[str], columns: Sequence[Figures], note: str = "") -> str:
    """The chart as text in SVG. The longest bar of each column is that of its largest number."""
    drawn = []
    for number, column in enumerate(columns):
        largest = max(column.values, default=0.0) or 1.0
        pairs = enumerate(zip(column.values, column.texts, strict=True))
        made = [
            {"y": TOP + place * ROW + 3, "width": round((BAR - 64) * value / largest, 1), "text": printable(text)}
            for place, (value, text) in pairs
        ]
        x, colour = EDGE + LABEL + number * BAR, COLOURS[number % len(COLOURS)]
        drawn.append({"name": column.name, "x": x, "colour": colour, "bars": made})
    bottom = TOP + len(labels) * ROW + 4
    return str(
        _template().render(
            title=printable(title),
            labels=[printable(label, LETTERS) for label in labels],
            columns=drawn,
            note=printable(note),
            width=2 * EDGE + LABEL + len(columns) * BAR,
            height=bottom + (40 if note else EDGE),
            edge=EDGE,
            top=TOP,
            bottom=bottom,
            row=ROW,
        )
    )


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2  # as in `grid.display`

    return jinja2.Environment(autoescape=True).from_string(_CHART)
