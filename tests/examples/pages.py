"""The page of an example shows its code and its output as they are."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def check(name: str, printed: str) -> None:
    """Compare the page of `examples/NAME.py` with the file and with what it has printed, line by line; `...` is anything."""
    title = re.compile(rf"\d+-{name.replace('_', '-')}\.md")
    (page,) = (one for one in (ROOT / "docs" / "tutorial").iterdir() if title.fullmatch(one.name))
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    lines, shown = iter(printed.splitlines()), 0
    for kind, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "py":
            shown += 1
            places = [textwrap.indent(textwrap.dedent(block), " " * depth) for depth in range(0, 20, 4)]
            assert any(place in source for place in places), f"{page.name} shows what is not in {name}.py:\n{block}"
        elif kind == "text":
            for line in block.splitlines():
                wanted = re.compile(".*".join(map(re.escape, line.split("..."))))
                assert any(map(wanted.fullmatch, lines)), f"{page.name}: was not printed, or not in this order: {line}"
    assert shown, f"{page.name} shows nothing of {name}.py"
