"""Runs the code of a page as a reader would in a notebook: block after block, in one namespace.

A block ```` ```python ```` runs; where the next block is ```` ```text ````, that is what it prints, its last expression
included. ```` ```python raises ```` ends in an error of ours, whose name and message are what it "prints". `...` in the
expected text stands for anything.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import doctest
import io
import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from grid.errors import GridError

BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of Python and what the page says that it prints; None where it says nothing."""

    code: str
    line: int
    raises: bool
    expected: str | None


def blocks(text: str) -> Iterator[Block]:
    """The blocks of Python on a page, in order."""
    found = list(BLOCK.finditer(text))
    for index, one in enumerate(found):
        if one[1] != "python":
            continue
        follows = found[index + 1] if index + 1 < len(found) else None
        expected = follows[3] if follows is not None and follows[1] == "text" else None
        yield Block(one[3], text.count("\n", 0, one.start()) + 2, "raises" in one[2].split(), expected)


class Reader:
    """Someone who runs the page."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> str:
        """What the block prints. Raises what it raises, unless the page says that it does."""
        name = f"<{self._path.name}, line {block.line}>"
        linecache.cache[name] = (len(block.code), None, block.code.splitlines(keepends=True), name)
        tree = ast.parse(block.code, name)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(tree, name, "exec"), self.names)
                if last is not None:
                    value = eval(compile(ast.Expression(last.value), name, "eval"), self.names)
                    if value is not None:
                        print(repr(value))
            except GridError as error:
                if not block.raises:
                    raise
                print(f"{type(error).__name__}: {error}")
            else:
                assert not block.raises, f"{name} was to raise, and did not"
        return printed.getvalue()


def check(path: Path) -> None:
    """Run the page and compare what each block prints with what the page says."""
    reader, checker = Reader(path), doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    torch.manual_seed(0)
    for block in blocks(path.read_text(encoding="utf-8")):
        printed = reader.run(block)
        if block.expected is None:
            assert not printed.strip(), f"{path.name}, line {block.line}: prints what the page does not show:\n{printed}"
        else:
            same = checker.check_output(block.expected, printed, flags)
            assert same, f"{path.name}, line {block.line}: the page shows\n{block.expected}\nand this came:\n{printed}"
