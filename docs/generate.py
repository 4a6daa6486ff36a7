"""Write the documents that are made from the code. `make docs` runs this; tests/test_docs.py compares."""

from __future__ import annotations

from pathlib import Path

from grid.plans.docs import ops_page
from grid.settings import KIND_NAMES, TABLES, describe
from grid.wire.docs import protocol_page

DOCS = Path(__file__).parent


def settings_page() -> str:
    """`docs/settings.md`: every setting of every kind of process."""
    lines = [
        "# Settings",
        "",
        "Made from `grid/settings.py` by `make docs`. A setting comes from its flag; else from its environment variable; else",
        "from the settings file that `--config` names, a TOML file with the tables below; else it has its default. Lists are",
        "separated by commas in the environment. The limits of a session stand in a table of their own: `[node.session]`.",
    ]
    for table, cls in TABLES.items():
        kind = "Given in Python; there are no flags." if table == "client" else f"Flags of `grid {table}`."
        lines += ["", f"## `[{table}]`", "", kind, "", "| setting | environment | value | default | |", "|---|---|---|---|---|"]
        for one in describe(cls):
            name = f"`{one.path}`" if table == "client" else f"`{one.path}` `{one.flag}`"
            default = "" if one.default in (None, "", ()) else f"`{str(one.default).lower()}`"
            lines.append(f"| {name} | `{one.variable}` | {KIND_NAMES[one.kind]} | {default} | {one.help} |")
    return "\n".join(lines) + "\n"


PAGES = {"settings.md": settings_page, "protocol.md": protocol_page, "reference/ops.md": ops_page}
"""File name in `docs/` -> the function that makes its text."""


def main() -> None:
    for name, make in PAGES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
