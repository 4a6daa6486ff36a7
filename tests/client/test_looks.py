"""What objects look like, in a terminal and in a notebook: what, where, shape, dtype; no values, no round trip, no script."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

import grid
from grid.client.datasets import Dataset, Datasets
from grid.client.nodes import Node, Nodes, Roster
from grid.display import MAX_SHOWN, html, printable, text_table
from grid.errors import LocalProtocolError, from_wire
from grid.ids import PeerId
from grid.testing import LocalGrid
from grid.wire.messages import ColumnCard, DatasetCard, NodeCard, PolicyCard

SECRET = 1234.5
ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[31m\u202e"


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    frame = pandas.DataFrame({"age": [SECRET] * 40, "ill": [0, 1] * 20})
    with LocalGrid(nodes={"alice": {"patients": frame}, "bob": {}}) as running:
        yield running


@pytest.fixture(scope="module")
def g(local: LocalGrid) -> Any:
    return local.client()


def shown(g: Any) -> dict[str, Any]:
    """One of each kind of thing that a notebook may end a cell with."""
    alice = g.nodes["alice"]
    ds = alice.datasets["patients"]

    @grid.plan
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    double(ds.features)
    denied = grid.ReleaseDenied("rows do not leave", rule="rows", instead=".sum(0)")
    return {
        "client": g, "nodes": g.nodes, "node": alice, "datasets": alice.datasets, "search": g.search(), "dataset": ds,
        "features": ds.features, "column": ds["age"], "result": ds.features.sum(0), "policy": ds.policy, "mock": ds.mock,
        "module": alice.send(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))),
        "parameter": alice.send(torch.nn.Linear(4, 2)).weight,
        "traced": double, "plan": double.trace_for(ds.features), "error": denied,
    }  # fmt: skip


TEXTS = {
    "client": r"<Client client-\d+: 2 nodes>",
    "nodes": r"2 nodes\n  name   state   datasets  id\n  alice  online  1         \w{26}\n  bob    online  0         \w{26}",
    "node": r"<Node alice \(online\): 1 dataset>",
    "datasets": r"1 dataset\n  node   dataset   rows  columns  may leave\n  alice  patients  40    2        aggregates of 10 .*",
    "search": r"1 dataset\n(.|\n)*",
    "dataset": r"<Dataset patients at alice: 40 rows, 2 columns>",
    "features": r"RemoteTensor\(shape=\(40, 2\), dtype=float32, at='alice', of='patients.features', rows='dimension 0'\)",
    "column": r"RemoteTensor\(shape=\(40,\), dtype=float32, at='alice', of='patients.age', rows='dimension 0'\)",
    "result": r"RemoteTensor\(shape=\(2,\), dtype=float32, at='alice'\)",
    "policy": r"PolicyCard\(release='aggregate', .*min_rows=10.*\)",
    "mock": r"Made-up rows(.|\n)*age(.|\n)*",
    "module": r"Sequential\((.|\n)*\) at 'alice'",
    "parameter": r"Parameter containing: RemoteTensor\(shape=\(2, 4\), dtype=float32, at='alice', requires_grad=True\)",
    "traced": r"<grid.plan double: 1 plan traced>",
    "plan": r"<Plan double \w{12}: 1 input, 1 step>",
    "error": r"ReleaseDenied\('rows do not leave'\)",
}


class Page(HTMLParser):
    """Reads HTML strictly: every tag is closed in order, and of a kind that only shows text."""

    ALLOWED = frozenset({"div", "span", "b", "table", "tr", "td", "th", "pre", "thead", "tbody", "style", "p"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.ALLOWED, tag
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs), attrs
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_kind_of_thing_has_a_text_and_a_card_and_neither_asks_anybody(g: Any) -> None:
    things = shown(g)
    assert set(things) == set(TEXTS)
    g.drained()
    things["features"].sum().get()  # whatever was queued has arrived
    before = g.bytes_sent
    for name, thing in things.items():
        text, page = repr(thing), Page(thing._repr_html_()).text
        assert re.fullmatch(TEXTS[name], text), text
        assert len(page.strip()) > 10 and f"{SECRET:g}" not in text + page, name
    assert g.bytes_sent - before < 2000, "a look at something went over the network"


def test_the_cards_say_what_matters(g: Any) -> None:
    pages = {name: Page(thing._repr_html_()).text for name, thing in shown(g).items()}
    for name, words in {
        "nodes": ("alice", "online", "bob"),
        "dataset": ("patients", "dataset at alice", "40", "aggregates of 10 rows or more", "age", "feature", "number"),
        "features": ("(40, 2) float32", "remote tensor at alice", "patients.features", "dimension 0"),
        "module": ("0.weight", "(2, 4)", "1.running_mean"),
        "plan": ("double", "x * 2"),
        "error": ("ReleaseDenied", "rows do not leave", "rule", ".sum(0)"),
        "mock": ("Made-up rows", "age"),
        "policy": ("min_rows", "10", "plans", "any"),
    }.items():
        assert all(word in pages[name] for word in words), (name, pages[name])


def hostile() -> Dataset:
    columns = (ColumnCard(name=ATTACK, kind="category", role="feature", categories=(ATTACK,)),)
    policy = PolicyCard(release="aggregate", plans="any", min_rows=10, max_elements=9, sinks=(ATTACK,))
    card = DatasetCard(
        name=ATTACK, description=ATTACK, tags=(ATTACK,), rows=40, columns=columns, policy=policy,
        feature_names=(f"{ATTACK}={ATTACK}",), feature_shape=(1,), feature_dtype="f4", target_shape=(), target_dtype="",
        classes=0,
    )  # fmt: skip
    roster = Roster(lambda node: pytest.fail("a look at something opened a session"), lambda places: None)
    facts: dict[str, Any] = dict(id=PeerId("x" * 26), state="online", address="", card=b"", datasets=(card,))
    roster.update((NodeCard(name=ATTACK, organisation=ATTACK, **facts),))
    return Dataset(roster.find(ATTACK), card)


def test_names_from_other_people_are_only_text() -> None:
    ds = hostile()
    node = ds.node
    assert isinstance(node, Node)
    nodes = Nodes(node._roster, lambda: None)
    error = grid.ReleaseDenied(ATTACK, rule=ATTACK, instead=ATTACK)
    for thing in (ds, node, nodes, Datasets([ds]), node.datasets, ds.policy, error):
        page = thing._repr_html_()
        assert not any(part in page for part in ("<script", "<img", "\x1b", "\u202e"))
        assert "<script>alert(1)</script>" in Page(page).text, "it is shown as it is written"
        if thing is not error:
            assert "\x1b" not in repr(thing) and "\u202e" not in repr(thing), thing
    plan = grid.trace(lambda x: x + 1, torch.ones(2))
    object.__setattr__(plan, "name", ATTACK)
    assert "<script" not in plan._repr_html_()
    mock = hostile().mock
    assert "<script" not in mock._repr_html_() and "\x1b" not in mock._repr_html_() + repr(mock)


def test_tables_are_cut_and_lines_stay_lines() -> None:
    rows = [(f"n{number}", "") for number in range(MAX_SHOWN + 5)]
    text = text_table("nodes", ("name", "organisation"), rows)
    assert text.splitlines()[1].strip() == "name" and text.splitlines()[-1].strip() == "and 5 more"
    page = Page(html("nodes", columns=("name", "organisation"), rows=rows)).text
    assert "and 5 more" in page and "organisation" not in page
    assert printable("a\nb\x00") == "a\\nb\\x00" and len(printable("x" * 500)) == 200


def test_a_refusal_shows_rule_and_way_out_in_a_terminal(g: Any) -> None:
    import traceback

    ds = g.nodes["alice"].datasets["patients"]
    with pytest.raises(grid.ReleaseDenied) as caught:
        ds.features.get()
    lines = traceback.format_exception(caught.value)
    assert "    rule:    rows\n" in lines and any(line.startswith("    instead: reduce that dimension") for line in lines)
    again = from_wire("release-denied", "no", {"rule": "rows", "instead": "a sum", "self": "odd", "message": "odd"})
    assert again.__notes__ == ["    rule:    rows", "    instead: a sum"]


def test_a_notebook_shows_the_users_lines_and_not_ours(g: Any) -> None:
    ds = g.nodes["alice"].datasets["patients"]
    with pytest.raises(grid.ReleaseDenied) as caught:
        ds.features.get()
    text = "\n".join(caught.value._render_traceback_())
    assert "test_looks.py" in text and "ds.features.get()" in text and "blocking.py" not in text
    assert re.search(r"ReleaseDenied\S*: dataset 'patients'.*\n    rule:    rows", text) and "instead: reduce" in text
    assert "Traceback" not in text and f"{SECRET:g}" not in text
    with pytest.raises(LocalProtocolError) as bug:
        raise from_wire("local-protocol", "a bug of ours", {})
    assert "test_looks.py" in "\n".join(bug.value._render_traceback_())


NOTEBOOK = """
import asyncio, torch, grid
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.user_ns["shown"] = []
cells = [
    "import torch, grid\\nlocal = grid.testing.LocalGrid(nodes={'alice': {'t': {'features': torch.ones(40, 3)}}}).__enter__()",
    "g = local.client()\\nds = g.search()[0]\\nimport asyncio; asyncio.get_running_loop()",
    "shown.append(get_ipython().display_formatter.format(ds)[0]['text/html'])",
    "assert ds.features.sum(0).get().tolist() == [40.0] * 3",
    "ds.features.get()",
    "local.__exit__(None, None, None)",
]
async def notebook():
    for cell in cells:
        await shell.run_cell_async(cell, store_history=True, transformed_cell=shell.transform_cell(cell))
asyncio.run(notebook())
assert 'dataset at alice' in shell.user_ns['shown'][0]
"""


def test_in_ipython_inside_a_running_loop(tmp_path: Path) -> None:
    """Cards are found, blocking calls work, a refusal is short: in the shell that notebooks use."""
    pytest.importorskip("IPython")
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK)
    environment = {"IPYTHONDIR": str(tmp_path), "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ds.features.get()" in done.stdout and "rule:    rows" in done.stdout and "blocking.py" not in done.stdout
