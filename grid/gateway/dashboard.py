"""The dashboard's pages, rendered from what the gateway knows. No I/O beyond reading the templates once.

Every text of a peer is hostile: templates escape everything (there is no `safe` in them), ids in links are percent-encoded,
and class names come from fixed tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import jinja2

from grid.wire.messages import ColumnCard

PARTS = ("summary", "nodes", "datasets", "traffic")
"""Sections of the page, each a template of its own that can be fetched alone."""

SHOWN_NODES = 200
SHOWN_DATASETS = 200
SHOWN_TAGS = 60
SHOWN_LINKS = 50

SPARK_WIDTH = 590
SPARK_HEIGHT = 80

RELEASE_MEANINGS: Mapping[str, str] = {
    "deny": "nothing leaves the node",
    "aggregate": "only aggregates over enough rows leave the node",
    "approve": "the owner approves each release",
    "open": "public data: everything may leave the node",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Tag:
    """A tag as a filter: `link` turns it on, or off where it is chosen."""

    name: str
    datasets: int
    chosen: bool
    link: str


class Dashboard:
    """Renders the page, its parts, the token form and messages."""

    def __init__(self) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("grid.gateway"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters.update(
            {
                "bytes": show_bytes,
                "clock": lambda iso: f"{iso[11:19]} UTC",
                "kind": show_column,
                "meaning": lambda mode: RELEASE_MEANINGS.get(mode, "a mode that this gateway does not know"),
                "mode": lambda mode: mode if mode in RELEASE_MEANINGS else "",
                "number": lambda number: f"{number:,}".replace(",", "\u202f"),
                "only": lambda tag: f"/?{urlencode([('tag', tag)])}",
                "plural": lambda number: "" if number == 1 else "s",
                "short": lambda text: text[:8],
                "shortened": shortened,
            }
        )

    def page(self, facts: Mapping[str, Any]) -> str:
        """The whole page. `facts` are those of `views.page_facts`."""
        return self._templates.get_template("dashboard.html").render(facts)

    def part(self, name: str, facts: Mapping[str, Any]) -> str:
        """One section, a name of `PARTS`."""
        assert name in PARTS
        return self._templates.get_template(f"{name}.html").render(facts)

    def token_form(self, *, wrong: bool) -> str:
        return self._templates.get_template("token.html").render(wrong=wrong)

    def message(self, title: str, text: str) -> str:
        return self._templates.get_template("message.html").render(title=title, text=text)


def tag_filters(counts: Mapping[str, int], chosen: Sequence[str]) -> tuple[list[Tag], int]:
    """The filter bar: chosen tags first, then the most used ones; and how many are left out."""
    names = [*chosen, *(name for name in counts if name not in chosen)]
    shown = names[: max(SHOWN_TAGS, len(chosen))]
    tags = []
    for name in shown:
        others = [tag for tag in chosen if tag != name]
        after = others if name in chosen else [*others, name]
        link = "/?" + urlencode([("tag", tag) for tag in after]) if after else "/"
        tags.append(Tag(name=name, datasets=counts.get(name, 0), chosen=name in chosen, link=link))
    return tags, len(names) - len(shown)


def sparkline(history: Sequence[float]) -> dict[str, str]:
    """SVG paths for a minute of rates: the line, and the area below it, in a box of 590 by 80."""
    top = max(*history, 1.0)
    step = SPARK_WIDTH / (len(history) - 1)
    scale = (SPARK_HEIGHT - 8) / top
    points = [f"{index * step:.0f} {SPARK_HEIGHT - 2 - value * scale:.1f}" for index, value in enumerate(history)]
    line = "M" + "L".join(points)
    return {"line": line, "area": f"{line}L{SPARK_WIDTH} {SPARK_HEIGHT}L0 {SPARK_HEIGHT}Z"}


def show_bytes(amount: float) -> str:
    """Such as "0 B", "12.3 kB", "1.20 GB"; decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    if unit == "B" or amount >= 99.95:
        return f"{amount:.0f}\u00a0{unit}"
    return f"{amount:.1f}\u00a0{unit}" if amount >= 9.995 else f"{amount:.2f}\u00a0{unit}"


def show_column(column: ColumnCard) -> str:
    """What the owner says of a column, in a few words."""
    words = [column.kind if column.kind in ("number", "category", "text") else "?"]
    if column.minimum is not None and column.maximum is not None:
        words.append(f"{column.minimum:g} to {column.maximum:g}")
    if column.categories:
        words.append(f"{len(column.categories)} values")
    if column.role == "target":
        words.append("target")
    return ", ".join(words)


def shortened(text: str, most: int) -> str:
    """`text`, cut to `most` characters with a sign that it was."""
    return text if len(text) <= most else text[: most - 1] + "…"
