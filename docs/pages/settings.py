"""Every setting of every kind of process, from `grid/settings.py`."""

from __future__ import annotations

from grid.settings import KIND_NAMES, TABLES, describe


def page() -> str:
    lines = [
        "# Settings",
        "",
        "Made from `grid/settings.py` by `make docs`. A setting comes from its flag; else from its environment variable; else",
        "from the settings file that `--config` names, a TOML file with the tables below; else it has its default. Lists are",
        "separated by commas in the environment. Settings with a dot stand in tables of their own, such as `[node.session]`.",
    ]
    for table, cls in TABLES.items():
        kind = "Given in Python; there are no flags." if table == "client" else f"Flags of `grid {table}`."
        lines += ["", f"## `[{table}]`", "", kind, "", "| setting | environment | value | default | |", "|---|---|---|---|---|"]
        for one in describe(cls):
            name = f"`{one.path}`" if table == "client" else f"`{one.path}` `{one.flag}`"
            default = "" if one.default in (None, "", ()) else f"`{str(one.default).lower()}`"
            lines.append(f"| {name} | `{one.variable}` | {KIND_NAMES[one.kind]} | {default} | {one.help} |")
    return "\n".join(lines) + "\n"
