"""The documents say what the code does: generated pages are fresh and complete, commands and links that they show exist."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import click.testing
import pytest

import grid
from grid.cli import grid as command
from grid.cli_support import EXIT_CODES
from grid.errors import BY_CODE
from grid.settings import TABLES, describe
from grid.smpc.functions.table import SECURE_OPS
from grid.telemetry import METRICS
from grid.tensors.ops import OPS
from grid.wire import messages
from grid.wire.messages import MESSAGES, Message

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = loaded(DOCS / "generate.py").PAGES


def reference(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- pages made from code


@pytest.mark.parametrize("page", sorted(GENERATED))
def test_generated_pages_are_fresh(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == GENERATED[page](), "run `make docs`"
    assert "make docs" in GENERATED[page]()[:600], "a generated page says so at its top"


def test_every_page_of_the_reference_is_generated() -> None:
    assert {f"reference/{page.name}" for page in (DOCS / "reference").glob("*.md")} == set(GENERATED) - {"index.md"}


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_is_documented(table: str) -> None:
    page = reference("settings")
    for one in describe(TABLES[table]):
        assert len(one.help) > 10, f"{table}.{one.path} has no help text"
        assert f"`{one.path}`" in page and f"`{one.variable}`" in page


@pytest.mark.parametrize("table", ["gateway", "node"])
def test_every_setting_is_an_option_with_its_help(table: str) -> None:
    shown = " ".join(click.testing.CliRunner().invoke(command, [table, "--help"]).output.split())
    for one in describe(TABLES[table]):
        if (table, one.path) in {("gateway", "host"), ("gateway", "port"), ("node", "name")}:
            continue  # these are `--listen HOST:PORT` and the argument NAME
        assert f" {one.flag} " in shown, one.flag
        assert one.variable in shown and one.help.split(";")[0] in shown, one.path


def said(cls: type) -> str:
    """A class's own docstring, "" where it has none: dataclasses make one up from their fields."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def test_every_message_and_record_is_documented() -> None:
    page = reference("protocol")
    records = [value for value in vars(messages).values() if inspect.isclass(value) and hasattr(value, "__dataclass_fields__")]
    for cls in [*MESSAGES.values(), *records]:
        text = said(cls)
        assert len(text) > 10, f"{cls.__name__} has no docstring"
        assert text.splitlines()[0] in page, cls.__name__
    for tag, cls in MESSAGES.items():
        assert f"### `{tag}` ({cls.__name__})" in page
        assert issubclass(cls, Message)


def test_every_error_is_documented() -> None:
    page = reference("errors")
    for cls in BY_CODE.values():
        assert len(said(cls)) > 15, f"{cls.__name__} has no docstring"
        assert len(cls.__dict__.get("advice", "")) > 15, f"{cls.__name__} does not say what to do"
        assert f"## {cls.__name__}\n\nCode `{cls.code}`" in page
        assert cls.advice in page and said(cls).splitlines()[0] in page


def test_every_metric_is_documented() -> None:
    page = reference("metrics")
    for name, metric in METRICS.items():
        assert len(metric.text) > 10, name
        assert f"| `{name}` | {metric.kind} |" in page


def test_every_operation_is_documented() -> None:
    page = reference("ops")
    assert [op.name for op in OPS.values() if f"`{op.base}`" not in page] == []


def test_every_function_on_secrets_is_documented() -> None:
    page = reference("secure-ops")
    for name, op in SECURE_OPS.items():
        text = inspect.getdoc(op.function) or ""
        assert len(text) > 15 and "round" in text.lower(), f"{name} does not say how many rounds it takes"
        assert f"| `{name}` | {op.summary.replace('|', chr(92) + '|')} |" in page, name


def all_commands(group: click.Group, words: str) -> Iterator[tuple[str, click.Command]]:
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from all_commands(one, f"{words} {name}")
        else:
            yield f"{words} {name}", one


COMMANDS = dict(all_commands(command, "grid"))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_and_option_is_documented(words: str) -> None:
    one = COMMANDS[words]
    page = reference("commands")
    assert one.help and len(one.help) > 40
    section = page.partition(f"## {words}\n")[2].partition("\n## ")[0]
    assert one.help.split("\n")[0].strip() in section
    for part in one.params:
        if isinstance(part, click.Option) and not part.hidden:
            assert part.help and len(part.help) > 5, f"{words} {part.opts[0]} has no help text"
            assert f"`{part.opts[0]}`" in section, part.opts[0]
    assert all(f"| {code} | {text} |" in page for code, text in EXIT_CODES.items())


@pytest.mark.parametrize("name", sorted(set(grid.EXPORTS) - set(grid.ERRORS)))
def test_every_exported_name_is_documented(name: str) -> None:
    value = getattr(grid, name)
    assert name in dir(grid) and name in grid.__all__
    text = inspect.cleandoc(value.__doc__ or "")
    assert len(text) > 20, f"grid.{name} has no docstring"
    assert f"## grid.{name}\n" in reference("python") and text.split("\n")[0] in reference("python")


def test_every_member_of_what_calls_give_is_documented() -> None:
    maker = loaded(DOCS / "pages" / "python.py")
    page = reference("python")
    for title, (cls, _) in maker.GIVEN.items():
        section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
        for name, value in maker.members(cls):
            assert value.__doc__, f"{cls.__name__}.{name} has no docstring"
            assert re.search(rf"^- `{name}[`(]", section, re.MULTILINE), f"{cls.__name__}.{name}"


def test_every_error_is_exported() -> None:
    from grid import errors

    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert set(grid.ERRORS) == classes
    assert all(getattr(grid, name) is vars(errors)[name] for name in classes)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'conect'; it has .*connect"):
        grid.conect  # noqa: B018


# ---------------------------------------------------------------- what pages show


def commands_shown(text: str) -> set[tuple[str, ...]]:
    """`grid ...` lines of code blocks and code spans, up to the first option or argument that is no command."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if language in ("", "sh")] + re.findall(r"`(grid [^`]+)`", text)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    found = set()
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["grid"] and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            found.add(tuple(words[1:]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_the_documents_exist(page: Path) -> None:
    for words in commands_shown(page.read_text(encoding="utf-8")):
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
    shown = {words[0] for words in commands_shown((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {"gateway", "node", "root", "enroll"} <= shown


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def prose(text: str) -> str:
    """A page without its blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as the usual hosts of Markdown make them."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        base = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        name, number = base, 0
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.add(name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue  # another site: tests ask nobody
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {link}: there is no such file"
        assert file.is_relative_to(ROOT), f"{page.name}: {link} leads out of the repository"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {link}: no such heading; there are {sorted(anchors(file))}"


def test_the_index_leads_to_every_page() -> None:
    linked = {
        (DOCS / link.partition("#")[0]).resolve()
        for link in re.findall(r"\]\(([^)\s]+)\)", (DOCS / "index.md").read_text(encoding="utf-8"))
    }
    pages = {page for page in DOCS.rglob("*.md") if page.name != "index.md"}
    assert pages <= linked, f"docs/index.md does not lead to {sorted(page.name for page in pages - linked)}"


def test_import_and_help_start_without_torch() -> None:
    code = (
        "import sys, grid\n"
        "from grid.cli import main\n"
        "for words in (['--help'], ['gateway', '--help'], ['node', '--help'], ['demo', '--help'], ['ls', '--help']):\n"
        "    main(words, standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'pandas', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, f'heavy imports at the start: {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
