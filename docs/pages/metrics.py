"""Every metric, from the table in `grid/telemetry.py`."""

from __future__ import annotations

from grid.telemetry import METRICS

HEAD = """\
# Metrics

Made from `grid/telemetry.py` by `make docs`. A process that has a port for it gives these in the text format of Prometheus at
`/metrics`. None holds anything of the data.

| metric | type | labels | |
|---|---|---|---|
"""


def page() -> str:
    rows = [
        f"| `{name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.text} |"
        for name, one in sorted(METRICS.items())
    ]
    return HEAD + "\n".join(rows) + "\n"
