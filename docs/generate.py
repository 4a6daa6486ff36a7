"""Write the documents that are made: those in `docs/reference/` from the code, `docs/index.md` from all others.

`make docs` runs this; tests/docs compares. Each file of `docs/pages/` makes the page of its name: its function `page` gives
the text. Every page has a file of its own, and a new page is a new file there.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parent

HEAD = """\
# Documents

Made from the pages themselves by `make docs`. Where to begin: [the README](../README.md) has a five-minute start,
[ARCHITECTURE.md](../ARCHITECTURE.md) says how it is built, [SECURITY.md](../SECURITY.md) whom to trust with what.
"""

SECTIONS = {
    "tutorial": "Tutorials: read in order; a test runs every block of code",
    "how-to": "How to",
    "": "About",
    "reference": "Reference, made from the code",
    "adr": "Decisions",
}
"""Folder -> heading, in order."""


def _maker(path: Path) -> Callable[[], str]:
    spec = importlib.util.spec_from_file_location(f"docs_page_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[[], str] = module.page
    return make


def index_page() -> str:
    """`docs/index.md`: every other page with its title and first sentence."""
    parts = [HEAD]
    for folder, heading in SECTIONS.items():
        pages = sorted((path for path in (DOCS / folder).glob("*.md") if path != DOCS / "index.md"), key=_place)
        if pages:
            parts.append(f"## {heading}\n\n" + "\n".join(map(_line, pages)) + "\n")
    return "\n".join(parts)


def _place(page: Path) -> tuple[int, str]:
    """Where a page stands among those of its folder: by its number, if it has one, then by name."""
    number = page.name.partition("-")[0]
    return int(number) if number.isdigit() else 0, page.name


def _line(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    title = re.search(r"^# +(.+)$", text, re.MULTILINE)
    assert title is not None, f"{page} has no title"
    link = f"- [{title[1]}]({page.relative_to(DOCS)})"
    body = text[title.end() :].strip().split("\n\n")[0]
    if page.parent.name in ("reference", "adr") or not body[:1].isalpha():
        return link
    return f"{link}: {re.split(r'(?<=[.:]) ', ' '.join(body.split()), maxsplit=1)[0]}"


PAGES = {
    **{f"reference/{path.stem}.md": _maker(path) for path in sorted((DOCS / "pages").glob("*.py"))},
    "index.md": index_page,  # the last, for it lists the others
}
"""File name in `docs/` -> the function that makes its text."""


def main() -> None:
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
