"""The documents say what the code does: generated pages are fresh, commands that they show exist, exports load."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import click.testing
import pytest

import grid
from grid.cli import grid as command
from grid.settings import TABLES, describe

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(generator().PAGES))
def test_generated_pages_are_fresh(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == generator().PAGES[page](), "run `make docs`"


@pytest.mark.parametrize("table", ["gateway", "node"])
def test_every_setting_is_an_option_with_its_help(table: str) -> None:
    shown = " ".join(click.testing.CliRunner().invoke(command, [table, "--help"]).output.split())
    for one in describe(TABLES[table]):
        if (table, one.path) in {("gateway", "host"), ("gateway", "port"), ("node", "name")}:
            continue  # these are `--listen HOST:PORT` and the argument NAME
        assert f" {one.flag} " in shown, one.flag
        assert one.variable in shown and one.help.split(";")[0] in shown, one.path


def commands_shown(text: str) -> set[tuple[str, ...]]:
    """`grid ...` lines of code blocks and code spans, up to the first option or argument that is no command."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if language in ("", "sh")] + re.findall(r"`(grid [^`]+)`", text)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    found = set()
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["grid"] and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            found.add(tuple(words[1:]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documents_exist(page: Path) -> None:
    for words in commands_shown(page.read_text()):
        found: click.Command = command
        rest = list(words)
        while isinstance(found, click.Group) and rest:
            name = rest.pop(0)
            assert name in found.commands, f"{page.name}: grid {' '.join(words)}: there is no command {name!r}"
            found = found.commands[name]
        known = {flag for parameter in found.params for flag in parameter.opts}
        for word in rest:
            if word.startswith("--"):
                assert word in known, f"{page.name}: grid {' '.join(words)}: there is no option {word}"


def test_the_readme_shows_commands() -> None:
    shown = {words[0] for words in commands_shown((ROOT / "README.md").read_text())}
    assert {"gateway", "node", "root", "enroll"} <= shown


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("name", sorted(grid.EXPORTS))
def test_every_export_loads(name: str) -> None:
    assert getattr(grid, name) is not None
    assert name in dir(grid) and name in grid.__all__


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'conect'; it has .*connect"):
        grid.conect  # noqa: B018


def test_every_error_is_exported() -> None:
    from grid import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(grid.ERRORS) == classes


def test_import_and_help_start_without_torch() -> None:
    code = (
        "import sys, grid\n"
        "from grid.cli import main\n"
        "for words in (['--help'], ['gateway', '--help'], ['node', '--help'], ['demo', '--help'], ['ls', '--help']):\n"
        "    main(words, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'a heavy import at the start'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
