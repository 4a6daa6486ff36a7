"""The tutorials run as they stand, and print what they say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import page_run
import pytest

from grid.node.descriptions import _COLUMN as COLUMN_KEYS
from grid.node.descriptions import MISSING_RULES
from grid.policy.rules import PLANS, RELEASES, Policy

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "tutorial").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tutorial_runs_and_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page_run.check(page)


def test_the_notebook_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page_run.check(DOCS / "how-to" / "use-from-a-notebook.md")


POLICY_PAGE = DOCS / "how-to" / "write-a-policy.md"


def test_the_policy_page_runs_on_the_description_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (description, *_) = re.findall(r"^```toml\n(.*?)^```", POLICY_PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    data = tmp_path / "data"
    data.mkdir()
    (data / "patients.toml").write_text(description, encoding="utf-8")
    rows = ["age,pressure,housing,ill", *(f"{30 + row},,own,{row % 2}" for row in range(20)), "80,150,,1"]
    (data / "patients.csv").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    page_run.check(POLICY_PAGE)


def test_the_policy_page_explains_every_key_and_every_choice() -> None:
    headings = re.findall(r"^### (.+)$", POLICY_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    explained = {key for heading in headings for key in re.findall(r"`(\w+)`", heading)}
    assert explained == {*(field.name for field in dataclasses.fields(Policy)), *COLUMN_KEYS}
    text = POLICY_PAGE.read_text(encoding="utf-8")
    for choice in (*RELEASES, *PLANS, *MISSING_RULES):
        assert f'| `"{choice}"` |' in text, choice


def test_each_tutorial_has_a_number_of_its_own() -> None:
    numbers = [int(page.name.partition("-")[0]) for page in PAGES]
    assert len(set(numbers)) == len(PAGES)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```python\n1 + 1\n```\n\n```text\n3\n```\n", "the page shows"),
        ("```python\nprint('odd')\n```\n", "does not show"),
        ("```python raises\nx = 1\n```\n", "was to raise"),
        ("```python\nimport grid\nraise grid.NotFound('no')\n```\n", "no"),
    ],
)
def test_a_page_that_says_what_is_not_so_is_found(text: str, fault: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(Exception, match=fault):
        page_run.check(page)
