"""The dashboard's pages, rendered from facts that `pages.py` collects. No I/O beyond reading the templates once.

Every text of a peer is hostile: templates escape everything (there is no `safe` in them), names in links are percent-encoded,
and class names come from fixed tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import jinja2

from grid.gateway.explain import MISSING, WORDS, show_range, show_shape
from grid.gateway.views import show_time
from grid.ids import PeerId

SHOWN_TAGS = 30


@dataclasses.dataclass(frozen=True, slots=True)
class Tag:
    """A tag as a filter: `link` turns it on, or off where it is chosen."""

    name: str
    datasets: int
    chosen: bool
    link: str


class Dashboard:
    """Renders pages, the token form and messages."""

    def __init__(self) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("grid.gateway"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            cache_size=-1,
        )
        self._templates.filters.update(
            {
                "bytes": show_bytes,
                "rate": show_rate,
                "number": show_number,
                "plural": lambda number: "" if number == 1 else "s",
                "short": lambda text: text[:8],
                "shortened": shortened,
                "grouped": grouped,
                "utc": show_time,
                "exact": lambda wall: show_time(wall).replace("T", " ").replace("Z", " UTC"),
                "span": show_span,
                "mode": lambda mode: mode if mode in WORDS else "",
                "word": lambda mode: WORDS.get(mode, "unknown"),
                "missing": lambda way: MISSING.get(way, ""),
                "range": show_range,
                "shape": show_shape,
                "cell": show_cell,
                "figure": show_figure,
                "seconds": show_seconds,
            }
        )
        self._templates.globals.update(
            node_link=node_link,
            job_link=job_link,
            dataset_link=dataset_link,
            list_link=list_link,
            show_bytes=show_bytes,
            show_rate=show_rate,
        )

    def page(self, name: str, facts: Mapping[str, Any]) -> str:
        """The page that `templates/NAME.html` describes."""
        return self._templates.get_template(f"{name}.html").render(facts)

    def token_form(self, *, wrong: bool) -> str:
        return self._templates.get_template("token.html").render(wrong=wrong)

    def message(self, title: str, text: str) -> str:
        return self._templates.get_template("message.html").render(title=title, text=text)


# ---------------------------------------------------------------- links


def node_link(node: str) -> str:
    """The page of a node, by name or id."""
    return f"/nodes/{quote(node, safe='')}"


def job_link(job: str) -> str:
    """The page of a job."""
    return f"/jobs/{quote(job, safe='')}"


def dataset_link(node: str, dataset: str) -> str:
    """The page of a dataset."""
    return f"/datasets/{quote(node, safe='')}/{quote(dataset, safe='')}"


def list_link(path: str, **choices: Any) -> str:
    """A list with these choices; those that are empty, and page 1, are left out."""
    told = [(key, value) for key, value in choices.items() if value and (key, value) != ("page", 1)]
    pairs = [(key, one) for key, value in told for one in (value if isinstance(value, list) else [value])]
    return f"{path}?{urlencode(pairs)}" if pairs else path


def tag_filters(counts: Sequence[tuple[str, int]], chosen: Sequence[str], query: str = "") -> list[Tag]:
    """The filter bar: chosen tags first, then the most used ones. `query` is what the reader has typed beside it."""
    datasets = dict(counts)
    names = [*chosen, *(name for name, _ in counts if name not in chosen)]
    tags = []
    for name in names[: max(SHOWN_TAGS, len(chosen))]:
        others = [tag for tag in chosen if tag != name]
        after = others if name in chosen else [*others, name]
        link = list_link("/datasets", q=query, tag=after)
        tags.append(Tag(name=name, datasets=datasets.get(name, 0), chosen=name in chosen, link=link))
    return tags


# ---------------------------------------------------------------- words and figures


def show_bytes(amount: float) -> str:
    """Such as "0 B", "12.3 kB", "1.20 GB"; decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    if unit == "B" or amount >= 99.95:
        return f"{amount:.0f}\u00a0{unit}"
    return f"{amount:.1f}\u00a0{unit}" if amount >= 9.995 else f"{amount:.2f}\u00a0{unit}"


def show_rate(per_s: float) -> str:
    """A number of things a second: "0", "0.25", "3.1", "1 200"."""
    if per_s >= 99.5 or per_s == round(per_s):
        return show_number(round(per_s))
    return f"{per_s:.1f}" if per_s >= 0.95 else f"{per_s:.2f}"


def show_number(number: int) -> str:
    """With thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def show_span(seconds: float) -> str:
    """A stretch of time in its largest unit: "8 s", "3 min", "2 h", "5 d". The pages' script says the same."""
    seconds = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size}\u00a0{unit}"
    return f"{seconds}\u00a0s"


def show_figure(value: float | None) -> str:
    """A metric, in four digits; a dash where there is none."""
    return "—" if value is None else f"{value:.4g}"


def show_seconds(seconds: float) -> str:
    """How long a round took: "0.034 s", "1.25 s", "3 min"."""
    return show_span(seconds) if seconds >= 120 else f"{seconds:.3g}\u00a0s"


def show_cell(value: str | float) -> str:
    """A made-up value: four digits of a number, a short piece of a text."""
    return f"{value:.4g}" if isinstance(value, float) else shortened(str(value), 40)


def shortened(text: str, most: int) -> str:
    """`text`, cut to `most` characters with a sign that it was."""
    return text if len(text) <= most else text[: most - 1] + "…"


def grouped(peer: PeerId) -> list[str]:
    """An id in groups of five letters, as people compare them; the last of six, as ids have 26."""
    groups = [peer[start : start + 5] for start in range(0, len(peer), 5)]
    return [*groups[:-2], "".join(groups[-2:])] if len(groups) > 1 and len(groups[-1]) == 1 else groups
